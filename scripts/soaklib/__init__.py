"""What scripts/soak runs."""
