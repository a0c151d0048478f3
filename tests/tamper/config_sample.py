"""A config with two slots, made without Argon2id: for whatever only decodes and authenticates it."""

from __future__ import annotations

from cryptfs.core.config import KdfParams, KeySlot, VaultConfig, authenticate
from cryptfs.core.keys import Subkeys

KEYS = Subkeys.from_masterkey(bytes(range(32)))


def sample_config() -> VaultConfig:
    """Authentic under KEYS; no passphrase opens it."""
    slots = [
        KeySlot(
            commitment=bytes((number,) * 32).hex(),
            id=number,
            kdf=KdfParams(memory=64 << 20, name="argon2id", passes=3, salt=bytes((number,) * 16).hex()),
            kind="passphrase",
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
        slots=slots,
        vault_id=bytes(range(16)).hex(),
        version=1,
    )
    return authenticate(config, KEYS)
