"""The engine on libfuse: a FUSE operations class by path, and the parts that it needs."""
