"""What a daemon asks of the system for its process: descriptors, and how memory is handed back."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource

_M_MMAP_THRESHOLD = -3  # mallopt(3), malloc.h of glibc
_M_ARENA_MAX = -8
_LARGE_BLOCK = 128 * 1024  # bytes from which on a block is a mapping of its own: given back when it is freed
_ARENAS = 2


def claim_resources() -> None:
    """Raise the limit of open descriptors as far as that goes, and keep freed memory from piling up.

    The usual soft limit of 1024 is for programs that use select(2); every file that is open on the mount
    takes one descriptor here, two at times.

    glibc learns from the first large block that is freed to keep such blocks, and keeps them for each of
    its arenas, as many as 16 on two processors: 400 MiB of nothing were seen. Fixed thresholds end that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def release_memory() -> None:
    """Give back to the system what the C library holds unused."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def descriptor_limit() -> int:
    """How many descriptors this process may have open."""
    return os.sysconf("SC_OPEN_MAX")
