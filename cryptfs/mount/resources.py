"""What a daemon asks of the system for its process, and what it gives back."""

from __future__ import annotations

import contextlib
import ctypes
import resource


def claim_resources() -> None:
    """Raise the limit of open descriptors as far as that goes.

    The usual soft limit of 1024 is for programs that use select(2). Every file and directory that is open
    on the mount takes a descriptor here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def release_memory() -> None:
    """Give back to the system what the C library holds unused."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
