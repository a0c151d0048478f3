"""Three Syncthing nodes, each with a mount of its copy of one vault, and programs that edit all of them."""
