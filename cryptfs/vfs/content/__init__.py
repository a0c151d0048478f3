"""Where a byte is: one open file, its state, its chunks, and the way of a change to its place."""
