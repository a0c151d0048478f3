"""Random work on the vfs against a model that cannot be wrong."""
