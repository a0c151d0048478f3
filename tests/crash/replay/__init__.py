"""The redo log, and what the next program does with what a dead one left."""
