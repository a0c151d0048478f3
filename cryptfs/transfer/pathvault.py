"""A vault as programs use it: by path, without a mount. Each method is like its namesake in `os`.

    with cryptfs.Vault.unlock("vault", passphrase) as vault:
        with vault.open("a/b.txt", "w") as file:
            file.write("text")

Paths are below the root of the vault, with or without a slash before them. Every error of a file is an
OSError with the path; see `fileio.errors_of`. Ctrl-C stops none half-way; see `fileio.WholeOperation`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, AnyStr, Generic, Self

from cryptfs.signals import Undisturbed
from cryptfs.storage.libc import RENAME_NOREPLACE, os_error
from cryptfs.transfer.fileio import (
    Name,
    OpenFiles,
    VaultFile,
    WholeOperation,
    errors_of,
    flags_of,
    plain_stat,
    wrapped,
)
from cryptfs.transfer.places import AnyPath, Found, Places
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import DEFAULT_DURABILITY, Durability
from cryptfs.vfs.tree.acls import Acls
from cryptfs.vfs.tree.attributes import backing_stat, change_mode
from cryptfs.vfs.tree.directory import SELF
from cryptfs.vfs.tree.privileges import Privileges
from cryptfs.vfs.tree.tree import Entry
from cryptfs.vfs.tree.xattrs import ACL_NAMES
from cryptfs.vfs.vault import Vault


class VaultEntry(Generic[AnyStr]):
    """One entry of a directory, as os.DirEntry."""

    def __init__(self, vault: PathVault, entry: Entry, name: AnyStr, path: AnyStr) -> None:
        self._vault = vault
        self._entry = entry
        self.name: AnyStr = name
        self.path: AnyStr = path

    def __repr__(self) -> str:
        return f"<VaultEntry {self.name!r}>"

    def __fspath__(self) -> AnyStr:
        return self.path

    def inode(self) -> int:
        """The number of its inode."""
        return self._entry.inode

    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self._entry.kind)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory, or by default a symlink to one."""
        return self._is(stat.S_ISDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or by default a symlink to one."""
        return self._is(stat.S_ISREG, follow_symlinks)

    def _is(self, asked: Callable[[int], bool], follow: bool) -> bool:
        if not (follow and self.is_symlink()):
            return asked(self._entry.kind)
        try:
            return asked(self._vault.stat(self.path).st_mode)
        except FileNotFoundError:
            return False

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Its attributes."""
        return self._vault.stat(self.path, follow_symlinks=follow_symlinks)


class PathVault(Vault):
    """An unlocked vault; `cryptfs.Vault` is this class.

    Close it when done, or use it in a with statement. Safe from many threads.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.places = Places(self.tree)
        self.tree.xattrs.supports_acls = True
        self.acls = Acls(self.tree)
        self.privileges = Privileges(self.tree, self.acls, xattrs=True)
        self._files = OpenFiles()

    @classmethod
    def unlock(
        cls,
        vault_dir: Path | str,
        secret: bytes | Offer,
        *,
        read_only: bool = False,
        lock: bool = True,
        durability: Durability = DEFAULT_DURABILITY,
        start: bool = True,
    ) -> Self:
        """Unlock a vault for this process, and start its threads: so do not fork afterwards.

        Read-only, several processes can have it. Otherwise this one has it alone, and no mount has it.

        Args: start: False starts no threads: `start` does, after forks.
        Others and raises: as the method of the base class.
        """
        opened = super().unlock(
            Path(vault_dir), secret, read_only=read_only, lock=lock, durability=durability
        )
        if lock and start:
            with Undisturbed(returns=True):  # else nobody has it, and it keeps its lock
                opened.start()
        return opened

    def close(self) -> None:
        """Flush and close open files, settle everything, wipe keys, release the lock. Idempotent.

        Raises: OSError: a file could not be written; everything is closed all the same.
        """
        with Undisturbed(), contextlib.ExitStack() as stack:
            stack.callback(super().close)
            stack.callback(self.places.forget)
            # The last is closed first: buffers before the files that they write to.
            for file in sorted(self._files, key=lambda file: not isinstance(file, VaultFile)):
                stack.callback(file.close)

    # ---- files

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file. All arguments are as in open(), and so is the object.

        Raises: OSError.   ValueError: the arguments contradict each other.
        """
        flags = flags_of(mode)
        name = os.fspath(path)
        with WholeOperation(name):
            found = self.places.find(path, follow=not flags & os.O_EXCL)
            file = wrapped(self.open_found(found, name, flags), mode, buffering, encoding, errors, newline)
            self._files.add(file)
        return file

    def open_found(self, found: Found, name: Name, flags: int = os.O_RDONLY) -> VaultFile:
        """Open the file at a place, without a buffer. name: the path, for messages.   flags: of open(2)."""
        with WholeOperation(name):
            raw = VaultFile(self.tree, self._opened(found, flags), name, flags, self._written)
            self._files.add(raw)  # type: ignore[arg-type]
        return raw

    def _opened(self, found: Found, flags: int) -> OpenFile:
        if flags & os.O_CREAT and found.name != SELF:
            inherited = self.acls.inherited(found.directory, stat.S_IFREG | 0o666)
            mode = 0o666 if inherited is None else inherited.mode
            try:
                file = self.tree.create(*found, flags | os.O_EXCL, stat.S_IMODE(mode))
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
            else:
                if inherited is not None:
                    change_mode(*found, stat.S_IMODE(mode))  # without the umask of this process
                    self.acls.give(*found, inherited)
                return file
        kind = stat.S_IFMT(self.tree.stat(*found).st.st_mode)
        if kind == stat.S_IFDIR:
            raise os_error(errno.EISDIR)
        if kind not in (stat.S_IFREG, stat.S_IFLNK):
            raise os_error(errno.ENXIO)
        return self.tree.open(*found, flags & (os.O_ACCMODE | os.O_TRUNC))

    def _written(self, file: OpenFile) -> None:
        self.privileges.written(file.state, kill=os.geteuid() != 0)

    def truncate(self, path: AnyPath, length: int) -> None:
        """As os.truncate."""
        with self.open(path, "r+b", buffering=0) as file:
            file.truncate(length)

    # ---- looking

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """As os.stat."""
        with WholeOperation(os.fspath(path)):
            found = self.places.find(path, follow=follow_symlinks)
            return plain_stat(*self.tree.stat(*found)[:2])

    def lstat(self, path: AnyPath) -> os.stat_result:
        """As os.lstat."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: AnyPath) -> bool:
        """Whether there is something, as os.path.exists."""
        return self._kind(path) is not None

    def is_dir(self, path: AnyPath) -> bool:
        """As os.path.isdir."""
        return self._kind(path) == stat.S_IFDIR

    def is_file(self, path: AnyPath) -> bool:
        """As os.path.isfile."""
        return self._kind(path) == stat.S_IFREG

    def _kind(self, path: AnyPath) -> int | None:
        try:
            return stat.S_IFMT(self.stat(path).st_mode)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                return None
            raise

    def readlink(self, path: AnyPath) -> Name:
        """As os.readlink."""
        name = os.fspath(path)
        with WholeOperation(name):
            target = self.tree.symlinks.read(*self.places.find(path, follow=False))
        return target if isinstance(name, bytes) else os.fsdecode(target)

    def scandir(self, path: AnyPath = "") -> Iterator[VaultEntry[Any]]:
        """The entries of a directory, as os.scandir.

        It leaves out an entry whose name does not authenticate, with a warning in the log, as a mount does.
        """
        top: Any = os.fspath(path)
        with WholeOperation(top):
            directory = self.places.directory(path)
        with errors_of(top):
            found = list(self.tree.list(directory))
        for entry in found:
            name = entry.name if isinstance(top, bytes) else os.fsdecode(entry.name)
            yield VaultEntry(self, entry, name, os.path.join(top, name))

    def listdir(self, path: AnyPath = "") -> list[Any]:
        """As os.listdir; leaves out what scandir leaves out."""
        return [entry.name for entry in self.scandir(path)]

    def walk(
        self,
        top: AnyPath = "",
        topdown: bool = True,
        onerror: Callable[[OSError], object] | None = None,
        followlinks: bool = False,
    ) -> Iterator[tuple[Any, list[Any], list[Any]]]:
        """As os.walk: (path of a directory, names of directories in it, names of everything else)."""
        waiting: list[Any] = [os.fspath(top)]
        while waiting:
            here = waiting.pop()
            if isinstance(here, tuple):
                yield here
                continue
            directories: list[Any] = []
            others: list[Any] = []
            below: list[Any] = []
            try:
                for entry in self.scandir(here):
                    if not _leads_on(entry):
                        others.append(entry.name)
                        continue
                    directories.append(entry.name)
                    if followlinks or not entry.is_symlink():
                        below.append(entry.name)
            except OSError as error:
                if onerror is not None:
                    onerror(error)
                continue
            if topdown:
                yield here, directories, others  # the caller may take some of them away
                below = [name for name in below if name in directories]
            else:
                waiting.append((here, directories, others))
            waiting += [os.path.join(here, name) for name in reversed(below)]

    def getxattr(self, path: AnyPath, attribute: AnyPath, *, follow_symlinks: bool = True) -> bytes:
        """As os.getxattr."""
        wanted = os.fsencode(attribute)
        with WholeOperation(os.fspath(path)):
            found = self.places.find(path, follow=follow_symlinks)
            if wanted in ACL_NAMES:
                return self.acls.get(*found, wanted)
            return self.tree.xattrs.get(*found, wanted)

    def listxattr(self, path: AnyPath = "", *, follow_symlinks: bool = True) -> list[str]:
        """As os.listxattr."""
        with WholeOperation(os.fspath(path)):
            names = self.tree.xattrs.list(*self.places.find(path, follow=follow_symlinks))
        return [os.fsdecode(name) for name in names]

    # ---- changing

    def mkdir(self, path: AnyPath, mode: int = 0o777) -> None:
        """As os.mkdir."""
        with WholeOperation(os.fspath(path)):
            directory, name = self._changing(path)
            inherited = self.acls.inherited(directory, stat.S_IFDIR | mode)
            wanted = mode & ~process_umask() if inherited is None else inherited.mode
            self.tree.make_directory(directory, name, wanted)
            if inherited is not None:
                self.acls.give(directory, name, inherited)

    def makedirs(self, path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        """As os.makedirs."""
        whole: Any = os.fspath(path)
        head, tail = os.path.split(whole)
        if not tail:
            head, tail = os.path.split(head)
        if head and tail and not self.exists(head):
            self.makedirs(head, exist_ok=True)
        try:
            self.mkdir(path, mode)
        except OSError:
            if not exist_ok or not self.is_dir(path):
                raise

    def rmdir(self, path: AnyPath) -> None:
        """As os.rmdir."""
        with WholeOperation(os.fspath(path)):
            self.tree.remove_directory(*self._changing(path))

    def unlink(self, path: AnyPath) -> None:
        """As os.unlink; also of a damaged file."""
        with WholeOperation(os.fspath(path)):
            self.tree.unlink(*self._changing(path))

    def rename(self, source: AnyPath, target: AnyPath, *, replace: bool = True) -> None:
        """As os.rename. replace: False is an error (EEXIST) if there is something at the target."""
        with WholeOperation(os.fspath(source)):
            self._rename(source, target, 0 if replace else RENAME_NOREPLACE)
            self.places.forget()  # closes directories: Python drops what is raised during that

    def _rename(self, source: AnyPath, target: AnyPath, flags: int) -> None:
        self.tree.rename(*self._changing(source), *self._changing(target), flags)

    def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """As os.symlink: a new symlink at `path` that says `target`."""
        with WholeOperation(os.fspath(path)):
            self.tree.make_symlink(*self._changing(path), os.fsencode(target))

    def link(self, source: AnyPath, path: AnyPath) -> None:
        """As os.link, which does not follow a symlink at `source` either."""
        with WholeOperation(os.fspath(path)):
            old = self._changing(source)
            self.tree.make_clean(*old)
            self.tree.link(*old, *self._changing(path))

    def chmod(self, path: AnyPath, mode: int) -> None:
        """As os.chmod."""
        with WholeOperation(os.fspath(path)):
            self.privileges.set_mode(self._writable(path, follow=True), mode)

    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """As os.chown."""
        with WholeOperation(os.fspath(path)):
            self.privileges.set_owner(self._writable(path, follow=follow_symlinks), uid, gid)

    def utime(self, path: AnyPath, *, ns: tuple[int, int], follow_symlinks: bool = True) -> None:
        """As os.utime with ns=(atime, mtime)."""
        with WholeOperation(os.fspath(path)):
            times = (*divmod(ns[0], 10**9), *divmod(ns[1], 10**9))
            self.privileges.set_times(self._writable(path, follow=follow_symlinks), times)

    def setxattr(
        self,
        path: AnyPath,
        attribute: AnyPath,
        value: bytes,
        flags: int = 0,
        *,
        follow_symlinks: bool = True,
    ) -> None:
        """As os.setxattr."""
        wanted = os.fsencode(attribute)
        with WholeOperation(os.fspath(path)):
            found = self._writable(path, follow=follow_symlinks)
            if wanted in ACL_NAMES:
                self.acls.set(*found, wanted, value, flags)
            else:
                self.tree.xattrs.set(*found, wanted, value, flags)

    def removexattr(self, path: AnyPath, attribute: AnyPath, *, follow_symlinks: bool = True) -> None:
        """As os.removexattr."""
        wanted = os.fsencode(attribute)
        with WholeOperation(os.fspath(path)):
            found = self._writable(path, follow=follow_symlinks)
            if wanted in ACL_NAMES:
                self.acls.remove(*found, wanted)
            else:
                self.tree.xattrs.remove(*found, wanted)

    def sync(self) -> None:
        """As os.sync, for this vault: what was done is on disk."""
        self.tree.sync_all()

    def _writable(self, path: AnyPath, *, follow: bool) -> Found:
        self.tree.require_writable()
        return self.places.find(path, follow=follow)

    def _changing(self, path: AnyPath) -> Found:
        """The place of an entry that is made, moved or removed. Raises: OSError: EBUSY: it is the root."""
        raw = os.fsencode(path)
        found = self._writable(raw.rstrip(b"/"), follow=False)
        if found.name == SELF:
            error = os_error(errno.EBUSY)
            error.strerror = "it is the root of the vault"
            raise error
        if raw.endswith(b"/"):
            with contextlib.suppress(FileNotFoundError):
                if not stat.S_ISDIR(backing_stat(*found).st_mode):
                    raise os_error(errno.ENOTDIR)
        return found


def _leads_on(entry: VaultEntry[Any]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def process_umask() -> int:
    """The umask of this process; os.umask would have to change it for a moment."""
    with Path("/proc/self/status").open("rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o022
