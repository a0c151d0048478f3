"""The tests of cryptfs."""
