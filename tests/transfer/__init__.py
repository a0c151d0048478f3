"""Work in a vault without a mount."""
