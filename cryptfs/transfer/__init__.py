"""Work in a vault without a mount: by path, and whole trees into it and out of it."""
