"""The vault config `cryptfs.json`: what a vault is, its key slots, and a MAC over all of it.

Decoding is strict: an unknown, missing or mistyped field is an error. Limits are checked before any key
is derived, so that a hostile config costs nothing. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import binascii
import hmac
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from cryptfs.core.aead import FORMAT_VERSION, SUITES, CipherSuite, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.geometry import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, ChunkGeometry
from cryptfs.core.host import MACHINE_STATE
from cryptfs.core.keys import ARGON2_SALT_SIZE, Subkeys, derive, passphrase_key
from cryptfs.errors import UnsupportedFormatError, VaultConfigError, WrongPassphraseError

CONFIG_NAME = "cryptfs.json"
MAX_CONFIG_SIZE = 64 * 1024
MAX_SLOTS = 32
MAX_LABEL_SIZE = 64
MIN_KDF_MEMORY = 64 * 1024 * 1024
MIN_KDF_PASSES = 3
MAX_KDF_MEMORY = 4 * 1024**3
MAX_KDF_PASSES = 64
DEFAULT_KDF_MEMORY = 256 * 1024 * 1024
DEFAULT_KDF_PASSES = 3
KNOWN_FEATURES = frozenset({MACHINE_STATE})
PASSPHRASE = "passphrase"  # noqa: S105 - a kind of slot
_KDF = "argon2id"
_MAX_SHOWN = 120
# Controls, line and paragraph separators, and the marks that turn the direction of writing. A fixed list,
# since str.isprintable depends on the Unicode version of the interpreter.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class KdfParams(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a passphrase slot derives its key. memory: bytes; salt: 16 bytes in hex."""

    memory: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    name: str
    passes: _U32
    salt: str


class KeySlot(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One way to unwrap the masterkey. commitment and wrapped are hex."""

    commitment: str
    id: _U32
    kdf: KdfParams
    kind: str
    label: str
    wrapped: str


class VaultConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The config as it stands in the file."""

    chunk_size: _U32
    cipher: str
    features: list[str]
    format: str
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    mac: str
    slots: list[KeySlot]
    vault_id: str
    version: _U32

    @property
    def suite(self) -> CipherSuite:
        """The cipher suite of the vault's files."""
        return SUITES[self.cipher]

    @property
    def geometry(self) -> ChunkGeometry:
        """The chunk geometry of the vault's files."""
        return ChunkGeometry(self.chunk_size, self.suite.overhead)

    @property
    def has_machine_state(self) -> bool:
        """Whether journal, sessions and lock carry the id of the machine that they belong to."""
        return MACHINE_STATE in self.features

    def encode(self) -> bytes:
        """The file's bytes: JSON, indented for people."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"


@dataclass(frozen=True, slots=True)
class NewSlot:
    """What a new passphrase slot is made of. Randomness: salt 16 bytes, nonce 24."""

    passphrase: bytes = field(repr=False)
    salt: bytes
    nonce: bytes
    label: str = ""
    memory: int = DEFAULT_KDF_MEMORY
    passes: int = DEFAULT_KDF_PASSES


def decode_config(raw: bytes) -> VaultConfig:
    """Decode `cryptfs.json` and check everything that needs no key.

    Raises: VaultConfigError: not a config, or beyond a limit.
            UnsupportedFormatError: of a version, or with a feature or cipher, that is not known here.
    """
    if len(raw) > MAX_CONFIG_SIZE:
        raise VaultConfigError(f"{CONFIG_NAME} is larger than {MAX_CONFIG_SIZE} bytes: not a config")
    _check_version(raw)
    try:
        config = msgspec.json.decode(raw, type=VaultConfig)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultConfigError(f"{CONFIG_NAME} is damaged: {_shown(str(error))}") from None
    unknown = sorted(set(config.features) - KNOWN_FEATURES)
    if unknown:
        raise UnsupportedFormatError(
            f"this version does not know features of the vault: {', '.join(map(_shown, unknown))}"
        )
    if config.features != sorted(set(config.features)):
        raise VaultConfigError(f"{CONFIG_NAME} has its features in no order, or one of them twice")
    if config.cipher not in SUITES:
        raise UnsupportedFormatError(
            f"this version does not know the vault's cipher '{_shown(config.cipher)}'"
        )
    size = config.chunk_size
    if not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE or size & (size - 1):
        raise VaultConfigError(f"{CONFIG_NAME} has an impossible chunk_size: {size}")
    _from_hex(config.vault_id, 16, "vault_id")
    _from_hex(config.mac, 32, "mac")
    if not 1 <= len(config.slots) <= MAX_SLOTS:
        raise VaultConfigError(f"{CONFIG_NAME} has {len(config.slots)} key slots, not 1 to {MAX_SLOTS}")
    if len({slot.id for slot in config.slots}) != len(config.slots):
        raise VaultConfigError(f"{CONFIG_NAME} has two key slots with one id")
    for slot in config.slots:
        _check_slot(slot)
    return config


def _check_version(raw: bytes) -> None:
    """Tell a vault of a later version from a damaged config, whatever its fields are."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultConfigError(f"{CONFIG_NAME} is damaged: {_shown(str(error))}") from None
    if not isinstance(found, dict) or found.get("format") != "cryptfs":
        raise VaultConfigError(f"{CONFIG_NAME} is not the config of a cryptfs vault")
    version = found.get("version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"the vault has format version {version}; this program knows version {FORMAT_VERSION}"
        )


def _check_slot(slot: KeySlot) -> None:
    name = f"key slot {slot.id} of {CONFIG_NAME}"
    if slot.kind != PASSPHRASE or slot.kdf.name != _KDF:
        raise UnsupportedFormatError(
            f"this version does not know the kind of {name}: {_shown(slot.kind)}, {_shown(slot.kdf.name)}"
        )
    _check_label(slot.label, name)
    _check_costs(slot.kdf, name)
    _from_hex(slot.kdf.salt, ARGON2_SALT_SIZE, f"{name}, salt")
    _from_hex(slot.commitment, 32, f"{name}, commitment")
    _from_hex(slot.wrapped, 72, f"{name}, wrapped")


def _check_label(label: str, name: str) -> None:
    if len(label.encode()) > MAX_LABEL_SIZE or _UNSHOWABLE.search(label):
        raise VaultConfigError(f"{name} has an impossible label")


def _check_costs(kdf: KdfParams, name: str) -> None:
    if not MIN_KDF_MEMORY <= kdf.memory <= MAX_KDF_MEMORY or kdf.memory % 1024:
        raise VaultConfigError(
            f"{name} asks for {kdf.memory} bytes of memory; allowed are {MIN_KDF_MEMORY} to {MAX_KDF_MEMORY}"
        )
    if not MIN_KDF_PASSES <= kdf.passes <= MAX_KDF_PASSES:
        raise VaultConfigError(
            f"{name} asks for {kdf.passes} passes; allowed are {MIN_KDF_PASSES} to {MAX_KDF_PASSES}"
        )


def _shown(text: str) -> str:
    """Text out of a config that nobody has authenticated yet, fit for a terminal."""
    short = text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
    return _UNSHOWABLE.sub("?", short)


def _from_hex(text: str, size: int, what: str) -> bytes:
    try:
        data = binascii.unhexlify(text)
    except ValueError:
        data = b""
    if len(data) != size or data.hex() != text:
        raise VaultConfigError(f"{what} is not {size} bytes in lower-case hex")
    return data


def _canonical(value: Any) -> bytes:
    """JSON with sorted keys and no white space: what MAC and AAD are over."""
    return msgspec.json.encode(value, order="sorted")


def _static(config: VaultConfig) -> bytes:
    """What never changes in a vault; part of the AAD of every wrapped masterkey."""
    names = ("chunk_size", "cipher", "features", "format", "vault_id", "version")
    return _canonical({name: getattr(config, name) for name in names})


def config_mac(config: VaultConfig, keys: Subkeys) -> bytes:
    """Keyed BLAKE2b-256 over the canonical config without its mac."""
    fields = {name: getattr(config, name) for name in config.__struct_fields__ if name != "mac"}
    return derive(keys.config_key, b"confmac", _canonical(fields))


def authenticate(config: VaultConfig, keys: Subkeys) -> VaultConfig:
    """A copy with a fresh mac, to be written."""
    return msgspec.structs.replace(config, mac=config_mac(config, keys).hex())


def verify_config(config: VaultConfig, keys: Subkeys) -> None:
    """Check the mac right after unlocking.

    Raises: VaultConfigError: somebody changed the config without the masterkey.
    """
    if not hmac.compare_digest(config_mac(config, keys), bytes.fromhex(config.mac)):
        raise VaultConfigError(
            f"{CONFIG_NAME} was changed by somebody without the masterkey; restore it from a backup"
        )


def _slot_aad(config: VaultConfig, slot_id: int, kdf: KdfParams) -> bytes:
    return aad_prefix(Kind.SLOT) + slot_id.to_bytes(4, "little") + _canonical(kdf) + _static(config)


def make_slot(config: VaultConfig, slot_id: int, new: NewSlot, masterkey: bytes) -> KeySlot:
    """Wrap the masterkey under a passphrase.

    Raises: ValueError: the costs or the label are out of bounds.
    """
    kdf = KdfParams(memory=new.memory, name=_KDF, passes=new.passes, salt=new.salt.hex())
    try:
        _check_label(new.label, "the new key slot")
        _check_costs(kdf, "the new key slot")
    except VaultConfigError as error:
        raise ValueError(str(error)) from None
    slot_key = passphrase_key(new.passphrase, new.salt, new.memory, new.passes)
    aad = _slot_aad(config, slot_id, kdf)
    wrapped = seal_small(derive(slot_key, b"wrap"), masterkey, aad, new.nonce)
    return KeySlot(
        commitment=derive(slot_key, b"commit").hex(),
        id=slot_id,
        kdf=kdf,
        kind=PASSPHRASE,
        label=new.label,
        wrapped=wrapped.hex(),
    )


def open_slot(config: VaultConfig, slot: KeySlot, passphrase: bytes) -> bytes | None:
    """The masterkey, or None where the passphrase is not this slot's.

    Raises: VaultConfigError: the passphrase is right, but the slot, or a field that it is bound to, was
                              changed. The commitment is over the slot's key alone, so that a changed
                              cipher or chunk size is not reported as a wrong passphrase.
    """
    slot_key = passphrase_key(passphrase, bytes.fromhex(slot.kdf.salt), slot.kdf.memory, slot.kdf.passes)
    aad = _slot_aad(config, slot.id, slot.kdf)
    if not hmac.compare_digest(derive(slot_key, b"commit"), bytes.fromhex(slot.commitment)):
        return None
    masterkey = open_small(derive(slot_key, b"wrap"), bytes.fromhex(slot.wrapped), aad)
    if masterkey is None or len(masterkey) != 32:
        raise VaultConfigError(
            f"the passphrase is right, but key slot {slot.id} of {CONFIG_NAME}, or a field that it is "
            "bound to, was changed; restore it from a backup"
        )
    return masterkey


def rewrap_slot(
    old: VaultConfig, new: VaultConfig, slot: KeySlot, passphrase: bytes, nonce: bytes
) -> KeySlot | None:
    """The same slot for another config of the vault; None where the passphrase is not this slot's.

    Args:   old, new: the config that the slot is in, and that which it is to be in.   nonce: 24 fresh bytes.
    Raises: VaultConfigError: as open_slot.
    """
    masterkey = open_slot(old, slot, passphrase)
    if masterkey is None:
        return None
    slot_key = passphrase_key(passphrase, bytes.fromhex(slot.kdf.salt), slot.kdf.memory, slot.kdf.passes)
    wrapped = seal_small(derive(slot_key, b"wrap"), masterkey, _slot_aad(new, slot.id, slot.kdf), nonce)
    return msgspec.structs.replace(slot, wrapped=wrapped.hex())


def unlock(config: VaultConfig, passphrase: bytes, max_memory: int) -> tuple[bytes, KeySlot]:
    """Find the slot that the passphrase opens: (masterkey, slot); the config is verified.

    Args:   max_memory: bytes that key derivation may take on this machine.
    Raises: WrongPassphraseError: no slot accepts it.
            VaultConfigError: a slot is damaged or wants too much memory, or the config was changed.
    """
    for slot in config.slots:
        if slot.kdf.memory > max_memory:
            raise VaultConfigError(
                f"key slot {slot.id} asks for {slot.kdf.memory >> 20} MiB of memory to derive its key; "
                f"at most {max_memory >> 20} MiB (half of what is free) may be used here"
            )
    for slot in config.slots:
        masterkey = open_slot(config, slot, passphrase)
        if masterkey is not None:
            verify_config(config, Subkeys.from_masterkey(masterkey))
            return masterkey, slot
    raise WrongPassphraseError("the passphrase is wrong")


def replace_fields(config: VaultConfig, **fields: Any) -> VaultConfig:
    """A copy with some fields replaced; `authenticate` it before it is written."""
    return msgspec.structs.replace(config, **fields)
