"""Disks that are full or refuse, and daemons that have too little of something."""
