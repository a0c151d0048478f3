"""The plaintext filesystem: names, open files, the data path. Knows nothing of FUSE."""
