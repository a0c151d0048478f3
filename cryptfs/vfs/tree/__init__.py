"""Where a name is: directories and entries, links, extended attributes, who may do what."""
