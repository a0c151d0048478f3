"""Configs that cost dear to refuse, every byte of one, and old ones put back."""

from __future__ import annotations

import hashlib
import resource
import shutil
import time
from pathlib import Path

import pytest

from cryptfs.core.slots import kdf
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.vfs.vault import Vault, change_passphrase
from tests.tamper.test_config import KDF_MEMORY, PASSPHRASE, cost_in, load, made, store, unlock, vault_dir

pytestmark = pytest.mark.serial

__all__ = ["made", "vault_dir"]  # fixtures


def cheap_key(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
    """In place of Argon2id: another key for another passphrase, salt or cost, at once."""
    return hashlib.blake2b(repr((passphrase, salt, memory, passes)).encode(), digest_size=32).digest()


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Argon2id replaced; the memory of each derivation that was asked for."""
    seen: list[int] = []

    def derive(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
        seen.append(memory)
        return cheap_key(passphrase, salt, memory, passes)

    monkeypatch.setattr(kdf, "passphrase_key", derive)
    return seen


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("memory", 4 << 40),
        ("memory", 2**53),
        ("memory", (4 << 30) + 1024),
        ("memory", 0),
        ("memory", -1),
        ("memory", KDF_MEMORY + 1),
        ("passes", 2**32 - 1),
        ("passes", 2**63),
        ("passes", 65),
        ("passes", 0),
    ],
)
def test_hostile_costs_are_refused_at_once(
    vault_dir: Path, derivations: list[int], field: str, value: int
) -> None:
    """Before any derivation, within a second of the processor, and without taking the memory."""
    config = load(vault_dir)
    cost_in(config)[field] = value
    store(vault_dir, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.process_time()
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)
    assert time.process_time() - begin < 1.0
    assert derivations == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 32 * 1024  # KiB


def test_more_memory_than_there_is_is_refused_at_once(
    vault_dir: Path, derivations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the format's limits, but over half of what is free. Another slot is tried all the same."""
    monkeypatch.setattr("cryptfs.vfs.vault.memory_limit", lambda: 100 << 20)
    config = load(vault_dir)
    cost_in(config)["memory"] = 4 << 30
    store(vault_dir, config)
    with pytest.raises(VaultConfigError, match="slot 0 asks for 4096 MiB"):
        unlock(vault_dir)
    assert derivations == []
    good = {**load(vault_dir)["slots"][0], "id": 7}
    cost_in({**config, "slots": [good]})["memory"] = KDF_MEMORY + 1024
    store(vault_dir, {**config, "slots": [*load(vault_dir)["slots"], good]})
    with pytest.raises(WrongPassphraseError, match=r"wrong\. Not tried: key slot 0 asks for 4096 MiB"):
        unlock(vault_dir)
    assert derivations == [KDF_MEMORY + 1024]


def test_each_slot_is_tried_once_at_most(vault_dir: Path, derivations: list[int]) -> None:
    """32 slots are the most that a config makes us try; what each may cost, the limits above say."""
    config = load(vault_dir)
    slots = [{**config["slots"][0], "id": number} for number in range(32)]
    store(vault_dir, {**config, "slots": slots})
    with pytest.raises(VaultError):
        unlock(vault_dir)
    assert derivations == [KDF_MEMORY] * 32


def test_every_byte_of_the_config_matters(tmp_path: Path, derivations: list[int]) -> None:
    """White space apart, which is free. Argon2id is replaced, as nearly every byte would cost one."""
    vault_dir = tmp_path / "vault"
    Vault.create(vault_dir, PASSPHRASE, cipher="aegis-256", label="mine", kdf_memory=KDF_MEMORY)
    unlock(vault_dir)
    content = (vault_dir / CONFIG_NAME).read_bytes()
    for place in range(len(content)):
        if content[place : place + 1].isspace():
            continue
        for bit in (place % 8, (place + 5) % 8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            (vault_dir / CONFIG_NAME).write_bytes(changed)
            with pytest.raises(VaultError):
                unlock(vault_dir)
    (vault_dir / CONFIG_NAME).write_bytes(content)
    unlock(vault_dir)


def test_older_config_put_back_is_not_detected(vault_dir: Path, derivations: list[int]) -> None:
    """Not promised without a witness: the old passphrase opens the vault again."""
    shutil.rmtree(vault_dir)
    Vault.create(vault_dir, PASSPHRASE, kdf_memory=KDF_MEMORY)
    old = (vault_dir / CONFIG_NAME).read_bytes()
    change_passphrase(vault_dir, PASSPHRASE, b"another", kdf_memory=KDF_MEMORY)
    with pytest.raises(VaultError):
        unlock(vault_dir)
    generation = load(vault_dir)["generation"]
    (vault_dir / CONFIG_NAME).write_bytes(old)
    unlock(vault_dir)
    assert load(vault_dir)["generation"] == generation - 1


def test_slot_of_an_older_config_in_the_present_one(vault_dir: Path, derivations: list[int]) -> None:
    """A slot that was removed opens nothing by being added again: the mac covers the list."""
    shutil.rmtree(vault_dir)
    Vault.create(vault_dir, PASSPHRASE, kdf_memory=KDF_MEMORY)
    old = load(vault_dir)
    change_passphrase(vault_dir, PASSPHRASE, b"another", kdf_memory=KDF_MEMORY)
    new = load(vault_dir)
    store(vault_dir, {**new, "slots": [*new["slots"], {**old["slots"][0], "id": 1}]})
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)
    store(vault_dir, {**new, "slots": old["slots"]})  # and with its own id: the mac covers the slot
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)
