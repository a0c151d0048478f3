"""Imports mfusepy with the right libfuse under it.

mfusepy binds to a libfuse when it is imported, and prefers version 2; this asks for version 3 first,
unless FUSE_LIBRARY_NAME or FUSE_LIBRARY_PATH in the environment says otherwise. Everybody who needs
mfusepy imports it from here.
"""

from __future__ import annotations

import os
from ctypes.util import find_library

from cryptfs.errors import MountError

CAP_WRITEBACK_CACHE = 1 << 16
CAP_SPLICE = 1 << 7 | 1 << 8 | 1 << 9  # write, move, read
CAP_ASYNC_DIO = 1 << 15

if not os.environ.get("FUSE_LIBRARY_NAME") and not os.environ.get("FUSE_LIBRARY_PATH"):
    os.environ["FUSE_LIBRARY_NAME"] = "fuse3" if find_library("fuse3") else "fuse"

try:
    import mfusepy
except (OSError, AttributeError) as error:
    raise MountError(
        f"libfuse cannot be used ({error}). Install it: apt-get install fuse3 libfuse3-3 "
        "(Fedora, Arch: fuse3; macOS: macFUSE)"
    ) from None

__all__ = ["mfusepy"]
