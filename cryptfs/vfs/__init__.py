"""The plaintext filesystem: nodes, open files, the data path. Knows nothing of FUSE."""
