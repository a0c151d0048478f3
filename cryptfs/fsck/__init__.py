"""Check whether a vault is whole, and repair it."""
