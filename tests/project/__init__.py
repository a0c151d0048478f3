"""Tests of what surrounds the program: its documents, its layers, its package, the bench."""
