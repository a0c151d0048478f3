"""Imports mfusepy with libfuse 3 under it, and says what to install if that is missing.

mfusepy binds to a libfuse at its import, and prefers version 2; this module asks for version 3.
FUSE_LIBRARY_PATH in the environment names another file of it. Import mfusepy from here only.
"""

from __future__ import annotations

import os

from cryptfs.errors import MountError

CAP_WRITEBACK_CACHE = 1 << 16
CAP_SPLICE = 1 << 7 | 1 << 8 | 1 << 9  # write, move, read
CAP_ASYNC_DIO = 1 << 15


def _unusable(why: object) -> MountError:
    return MountError(f"libfuse 3 cannot be used ({why}). Install the package fuse3: apt-get install fuse3")


os.environ["FUSE_LIBRARY_NAME"] = "fuse3"  # mfusepy looks nowhere else

try:
    import mfusepy
except (OSError, AttributeError) as error:
    raise _unusable(error) from None

if mfusepy.fuse_version_major != 3:
    raise _unusable(f"mfusepy has loaded version {mfusepy.fuse_version_major}.{mfusepy.fuse_version_minor}")

__all__ = ["mfusepy"]
