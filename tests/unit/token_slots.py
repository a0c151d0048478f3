"""Configs whose key slots are of FIDO2 tokens in software, without a disk and without Argon2id."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.config import VaultConfig, authenticate, decode_config
from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import TokenError
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.table import sealed
from cryptfs.unlock.token import new_fido2
from cryptfs.unlock.unlocking import Unlocked, open_vault
from tests.softtoken import Person, SoftToken

MASTERKEY = bytes(range(32))
PIN = b"4 letters and more"
GIB = 2**30


def bare() -> VaultConfig:
    return VaultConfig(
        chunk_size=4096,
        cipher="aegis-256",
        features=["slots"],
        format="cryptfs",
        generation=1,
        mac="",
        recovery=[],
        slots=[],
        vault_id="00" * 16,
        version=2,
    )


def config_of(*keys: NewKey | KeySlot) -> VaultConfig:
    """An authentic config with these slots; their labels are letters from 'a'."""
    slots = [
        key if isinstance(key, KeySlot) else sealed(bare(), number, chr(ord("a") + number), key, MASTERKEY)
        for number, key in enumerate(keys)
    ]
    fields = {name: getattr(bare(), name) for name in bare().__struct_fields__} | {"slots": slots}
    config = authenticate(VaultConfig(**fields), Subkeys.from_masterkey(MASTERKEY))
    return decode_config(config.encode())


def changed(config: VaultConfig, **params: int | str) -> VaultConfig:
    """With other params in slot 0, and a mac that fits."""
    slots = list(config.slots)
    slot = slots[0]
    fields = {name: getattr(slot, name) for name in slot.__struct_fields__}
    slots[0] = KeySlot(**fields | {"params": slot.params | params})
    return config_of(*slots)


def enrol(token: SoftToken, *, uv: bool = False, account: str = "cryptfs") -> NewKey:
    pins = [] if token.behaviour.pin is None else [token.behaviour.pin]
    return new_fido2(token, Person([token], pins), uv=uv, account=account)


def unlock(config: VaultConfig, person: Person, slot_id: int | None = None) -> Unlocked:
    return open_vault(config, Offer(tokens=person, slot_id=slot_id), GIB)


def refusal(config: VaultConfig, person: Person, slot_id: int | None = None) -> str:
    with pytest.raises(TokenError) as caught:
        unlock(config, person, slot_id)
    return str(caught.value)


def reset_counts(*tokens: SoftToken) -> None:
    for token in tokens:
        token.touches = token.silent = token.pins_sent = token.closed = 0
        token.calls.clear()


def calls_of(do: Callable[[], object], token: SoftToken) -> int:
    token.calls.clear()
    do()
    return len(token.calls)
