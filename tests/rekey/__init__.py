"""Tests of a change of the masterkey."""
