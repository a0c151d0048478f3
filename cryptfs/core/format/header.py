"""The 256-byte header of a backing file.

    offset  bytes
         0      7  magic "CRYPTFS"
         7      1  version
         8      1  cipher id
         9      1  log2 of the chunk size
        10      2  zeros
        12      4  epoch
        16     32  file_id
        48     24  nonce                        everything before is the AAD of
        72    152  sealed state: 136 bytes and a tag of 16
       224     32  mac: keyed BLAKE2b-256 over bytes 0 .. 223

Source: docs/FORMAT.md, section 4.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from cryptfs.core.aead import FORMAT_VERSION, SMALL_NONCE_SIZE, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import FILE_ID_SIZE, JOURNAL_ID_SIZE, Subkeys, derive
from cryptfs.errors import HeaderError

MAGIC = b"CRYPTFS"
_CLEAR = struct.Struct("<7sBBBHI32s")
_STATE = struct.Struct("<QQQI16sQ84s")
EPOCH_OFFSET = 12
FILE_ID_OFFSET = 16
NONCE_OFFSET = _CLEAR.size
MAC_OFFSET = 224
_RESERVED = bytes(84)
NO_JOURNAL = bytes(JOURNAL_ID_SIZE)
MAX_EPOCH = 2**32 - 1
_VERSION_SIZE = 8


class HeaderFlag:
    """Flags of a file in the sealed state. A reader refuses unknown bits.

    Plain numbers: every read and write uses them, and the operators of an IntFlag are slow.
    """

    CLEAN = 1  # the file is exactly `size` long; without it, at least `size_min`
    SPARSE = 2  # all-zero records are holes and read as zeros
    VOID = 4  # all bytes after the header are left over from before a truncate to zero
    HOST = 8  # on disk only, see FileHeader.pack: the named journal belongs to one machine


NO_FLAGS = 0
_KNOWN_FLAGS = HeaderFlag.CLEAN | HeaderFlag.SPARSE | HeaderFlag.VOID
_AAD_PREFIX = aad_prefix(Kind.HEADER)


def header_version(raw: bytes) -> int:
    """Distinguishes packed headers, as their nonces and macs do; 0 for a file without a header."""
    return int.from_bytes(raw[MAC_OFFSET : MAC_OFFSET + _VERSION_SIZE], "little")


def claimed_file_id(raw: bytes) -> bytes:
    """The file_id that a packed header has in clear, not verified; b"" if the header is cut before that."""
    claimed = raw[FILE_ID_OFFSET:NONCE_OFFSET]
    return claimed if len(claimed) == FILE_ID_SIZE else b""


def needs_machine_state(raw: bytes, keys: Subkeys, cipher_id: int, log2_chunk_size: int) -> bool:
    """Whether a header is authentic only in a vault with this feature: a journal of one machine may apply."""
    try:
        FileHeader.unpack(raw, keys, cipher_id, log2_chunk_size, machine_state=True)
    except HeaderError:
        return False
    try:
        FileHeader.unpack(raw, keys, cipher_id, log2_chunk_size)
    except HeaderError:
        return True
    return False


@dataclass(slots=True)
class FileHeader:
    """The fields of a header. Sizes are plaintext bytes. Treat it as immutable; see `changed`.

    Not frozen: a frozen class is seven times as slow to make, and each new file needs three.

    epoch:      raised by each truncate to zero; part of the file's key.
    size:       authentic length if flags has CLEAN.
    size_min:   a file without CLEAN that is shorter has been cut.
    generation: raised each time the file goes from CLEAN to not CLEAN.
    flags:      bits of HeaderFlag.
    journal_id: the journal of the mount that wrote the header, if its records, or a loss of power during
                that mount, may still matter to the file; else NO_JOURNAL.
    journal_floor: lowest sequence number of that journal's records that may apply.
    """

    cipher_id: int
    log2_chunk_size: int
    file_id: bytes
    epoch: int = 0
    size: int = 0
    size_min: int = 0
    generation: int = 0
    flags: int = NO_FLAGS
    journal_id: bytes = NO_JOURNAL
    journal_floor: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether the file is exactly `size` long."""
        return bool(self.flags & HeaderFlag.CLEAN)

    @property
    def is_sparse(self) -> bool:
        """Whether all-zero records are holes."""
        return bool(self.flags & HeaderFlag.SPARSE)

    @property
    def is_void(self) -> bool:
        """Whether no byte after the header counts."""
        return bool(self.flags & HeaderFlag.VOID)

    def changed(
        self,
        *,
        epoch: int | None = None,
        size: int | None = None,
        size_min: int | None = None,
        generation: int | None = None,
        flags: int | None = None,
        journal_id: bytes | None = None,
        journal_floor: int | None = None,
    ) -> FileHeader:
        """A copy with some fields replaced. Written out: dataclasses.replace takes three times as long."""
        return FileHeader(
            self.cipher_id,
            self.log2_chunk_size,
            self.file_id,
            self.epoch if epoch is None else epoch,
            self.size if size is None else size,
            self.size_min if size_min is None else size_min,
            self.generation if generation is None else generation,
            self.flags if flags is None else flags,
            self.journal_id if journal_id is None else journal_id,
            self.journal_floor if journal_floor is None else journal_floor,
        )

    def closed_at(self, size: int) -> FileHeader:
        """The CLEAN header of the same file with exactly `size` plaintext bytes, to which no journal matters.

        A file without content has no holes.
        """
        flags = (self.flags & HeaderFlag.SPARSE if size else NO_FLAGS) | HeaderFlag.CLEAN
        return self.changed(size=size, size_min=size, flags=flags, journal_id=NO_JOURNAL, journal_floor=0)

    def pack(self, keys: Subkeys, nonce: bytes, *, machine_state: bool = False) -> bytes:
        """Seal into 256 bytes.

        Args: nonce: 24 fresh random bytes.
              machine_state: whether the vault has this feature. A reader with an older config would look for
                             the journal elsewhere, so it must refuse a header that names one.
        """
        if len(nonce) != SMALL_NONCE_SIZE:
            raise ValueError(f"a header nonce has {SMALL_NONCE_SIZE} bytes, not {len(nonce)}")
        if len(self.file_id) != FILE_ID_SIZE:
            raise ValueError(f"a file_id has {FILE_ID_SIZE} bytes, not {len(self.file_id)}")
        clear = _CLEAR.pack(
            MAGIC, FORMAT_VERSION, self.cipher_id, self.log2_chunk_size, 0, self.epoch, self.file_id
        )
        if len(self.journal_id) != JOURNAL_ID_SIZE:
            raise ValueError(f"a journal_id has {JOURNAL_ID_SIZE} bytes, not {len(self.journal_id)}")
        of_host = machine_state and self.journal_id != NO_JOURNAL
        state = _STATE.pack(
            self.size,
            self.size_min,
            self.generation,
            self.flags | HeaderFlag.HOST if of_host else self.flags,
            self.journal_id,
            self.journal_floor,
            _RESERVED,
        )
        body = clear + seal_small(keys.header_key, state, _AAD_PREFIX + clear, nonce)
        return body + derive(keys.header_mac_key, b"hdrmac", body)

    @classmethod
    def unpack(
        cls,
        raw: bytes,
        keys: Subkeys,
        cipher_id: int,
        log2_chunk_size: int,
        *,
        machine_state: bool = False,
    ) -> FileHeader:
        """Verify and decode a header of a vault with this cipher and chunk size.

        Args:   machine_state: whether the vault has this feature.
        Raises: HeaderError: cut, damaged, forged, of another vault, or from a later version.
        """
        if len(raw) != HEADER_SIZE:
            raise HeaderError(f"the file header has {len(raw)} bytes instead of {HEADER_SIZE}")
        body, mac = raw[:MAC_OFFSET], raw[MAC_OFFSET:]
        if not hmac.compare_digest(derive(keys.header_mac_key, b"hdrmac", body), mac):
            raise HeaderError("the file header does not authenticate")
        clear = body[:NONCE_OFFSET]
        magic, version, header_cipher, header_log2, zeros, epoch, file_id = _CLEAR.unpack(clear)
        if magic != MAGIC or version != FORMAT_VERSION or zeros:
            raise HeaderError(f"the file header has version {version}, which this program does not know")
        if (header_cipher, header_log2) != (cipher_id, log2_chunk_size):
            raise HeaderError("the file was made with another cipher or chunk size than the vault's")
        state = open_small(keys.header_key, body[NONCE_OFFSET:], _AAD_PREFIX + clear)
        if state is None:
            raise HeaderError("the sealed state of the file header does not authenticate")
        size, size_min, generation, flags, journal_id, floor, reserved = _STATE.unpack(state)
        unnamed = journal_id == NO_JOURNAL
        if flags & HeaderFlag.HOST and machine_state and not unnamed:
            flags &= ~HeaderFlag.HOST
        if flags & ~_KNOWN_FLAGS or reserved != _RESERVED or (floor and unnamed):
            raise HeaderError("the file header uses something that this program does not know")
        return cls(
            header_cipher, header_log2, file_id, epoch, size, size_min, generation, flags, journal_id, floor
        )
