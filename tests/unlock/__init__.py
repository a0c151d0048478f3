"""Tests of unlock/: what a person has, and what it opens."""
