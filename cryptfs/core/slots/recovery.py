"""The recovery record `cryptfs.recovery`: with words or shares it opens a vault, and rebuilds its config.

    head    magic | version | count | zeros | vault_id
    entry   recovery_id | kind | k | n | zeros | commitment | sealed secret | sealed record key
    body    masterkey and the constant fields of the config, sealed under the record key

Each entry belongs to one *recovery secret*, 32 random bytes that a person has as words or as shares. The
secret opens the record key, and that the body. The masterkey opens all secrets, so its holder can seal the
record again without the words. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import hmac
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from cryptfs.core.aead import SMALL_NONCE_SIZE, SMALL_OVERHEAD, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.keys import KEY_SIZE, derive
from cryptfs.core.slots.checks import RECOVERY_NAME
from cryptfs.core.slots.config import MAX_RECOVERY_SECRETS, RECOVERY_ID_SIZE
from cryptfs.errors import RecoveryRecordError, UnsupportedFormatError

RECORD_VERSION = 1
SHORT_ID_SIZE = 4  # bytes of a recovery_id that a person sees
MIN_SHARES, MAX_SHARES = 2, 16
MAX_BODY_SIZE = 4096
RECOVERY_MAGIC = b"CRYPTREC"
_HEAD = struct.Struct("<8sBB6s16s")
_FIXED = struct.Struct("<16sBBB5s32s")
_SEALED_KEY_SIZE = KEY_SIZE + SMALL_OVERHEAD
_ENTRY_SIZE = _FIXED.size + 2 * _SEALED_KEY_SIZE
_BODY = struct.Struct("<32s32sBBBB4sQ")
_OF_KEY, _OF_BODY = 0, 1  # what a value of kind 14 holds
_FEATURE = re.compile(rb"[a-z0-9-]{1,32}")
MAX_RECORD_SIZE = _HEAD.size + MAX_RECOVERY_SECRETS * _ENTRY_SIZE + MAX_BODY_SIZE + SMALL_OVERHEAD


class RecoveryKind(IntEnum):
    """How a person has a recovery secret."""

    WORDS = 1
    SHARES = 2


@dataclass(frozen=True, slots=True)
class RecoverySecret:
    """What the record says of a secret in clear. needed, shares: k and n of shares; 0 for words."""

    recovery_id: bytes
    kind: RecoveryKind
    needed: int = 0
    shares: int = 0

    def __post_init__(self) -> None:
        if len(self.recovery_id) != RECOVERY_ID_SIZE or not _are_numbers(self.kind, self.needed, self.shares):
            raise ValueError("impossible fields of a recovery secret")

    @property
    def short_id(self) -> str:
        """The beginning of its id, which a person finds beside the words."""
        return self.recovery_id[:SHORT_ID_SIZE].hex()

    @property
    def name(self) -> str:
        """For messages."""
        if self.kind is RecoveryKind.WORDS:
            return f"recovery words {self.short_id}"
        return f"shares {self.short_id} ({self.needed} of {self.shares})"


@dataclass(frozen=True, slots=True)
class RecoveryBody:
    """What the record keeps of a vault.

    old_masterkey: while a change of the masterkey is under way, the one before; else None.
    log2_chunk_size: as in a file header.   features, generation: of the config that it was sealed for.
    """

    masterkey: bytes = field(repr=False)
    old_masterkey: bytes | None = field(repr=False)
    cipher_id: int
    log2_chunk_size: int
    config_version: int
    features: tuple[str, ...]
    generation: int

    def pack(self) -> bytes:
        """The bytes to be sealed. Raises: ValueError: too many or impossible features."""
        names = [name.encode("ascii") for name in self.features]
        raw = _BODY.pack(
            self.masterkey,
            self.old_masterkey or bytes(KEY_SIZE),
            self.cipher_id,
            self.log2_chunk_size,
            self.config_version,
            len(names),
            bytes(4),
            self.generation,
        ) + b"".join(bytes((len(name),)) + name for name in names)
        if len(raw) > MAX_BODY_SIZE or not all(_FEATURE.fullmatch(name) for name in names):
            raise ValueError("too many features for a recovery record, or an impossible one")
        return raw

    @classmethod
    def unpack(cls, raw: bytes) -> RecoveryBody:
        """Raises: RecoveryRecordError: it is not what `pack` makes."""
        if not _BODY.size <= len(raw) <= MAX_BODY_SIZE:
            raise _damaged()
        masterkey, old, cipher_id, log2, version, count, zeros, generation = _BODY.unpack_from(raw)
        names, place = [], _BODY.size
        for _ in range(count):
            name = raw[place + 1 : place + 1 + raw[place]] if place < len(raw) else b""
            if not _FEATURE.fullmatch(name):
                raise _damaged()
            names.append(name.decode("ascii"))
            place += 1 + len(name)
        if place != len(raw) or any(zeros) or names != sorted(set(names)):
            raise _damaged()
        return cls(masterkey, old if any(old) else None, cipher_id, log2, version, tuple(names), generation)


@dataclass(frozen=True, slots=True)
class _Entry:
    secret: RecoverySecret
    commitment: bytes
    fixed: bytes = field(repr=False)
    sealed_secret: bytes = field(repr=False)
    sealed_key: bytes = field(repr=False)

    def accepts(self, secret: bytes) -> bool:
        return hmac.compare_digest(derive(secret, b"recommit"), self.commitment)


@dataclass(frozen=True, slots=True)
class RecoveryRecord:
    """A record as it was read: its fields are in bounds, and nothing of it is authentic before it opens."""

    vault_id: bytes
    entries: tuple[_Entry, ...] = field(repr=False)
    _head: bytes = field(repr=False)
    _clear: bytes = field(repr=False)
    _sealed_body: bytes = field(repr=False)

    @classmethod
    def unpack(cls, raw: bytes) -> RecoveryRecord:
        """Make all checks that need no key.

        Raises: RecoveryRecordError: it is damaged.   UnsupportedFormatError: it has a later version.
        """
        if len(raw) < _HEAD.size or len(raw) > MAX_RECORD_SIZE:
            raise _damaged()
        magic, version, count, zeros, vault_id = _HEAD.unpack_from(raw)
        if magic != RECOVERY_MAGIC:
            raise _damaged()
        if version != RECORD_VERSION:
            raise UnsupportedFormatError(
                f"{RECOVERY_NAME} has version {version}; this program knows version {RECORD_VERSION}"
            )
        clear_size = _HEAD.size + count * _ENTRY_SIZE
        sealed_body = raw[clear_size:]
        if not 1 <= count <= MAX_RECOVERY_SECRETS or any(zeros):
            raise _damaged()
        if not _BODY.size <= len(sealed_body) - SMALL_OVERHEAD <= MAX_BODY_SIZE:
            raise _damaged()
        entries = tuple(_unpack_entry(raw, place) for place in range(_HEAD.size, clear_size, _ENTRY_SIZE))
        if len({entry.secret.recovery_id for entry in entries}) != count:
            raise _damaged()
        return cls(vault_id, entries, raw[: _HEAD.size], raw[:clear_size], sealed_body)

    @property
    def secrets(self) -> tuple[RecoverySecret, ...]:
        """What it says of its secrets, in their order."""
        return tuple(entry.secret for entry in self.entries)

    @property
    def ids(self) -> list[str]:
        """The recovery_id of each secret in hex, as in a config."""
        return [secret.recovery_id.hex() for secret in self.secrets]

    def secret_of(self, secret: bytes) -> RecoverySecret | None:
        """Which one a secret of 32 bytes is; None if the record does not know it."""
        return next((entry.secret for entry in self.entries if entry.accepts(secret)), None)

    def open(self, secret: bytes) -> RecoveryBody:
        """The body, by a secret that `secret_of` knows.

        Raises: RecoveryRecordError: the secret is right, and the record was changed.
        """
        for entry in self.entries:
            if entry.accepts(secret):
                aad = _key_aad(self._head, entry.fixed)
                record_key = open_small(derive(secret, b"recwrap"), entry.sealed_key, aad)
                plain = record_key and open_small(record_key, self._sealed_body, _body_aad(self._clear))
                if plain is None:
                    raise _changed()
                return RecoveryBody.unpack(plain)
        raise ValueError("no secret of this record")

    def opened_by(self, masterkey: bytes) -> tuple[list[tuple[RecoverySecret, bytes]], RecoveryBody]:
        """All secrets with their 32 bytes, and the body: each secret opens it, so every byte is authentic.

        Raises: RecoveryRecordError: it was changed, or belongs to another masterkey.
        """
        key, found, bodies = derive(masterkey, b"recsec"), [], []
        for entry in self.entries:
            secret = open_small(key, entry.sealed_secret, _secret_aad(self._head, entry.fixed))
            if secret is None or not entry.accepts(secret):
                raise _changed()
            found.append((entry.secret, secret))
            bodies.append(self.open(secret))
        if bodies[0].masterkey != masterkey:
            raise _changed()
        return found, bodies[0]


def _unpack_entry(raw: bytes, place: int) -> _Entry:
    recovery_id, kind, needed, shares, zeros, commitment = _FIXED.unpack_from(raw, place)
    if any(zeros) or kind not in tuple(RecoveryKind) or not _are_numbers(kind, needed, shares):
        raise _damaged()
    secret_at = place + _FIXED.size
    key_at, end = secret_at + _SEALED_KEY_SIZE, place + _ENTRY_SIZE
    return _Entry(
        RecoverySecret(recovery_id, RecoveryKind(kind), needed, shares),
        commitment,
        raw[place:secret_at],
        raw[secret_at:key_at],
        raw[key_at:end],
    )


def _are_numbers(kind: int, needed: int, shares: int) -> bool:
    """Whether k and n are those that a secret of this kind can have."""
    if kind == RecoveryKind.WORDS:
        return needed == shares == 0
    return MIN_SHARES <= needed <= shares <= MAX_SHARES


def _secret_aad(head: bytes, fixed: bytes) -> bytes:
    return aad_prefix(Kind.RECOVERY_SECRET) + head + fixed


def _key_aad(head: bytes, fixed: bytes) -> bytes:
    return aad_prefix(Kind.RECOVERY_RECORD) + bytes((_OF_KEY,)) + head + fixed


def _body_aad(clear: bytes) -> bytes:
    return aad_prefix(Kind.RECOVERY_RECORD) + bytes((_OF_BODY,)) + clear


def nonces_size(secrets: int) -> int:
    """Bytes of fresh nonces that a record with so many secrets takes."""
    return SMALL_NONCE_SIZE * (2 * secrets + 1)


def seal_record(
    vault_id: bytes,
    secrets: Sequence[tuple[RecoverySecret, bytes]],
    body: RecoveryBody,
    record_key: bytes,
    nonces: bytes,
) -> bytes:
    """The bytes of a record.

    Args:   secrets: 1 to 8, each with its 32 bytes.   record_key: 32 fresh bytes.
            nonces: nonces_size fresh bytes.
    Raises: ValueError: too many secrets, one twice, or a size is wrong.
    """
    ids = {secret.recovery_id for secret, _ in secrets}
    if not 1 <= len(secrets) <= MAX_RECOVERY_SECRETS or len(ids) != len(secrets):
        raise ValueError(f"a recovery record has 1 to {MAX_RECOVERY_SECRETS} secrets, each once")
    if len(vault_id) != 16 or len(nonces) != nonces_size(len(secrets)) or len(record_key) != KEY_SIZE:
        raise ValueError("seal_record needs a vault_id, a record key and the nonces for all it seals")
    head = _HEAD.pack(RECOVERY_MAGIC, RECORD_VERSION, len(secrets), bytes(6), vault_id)
    fresh = [nonces[place : place + SMALL_NONCE_SIZE] for place in range(0, len(nonces), SMALL_NONCE_SIZE)]
    parts, masterkey_key = [head], derive(body.masterkey, b"recsec")
    for (about, secret), first, second in zip(secrets, fresh[0::2], fresh[1::2], strict=False):
        commitment = derive(secret, b"recommit")
        fixed = _FIXED.pack(about.recovery_id, about.kind, about.needed, about.shares, bytes(5), commitment)
        parts += [
            fixed,
            seal_small(masterkey_key, secret, _secret_aad(head, fixed), first),
            seal_small(derive(secret, b"recwrap"), record_key, _key_aad(head, fixed), second),
        ]
    clear = b"".join(parts)
    return clear + seal_small(record_key, body.pack(), _body_aad(clear), fresh[-1])


def _damaged() -> RecoveryRecordError:
    return RecoveryRecordError(f"{RECOVERY_NAME} is damaged, or is no recovery record")


def _changed() -> RecoveryRecordError:
    return RecoveryRecordError(f"{RECOVERY_NAME} was changed, or belongs to another masterkey")
