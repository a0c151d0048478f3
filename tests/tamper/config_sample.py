"""A config with two slots, made without Argon2id: for whatever only decodes and authenticates it."""

from __future__ import annotations

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.config import VaultConfig, authenticate
from cryptfs.core.slots.slot import KeySlot

KEYS = Subkeys.from_masterkey(bytes(range(32)))


def sample_config() -> VaultConfig:
    """Authentic under KEYS; no passphrase opens it."""
    slots = [
        KeySlot(
            commitment=bytes((number,) * 32).hex(),
            id=number,
            kind="passphrase",
            params={
                "kdf": "argon2id",
                "memory": 64 << 20,
                "passes": 3,
                "salt": bytes((number,) * 16).hex(),
            },
            label=f"slot {number}, blåbær",
            wrapped=bytes((number,) * 72).hex(),
        )
        for number in (0, 3)
    ]
    config = VaultConfig(
        chunk_size=4096,
        cipher="aegis-256",
        features=[],
        format="cryptfs",
        generation=5,
        mac="",
        recovery=[],
        slots=slots,
        vault_id=bytes(range(16)).hex(),
        version=1,
    )
    return authenticate(config, KEYS)
