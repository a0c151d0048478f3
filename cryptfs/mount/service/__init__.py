"""What a mount tells the system around it: that it is ready, and what it finds."""
