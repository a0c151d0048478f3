"""The FUSE edge: engines that turn kernel requests into calls on the vfs."""
