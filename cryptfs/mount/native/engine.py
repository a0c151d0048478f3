"""The engine: which handler answers which request, and a mount from start to end.

A protocol adapter only. A handler gets a Request and returns the body of the reply, an errno, or None: then
there is no reply, or the answer is deferred (request.py). Exceptions become errnos in connection.py.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cryptfs.mount.life import EngineReady
from cryptfs.mount.native import structs
from cryptfs.mount.native.attributes import AttributeHandlers
from cryptfs.mount.native.connection import Connection
from cryptfs.mount.native.context import MountContext
from cryptfs.mount.native.device import open_mount
from cryptfs.mount.native.directories import DirectoryHandlers
from cryptfs.mount.native.entries import EntryHandlers
from cryptfs.mount.native.files import FileHandlers
from cryptfs.mount.native.node import HandleNumbers
from cryptfs.mount.native.request import Table
from cryptfs.mount.native.xattrs import XattrHandlers
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import MountOptions
from cryptfs.mount.statistics import Statistics
from cryptfs.storage.handles import BackingHandles
from cryptfs.vfs.vault import Vault


def run(vault: Vault, mountpoint: Path, options: MountOptions, on_ready: EngineReady) -> None:
    """Mount a vault and serve it until it is unmounted.

    Args:   mountpoint: absolute.   on_ready: called once, when the engine answers requests.
    Raises: MountError: /dev/fuse, the kernel or fusermount refuse.
    """
    fd = open_mount(options.fsname or str(vault.vault_dir), mountpoint, options)
    requests = Requests(vault, options)
    try:
        connection = Connection(fd, requests, options, lambda: on_ready(requests.statistics))
        connection.negotiate()
        os.set_blocking(fd, False)  # so that one call reads a request or says that there is none
        connection.serve()
    finally:
        os.close(fd)
        requests.close()


class Requests:
    """The handlers of one mount, a table for each subject.

    Args: vault: unlocked.   options: of the mount.
    """

    def __init__(self, vault: Vault, options: MountOptions) -> None:
        self.statistics = Statistics("native", {op: op.name.lower() for op in Op}, self._gauges)
        self._context = context = MountContext(vault.tree, options)
        self.nodes = context.nodes
        self._handles = _backing_handles(context.tree.root.fd)
        self.handles = self._handles is not None
        self._directories = DirectoryHandlers(context)
        self.handlers: Table = {
            **EntryHandlers(context).table,
            **AttributeHandlers(context).table,
            **self._directories.table,
            **FileHandlers(context, self.statistics).table,
        }
        if options.xattrs:
            self.handlers |= XattrHandlers(context).table
        if options.kernel_checks_permissions:
            del self.handlers[Op.ACCESS]

    def _gauges(self) -> dict[str, dict[str, int]]:
        """For Statistics: the present numbers."""
        counts = self.statistics.counts
        misses = self.nodes.opened_directories
        return {
            "open": {
                "files": len(self._context.files),
                "directories": len(self._directories.handles),
                "nodes": len(self.nodes),
            },
            "directory_cache": {
                "hits": max(0, sum(counts[op] for op in structs.BY_NAME) - misses),
                "misses": misses,
            },
        }

    def agreed(self, chosen: structs.Cap) -> None:
        """See Served."""
        self._context.has_long_setxattr = bool(chosen & structs.Cap.SETXATTR_EXT)
        if self._handles is not None and chosen & structs.Cap.EXPORT_SUPPORT:
            self.nodes.numbers = HandleNumbers(self._handles, os.fstat(self._context.tree.root.fd).st_dev)

    def errno_of_missing(self, nodeid: int) -> int:
        """ENOENT for an entry of a directory, or ESTALE if somebody else has removed that directory."""
        try:
            self.nodes.get(nodeid).require_present()
        except OSError as error:
            return error.errno or errno.ESTALE
        return errno.ENOENT

    def rest(self) -> None:
        """No request has come for a while: keep no memory that nobody needs."""
        self._context.tree.context.buffers.drop()

    def close(self) -> None:
        """After the mount is gone."""
        self._directories.close()
        self.nodes.close()
        if self._handles is not None:
            self._handles.close()


def _backing_handles(dir_fd: int) -> BackingHandles | None:
    """For the mounts of root: other users may open no handles, and give none out."""
    if os.geteuid() != 0:
        return None
    try:
        return BackingHandles(dir_fd)
    except OSError:
        return None
