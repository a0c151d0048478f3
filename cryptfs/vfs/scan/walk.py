"""A tolerant walk over the ciphertext tree of a vault, offline and streaming.

    walker = Walker(context, vault_fd)
    for directory in walker.directories():
        for entry in walker.entries(directory):
            ...

It looks at every entry of the vault, authentic or not. No damage stops it, it writes nothing, and it
remembers only the path to its present place: a vault with a million files needs no more memory than one with
ten. A directory comes before those below it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Generator, Iterator
from typing import TypeVar

from cryptfs.core.names.dirrecord import RECORD_NAME, DirectoryRecord, open_directory_record
from cryptfs.core.names.names import (
    DirectoryNames,
    NameCipher,
    siv_of,
)
from cryptfs.errors import DirectoryRecordError, NameError_
from cryptfs.storage.backing import OwnsDescriptor
from cryptfs.storage.dirs import is_long, open_directory, open_for_listing, read_sidecar
from cryptfs.storage.records import read_record
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.scan.roles import Role, is_plain_name, role_of
from cryptfs.vfs.tree.conflicts import Conflicting, open_copy
from cryptfs.vfs.tree.directory import printable

OPEN_LEVELS = 64  # directories of the path to keep open; it opens those above again by ".."
_SPOOL_SIZE = 256 * 1024  # bytes of names of subdirectories held in memory for each level; more go to a file

Damage = TypeVar("Damage", bound=Exception)


def _kept(error: Damage) -> Damage:
    """Prepare an exception for keeping: its frames would keep directories open until the next collection."""
    error.__traceback__ = error.__context__ = None
    return error


class WalkedDirectory(OwnsDescriptor):
    """A directory under inspection. Its descriptor is closed with the last reference.

    plain_path: from the root, b'' for the root itself; None below a name that cannot be decrypted.
    dir_id:     None if the directory record does not verify; then damage says why, and names is None.
    verified:   whether all names of the path verify: then it is a directory of the plaintext tree.
    place:      of a name that verifies, as records have it; None if it is unknown, and for the root.
    record:     with dir_id; None for the root. The walk does not ask whether it counts at this place.
    """

    __slots__ = (
        "cipher_path",
        "damage",
        "dir_id",
        "fd",
        "identity",
        "names",
        "place",
        "plain_path",
        "record",
        "verified",
    )

    def __init__(
        self,
        fd: int,
        cipher_path: str,
        plain_path: bytes | None,
        *,
        verified: bool,
        place: bytes | None = None,
    ) -> None:
        self.fd = fd
        self.cipher_path = cipher_path
        self.plain_path = plain_path
        self.verified = verified
        self.place = place
        self.record: DirectoryRecord | None = None
        self.dir_id: bytes | None = None
        self.names: DirectoryNames | None = None
        self.damage: DirectoryRecordError | OSError | None = None
        st = os.fstat(fd)
        self.identity = (st.st_dev, st.st_ino)

    @property
    def is_root(self) -> bool:
        """Whether this is the vault's root, which has no record."""
        return not self.cipher_path

    def exists(self) -> bool:
        """Whether it still exists."""
        return os.fstat(self.fd).st_nlink > 0

    def holds(self, entry_name: str) -> bool:
        """Whether there is an entry of this name now; also True if the question fails."""
        try:
            os.stat(entry_name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def path_of(self, entry_name: str) -> str:
        """The cipher path of an entry, for messages."""
        name = printable(entry_name)
        return f"{self.cipher_path}/{name}" if self.cipher_path else name

    def plain_path_of(self, name: bytes | None) -> bytes | None:
        """The plain path of an entry with this name; None if unknown."""
        if name is None or self.plain_path is None:
            return None
        return self.plain_path + b"/" + name if self.plain_path else name


class WalkedEntry:
    """One entry of a backing directory.

    name:        decrypted, for Role.ENTRY; None if that is impossible.
    cipher_name: the full one, from the sidecar if it is long; None if there is none.
    damage:      why the name does not verify in its directory; None if it verifies, and for other roles.
    descend:     whether the walk goes down into it; set for directories of Role.ENTRY, and the caller may
                 clear it.
    """

    __slots__ = ("cipher_name", "damage", "descend", "directory", "entry_name", "name", "role", "st")

    def __init__(self, directory: WalkedDirectory, entry_name: str, st: os.stat_result) -> None:
        self.directory = directory
        self.entry_name = entry_name
        self.st = st
        self.role = role_of(entry_name)
        self.name: bytes | None = None
        self.cipher_name: str | None = None
        self.damage: NameError_ | None = None
        self.descend = self.role is Role.ENTRY and stat.S_ISDIR(st.st_mode)

    @property
    def cipher_path(self) -> str:
        """Where it is, for messages."""
        return self.directory.path_of(self.entry_name)

    @property
    def plain_path(self) -> bytes | None:
        """Its plain path, verified or not; None if unknown."""
        return self.directory.plain_path_of(self.name)

    @property
    def verified(self) -> bool:
        """Whether it is an entry of the plaintext tree: its name verifies, and all names above it."""
        return self.role in (Role.ENTRY, Role.CONFLICT) and self.damage is None and self.directory.verified


class _Level:
    """The walk's memory of a directory on its path. directory: None once it is closed."""

    __slots__ = ("cipher_path", "directory", "identity", "place", "plain_path", "rest", "spool", "verified")

    def __init__(self, directory: WalkedDirectory) -> None:
        import tempfile

        self.directory: WalkedDirectory | None = directory
        self.cipher_path = directory.cipher_path
        self.plain_path = directory.plain_path
        self.identity = directory.identity
        self.place = directory.place
        self.verified = directory.verified
        # Cipher names only: this may go to a file, which must hold nothing of the plaintext.
        self.spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_SIZE)  # noqa: SIM115 - outlives this scope
        self.rest: Iterator[bytes] = iter(())

    def add(self, entry_name: str) -> None:
        self.spool.write(entry_name.encode("ascii") + b"\n")

    def turn_to_children(self) -> None:
        self.spool.seek(0)
        self.rest = iter(self.spool)


class Walker:
    """Walks one vault. `skipped` has the places that it could not read, with the reasons.

    last: an entry of the root that comes after all others, even if it appears during the walk.

    Args: context: keys of the vault.   vault_fd: the vault directory; stays the caller's.
    """

    def __init__(self, context: FileContext, vault_fd: int) -> None:
        self._keys = context.keys
        self.name_cipher = NameCipher(context.keys)
        self._vault_fd = vault_fd
        self._levels: list[_Level] = []
        self._scanned = False
        self.last = ""
        self.skipped: list[tuple[str, str]] = []

    def directories(self) -> Generator[WalkedDirectory, None, None]:
        """Every directory, each before those below it, also with a name or record that does not verify.

        Close the iterator if you do not exhaust it.
        """
        try:
            root = WalkedDirectory(open_directory(self._vault_fd, "."), "", b"", verified=True)
            self.read_record(root)
            yield from self._visit(root)
            while self._levels:
                level = self._levels[-1]
                child = self._next_child(level) or self._last_child(level)
                if child is not None:
                    yield from self._visit(child)
                    continue
                level.spool.close()
                self._levels.pop()
                self._return_from(level)
        finally:
            for level in self._levels:
                level.spool.close()

    def _visit(self, directory: WalkedDirectory) -> Iterator[WalkedDirectory]:
        level = _Level(directory)
        self._levels.append(level)
        if len(self._levels) > OPEN_LEVELS:
            self._levels[-OPEN_LEVELS - 1].directory = None
        self._scanned = False
        yield directory
        if not self._scanned:
            for _ in self.entries(directory):
                pass
        level.turn_to_children()

    def _next_child(self, level: _Level) -> WalkedDirectory | None:
        if level.directory is None:
            return None
        for line in level.rest:
            child = self._open_child(level.directory, line.decode("ascii").rstrip("\n"))
            if child is not None:
                return child
        return None

    def _last_child(self, level: _Level) -> WalkedDirectory | None:
        if not self.last or len(self._levels) > 1 or level.directory is None:
            return None
        last, self.last = self.last, ""
        return self._open_child(level.directory, last)

    def _return_from(self, level: _Level) -> None:
        if not self._levels:
            return
        above = self._levels[-1]
        if above.directory is None:
            above.directory = self._reopen(above, level.directory)
            if above.directory is None:
                self.skipped.append((above.cipher_path, "moved away during the walk"))

    def _reopen(self, level: _Level, child: WalkedDirectory | None) -> WalkedDirectory | None:
        """A directory above, by the way back or, if that leads elsewhere, from the root."""
        for way in (self._from_below(child), self._from_root(level.cipher_path)):
            for fd in way:
                found = WalkedDirectory(
                    fd, level.cipher_path, level.plain_path, verified=level.verified, place=level.place
                )
                if found.identity == level.identity:
                    self.read_record(found)
                    return found
        return None

    @staticmethod
    def _from_below(child: WalkedDirectory | None) -> Iterator[int]:
        if child is not None:
            with contextlib.suppress(OSError):
                yield open_directory(child.fd, "..")

    def _from_root(self, cipher_path: str) -> Iterator[int]:
        fd = open_directory(self._vault_fd, ".")
        for entry_name in filter(None, cipher_path.split("/")):
            above = fd
            try:
                fd = open_directory(above, entry_name)
            except OSError:
                return
            finally:
                os.close(above)
        yield fd

    def _skip(self, cipher_path: str, error: OSError) -> None:
        self.skipped.append((cipher_path or ".", error.strerror or str(error)))

    def _open_child(self, parent: WalkedDirectory, entry_name: str) -> WalkedDirectory | None:
        path = parent.path_of(entry_name)
        try:
            fd = open_directory(parent.fd, entry_name)
        except (FileNotFoundError, NotADirectoryError):
            return None  # it went meanwhile
        except OSError as error:
            self._skip(path, error)
            return None
        copy = _copy(parent, entry_name)
        cipher_name, name, damage = (
            self.open_name(parent, entry_name) if copy is None else (copy.cipher_name, copy.name, None)
        )
        verified = damage is None and parent.verified
        place = place_in(parent, cipher_name) if damage is None else None
        child = WalkedDirectory(fd, path, parent.plain_path_of(name), verified=verified, place=place)
        self.read_record(child)
        return child

    def read_record(self, directory: WalkedDirectory) -> None:
        """Read a directory's record, also again after a change: sets dir_id, names and damage."""
        directory.damage = None
        directory.dir_id = directory.names = directory.record = None
        try:
            if directory.is_root:
                directory.dir_id = self._keys.root_dir_id
            else:
                directory.record = open_directory_record(read_record(directory.fd), self._keys)
                directory.dir_id = directory.record.dir_id
            directory.names = self.name_cipher.in_directory(directory.dir_id)
        except (DirectoryRecordError, OSError) as error:
            if isinstance(error, DirectoryRecordError):
                error.cipher_path = directory.cipher_path
            directory.damage = _kept(error)

    def entries(self, directory: WalkedDirectory) -> Generator[WalkedEntry, None, None]:
        """Every entry of the last directory of `directories`, of any kind, but not its record.

        A caller that renames an entry must set its entry_name; one that removes it must clear its descend.
        """
        level = self._levels[-1]
        if level.directory is not directory:
            raise ValueError("entries of a directory that the walk is not at")
        self._scanned = True
        with contextlib.closing(self.scan(directory)) as found:
            for entry in found:
                yield entry
                if entry.descend and not (directory.is_root and entry.entry_name == self.last):
                    level.add(entry.entry_name)

    def scan(self, directory: WalkedDirectory) -> Generator[WalkedEntry, None, None]:
        """The entries of any directory; the walk does not go down into them."""
        try:
            listing_fd = open_for_listing(directory.fd, keep_atime=True)
        except OSError as error:
            self._skip(directory.cipher_path, error)
            return
        try:
            with os.scandir(listing_fd) as found:
                for item in found:
                    if item.name == RECORD_NAME and not directory.is_root:
                        continue
                    entry = self.look_at(directory, item.name)
                    if entry is not None:
                        yield entry
        except OSError as error:
            self._skip(directory.cipher_path, error)
        finally:
            os.close(listing_fd)

    def look_at(self, directory: WalkedDirectory, entry_name: str) -> WalkedEntry | None:
        """One entry as it is now; None if it is gone."""
        try:
            st = os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._skip(directory.path_of(entry_name), error)
            return None
        entry = WalkedEntry(directory, entry_name, st)
        if entry.role is Role.ENTRY:
            entry.cipher_name, entry.name, entry.damage = self.open_name(directory, entry_name)
        if entry.role not in (Role.ENTRY, Role.RECORD) or entry.damage is not None:
            copy = _copy(directory, entry_name)
            if copy is not None:
                entry.role, entry.damage = Role.CONFLICT, None
                entry.name, entry.cipher_name = copy.name, copy.cipher_name
                entry.descend = stat.S_ISDIR(st.st_mode)
        return entry

    def open_name(
        self, directory: WalkedDirectory, entry_name: str
    ) -> tuple[str | None, bytes | None, NameError_ | None]:
        """(full cipher name, name, reason why it does not verify): as much as is known, verified or not."""
        cipher_name, name = None, None
        try:
            cipher_name = read_sidecar(directory.fd, entry_name) if is_long(entry_name) else entry_name
            if directory.names is not None:
                return cipher_name, directory.names.open(cipher_name), None
            damage = NameError_("the name cannot be verified without a directory record")
        except NameError_ as error:
            damage = _kept(error)
        if cipher_name is not None:
            with contextlib.suppress(NameError_):
                found, _ = self.name_cipher.open_unverified(cipher_name)
                name = found if is_plain_name(found) else None
        damage.cipher_path = directory.path_of(entry_name)
        return cipher_name, name, damage


def place_in(parent: WalkedDirectory, cipher_name: str | None) -> bytes | None:
    """The place of a subdirectory with this full cipher name, as records have it; None if it is unknown."""
    if parent.dir_id is None or cipher_name is None:
        return None
    return parent.dir_id + siv_of(cipher_name)


def _copy(directory: WalkedDirectory, entry_name: str) -> Conflicting | None:
    """The entry as a conflict copy; None if a mount does not show it as one."""
    if directory.names is None:
        return None
    try:
        return open_copy(directory.fd, directory.names, entry_name)
    except NameError_:
        return None
