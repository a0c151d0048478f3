"""One look at a whole vault for a witness: its entries as records for a manifest, in ascending order.

Reads headers, nonces and tags, and writes nothing. It opens chunks only if a header says that the file is
empty and bytes follow it. The vault may be mounted: if a file changes during the reading, this reads it
again, and it marks a file with a writer as not settled.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptfs.core.format.header import FileHeader, claimed_file_id
from cryptfs.core.format.manifest import (
    NO_DIGEST,
    NO_PLACE,
    SETTLED,
    Object,
    Record,
    digest_state,
    key_of_directory,
    key_of_file,
    pack_record,
    unpack_record,
)
from cryptfs.core.format.verdict import Length, Verdict, verdict
from cryptfs.core.names.names import SIV_SIZE, decode_text
from cryptfs.errors import DirectoryRecordError, HeaderError, IntegrityError, NameError_
from cryptfs.storage.backing import HELD_FILE_FLAGS, O_NOATIME, open_backing, read_header
from cryptfs.storage.dirs import open_directory
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.foundlength import found_length
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry, Walker
from cryptfs.vfs.tree.symlinks import long_target_id, open_links_directory, read_long_target
from cryptfs.vfs.tree.xattrs import LINK_PREFIX, PREFIX
from cryptfs.witness.digests import digest_of_records
from cryptfs.witness.spill import Sorter

_TRIES = 3  # tries to read a file that keeps changing
_IDENTITY = struct.Struct("<QQ?")

Directories = dict[bytes, tuple[bytes, bytes]]
"""dir_id of each directory: (dir_id of the one above, sealed name)."""


class Seen(NamedTuple):
    """An entry of the vault now.

    identity:  device and inode.   changing: it changed during each look.
    remark:    cipher path and the reason of damage; '' for an entry in order.
    """

    record: Record
    identity: tuple[int, int]
    changing: bool
    remark: str


class _FileLook(NamedTuple):
    kind: Object
    key: bytes
    flags: int = 0
    epoch: int = 0
    generation: int = 0
    size: int = 0
    digest: bytes = NO_DIGEST
    xattrs: bytes = NO_DIGEST
    changing: bool = False
    reason: str = ""


class Observation:
    """Looks at a vault and keeps what it saw. Close it after use.

    directories: each with its parent, for paths.   skipped: places that it could not check.
    Args: context: of the vault.   vault_fd: the vault directory; both stay the caller's.
          progress: called with the number of entries so far, often.
          waiting: journal_ids of journals that wait for their replay: their files cannot count as cut.
    """

    def __init__(
        self,
        context: FileContext,
        vault_fd: int,
        progress: Callable[[int], None],
        *,
        waiting: frozenset[bytes] = frozenset(),
    ) -> None:
        self._context = context
        self._waiting = waiting
        self._walker = Walker(context, vault_fd)
        self._progress = progress
        self._digest = digest_state(context.keys)
        self._sorter = Sorter()
        self._links_fd = open_links_directory(vault_fd)
        self.directories: Directories = {}
        self.skipped: list[tuple[str, str]] = []
        self.count = 0

    def close(self) -> None:
        """Free the space."""
        self._sorter.close()
        if self._links_fd is not None:
            os.close(self._links_fd)
            self._links_fd = None

    def look(self) -> None:
        """Walk the vault. Raises: OSError: no space for the records."""
        walker = self._walker
        with contextlib.closing(walker.directories()) as directories:
            for directory in directories:
                for entry in walker.entries(directory):
                    if entry.role is Role.ENTRY:
                        self._add(self._entry(entry))
                    else:
                        entry.descend = False  # the content of a conflict copy has the places of its original
        self.skipped += walker.skipped

    def seen(self) -> Iterator[Seen]:
        """Everything, in ascending order of the records."""
        for raw in self._sorter.sorted():
            record = unpack_record(raw)
            rest = raw[len(pack_record(record)) :]
            device, inode, changing = _IDENTITY.unpack_from(rest)
            yield Seen(record, (device, inode), changing, rest[_IDENTITY.size :].decode())

    def _add(self, seen: Seen | None) -> None:
        if seen is None:
            return
        extra = _IDENTITY.pack(*seen.identity, seen.changing) + seen.remark.encode()
        self._sorter.add(pack_record(seen.record) + extra)
        self.count += 1
        self._progress(self.count)

    # ---- entries

    def _entry(self, entry: WalkedEntry) -> Seen | None:
        """None: it vanished during the look."""
        place, name = self._place(entry)
        try:
            found = self._object(entry, place, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            found = _FileLook(Object.DAMAGED, b"", reason=f"cannot be read: {error.strerror}")
        except NameError_ as error:
            found = _FileLook(Object.DAMAGED, b"", reason=error.reason)
        reason = found.reason
        if place == NO_PLACE:
            why = entry.damage.reason if entry.damage is not None else "its directory is damaged"
            reason = reason or why
        kind = Object.DAMAGED if reason else found.kind
        key = found.key or self._key_of_place(entry, place)
        record = Record(
            key,
            kind,
            found.flags,
            place,
            found.epoch,
            found.generation,
            found.size,
            found.digest,
            found.xattrs,
            name,
        )
        remark = f"{entry.cipher_path}\0{reason}" if reason else ""
        return Seen(record, (entry.st.st_dev, entry.st.st_ino), found.changing, remark)

    @staticmethod
    def _place(entry: WalkedEntry) -> tuple[bytes, bytes]:
        """dir_id and siv, and the sealed name after it; zeros for an entry outside of the plaintext tree."""
        sealed = decode_text(entry.cipher_name) if entry.cipher_name is not None else None
        dir_id = entry.directory.dir_id
        if not entry.verified or sealed is None or dir_id is None:
            return NO_PLACE, b""
        return dir_id + sealed[:SIV_SIZE], sealed[SIV_SIZE:]

    @staticmethod
    def _key_of_place(entry: WalkedEntry, place: bytes) -> bytes:
        if place != NO_PLACE:
            return place
        return hashlib.blake2b(os.fsencode(entry.cipher_path), digest_size=32).digest()

    def _object(self, entry: WalkedEntry, place: bytes, name: bytes) -> _FileLook:
        mode = entry.st.st_mode
        if stat.S_ISREG(mode):
            return self._file(entry)
        if stat.S_ISDIR(mode):
            return self._directory(entry, place, name)
        digest = self._digest.copy()
        if stat.S_ISLNK(mode):
            with self._held_link(entry) as fd:
                digest.update(self._target(fd))
                xattrs = self._xattrs(f"/proc/self/fd/{fd}", LINK_PREFIX)
            return _FileLook(Object.SYMLINK, b"", digest=digest.digest(), xattrs=xattrs)
        digest.update(struct.pack("<IQ", stat.S_IFMT(mode), entry.st.st_rdev))
        return _FileLook(Object.SPECIAL, b"", digest=digest.digest())

    def _directory(self, entry: WalkedEntry, place: bytes, name: bytes) -> _FileLook:
        fd = open_directory(entry.directory.fd, entry.entry_name)
        child = WalkedDirectory(fd, entry.cipher_path, None, verified=False)
        self._walker.read_record(child)
        if child.dir_id is None:
            damage = child.damage
            reason = damage.reason if isinstance(damage, DirectoryRecordError) else "cannot be read"
            return _FileLook(Object.DAMAGED, b"", reason=reason)
        if place != NO_PLACE:
            self.directories.setdefault(child.dir_id, (place[:16], place[16:] + name))
        xattrs = self._xattrs(f"/proc/self/fd/{fd}")
        return _FileLook(Object.DIRECTORY, key_of_directory(child.dir_id), xattrs=xattrs)

    @staticmethod
    @contextlib.contextmanager
    def _held_link(entry: WalkedEntry) -> Iterator[int]:
        fd = os.open(entry.entry_name, HELD_FILE_FLAGS, dir_fd=entry.directory.fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def _target(self, fd: int) -> bytes:
        text = os.readlink("", dir_fd=fd)
        sealed = read_long_target(self._links_fd, text) if long_target_id(text) is not None else b""
        return os.fsencode(text) + b"\0" + sealed

    def _xattrs(self, target: int | str, prefix: str = PREFIX) -> bytes:
        """Digest of the backing attributes."""
        try:
            names = sorted(name for name in os.listxattr(target) if name.startswith(prefix))
        except OSError:
            return NO_DIGEST
        if not names:
            return NO_DIGEST
        digest = self._digest.copy()
        for name in names:
            try:
                value = os.getxattr(target, name)
            except OSError:
                continue  # it vanished meanwhile
            raw = os.fsencode(name)
            digest.update(struct.pack("<HI", len(raw), len(value)) + raw + value)
        return digest.digest()

    # ---- files

    def _file(self, entry: WalkedEntry) -> _FileLook:
        fd = self._open(entry)
        try:
            return self._open_file(fd)
        finally:
            os.close(fd)

    @staticmethod
    def _open(entry: WalkedEntry) -> int:
        try:
            return open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY | O_NOATIME)[0]
        except PermissionError:
            return open_backing(entry.directory.fd, entry.entry_name, os.O_RDONLY)[0]
        except IntegrityError:
            raise FileNotFoundError from None  # another entry has just taken its place

    def _open_file(self, fd: int) -> _FileLook:
        xattrs = self._xattrs(fd)
        found = _FileLook(Object.EMPTY, b"")
        for _ in range(_TRIES):
            found = self._try_file(fd)
            if not found.changing and not found.reason:
                break
        return found._replace(xattrs=xattrs)

    def _try_file(self, fd: int) -> _FileLook:
        try:
            header = self._context.header_of(fd)
        except HeaderError as error:
            return _FileLook(Object.DAMAGED, claimed_file_id(read_header(fd)), reason=error.reason)
        if header is None:
            return _FileLook(Object.EMPTY, b"")
        found = _FileLook(
            Object.FILE,
            key_of_file(header.file_id),
            epoch=header.epoch,
            generation=header.generation,
            size=header.size,
        )
        judged = self._judge(fd, header)
        if judged.kind in (Length.RECOVER, Length.VOID):
            return found  # its length is not settled; a mount settles it
        if judged.kind is Length.CUT:
            if header.journal_id in self._waiting:
                return found  # a mount replays the journal before it judges
            digest = NO_DIGEST
        else:
            digest = digest_of_records(self._digest, self._context, fd, header.size)
        if not self._same_state(header, fd):
            return found._replace(changing=True)
        if judged.kind is Length.CUT:
            return found._replace(kind=Object.DAMAGED, reason=f"the file was cut: {judged.reason}")
        return found._replace(flags=SETTLED, digest=digest)

    def _judge(self, fd: int, header: FileHeader) -> Verdict:
        context, length = self._context, os.fstat(fd).st_size
        judged = verdict(header, length, context.geometry, context.crashed)
        if judged.kind is not Length.SURPLUS:
            return judged
        return found_length(context, fd, header, context.content_key_of(header), length)

    def _same_state(self, header: FileHeader, fd: int) -> bool:
        """Whether no change has begun: a change first raises the generation."""
        try:
            again = self._context.header_of(fd)
        except HeaderError:
            again = None
        if again is None:
            return False
        mine, its = (
            (each.file_id, each.epoch, each.generation, each.flags, each.size) for each in (header, again)
        )
        return mine == its
