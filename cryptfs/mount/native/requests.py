"""What each request does: the kernel's inode protocol on one side, the vfs on the other.

A protocol adapter only. A handler gets the node's number, the request's body and who asks, and returns
the reply's payload; None for no reply. Exceptions become errnos in session.py.
"""

from __future__ import annotations

import errno

from cryptfs.mount.native.entryrequests import EntryHandlers
from cryptfs.mount.native.filerequests import FileHandlers
from cryptfs.mount.native.handlers import Handler
from cryptfs.mount.native.structs import Op
from cryptfs.mount.options import MountOptions
from cryptfs.vfs.vault import Vault


class Requests(EntryHandlers, FileHandlers):
    """The handlers of one mount.

    Args: vault: unlocked.   options: what the mount was asked for.
    """

    def __init__(self, vault: Vault, options: MountOptions) -> None:
        super().__init__(vault, options)
        self.handlers = self._table(xattrs=options.xattrs)
        if options.kernel_checks_permissions:
            del self.handlers[Op.ACCESS]

    def _table(self, *, xattrs: bool) -> dict[int, Handler]:
        table: dict[int, Handler] = {
            Op.LOOKUP: self.lookup, Op.FORGET: self.forget, Op.BATCH_FORGET: self.batch_forget,
            Op.GETATTR: self.getattr, Op.SETATTR: self.setattr, Op.READLINK: self.readlink,
            Op.SYMLINK: self.symlink, Op.MKNOD: self.mknod, Op.MKDIR: self.mkdir, Op.UNLINK: self.unlink,
            Op.RMDIR: self.rmdir, Op.RENAME: self.rename, Op.RENAME2: self.rename2, Op.LINK: self.link,
            Op.OPEN: self.open, Op.CREATE: self.create, Op.TMPFILE: self.tmpfile, Op.READ: self.read,
            Op.WRITE: self.write, Op.RELEASE: self.release, Op.FSYNC: self.fsync, Op.STATFS: self.statfs,
            Op.OPENDIR: self.opendir, Op.READDIR: self.readdir, Op.READDIRPLUS: self.readdirplus,
            Op.RELEASEDIR: self.releasedir, Op.FSYNCDIR: self.fsyncdir, Op.ACCESS: self.access,
            Op.FALLOCATE: self.fallocate, Op.LSEEK: self.lseek, Op.COPY_FILE_RANGE: self.copy_file_range,
            Op.SYNCFS: self.syncfs, Op.STATX: self.statx,
        }  # fmt: skip
        if xattrs:
            table |= {
                Op.GETXATTR: self.getxattr, Op.SETXATTR: self.setxattr, Op.LISTXATTR: self.listxattr,
                Op.REMOVEXATTR: self.removexattr,
            }  # fmt: skip
        return table

    def errno_of_missing(self, nodeid: int) -> int:
        """ENOENT for an entry of a directory, or ESTALE where somebody else has removed that directory."""
        try:
            self.nodes.require_present(self.nodes.get(nodeid))
        except OSError as error:
            return error.errno or errno.ESTALE
        return errno.ENOENT

    def rest(self) -> None:
        """Nobody has asked for anything for a while: keep no memory that is not needed."""
        self._tree.context.buffers.drop()

    def close(self) -> None:
        """After the mount is gone."""
        for handle in self._directories.values():
            handle.close()
        self._directories.clear()
        self.nodes.close()
