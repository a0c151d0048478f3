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
_NONCE_OFFSET = _CLEAR.size
_MAC_OFFSET = 224
_RESERVED = bytes(84)
NO_JOURNAL = bytes(JOURNAL_ID_SIZE)
MAX_EPOCH = 2**32 - 1
_VERSION_SIZE = 8


class HeaderFlag:
    """What the sealed state says of the file. Unknown bits are refused.

    Plain numbers: every read and write asks, and the operators of an IntFlag are slow.
    """

    CLEAN = 1  # the file is exactly `size` long; without it, at least `size_min`
    SPARSE = 2  # all-zero records are holes and read as zeros
    VOID = 4  # whatever stands behind the header is left over from before a truncate to zero
    HOST = 8  # on disk only, see FileHeader.pack: the journal that is named is one machine's own


NO_FLAGS = 0
_KNOWN_FLAGS = HeaderFlag.CLEAN | HeaderFlag.SPARSE | HeaderFlag.VOID
_AAD_PREFIX = aad_prefix(Kind.HEADER)


def header_version(raw: bytes) -> int:
    """Tells packed headers apart, as their nonces and macs do; 0 for a file without a header."""
    return int.from_bytes(raw[_MAC_OFFSET : _MAC_OFFSET + _VERSION_SIZE], "little")


@dataclass(slots=True)
class FileHeader:
    """What a header says. Sizes are plaintext bytes. Never changed once made; see `changed`.

    Not frozen: that makes it seven times as slow to make, and each new file needs three.

    epoch:      raised by each truncate to zero; part of the file's key.
    size:       authentic length where flags has CLEAN.
    size_min:   length below which a file that is not CLEAN has been cut.
    generation: raised each time the file goes from CLEAN to not CLEAN.
    flags:      bits of HeaderFlag.
    journal_id: the journal of the mount that wrote the header, where its records, or a loss of power during
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
        """Whether nothing behind the header counts."""
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

    def pack(self, keys: Subkeys, nonce: bytes, *, machine_state: bool = False) -> bytes:
        """Seal into 256 bytes.

        Args: nonce: 24 fresh random bytes.
              machine_state: whether the vault has this feature: a reader that goes by an older config, and
                             would look for the journal elsewhere, then refuses a header that names one.
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
        Raises: HeaderError: it is cut, damaged, forged, of another vault, or from a later version.
        """
        if len(raw) != HEADER_SIZE:
            raise HeaderError(f"the file header has {len(raw)} bytes instead of {HEADER_SIZE}")
        body, mac = raw[:_MAC_OFFSET], raw[_MAC_OFFSET:]
        if not hmac.compare_digest(derive(keys.header_mac_key, b"hdrmac", body), mac):
            raise HeaderError("the file header does not authenticate")
        clear = body[:_NONCE_OFFSET]
        magic, version, header_cipher, header_log2, zeros, epoch, file_id = _CLEAR.unpack(clear)
        if magic != MAGIC or version != FORMAT_VERSION or zeros:
            raise HeaderError(f"the file header has version {version}, which this program does not know")
        if (header_cipher, header_log2) != (cipher_id, log2_chunk_size):
            raise HeaderError("the file was made with another cipher or chunk size than the vault's")
        state = open_small(keys.header_key, body[_NONCE_OFFSET:], _AAD_PREFIX + clear)
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
