"""The engine on the Linux kernel's own FUSE protocol, spoken on /dev/fuse."""
