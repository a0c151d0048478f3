"""Detect old versions that somebody restored: keep a snapshot elsewhere, and compare later."""
