"""A process dies, or the disk refuses, at each call in turn; and a daemon is killed at any moment."""
