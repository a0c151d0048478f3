"""When a mount goes by itself, what runs before that, and what is left in its place."""
