"""A witness of a vault: `snapshot` records its state, and `Verification` compares a later state with it.

For the reasoning see docs/decisions/0011-what-a-witness-shows.md.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import IO, NamedTuple

import msgspec

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.format.journal import Sessions
from cryptfs.core.format.manifest import (
    HEADER_SIZE,
    NO_PLACE,
    PLACE_SIZE,
    SALT_SIZE,
    SEALED_BLOCK_SIZE,
    ManifestCipher,
    ManifestHead,
    ManifestPacker,
    ManifestReader,
    Object,
    pack_record,
)
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.names.host import StateNames, state_of_name
from cryptfs.core.names.names import NameCipher, encode_text
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import IntegrityError, ManifestError, NameError_
from cryptfs.storage.libc import syncfs
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import lock_holder
from cryptfs.vfs.recovery.replay import waiting_journals
from cryptfs.vfs.vault import Vault
from cryptfs.witness.comparison import WAS_EMPTY, Change, Compared, compare
from cryptfs.witness.observation import Directories, Observation, Seen
from cryptfs.witness.spill import Sorter

Progress = Callable[[int], None]


class Difference(NamedTuple):
    """One difference from the manifest.

    path:  plain path now, or the last one of a missing entry; None if unknown.
    was:   the path before, of a moved entry.   cipher_path: of a damaged entry; else ''.
    """

    change: Change
    path: bytes | None
    was: bytes | None
    detail: str
    cipher_path: str


class Totals(NamedTuple):
    """Counts of all entries. unsettled: files that were being written."""

    entries: int
    unsettled: int
    skipped: list[tuple[str, str]]


def snapshot(vault: Vault, write: Callable[[bytes], object], progress: Progress) -> Totals:
    """Read the vault and write its manifest.

    Raises: OSError: no space for the records, or from `write`.
    """
    unsettled = 0
    with closing(_observation(vault, progress)) as seen:
        seen.look()
        # A settled file of the manifest must be on disk: else a loss of power could bring back an older one.
        syncfs(vault.descriptor)
        vault_id = bytes.fromhex(vault.config.vault_id)
        cipher = ManifestCipher.new(vault.context.keys, vault_id, os.urandom(SALT_SIZE))
        packer = ManifestPacker(_head(vault))
        write(cipher.header)
        index = 0
        before = b""
        for each in seen.seen():
            unsettled += each.record.kind == Object.FILE and not each.record.settled
            raw = pack_record(each.record)
            if raw == before:
                continue  # an entry that moved during the walk: seen twice
            before = raw
            block = packer.add(raw)
            if block:
                write(cipher.seal(index, block, os.urandom(SMALL_NONCE_SIZE), last=False))
                index += 1
        full, last = packer.finish(len(seen.skipped))
        if full:
            write(cipher.seal(index, full, os.urandom(SMALL_NONCE_SIZE), last=False))
            index += 1
        write(cipher.seal(index, last, os.urandom(SMALL_NONCE_SIZE), last=True))
        return Totals(seen.count, unsettled, seen.skipped)


def _observation(vault: Vault, progress: Progress) -> Observation:
    """Observe a vault, which may be mounted or wait for the replay of a journal."""
    mounted = not vault.has_lock and lock_holder(vault.vault_dir) is not None
    waiting = (
        frozenset() if mounted else frozenset().union(*waiting_journals(vault.context, vault.descriptor))
    )
    return Observation(vault.context, vault.descriptor, progress, waiting=waiting)


def _head(vault: Vault) -> ManifestHead:
    config = vault.config
    return ManifestHead(
        config.generation,
        bytes.fromhex(config.mac),
        _sessions_over(vault, vault.context.owner),
        int(time.time()),
        vault.context.owner.mark,
    )


def _sessions_over(vault: Vault, owner: StateNames) -> int:
    """Number of a machine's last session that is over; 0 if no list verifies."""
    try:
        raw = read_sessions_file(vault.descriptor, owner)
    except (IntegrityError, OSError):
        return 0
    sessions = Sessions.unpack(raw, vault.context.keys, owner) if raw is not None else None
    return 0 if sessions is None else sessions.last


def _machine_of(vault: Vault, mark: bytes) -> StateNames | None:
    """The machine whose sessions a manifest counts; None if it is another one without a list here."""
    if mark == vault.context.owner.mark:
        return vault.context.owner
    found = (state_of_name(name) for name in os.listdir(vault.descriptor) if name.endswith("sessions"))
    return next((state for state in found if state is not None and state.mark == mark), None)


class Verification:
    """Compares a vault with a manifest.

    Args:   manifest: open for reading, at its beginning; it is read twice.
            progress: called with the number of entries read from it.
            list_changed: yield changed entries as well, of which there may be many; else only count them.
    Raises: ManifestError: not a manifest, or damaged, cut, or of another vault.   OSError.
    """

    def __init__(
        self, vault: Vault, manifest: IO[bytes], progress: Progress, *, list_changed: bool = False
    ) -> None:
        self._vault = vault
        self._list_changed = list_changed
        self._manifest = manifest
        self._names = NameCipher(vault.context.keys)
        self._old_directories: Directories = {}
        self._seen: Observation | None = None
        self.counts: Counter[Change] = Counter()
        self.totals = Totals(0, 0, [])
        self.entries_then = self.skipped_then = 0
        reader = self._reader()
        self.head = reader.head
        for number, record in enumerate(reader.records()):  # authenticate everything before any conclusion
            progress(number)
            if record.kind == Object.DIRECTORY and record.place != NO_PLACE:
                name = record.place[DIR_ID_SIZE:] + record.name
                self._old_directories.setdefault(record.key[:DIR_ID_SIZE], (record.place[:DIR_ID_SIZE], name))
        assert reader.tail is not None
        self.entries_then, self.skipped_then = reader.tail.records, reader.tail.skipped

    def _reader(self) -> ManifestReader:
        self._manifest.seek(0)
        keys, vault_id = self._vault.context.keys, bytes.fromhex(self._vault.config.vault_id)
        cipher = ManifestCipher.of_header(keys, vault_id, self._manifest.read(HEADER_SIZE))
        return ManifestReader(self._blocks(cipher))

    def _blocks(self, cipher: ManifestCipher) -> Iterator[bytes]:
        index = 0
        sealed = self._manifest.read(SEALED_BLOCK_SIZE)
        while True:
            following = self._manifest.read(SEALED_BLOCK_SIZE)
            yield cipher.open(index, sealed, last=not following)
            if not following:
                return
            index, sealed = index + 1, following

    def look(self, progress: Progress) -> None:
        """Read the vault: the slow part. progress: called with the number of entries so far.

        Raises: OSError: no space for the records.
        """
        seen = self._seen = _observation(self._vault, progress)
        seen.look()

    def close(self) -> None:
        """Free the records of `look`."""
        if self._seen is not None:
            self._seen.close()
            self._seen = None

    def run(self) -> Iterator[Difference]:
        """Every finding, the worst first, after `look`. Fills counts and totals."""
        for finding in self._whole():
            self.counts[finding.change] += 1
            yield finding
        seen = self._seen
        if seen is None:
            raise ValueError("look first")
        unsettled = 0

        def new() -> Iterator[Seen]:
            nonlocal unsettled
            for each in seen.seen():
                unsettled += each.record.kind == Object.FILE and not each.record.settled
                yield each

        with Sorter() as found:
            for each in compare(self._reader().records(), new()):
                self.counts[each.change] += 1
                if each.change is not Change.CHANGED or self._list_changed:
                    found.add(_packed(each))
            self.totals = Totals(seen.count, unsettled, seen.skipped)
            yield from self._in_order(found, seen.directories)

    def _whole(self) -> Iterator[Difference]:
        """Findings about the vault as a whole."""
        config, head = self._vault.config, self.head
        if config.generation < head.config_generation:
            detail = f"generation {config.generation}; the manifest knows {head.config_generation}"
            yield Difference(Change.ROLLED_BACK, None, None, detail, CONFIG_NAME)
        elif config.generation == head.config_generation and config.mac != head.config_mac.hex():
            detail = f"generation {config.generation}, but with another config"
            yield Difference(Change.REPLACED, None, None, detail, CONFIG_NAME)
        owner = _machine_of(self._vault, head.host)
        over = 0 if owner is None else _sessions_over(self._vault, owner)
        if owner is not None and over < head.sessions:
            detail = f"{over} sessions are over, the manifest knows {head.sessions}"
            yield Difference(Change.ROLLED_BACK, None, None, detail, owner.sessions)

    def _in_order(self, found: Sorter, directories: Directories) -> Iterator[Difference]:
        """Findings by rank and place. An entry that went and one that came at one place make one finding."""
        gone: Compared | None = None
        damaged = set()
        for raw in found.sorted():
            each = _unpacked(raw)
            if gone is not None:
                if each.change is Change.ADDED and each.place == gone.place:
                    each = self._joined(gone, each)
                else:
                    yield self._finding(gone, directories)
                gone = None
            if each.change is Change.DAMAGED and each.place:
                damaged.add(each.place)
            if each.change is Change.DELETED:
                if each.place in damaged:
                    self.counts[Change.DELETED] -= 1  # it exists, but its identity is unknown
                else:
                    gone = each
            elif each.change is not Change.CHANGED or self._list_changed:
                yield self._finding(each, directories)
        if gone is not None:
            yield self._finding(gone, directories)

    def _joined(self, gone: Compared, come: Compared) -> Compared:
        """Join an entry that went with one that came at its place: a first byte gives a file its file_id."""
        change = Change.CHANGED if gone.detail == WAS_EMPTY else Change.RENEWED
        self.counts[Change.DELETED] -= 1
        self.counts[Change.ADDED] -= 1
        self.counts[change] += 1
        return come._replace(change=change)

    def _finding(self, each: Compared, now: Directories) -> Difference:
        then = each.change in (Change.DELETED, Change.UNLINKED)
        path = self._path(self._old_directories if then else now, each.place, each.name)
        was = self._path(self._old_directories, each.old_place, each.old_name) if each.old_place else None
        return Difference(each.change, path, was, each.detail, each.cipher_path)

    def _path(self, directories: Directories, place: bytes, name: bytes) -> bytes | None:
        """The plain path of a place, in the tree of then or of now."""
        if len(place) != PLACE_SIZE or place == NO_PLACE:
            return None
        parts: list[bytes] = []
        dir_id, sealed = place[:DIR_ID_SIZE], place[DIR_ID_SIZE:] + name
        seen: set[bytes] = set()
        while True:
            try:
                parts.append(self._names.open_unverified(encode_text(sealed))[0])
            except NameError_:
                return None
            if dir_id == self._vault.context.keys.root_dir_id:
                return b"/".join(reversed(parts))
            if dir_id in seen or dir_id not in directories:
                return b"/".join((b"...", *reversed(parts)))
            seen.add(dir_id)
            dir_id, sealed = directories[dir_id]


_ORDER = {change: number for number, change in enumerate(Change)}
_ORDER[Change.ADDED] = _ORDER[Change.DELETED]  # so that findings of one place come together


def _packed(each: Compared) -> bytes:
    last = each.change is Change.ADDED
    start = bytes((_ORDER[each.change],)) + (each.place or NO_PLACE) + bytes((last,))
    return start + msgspec.msgpack.encode((each.change.value, *each[1:]))


def _unpacked(raw: bytes) -> Compared:
    change, *rest = msgspec.msgpack.decode(raw[PLACE_SIZE + 2 :])
    return Compared(Change(change), *rest)


__all__ = ["Change", "Difference", "ManifestError", "Totals", "Verification", "snapshot"]
