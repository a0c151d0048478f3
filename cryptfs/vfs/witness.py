"""A witness of a vault: `snapshot` writes down what stands in it, `Verification` says what became of that.

What shows what: docs/decisions/0011-what-a-witness-shows.md.
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
from cryptfs.core.config import CONFIG_NAME
from cryptfs.core.host import StateNames, state_of_name
from cryptfs.core.journal import Sessions
from cryptfs.core.keys import DIR_ID_SIZE
from cryptfs.core.manifest import (
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
from cryptfs.core.names import NameCipher, encode_text
from cryptfs.errors import IntegrityError, ManifestError, NameError_
from cryptfs.storage.libc import syncfs
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import lock_holder
from cryptfs.vfs.comparison import WAS_EMPTY, Change, Compared, compare
from cryptfs.vfs.observation import Directories, Observation, Seen
from cryptfs.vfs.replay import waiting_journals
from cryptfs.vfs.spill import Sorter
from cryptfs.vfs.vault import Vault

Progress = Callable[[int], None]


class Finding(NamedTuple):
    """One thing that is not as the manifest has it.

    path:  plain path now, or of what is gone; None where it cannot be told.
    was:   the path before, of what was moved.   cipher_path: of what is damaged; else ''.
    """

    change: Change
    path: bytes | None
    was: bytes | None
    detail: str
    cipher_path: str


class Totals(NamedTuple):
    """What was looked at. unsettled: files that were being written."""

    entries: int
    unsettled: int
    skipped: list[tuple[str, str]]


def snapshot(vault: Vault, write: Callable[[bytes], object], progress: Progress) -> Totals:
    """Look at the vault and write its manifest.

    Raises: OSError: no room for what was seen, or from `write`.
    """
    unsettled = 0
    with closing(_observation(vault, progress)) as seen:
        seen.look()
        # What the manifest calls settled is to be on disk: else a loss of power could take it back.
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
                continue  # an entry that was moved while the walk was on: seen twice
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
    """A look at a vault that may be mounted, or wait for the replay of a journal."""
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
    """Number of a machine's last session that is over; 0 where there is no list, or none that holds."""
    try:
        raw = read_sessions_file(vault.descriptor, owner)
    except (IntegrityError, OSError):
        return 0
    sessions = Sessions.unpack(raw, vault.context.keys, owner) if raw is not None else None
    return 0 if sessions is None else sessions.last


def _machine_of(vault: Vault, mark: bytes) -> StateNames | None:
    """The machine whose sessions a manifest counts; None where it is another, and has no list here."""
    if mark == vault.context.owner.mark:
        return vault.context.owner
    found = (state_of_name(name) for name in os.listdir(vault.descriptor) if name.endswith("sessions"))
    return next((state for state in found if state is not None and state.mark == mark), None)


class Verification:
    """Compares a vault with a manifest.

    Args:   manifest: open for reading, at its beginning; it is read twice.
            progress: called with the number of entries read from it.
    Raises: ManifestError: it is none, damaged, cut, or of another vault.   OSError.
    """

    def __init__(self, vault: Vault, manifest: IO[bytes], progress: Progress) -> None:
        self._vault = vault
        self._manifest = manifest
        self._names = NameCipher(vault.context.keys)
        self._old_directories: Directories = {}
        self._seen: Observation | None = None
        self.counts: Counter[Change] = Counter()
        self.totals = Totals(0, 0, [])
        self.entries_then = self.skipped_then = 0
        reader = self._reader()
        self.head = reader.head
        for number, record in enumerate(reader.records()):  # all is authentic before anything is concluded
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
        """Look at the vault: the part that takes long. progress: called with the number of entries so far.

        Raises: OSError: no room for what was seen.
        """
        seen = self._seen = _observation(self._vault, progress)
        seen.look()

    def close(self) -> None:
        """Give back what `look` holds."""
        if self._seen is not None:
            self._seen.close()
            self._seen = None

    def run(self) -> Iterator[Finding]:
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
                if each.change is not Change.CHANGED:
                    found.add(_packed(each))
            self.totals = Totals(seen.count, unsettled, seen.skipped)
            yield from self._in_order(found, seen.directories)

    def _whole(self) -> Iterator[Finding]:
        """What can be said of the vault as a whole."""
        config, head = self._vault.config, self.head
        if config.generation < head.config_generation:
            detail = f"generation {config.generation}; the manifest knows {head.config_generation}"
            yield Finding(Change.ROLLED_BACK, None, None, detail, CONFIG_NAME)
        elif config.generation == head.config_generation and config.mac != head.config_mac.hex():
            detail = f"generation {config.generation}, but another config than that was"
            yield Finding(Change.REPLACED, None, None, detail, CONFIG_NAME)
        owner = _machine_of(self._vault, head.host)
        over = 0 if owner is None else _sessions_over(self._vault, owner)
        if owner is not None and over < head.sessions:
            detail = f"{over} sessions are over, the manifest knows {head.sessions}"
            yield Finding(Change.ROLLED_BACK, None, None, detail, owner.sessions)

    def _in_order(self, found: Sorter, directories: Directories) -> Iterator[Finding]:
        """Findings by rank and place. What went and what came at one place are one."""
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
                    self.counts[Change.DELETED] -= 1  # it is there, only nobody can tell what it is
                else:
                    gone = each
            elif each.change is not Change.CHANGED:
                yield self._finding(each, directories)
        if gone is not None:
            yield self._finding(gone, directories)

    def _joined(self, gone: Compared, come: Compared) -> Compared:
        """What went and what came at one place. An empty file gets its file_id with its first byte."""
        change = Change.CHANGED if gone.detail == WAS_EMPTY else Change.RENEWED
        self.counts[Change.DELETED] -= 1
        self.counts[Change.ADDED] -= 1
        self.counts[change] += 1
        return come._replace(change=change)

    def _finding(self, each: Compared, now: Directories) -> Finding:
        then = each.change in (Change.DELETED, Change.UNLINKED)
        path = self._path(self._old_directories if then else now, each.place, each.name)
        was = self._path(self._old_directories, each.old_place, each.old_name) if each.old_place else None
        return Finding(each.change, path, was, each.detail, each.cipher_path)

    def _path(self, directories: Directories, place: bytes, name: bytes) -> bytes | None:
        """The plain path of a place, as the tree was or is."""
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
_ORDER[Change.ADDED] = _ORDER[Change.DELETED]  # so that those of one place stand together


def _packed(each: Compared) -> bytes:
    last = each.change is Change.ADDED
    start = bytes((_ORDER[each.change],)) + (each.place or NO_PLACE) + bytes((last,))
    return start + msgspec.msgpack.encode((each.change.value, *each[1:]))


def _unpacked(raw: bytes) -> Compared:
    change, *rest = msgspec.msgpack.decode(raw[PLACE_SIZE + 2 :])
    return Compared(Change(change), *rest)


__all__ = ["Change", "Finding", "ManifestError", "Totals", "Verification", "snapshot"]
