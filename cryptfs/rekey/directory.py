"""One directory of the vault on its way to the new masterkey."""

from __future__ import annotations

import contextlib
import os
import stat

from cryptfs.core.names.dirrecord import DirectoryRecord
from cryptfs.core.names.names import siv_of
from cryptfs.core.printable import shown
from cryptfs.rekey.both import BothKeys, Located
from cryptfs.rekey.memory import LinkMemory
from cryptfs.storage.dirs import open_directory


class Dir:
    """A directory, open as long as something in it is under way.

    entry_name, located: its name in the parent; None for the root.
    old_dir_id, new_dir_id: they differ for the root alone.
    record: of the directory; None for the root.   is_new: whether that verified under the new masterkey.
    pending: changes in it that are not over, its listing counted as one.
    sidecars: the ones that were there.
    """

    __slots__ = (
        *("_memory", "cipher_path", "entry_name", "fd", "inode", "is_new", "located", "names"),
        *("new_dir_id", "old_dir_id", "parent", "pending", "record", "sidecars"),
    )

    def __init__(
        self,
        both: BothKeys,
        memory: LinkMemory,
        fd: int,
        parent: Dir | None,
        entry_name: str,
        located: Located | None,
        record: DirectoryRecord | None,
        *,
        is_new: bool,
    ) -> None:
        self.fd = fd
        self.parent = parent
        self.entry_name = entry_name
        self.located = located
        self.record = record
        self.is_new = is_new
        self.old_dir_id = both.old.keys.root_dir_id if record is None else record.dir_id
        self.new_dir_id = both.new.keys.root_dir_id if record is None else record.dir_id
        self.names = both.names_in(self.old_dir_id, self.new_dir_id)
        self.cipher_path = parent.path_of(entry_name) if parent is not None else ""
        self.inode = os.fstat(fd).st_ino
        self.pending = 1
        self.sidecars: list[str] = []
        self._memory = memory

    @classmethod
    def root(cls, both: BothKeys, memory: LinkMemory) -> Dir:
        """The root, which has no record."""
        return cls(both, memory, open_directory(both.vault_fd, "."), None, "", None, None, is_new=True)

    @property
    def is_root(self) -> bool:
        """Whether it is the vault directory."""
        return self.parent is None

    def path_of(self, entry_name: str) -> str:
        """The cipher path of an entry, for messages."""
        name = shown(entry_name)
        return f"{self.cipher_path}/{name}" if self.cipher_path else name

    def holds(self, entry_name: str) -> bool:
        """Whether there is an entry of this name. Raises: OSError."""
        try:
            os.stat(entry_name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def begin(self) -> None:
        """Before a change in it: remember its mode and times, and let its owner write."""
        st = os.fstat(self.fd)
        self._memory.directory(st)
        give_rights(self.fd, st)

    def end(self) -> None:
        """When all changes in it are over: mode and times are as before."""
        if self._memory.knows(self.inode):
            self._memory.directory(os.fstat(self.fd)).restore(self.fd)
            self._memory.forget_directory(self.inode)

    def close(self) -> None:
        """The last use."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # the latter: an interrupt came before it had one
            self.close()


def give_rights(fd: int, st: os.stat_result) -> None:
    """Let the owner read, write and search a directory, if that is us and not root."""
    mode = stat.S_IMODE(st.st_mode)
    if mode & stat.S_IRWXU != stat.S_IRWXU and st.st_uid == os.geteuid() != 0:
        os.chmod(f"/proc/self/fd/{fd}", mode | stat.S_IRWXU)


def places_of(parent: Dir, found: Located) -> tuple[bytes, bytes]:
    """The place of a directory under both masterkeys, as records have it: (old, new).

    If the name is new, the old place is unknown, and empty.
    """
    new = parent.new_dir_id + siv_of(parent.names.new_cipher_name(found))
    old = b"" if found.is_new else parent.old_dir_id + siv_of(found.cipher_name)
    return old, new
