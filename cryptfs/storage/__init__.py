"""The disk. Everything here sees ciphertext only."""
