"""One key slot: the masterkey, wrapped under a 32-byte slot key.

Every kind of slot is the same here. A kind only says how the slot key comes from the slot's params and from
what a person has; that is in unlock/. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec

from cryptfs.core.aead import Kind, aad_prefix, open_small, seal_small
from cryptfs.core.keys import KEY_SIZE, derive
from cryptfs.core.slots.checks import CONFIG_NAME, canonical, check_label, from_hex
from cryptfs.errors import VaultConfigError

PASSPHRASE = "passphrase"  # noqa: S105 - a kind of slot
MAX_PARAMS = 32
MAX_PARAMS_SIZE = 8192
_MAX_NUMBER = 2**53
_KIND = re.compile(r"[a-z0-9-]{1,32}")
_PARAM = re.compile(r"[a-z0-9_]{1,32}")
_PARAM_TEXT = re.compile(r"[ !#-\[\]-~]*")  # printable ASCII without what JSON escapes

Params = dict[str, int | str]


class KeySlot(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One way to unwrap the masterkey. commitment and wrapped are hex."""

    commitment: str
    id: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    kind: str
    label: str
    params: Params
    wrapped: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"key slot {self.id} of {CONFIG_NAME}"


@dataclass(frozen=True, slots=True)
class SlotContext:
    """The vault that a slot is bound to: put into another config it does not open.

    cipher_id, log2_chunk_size: as in a file header.
    static: of a config of version 1, its constant fields as canonical JSON; else None.
    """

    vault_id: bytes
    cipher_id: int
    log2_chunk_size: int
    static: bytes | None = None


def check_slot(slot: KeySlot) -> None:
    """Check a slot without its key. Slots of every kind have these bounds.

    Raises: VaultConfigError: it is beyond a limit.
    """
    if not _KIND.fullmatch(slot.kind):
        raise VaultConfigError(f"{slot.name} has an impossible kind")
    check_label(slot.label, slot.name)
    check_params(slot.params, slot.name)
    from_hex(slot.commitment, KEY_SIZE, f"{slot.name}, commitment")
    from_hex(slot.wrapped, 72, f"{slot.name}, wrapped")


def check_params(params: Params, name: str) -> None:
    """Raises: VaultConfigError: they are not what everybody writes as the same canonical JSON."""
    if len(params) > MAX_PARAMS or not all(_PARAM.fullmatch(field) for field in params):
        raise VaultConfigError(f"{name} has impossible params")
    for value in params.values():
        if isinstance(value, str):
            fits = _PARAM_TEXT.fullmatch(value) is not None
        else:
            fits = 0 <= value <= _MAX_NUMBER
        if not fits:
            raise VaultConfigError(f"{name} has impossible params")
    if len(canonical(params)) > MAX_PARAMS_SIZE:
        raise VaultConfigError(f"{name} has params of more than {MAX_PARAMS_SIZE} bytes")


def version_1_kdf(params: Mapping[str, int | str]) -> dict[str, int | str]:
    """The field `kdf` of a slot in a config of version 1."""
    return {("name" if field == "kdf" else field): value for field, value in params.items()}


def _aad(slot_context: SlotContext, slot_id: int, kind: str, params: Params) -> bytes:
    number = slot_id.to_bytes(4, "little")
    if slot_context.static is not None:
        return (
            aad_prefix(Kind.SLOT_VERSION_1) + number + canonical(version_1_kdf(params)) + slot_context.static
        )
    suite = bytes((slot_context.cipher_id, slot_context.log2_chunk_size))
    named = bytes((len(kind),)) + kind.encode("ascii")
    return b"".join(
        (
            aad_prefix(Kind.SLOT),
            bytes(2),
            number,
            slot_context.vault_id,
            suite,
            bytes(5),
            named,
            canonical(params),
        )
    )


def seal_slot(
    slot_context: SlotContext,
    slot: KeySlot,
    slot_key: bytes,
    masterkey: bytes,
    nonce: bytes,
) -> KeySlot:
    """Wrap the masterkey: a slot with the same id, kind, label and params.

    Args: slot: its commitment and wrapped do not count.   slot_key, masterkey: 32 bytes.
          nonce: 24 fresh bytes.
    """
    aad = _aad(slot_context, slot.id, slot.kind, slot.params)
    return msgspec.structs.replace(
        slot,
        commitment=derive(slot_key, b"commit").hex(),
        wrapped=seal_small(derive(slot_key, b"wrap"), masterkey, aad, nonce).hex(),
    )


def open_slot(slot_context: SlotContext, slot: KeySlot, slot_key: bytes) -> bytes | None:
    """The masterkey, or None if the slot key is another one.

    Raises: VaultConfigError: the slot key is right, but the slot, or a field that it is bound to, was
                              changed. The commitment is over the slot's key alone, so that a changed
                              cipher or chunk size is not reported as a wrong passphrase.
    """
    if not hmac.compare_digest(derive(slot_key, b"commit"), bytes.fromhex(slot.commitment)):
        return None
    aad = _aad(slot_context, slot.id, slot.kind, slot.params)
    masterkey = open_small(derive(slot_key, b"wrap"), bytes.fromhex(slot.wrapped), aad)
    if masterkey is None or len(masterkey) != KEY_SIZE:
        what = "passphrase" if slot.kind == PASSPHRASE else "key"
        raise VaultConfigError(
            f"the {what} is right, but {slot.name}, or a field that it is bound to, was changed; "
            "restore it from a backup"
        )
    return masterkey
