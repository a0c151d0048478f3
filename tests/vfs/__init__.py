"""Vaults in a plain directory, without a mount."""
