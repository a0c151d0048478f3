"""The pure core: bytes in, bytes out. No os, no threads, no clock, no logging, no randomness of its own."""
