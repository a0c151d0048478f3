"""cryptfs."""
