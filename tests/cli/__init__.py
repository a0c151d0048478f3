"""The commands, without a mount."""
