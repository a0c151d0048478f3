"""Another masterkey for a vault: everything in it is sealed again, entry by entry. One change at a time."""
