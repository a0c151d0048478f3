"""The two engines and the life of a mount, with a test in the place of the kernel."""
