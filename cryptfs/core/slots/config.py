"""The vault config `cryptfs.json`: the vault's parameters, its key slots, and a MAC over all of it.

Decoding is strict: an unknown, missing or mistyped field is an error. Limits are checked before any key
is derived, so that a hostile config costs nothing. A config of version 1, as 0.1 writes it, has passphrase
slots alone, in a form of their own; in memory they look like all others. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import hmac
from typing import Annotated, Any

import msgspec

from cryptfs.core.aead import SUITES, CipherSuite
from cryptfs.core.geometry import ChunkGeometry, is_chunk_size
from cryptfs.core.keys import Subkeys, derive
from cryptfs.core.names.dirrecord import BOUND_DIRS, UPGRADING, RecordRules
from cryptfs.core.names.host import MACHINE_STATE
from cryptfs.core.slots.checks import CONFIG_NAME, canonical, from_hex, showable
from cryptfs.core.slots.kdf import KDF, PassphraseCost
from cryptfs.core.slots.rekeying import REKEYING, Rekey, check_rekey
from cryptfs.core.slots.slot import PASSPHRASE, KeySlot, SlotContext, check_slot, version_1_kdf
from cryptfs.errors import UnsupportedFormatError, VaultConfigError

CONFIG_VERSION = 2  # of new vaults
MAX_CONFIG_SIZE = 256 * 1024
MAX_SLOTS = 32
MAX_RECOVERY_SECRETS = 8
SLOTS = "slots"  # the feature
DELTA_JOURNAL = "delta-journal"  # another: changed parts of chunks in the journal
KNOWN_FEATURES = frozenset({BOUND_DIRS, DELTA_JOURNAL, MACHINE_STATE, REKEYING, SLOTS, UPGRADING})
# A feature, and the one that it needs.
_NEEDED = {
    BOUND_DIRS: MACHINE_STATE,
    DELTA_JOURNAL: MACHINE_STATE,
    REKEYING: SLOTS,
    UPGRADING: BOUND_DIRS,
}
_MAX_SIZE_VERSION_1 = 64 * 1024
_VAULT_ID_SIZE = 16
RECOVERY_ID_SIZE = 16

_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_U53 = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class VaultConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The config, as in a file of version 2.

    recovery: hex ids of the secrets in the recovery record.
    rekey:    only while the masterkey is being changed.
    """

    chunk_size: _U32
    cipher: str
    features: list[str]
    format: str
    generation: _U53
    mac: str
    recovery: list[str]
    slots: list[KeySlot]
    vault_id: str
    version: _U32
    rekey: Rekey | msgspec.UnsetType = msgspec.UNSET

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
        """Whether journal, sessions and lock carry the id of their machine."""
        return MACHINE_STATE in self.features

    @property
    def has_delta_journal(self) -> bool:
        """Whether the journal may have deltas."""
        return DELTA_JOURNAL in self.features

    @property
    def is_upgrading(self) -> bool:
        """Whether an upgrade of the vault has begun, and has not ended."""
        return UPGRADING in self.features

    @property
    def is_rekeying(self) -> bool:
        """Whether a change of the masterkey has begun, and has not ended."""
        return REKEYING in self.features

    @property
    def record_rules(self) -> RecordRules:
        """Which directory records count."""
        return RecordRules(BOUND_DIRS in self.features, self.is_upgrading)

    @property
    def has_slots_of_all_kinds(self) -> bool:
        """Whether its slots may be of other kinds than passphrases."""
        return SLOTS in self.features

    @property
    def slot_context(self) -> SlotContext:
        """The fields that its key slots are bound to."""
        names = ("chunk_size", "cipher", "features", "format", "vault_id", "version")
        static = canonical({name: getattr(self, name) for name in names}) if self.version == 1 else None
        log2_chunk_size = self.chunk_size.bit_length() - 1
        return SlotContext(bytes.fromhex(self.vault_id), self.suite.cipher_id, log2_chunk_size, static)

    def encode(self) -> bytes:
        """The file's bytes: JSON, indented for people."""
        return msgspec.json.format(canonical(_fields(self)), indent=2) + b"\n"


class _Kdf(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a slot of version 1 derives its key."""

    memory: _U53
    name: str
    passes: _U32
    salt: str


class _SlotVersion1(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    commitment: str
    id: _U32
    kdf: _Kdf
    kind: str
    label: str
    wrapped: str

    def slot(self) -> KeySlot:
        """As a slot of version 2. Raises: UnsupportedFormatError, VaultConfigError."""
        name = f"key slot {self.id} of {CONFIG_NAME}"
        if self.kind != PASSPHRASE or self.kdf.name != KDF:
            raise UnsupportedFormatError(
                f"this version does not know the kind of {name}: {showable(self.kind)}, "
                f"{showable(self.kdf.name)}"
            )
        kdf = self.kdf
        params: dict[str, int | str] = {
            "kdf": kdf.name,
            "memory": kdf.memory,
            "passes": kdf.passes,
            "salt": kdf.salt,
        }
        PassphraseCost.from_params(params, name)
        return KeySlot(self.commitment, self.id, self.kind, self.label, params, self.wrapped)


class _ConfigVersion1(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    chunk_size: _U32
    cipher: str
    features: list[str]
    format: str
    generation: _U53
    mac: str
    slots: list[_SlotVersion1]
    vault_id: str
    version: _U32


def decode_config(raw: bytes) -> VaultConfig:
    """Decode `cryptfs.json` and make all checks that need no key.

    Raises: VaultConfigError: not a config, or beyond a limit.
            UnsupportedFormatError: of an unknown version, or with an unknown feature or cipher.
    """
    try:
        return _decode_config(raw)
    except VaultConfigError as error:
        raise VaultConfigError(f"{error}; restore it from a backup") from None


def _decode_config(raw: bytes) -> VaultConfig:
    if len(raw) > MAX_CONFIG_SIZE:
        raise VaultConfigError(f"{CONFIG_NAME} is larger than {MAX_CONFIG_SIZE} bytes, so it is not a config")
    version = _version_of(raw)
    if version == 1 and len(raw) > _MAX_SIZE_VERSION_1:
        raise VaultConfigError(f"{CONFIG_NAME} is larger than {_MAX_SIZE_VERSION_1} bytes, so it is damaged")
    try:
        if version == 1:
            first = msgspec.json.decode(raw, type=_ConfigVersion1)
            _check_count(len(first.slots))
            slots = [slot.slot() for slot in first.slots]
            fields = {name: getattr(first, name) for name in first.__struct_fields__}
            config = VaultConfig(**fields | {"slots": slots, "recovery": []})
        else:
            config = msgspec.json.decode(raw, type=VaultConfig)
            _check_count(len(config.slots))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultConfigError(f"{CONFIG_NAME} is damaged: {showable(str(error))}") from None
    _check_features(config)
    if config.cipher not in SUITES:
        raise UnsupportedFormatError(
            f"this version does not know the vault's cipher '{showable(config.cipher)}'"
        )
    if not is_chunk_size(config.chunk_size):
        raise VaultConfigError(f"{CONFIG_NAME} has an impossible chunk_size: {config.chunk_size}")
    from_hex(config.vault_id, _VAULT_ID_SIZE, "vault_id")
    from_hex(config.mac, 32, "mac")
    if len(config.recovery) > MAX_RECOVERY_SECRETS or len(set(config.recovery)) != len(config.recovery):
        raise VaultConfigError(f"{CONFIG_NAME} names too many recovery secrets, or one of them twice")
    for recovery_id in config.recovery:
        from_hex(recovery_id, RECOVERY_ID_SIZE, "recovery")
    if len({slot.id for slot in config.slots}) != len(config.slots):
        raise VaultConfigError(f"{CONFIG_NAME} has two key slots with one id")
    for slot in config.slots:
        check_slot(slot)
    return config


def _version_of(raw: bytes) -> int:
    """1 or 2. Of a vault of a later version the other fields may be unknown.

    Raises: VaultConfigError.
            UnsupportedFormatError: it names unknown features, whatever the version is, or has a later one.
    """
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultConfigError(f"{CONFIG_NAME} is damaged: {showable(str(error))}") from None
    if not isinstance(found, dict) or found.get("format") != "cryptfs":
        raise VaultConfigError(f"{CONFIG_NAME} is not the config of a cryptfs vault")
    features = found.get("features")
    if isinstance(features, list):
        unknown = sorted({each for each in features if isinstance(each, str)} - KNOWN_FEATURES)
        if unknown:
            raise UnsupportedFormatError(
                f"this version does not know features of the vault: {', '.join(map(showable, unknown))}"
            )
    version = found.get("version")
    if isinstance(version, int) and not 1 <= version <= CONFIG_VERSION:
        raise UnsupportedFormatError(
            f"the vault has format version {version}; this program knows versions 1 to "
            f"{CONFIG_VERSION}. Use a newer cryptfs"
        )
    return 2 if version == 2 else 1  # what is no number fails to decode


def _check_count(slots: int) -> None:
    if not 1 <= slots <= MAX_SLOTS:
        raise VaultConfigError(f"{CONFIG_NAME} has {slots} key slots, not 1 to {MAX_SLOTS}")


def _check_features(config: VaultConfig) -> None:
    if config.features != sorted(set(config.features)):
        raise VaultConfigError(f"{CONFIG_NAME} lists its features out of order, or one of them twice")
    for name, needed in _NEEDED.items():
        if name in config.features and needed not in config.features:
            raise VaultConfigError(f"{CONFIG_NAME} has the feature {name} without {needed}")
    if (config.version == 2) != (SLOTS in config.features):
        raise VaultConfigError(f"{CONFIG_NAME} has the feature {SLOTS} without version 2, or the reverse")
    if config.is_rekeying != isinstance(config.rekey, Rekey):
        raise VaultConfigError(f"{CONFIG_NAME} has the feature {REKEYING} without its field, or the reverse")
    if isinstance(config.rekey, Rekey):
        check_rekey(config.rekey)


def _fields(config: VaultConfig) -> dict[str, Any]:
    """The fields of the file, by its version."""
    fields: dict[str, Any] = {name: getattr(config, name) for name in config.__struct_fields__}
    if config.rekey is msgspec.UNSET:
        del fields["rekey"]
    if config.version != 1:
        return fields
    del fields["recovery"]
    fields["slots"] = [
        {
            "commitment": slot.commitment,
            "id": slot.id,
            "kdf": version_1_kdf(slot.params),
            "kind": slot.kind,
            "label": slot.label,
            "wrapped": slot.wrapped,
        }
        for slot in config.slots
    ]
    return fields


def config_mac(config: VaultConfig, keys: Subkeys) -> bytes:
    """Keyed BLAKE2b-256 over the canonical config without its mac."""
    fields = {name: value for name, value in _fields(config).items() if name != "mac"}
    return derive(keys.config_key, b"confmac", canonical(fields))


def authenticate(config: VaultConfig, keys: Subkeys) -> VaultConfig:
    """A copy with a fresh mac, ready for writing."""
    return msgspec.structs.replace(config, mac=config_mac(config, keys).hex())


def verify_config(config: VaultConfig, keys: Subkeys) -> None:
    """Check the mac right after unlocking.

    Raises: VaultConfigError: somebody changed the config without the masterkey.
    """
    if not hmac.compare_digest(config_mac(config, keys), bytes.fromhex(config.mac)):
        raise VaultConfigError(
            f"{CONFIG_NAME} was changed by somebody without the masterkey; restore it from a backup"
        )


def replace_fields(config: VaultConfig, **fields: Any) -> VaultConfig:
    """A copy with some fields replaced; `authenticate` it before writing it."""
    return msgspec.structs.replace(config, **fields)


def free_slot_id(config: VaultConfig) -> int:
    """The number of a new slot: one more than the highest, so that an old number hardly comes back."""
    used = {slot.id for slot in config.slots}
    following = max(used, default=-1) + 1
    return following if following < 2**32 else min(set(range(MAX_SLOTS + 1)) - used)
