"""Open directories of the vault: a descriptor, a dir_id, and the names below it."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.conflicts import CONFLICT_WORD
from cryptfs.core.names.dirrecord import RECORD_NAME, DirectoryRecord, RecordRules, open_directory_record
from cryptfs.core.names.names import MAX_NAME_SIZE, DirectoryNames, NameCipher, siv_of
from cryptfs.core.printable import shown
from cryptfs.errors import DirectoryRecordError, NameError_, NameTooLongError
from cryptfs.storage.backing import OwnsDescriptor
from cryptfs.storage.dirs import (
    entry_name_of,
    holds_plaintext,
    is_long,
    list_names,
    open_directory,
    read_sidecar,
)
from cryptfs.storage.records import is_in_parent, read_record
from cryptfs.vfs.tree.conflicts import Conflicting, find_copy, may_be_copy, open_copy

log = logging.getLogger(__name__)

SELF = b""
"""In place of a name: the directory itself, as the root has no entry anywhere."""

NO_NAME = "(no name)"
"""Cipher path of a file without a name, for messages."""

RECORD_SECONDS = 1.0  # then a directory in use has its record looked at again
MAX_CACHED_NAMES = 65_536  # of all directories, some 350 bytes each
_CACHED_NAMES = 32_768  # of one directory
_COUNTED = 64  # an open directory reports its names in steps of so many
_ONE_TABLE = 4  # names that a table without any counts as


class KnownNames:
    """Names of one directory that were verified, or sealed here.

    entries: plaintext name -> name in the backing directory.
    plain, long: the reverse, of those without a sidecar and of those with one.
    """

    __slots__ = ("counted", "dir_id", "entries", "long", "plain")

    def __init__(self, dir_id: bytes) -> None:
        self.dir_id = dir_id
        self.entries: dict[bytes, str] = {}
        self.plain: dict[str, bytes] = {}
        self.long: dict[str, bytes] = {}
        self.counted = 0

    def clear(self) -> None:
        """Forget all: the next use seals or opens them again."""
        self.entries.clear()
        self.plain.clear()
        self.long.clear()


class CachedNames:
    """The known names of all directories of a vault, by dir_id.

    A name follows from dir_id and entry alone, so nothing that happens on the disk makes them wrong, and they
    may outlive the Directory: one that the kernel has forgotten is often opened again. If they are too many,
    the directories that were opened longest ago lose theirs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._tables: dict[bytes, KnownNames] = {}  # the one opened last is the last one
        self._closed: collections.deque[KnownNames] = collections.deque()

    def of(self, dir_id: bytes) -> KnownNames:
        """The table of a directory that is being opened."""
        with self._lock:
            table = self._tables.pop(dir_id, None)
            if table is None:
                table = KnownNames(dir_id)
            self._tables[dir_id] = table
            self._recount(table)
            while self._closed:
                self._recount(self._closed.popleft())
            self._make_room(table)
            return table

    def grown(self, table: KnownNames) -> None:
        """An open directory knows _COUNTED more names."""
        with self._lock:
            if self._tables.setdefault(table.dir_id, table) is not table:  # it lost its place to a later one
                table.clear()
                return
            self._recount(table)
            self._make_room(table)

    def closed(self, table: KnownNames) -> None:
        """A directory is closed. From __del__, so maybe while this thread holds the lock: it takes none."""
        self._closed.append(table)

    def _recount(self, table: KnownNames) -> None:
        if self._tables.get(table.dir_id) is table:
            count = _ONE_TABLE + len(table.entries)
            self._count += count - table.counted
            table.counted = count

    def _make_room(self, used: KnownNames) -> None:
        if self._count <= MAX_CACHED_NAMES:
            return
        for dir_id, table in list(self._tables.items()):
            if self._count <= MAX_CACHED_NAMES * 3 // 4:
                return
            if table is not used:
                del self._tables[dir_id]
                self._count -= table.counted
                table.counted = 0
                table.clear()


def printable(name: str) -> str:
    """A name from the vault, for messages: an attacker who planted it controls no lines and no terminal."""
    return shown(name)


class Directory(OwnsDescriptor):
    """One directory, held open by an O_PATH descriptor that stays right through renames.

    The last reference closes the descriptor. So an operation under way never meets a descriptor that somebody
    closed, or used again, behind its back.
    """

    __slots__ = (
        *("_cached", "_known", "_names", "_plain_names", "cipher_path", "dir_id", "fd", "lacks_default_acl"),
        *("looked", "place", "record"),
    )

    def __init__(
        self, fd: int, dir_id: bytes, names: DirectoryNames, cipher_path: str, cached: CachedNames
    ) -> None:
        self.fd = fd
        self.dir_id = dir_id
        self.cipher_path = cipher_path
        self.place: bytes | None = None  # where it was found, as in records; None if that does not matter
        self.record: tuple[int, int] | None = None  # inode and ctime in ns of its record; the root has none
        self.looked = 0.0  # when its record was last looked at
        self.lacks_default_acl = (0, 0.0)  # see Acls.inherited
        self._names = names
        self._cached = cached
        self._known = cached.of(dir_id)
        self._plain_names = self._known.plain

    def __del__(self) -> None:
        super().__del__()
        with contextlib.suppress(AttributeError):  # an interrupt came before it had them
            self._cached.closed(self._known)

    def entry_name(self, name: bytes) -> str:
        """The name of a plaintext name (or SELF) in the backing directory.

        Raises: NameTooLongError: over 255 bytes.
        """
        known = self._known.entries.get(name)
        if known is None:
            if name == SELF:
                return "."
            known = entry_name_of(self._names.seal(name))
            if may_be_copy(name):
                copy = find_copy(self.fd, self._names, name, known)
                return (
                    known if copy is None else copy.entry_name
                )  # others make and remove them: so do not remember
            self._remember(name, known)
        return known

    def cipher_name(self, name: bytes) -> str:
        """The full cipher name of a plaintext name; for a conflict copy, that of its original."""
        if len(name) > MAX_NAME_SIZE:
            raise NameTooLongError(f"a name of {len(name)} bytes is over the limit of {MAX_NAME_SIZE}")
        cipher_name = self._names.seal(name)
        if CONFLICT_WORD in name:
            copy = find_copy(self.fd, self._names, name, entry_name_of(cipher_name))
            if copy is not None:
                return copy.cipher_name
        return cipher_name

    def place_of(self, name: bytes) -> bytes:
        """The place of a subdirectory as its record names it; for a conflict copy, that of its original."""
        return self.dir_id + siv_of(self.cipher_name(name))

    def place_of_entry(self, entry_name: str) -> bytes:
        """As place_of, by the name in the backing directory. Raises: NameError_: it does not verify."""
        cipher_name = read_sidecar(self.fd, entry_name) if is_long(entry_name) else entry_name
        try:
            self._names.open(cipher_name)
        except NameError_:
            copy = self.open_copy(entry_name)
            if copy is None:
                raise
            cipher_name = copy.cipher_name
        return self.dir_id + siv_of(cipher_name)

    def known_name(self, entry_name: str) -> bytes | None:
        """The plaintext name of an entry that was verified before; None if nobody remembers it.

        It follows from the dir_id and from the entry's name alone: nothing on the disk can change it.
        """
        return self._plain_names.get(entry_name)

    def open_name(self, cipher_name: str, entry_name: str) -> bytes:
        """Decrypt and verify a full cipher name from this directory. Raises: NameError_."""
        name = self._names.open(cipher_name)
        # A listing of more names than there is room for would push out its own: it keeps the first ones.
        if len(self._plain_names) < _CACHED_NAMES and CONFLICT_WORD not in name:
            self._remember(name, entry_name)
        return name

    def open_copy(self, entry_name: str) -> Conflicting | None:
        """The conflict copy behind an entry that cryptfs did not name; None if it is not a conflict copy.

        Raises: NameError_: it is one, and cannot be shown.
        """
        return open_copy(self.fd, self._names, entry_name)

    def is_copy(self, name: bytes) -> bool:
        """Whether a plaintext name means a conflict copy."""
        if CONFLICT_WORD not in name:
            return False
        return find_copy(self.fd, self._names, name, entry_name_of(self._names.seal(name))) is not None

    def known_long(self, entry_name: str) -> str | None:
        """The full cipher name of a long entry that somebody has looked up; None if nobody remembers it."""
        name = self._known.long.get(entry_name)
        return None if name is None else self._names.seal(name)

    def has_own_names(self) -> bool:
        """Whether the directory on the disk has a name that verifies here. Raises: OSError."""
        for entry_name in list_names(self.fd):
            if not holds_plaintext(entry_name) or is_long(entry_name):
                continue
            with contextlib.suppress(NameError_):
                self._names.open(entry_name)
                return True
        return False

    def _remember(self, name: bytes, entry_name: str) -> None:
        known = self._known
        if len(known.entries) >= _CACHED_NAMES:
            known.clear()
        known.entries[name] = entry_name
        (known.long if is_long(entry_name) else known.plain)[entry_name] = name
        if not len(known.entries) % _COUNTED:
            self._cached.grown(known)

    def forget_names(self) -> None:
        """Forget all names: the next use seals them again."""
        self._known.clear()

    def moved(self, parent: Directory, name: bytes) -> None:
        """A rename of ours has moved it there."""
        if self.place is not None:
            self.place = parent.place_of(name)
        self.cipher_path = parent.path_of(parent.entry_name(name))

    def path_of(self, entry_name: str) -> str:
        """The cipher path of an entry, for messages."""
        name = entry_name
        if not name.isprintable() or "\\" in name:  # never one that cryptfs gave
            name = printable(name)
        return f"{self.cipher_path}/{name}" if self.cipher_path else name

    def proc_path(self, entry_name: str) -> str:
        """A path to an entry by the descriptor, for system calls without a directory argument."""
        return f"/proc/self/fd/{self.fd}/{entry_name}"


class Unnamed:
    """In place of a directory and a name: a file known by a descriptor only. Its name is SELF.

    Args: fd: O_PATH or other descriptor; stays the caller's.   cipher_path: for messages.
    """

    __slots__ = ("cipher_path", "fd")

    def __init__(self, fd: int, cipher_path: str = NO_NAME) -> None:
        self.fd = fd
        self.cipher_path = cipher_path


class HeldFile(Unnamed, OwnsDescriptor):
    """An O_PATH descriptor, which its last reference closes.

    found_at: directory and name that led to it, if any.
    st: from its opening.   gone: the file has lost its last name since.
    """

    __slots__ = ("found_at", "gone", "st")

    def __init__(
        self, fd: int, cipher_path: str = NO_NAME, found_at: tuple[Directory, bytes] | None = None
    ) -> None:
        self.fd = fd  # first: its last reference closes it, whatever fails
        self.cipher_path = cipher_path
        self.found_at = found_at
        self.gone = False
        self.st = os.fstat(fd)


Place = tuple[Directory | Unnamed, bytes]
"""The place of a file: a directory and a name in it, or only a descriptor."""


class DirectoryOpener:
    """Opens directories of one vault. A record that does not count at its place is read again at each try.

    Args: rules: which records count.
    on_moving: called for a record with two places, with a descriptor of its directory, the record, the place
               where the directory was found, and its name there in the backing directory.
    on_lost:   called for an open directory that has lost its record: whether it goes on as it was opened.
    """

    def __init__(self, keys: Subkeys, rules: RecordRules) -> None:
        self.rules = rules
        self.on_moving: Callable[[int, DirectoryRecord, bytes, str], None] | None = None
        self.on_lost: Callable[[Directory], bool] | None = None
        self._keys = keys
        self._cipher = NameCipher(keys)
        self._cached = CachedNames()

    @property
    def name_cipher(self) -> NameCipher:
        """The vault's name cipher."""
        return self._cipher

    def root(self, vault_fd: int) -> Directory:
        """The root directory; its dir_id follows from the masterkey."""
        dir_id = self._keys.root_dir_id
        names = self._cipher.in_directory(dir_id)
        return Directory(open_directory(vault_fd, "."), dir_id, names, "", self._cached)

    def child(self, parent: Directory, name: bytes) -> Directory:
        """Open a subdirectory.

        Raises: DirectoryRecordError: its record is missing or not authentic.   OSError.
        """
        if name == SELF:
            return parent
        entry_name = parent.entry_name(name)
        place = parent.place_of(name) if self.rules.bound else None
        return self._verified(open_directory(parent.fd, entry_name), parent.path_of(entry_name), place)

    def child_by_entry(self, parent: Directory, entry_name: str) -> Directory:
        """As child, by the name in the backing directory. Raises: NameError_: that does not verify."""
        place = parent.place_of_entry(entry_name) if self.rules.bound else None
        return self._verified(open_directory(parent.fd, entry_name), parent.path_of(entry_name), place)

    def of_descriptor(self, fd: int, found_at: tuple[Directory, bytes] | None = None) -> Directory:
        """A directory known by a descriptor. Raises: as child.

        Args: found_at: directory and name that led to it; None if nothing is known of its place.
        """
        place = found_at[0].place_of(found_at[1]) if found_at is not None and self.rules.bound else None
        return self._verified(open_directory(fd, "."), NO_NAME, place)

    def is_current(self, directory: Directory) -> bool:
        """Whether a directory still has the record from its opening; looks once in RECORD_SECONDS.

        Two machines may make one directory at once: a sync client keeps the record of one of them.
        """
        now = time.monotonic()
        if directory.record is None or now - directory.looked < RECORD_SECONDS:
            return True
        directory.looked = now
        try:
            seen = record_seen(directory.fd)
            if seen != directory.record:
                record = open_directory_record(read_record(directory.fd), self._keys)
                if record.dir_id != directory.dir_id:
                    return False
                entry_name = directory.cipher_path.rpartition("/")[2]
                if self.rules.misfit(record, directory.place) and is_in_parent(directory.fd, entry_name):
                    return False  # else others have moved it: an open one stays of use, as an open file
                directory.record = seen
        except FileNotFoundError:
            if not os.fstat(directory.fd).st_nlink:
                return True  # gone with its directory
            return self.on_lost is not None and self.on_lost(directory)
        except PermissionError:
            return True  # it lost the right to search, x: nobody can look, and a listing needs no look
        except DirectoryRecordError:
            return False
        return True

    def _verified(self, fd: int, path: str, place: bytes | None) -> Directory:
        try:
            record = open_directory_record(read_record(fd), self._keys)
            misfit = self.rules.misfit(record, place)
            if misfit:
                raise DirectoryRecordError(misfit)
            if record.is_moving and place is not None and path != NO_NAME and self.on_moving is not None:
                self.on_moving(fd, record, place, path.rpartition("/")[2])
            seen = record_seen(fd)
        except DirectoryRecordError as error:
            os.close(fd)
            error.cipher_path = path
            raise
        except OSError as error:
            # Elsewhere it could be listed: so somebody may wonder.
            if error.errno == errno.EACCES and os.access(f"/proc/self/fd/{fd}", os.R_OK):
                if os.access(f"/proc/self/fd/{fd}", os.X_OK):
                    why = (
                        "it belongs to root, which mounted the vault with version 0.1; chown it to your user"
                    )
                else:
                    why = "the directory needs the permission to search (chmod u+x)"
                log.warning("%s: its record cannot be read: %s", path, why)
            os.close(fd)
            raise
        names = self._cipher.in_directory(record.dir_id)
        found = Directory(fd, record.dir_id, names, path, self._cached)
        found.record, found.looked, found.place = seen, time.monotonic(), place
        return found


def record_seen(dir_fd: int) -> tuple[int, int]:
    """Inode and ctime in ns of a directory's record. Raises: OSError."""
    st = os.stat(RECORD_NAME, dir_fd=dir_fd, follow_symlinks=False)
    return st.st_ino, st.st_ctime_ns
