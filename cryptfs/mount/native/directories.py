"""Open directories: READDIR and READDIRPLUS with offsets that stay right while entries come and go.

The offset of an entry is the backing directory's own cookie, so that seekdir and telldir work as there,
and nothing is kept but what one system call returned.
"""

from __future__ import annotations

import ctypes
import logging
import os
import struct
from collections.abc import Callable

from cryptfs.core.names import INTERNAL_PREFIX, LONG_PREFIX, SIDECAR_SUFFIX
from cryptfs.errors import NameError_
from cryptfs.mount.native import structs
from cryptfs.mount.native.nodes import Node
from cryptfs.storage.dirs import open_for_listing
from cryptfs.vfs.attributes import Attributes
from cryptfs.vfs.directory import Directory
from cryptfs.vfs.tree import VaultTree

log = logging.getLogger(__name__)

EntryOut = Callable[[Node, bytes, Attributes], tuple[Node, bytes]]

_BUFFER_SIZE = 64 * 1024
_RECORD = struct.Struct("=QqHB")  # d_ino d_off d_reclen d_type
_NO_ENTRY = bytes(structs.ENTRY_OUT.size + structs.ATTR.size)

_libc = ctypes.CDLL(None, use_errno=True)
