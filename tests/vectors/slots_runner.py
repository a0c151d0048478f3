"""Does with cryptfs what a vector of a config and its key slots asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.agekeys import identities_of
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.config import config_mac, decode_config
from cryptfs.core.slots.rekeying import Rekey, open_old_masterkey
from cryptfs.errors import VaultError
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.unlocking import open_vault
from tests.softtoken import Behaviour, Person, SoftToken

Inputs = dict[str, Any]


def _hex(inputs: Inputs, name: str) -> bytes:
    return bytes.fromhex(inputs[name])


def open_rekeying(inputs: Inputs) -> Inputs:
    """Unlock a vault whose masterkey is being changed: both masterkeys."""
    config = decode_config(inputs["text"].encode())
    new = open_vault(config, inputs["passphrase"].encode(), inputs["max_memory"], for_rekey=True).masterkey
    assert decode_config(config.encode()) == config, f"{CONFIG_NAME} does not survive a round trip"
    if not isinstance(config.rekey, Rekey):
        raise VaultError("the masterkey is not being changed")
    old = open_old_masterkey(config.rekey, new, bytes.fromhex(config.vault_id))
    return {"masterkey": new.hex(), "old_masterkey": old.hex(), "host": config.rekey.host}


def unlock_vault(inputs: Inputs) -> Inputs:
    """Decode the config, unlock it, and check that encoding it again keeps it authentic."""
    config = decode_config(inputs["text"].encode())
    offer = Offer(
        passphrase=inputs["passphrase"].encode() if "passphrase" in inputs else None,
        key_file=_hex(inputs, "key_file") if "key_file" in inputs else None,
        tokens=_person_with(inputs["token"]) if "token" in inputs else None,
        identities=identities_of(inputs["identity_file"].encode()) if "identity_file" in inputs else (),
    )
    opened = open_vault(config, offer, inputs["max_memory"])
    masterkey = opened.masterkey
    again = decode_config(config.encode())
    assert again == config, f"{CONFIG_NAME} does not survive a round trip"
    assert config_mac(again, Subkeys.from_masterkey(masterkey)).hex() == config.mac
    return {"masterkey": masterkey.hex(), "slot_id": opened.slot and opened.slot.id}


def _person_with(inputs: Inputs) -> Person:
    """Somebody with the token of a vector, who types its PIN where that is asked."""
    token = SoftToken(behaviour=Behaviour(pin=b"1234"))
    token.plant(_hex(inputs, "credential"), _hex(inputs, "cred_random"), _hex(inputs, "cred_random_uv"))
    return Person([token], [b"1234"])


OPERATIONS: dict[str, Callable[[Inputs], Inputs]] = {"rekeying": open_rekeying, "unlock": unlock_vault}
