"""Known-answer vectors of format 1, and the generator that makes them without cryptfs."""
