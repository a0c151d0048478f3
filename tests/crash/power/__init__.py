"""The power goes: every state of the disk that it may leave, by a model and under a real ext4."""
