"""Tests that need no mount and no disk."""
