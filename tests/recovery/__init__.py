"""Writers that die, and disks that refuse."""
