"""The pure core: bytes in, bytes out. No os, threads, clock or logging, and no source of randomness."""
