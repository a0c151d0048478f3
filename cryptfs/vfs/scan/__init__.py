"""Reads the tree of ciphertext, authentic or not."""
