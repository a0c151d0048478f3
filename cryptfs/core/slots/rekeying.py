"""A change of the masterkey that is under way: the config's field `rekey`.

It has the old masterkey, sealed under the new one. There is nothing by which the old one leads to the new
one: somebody who has the old masterkey gains nothing by the change. Source: docs/FORMAT.md, section 14.7.
"""

from __future__ import annotations

import msgspec

from cryptfs.core.aead import SMALL_OVERHEAD, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.keys import KEY_SIZE, derive
from cryptfs.core.names.names import decode_text
from cryptfs.core.slots.checks import CONFIG_NAME, from_hex
from cryptfs.errors import VaultConfigError

REKEYING = "rekeying"  # the feature's name in the config
_HOST_SIZE = 12


class Rekey(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """host: the id of the machine that changes the masterkey.   old: the old masterkey, sealed, in hex."""

    host: str
    old: str


def check_rekey(rekey: Rekey) -> None:
    """All checks that need no key. Raises: VaultConfigError."""
    from_hex(rekey.old, KEY_SIZE + SMALL_OVERHEAD, "rekey, old")
    if len(decode_text(rekey.host) or b"") != _HOST_SIZE:
        raise VaultConfigError(f"{CONFIG_NAME} has an impossible host in rekey")


def seal_old_masterkey(new: bytes, old: bytes, vault_id: bytes, nonce: bytes) -> bytes:
    """The old masterkey under the new one; 72 bytes. nonce: 24 fresh bytes."""
    return seal_small(derive(new, b"rekey"), old, _aad(vault_id), nonce)


def open_old_masterkey(rekey: Rekey, new: bytes, vault_id: bytes) -> bytes:
    """The old masterkey, by the new one. Raises: VaultConfigError: it is another one's or another vault's."""
    old = open_small(derive(new, b"rekey"), bytes.fromhex(rekey.old), _aad(vault_id))
    if old is None or len(old) != KEY_SIZE:
        raise VaultConfigError(f"the old masterkey in {CONFIG_NAME} does not open by the new one")
    return old


def _aad(vault_id: bytes) -> bytes:
    return aad_prefix(Kind.OLD_MASTERKEY) + vault_id
