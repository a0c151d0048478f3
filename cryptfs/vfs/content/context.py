"""The context that all open files of one vault share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptfs.core.aead import SMALL_NONCE_SIZE, ChunkCipher, CipherSuite
from cryptfs.core.format.delta import DeltaCipher
from cryptfs.core.format.header import NO_JOURNAL, FileHeader
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.keys import FILE_ID_SIZE, Subkeys, file_content_key
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.slots.config import VaultConfig
from cryptfs.storage.backing import read_header
from cryptfs.vfs.content.cipherpool import CipherPool
from cryptfs.vfs.content.redo import RedoLog

KEPT_BUFFERS = 16  # of each size, one a request thread; more may be in use, and `give` drops them
KEPT_BYTES = 32 << 20  # of each size
_SMALLEST_SHIFT = 15
_LARGEST_KEPT_SHIFT = 22


class BufferPool:
    """Writable memoryviews of at least the size that a caller wants. Safe from many threads.

    Free lists, not threading.local: libfuse gives every callback a new Python thread state, in which
    thread-locals are empty. Every 4 KiB read would allocate memory again, and take about three times as long.
    list.append and list.pop are atomic in CPython, so the pool needs no lock.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[memoryview]] = {
            shift: [] for shift in range(_SMALLEST_SHIFT, _LARGEST_KEPT_SHIFT + 1)
        }

    def take(self, size: int) -> memoryview:
        """A buffer of at least `size` bytes with arbitrary content; slice it."""
        shift = max((size - 1).bit_length(), _SMALLEST_SHIFT)
        try:
            return self._free[shift].pop()
        except (KeyError, IndexError):
            return memoryview(bytearray(1 << shift if shift <= _LARGEST_KEPT_SHIFT else size))

    def give(self, buffer: memoryview) -> None:
        """Give back what take returned (whole, not a slice)."""
        shift = len(buffer).bit_length() - 1
        kept = self._free.get(shift)
        if kept is None or len(buffer) != 1 << shift:
            return
        if len(kept) < KEPT_BUFFERS and len(kept) << shift < KEPT_BYTES:
            kept.append(buffer)

    def drop(self) -> None:
        """Drop the buffers that are free now."""
        for kept in self._free.values():
            kept.clear()


def _no_room_needed() -> None:
    pass


def _nobody_asks(header: FileHeader, cipher_path: str) -> None:
    pass


MAX_DISAGREEING = 4096


class Disagreeing(dict[tuple[int, int], tuple[int, int, int]]):
    """Files whose header vouches for another size than the length of the backing file claims.

    By device and inode: ctime in ns and length of the backing file, and the verified size in plaintext bytes.
    The size holds as long as the file has that ctime and length.
    """

    def note(self, st: os.stat_result, size: int) -> None:
        """Remember the verified size of a file in plaintext bytes; forgets the oldest of too many."""
        while len(self) >= MAX_DISAGREEING:
            self.pop(next(iter(self)), None)
        self[st.st_dev, st.st_ino] = (st.st_ctime_ns, st.st_size, size)

    def verified_size(self, st: os.stat_result) -> int | None:
        """The remembered size in plaintext bytes; None if there is none, or the file has changed since."""
        noted = self.get((st.st_dev, st.st_ino))
        if noted is None:
            return None
        if noted[:2] == (st.st_ctime_ns, st.st_size):
            return noted[2]
        self.pop((st.st_dev, st.st_ino), None)
        return None


@dataclass(slots=True)
class FileContext:
    """Keys, cipher and buffers for the files of one vault.

    Args: keys: subkeys; never shown.   config: of the vault.   read_only: whether to refuse changes.
          noatime, nodiratime: whether reads of files, or of directories, leave the time of access alone.
          owner: the names of this machine's own files in the vault.
          redo: makes changes safe against crashes; None without it.
          crashed: journal_ids of the sessions that did not end by an unmount.
          replayed: of the journals that this process has replayed, crashed or not.
          make_room: called before a change, with no lock held.
          exclusive: whether nobody else changes the vault.
          true_mtimes: how often a backing file has got its true time of change back; see mtimes.py.
          deltas: whether the journal may have deltas.
          note_unclean: called for a loaded file that is not CLEAN; says if a journal is missing.
    """

    keys: Subkeys = field(repr=False)
    config: VaultConfig
    read_only: bool
    noatime: bool = False
    nodiratime: bool = False
    owner: StateNames = SHARED_STATE
    redo: RedoLog | None = None
    crashed: frozenset[bytes] = frozenset()
    replayed: frozenset[bytes] = frozenset()
    make_room: Callable[[], None] = _no_room_needed
    exclusive: bool = False
    true_mtimes: int = 0
    disagreeing: Disagreeing = field(default_factory=lambda: Disagreeing())
    note_unclean: Callable[[FileHeader, str], None] = _nobody_asks
    deltas: bool = field(init=False)
    delta_cipher: DeltaCipher = field(init=False)
    geometry: ChunkGeometry = field(init=False)
    cipher: CipherPool = field(init=False)
    buffers: BufferPool = field(init=False)
    log2_chunk_size: int = field(init=False)
    suite: CipherSuite = field(init=False)

    def __post_init__(self) -> None:
        self.deltas = self.config.has_delta_journal
        self.geometry = self.config.geometry
        self.cipher = CipherPool(ChunkCipher(self.config.suite, self.geometry))
        self.buffers = BufferPool()
        self.suite = self.config.suite
        self.delta_cipher = DeltaCipher(self.suite, self.geometry)
        self.log2_chunk_size = self.geometry.log2_chunk_size

    def naming(self, *, losing: bool = False) -> tuple[bytes, int]:
        """journal_id and journal_floor for the next header; see RedoLog."""
        return (NO_JOURNAL, 0) if self.redo is None else self.redo.naming(losing=losing)

    def is_of_crash(self, journal_id: bytes) -> bool:
        """Whether a session of this machine did not end by an unmount, and the mount replayed its journal."""
        return journal_id in self.crashed or journal_id in self.replayed

    def plain_size(self, st: os.stat_result) -> int:
        """Plaintext size of a regular file from its backing file's stat: `ls -l` reads no header.

        So it is a claim, unless the file's header was seen to vouch for another size.
        """
        redo = self.redo
        if redo is not None and redo.grown:
            size = redo.grown.get((st.st_dev, st.st_ino))
            if size is not None:
                return size
        if self.disagreeing:
            size = self.disagreeing.verified_size(st)
            if size is not None:
                return size
        return self.geometry.plain_size_floor(st.st_size)

    def new_header(self, file_id: bytes = b"") -> FileHeader:
        """The header of a new file without content. file_id: by default a fresh one."""
        cipher_id = self.config.suite.cipher_id
        return FileHeader(cipher_id, self.log2_chunk_size, file_id or os.urandom(FILE_ID_SIZE), generation=1)

    def pack_header(self, header: FileHeader) -> bytes:
        """Seal a header under a fresh nonce."""
        return header.pack(self.keys, os.urandom(SMALL_NONCE_SIZE), machine_state=bool(self.owner.host))

    def unpack_header(self, raw: bytes) -> FileHeader:
        """Verify a header. Raises: HeaderError: it does not hold."""
        return FileHeader.unpack(
            raw,
            self.keys,
            self.config.suite.cipher_id,
            self.log2_chunk_size,
            machine_state=bool(self.owner.host),
        )

    def header_of(self, fd: int) -> FileHeader | None:
        """The header of an open backing file; None if the file is empty.

        Raises: HeaderError: it does not hold.   OSError.
        """
        raw = read_header(fd)
        return self.unpack_header(raw) if raw else None

    def content_key_of(self, header: FileHeader) -> bytes:
        """The key of the chunks that belong to this header."""
        return file_content_key(
            self.keys.content_key, header.cipher_id, header.log2_chunk_size, header.epoch, header.file_id
        )

    def nonces(self, chunks: int) -> bytes:
        """Fresh nonces for a run, in one draw."""
        return os.urandom(self.suite.nonces_size(chunks))
