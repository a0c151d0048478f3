"""Processes that are killed, power that goes, disks that refuse: what is left then."""
