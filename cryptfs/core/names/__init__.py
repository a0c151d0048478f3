"""Names in a vault: cipher names, names of conflict copies, names of one machine's files."""
