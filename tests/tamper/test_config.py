"""The vault config: every field replaced, slots moved and lost, bytes flipped. Never a mount."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.config import MAX_CONFIG_SIZE
from cryptfs.errors import (
    NoKeyError,
    NotAVaultError,
    UnsupportedFormatError,
    VaultConfigError,
    VaultError,
    WrongPassphraseError,
)
from cryptfs.vfs.vault import Vault
from tests.support import make_old_vault

PASSPHRASE = b"correct horse"
KDF_MEMORY = 64 << 20
Expected = type[VaultError] | tuple[type[VaultError], type[VaultError]]


@pytest.fixture(scope="module", params=["version 1", "version 2"])
def made(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A vault made once, with a config of either version; each case works on a copy."""
    vault_dir = tmp_path_factory.mktemp("config") / "vault"
    make = make_old_vault if request.param == "version 1" else Vault.create
    make(vault_dir, PASSPHRASE, cipher="aegis-256", label="mine", kdf_memory=KDF_MEMORY)
    return vault_dir


@pytest.fixture
def vault_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "vault"))


def load(vault_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((vault_dir / CONFIG_NAME).read_text())
    return found


def store(vault_dir: Path, config: dict[str, Any]) -> None:
    (vault_dir / CONFIG_NAME).write_text(json.dumps(config))


def cost_in(config: dict[str, Any]) -> dict[str, Any]:
    """What a try of the first slot's passphrase costs, where its version has that."""
    slot = config["slots"][0]
    found: dict[str, Any] = slot["kdf" if config["version"] == 1 else "params"]
    return found


def unlock(vault_dir: Path) -> None:
    Vault.unlock(vault_dir, PASSPHRASE).close()


def assert_refused(vault_dir: Path, expected: Expected) -> None:
    """expected: the error; or a pair, those of config version 1 and 2."""
    if isinstance(expected, tuple):
        expected = expected[load(vault_dir)["version"] - 1]
    with pytest.raises(VaultError) as raised:
        unlock(vault_dir)
    assert type(raised.value) is expected


def replaced_hex(text: str) -> str:
    return ("1" if text[0] != "1" else "2") + text[1:]


def test_spelling_is_free(vault_dir: Path) -> None:
    """What counts is the content: the cases below fail for their change, not for being rewritten."""
    store(vault_dir, dict(reversed(load(vault_dir).items())))
    unlock(vault_dir)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("chunk_size", 4096, VaultConfigError),
        ("chunk_size", 5000, VaultConfigError),
        ("cipher", "xchacha20-poly1305", VaultConfigError),
        ("cipher", "none", UnsupportedFormatError),
        ("features", ["plaintext-names"], UnsupportedFormatError),
        ("format", "gocryptfs", VaultConfigError),
        ("generation", 2, VaultConfigError),
        ("mac", replaced_hex, VaultConfigError),
        ("mac", "", VaultConfigError),
        ("slots", [], VaultConfigError),
        ("vault_id", replaced_hex, VaultConfigError),
        ("version", 3, UnsupportedFormatError),
        ("version", 0, UnsupportedFormatError),
        ("unknown", 1, VaultConfigError),
    ],
)
def test_replaced_field(vault_dir: Path, field: str, value: object, expected: type[VaultError]) -> None:
    config = load(vault_dir)
    config[field] = value(config[field]) if callable(value) else value
    store(vault_dir, config)
    with pytest.raises(expected) as raised:
        unlock(vault_dir)
    assert type(raised.value) is expected


@pytest.mark.parametrize(
    "field", ["chunk_size", "cipher", "features", "generation", "mac", "slots", "vault_id"]
)
def test_missing_field(vault_dir: Path, field: str) -> None:
    config = load(vault_dir)
    del config[field]
    store(vault_dir, config)
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("commitment", replaced_hex, WrongPassphraseError),
        ("wrapped", replaced_hex, VaultConfigError),
        ("label", "theirs", VaultConfigError),
        ("id", 1, VaultConfigError),
        ("kind", "recovery", (UnsupportedFormatError, NoKeyError)),
    ],
)
def test_replaced_field_of_a_slot(vault_dir: Path, field: str, value: object, expected: Expected) -> None:
    """Of a pair of errors the second is that of version 2, where such a slot is of no use, and no more."""
    config = load(vault_dir)
    slot = config["slots"][0]
    slot[field] = value(slot[field]) if callable(value) else value
    store(vault_dir, config)
    assert_refused(vault_dir, expected)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("salt", replaced_hex, WrongPassphraseError),
        ("passes", 4, WrongPassphraseError),
        ("passes", 1, VaultConfigError),
        ("passes", 65, VaultConfigError),
        ("memory", KDF_MEMORY + 1024, WrongPassphraseError),
        ("memory", 8192, VaultConfigError),
        ("memory", 1 << 50, VaultConfigError),
        ("name", "scrypt", (UnsupportedFormatError, VaultConfigError)),
    ],
)
def test_replaced_cost_of_a_slot(vault_dir: Path, field: str, value: object, expected: Expected) -> None:
    config = load(vault_dir)
    cost = cost_in(config)
    name = "kdf" if field == "name" and config["version"] == 2 else field
    cost[name] = value(cost[name]) if callable(value) else value
    store(vault_dir, config)
    assert_refused(vault_dir, expected)


def test_slots_taken_from_elsewhere_repeated_and_too_many(vault_dir: Path, tmp_path: Path) -> None:
    """A slot is bound to its vault, though the passphrase is the same."""
    Vault.create(tmp_path / "other", PASSPHRASE, cipher="aegis-256", kdf_memory=KDF_MEMORY)
    config, other = load(vault_dir), load(tmp_path / "other")
    mine, foreign = config["slots"][0], other["slots"][0]
    for slots in ([foreign], [foreign, {**mine, "id": 1}], [mine, {**foreign, "id": 1}], [mine, mine]):
        store(vault_dir, {**config, "slots": slots})
        with pytest.raises(VaultConfigError):
            unlock(vault_dir)
    store(vault_dir, {**config, "slots": [{**mine, "id": number} for number in range(33)]})
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)


def test_config_of_another_vault_opens_that_vault_s_keys_only(vault_dir: Path, tmp_path: Path) -> None:
    """It authenticates by itself; then nothing of this vault does."""
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.tree.release(vault.tree.create(vault.tree.root, b"mine", 2, 0o600))
    Vault.create(tmp_path / "other", PASSPHRASE, cipher="aegis-256", kdf_memory=KDF_MEMORY)
    shutil.copy(tmp_path / "other" / CONFIG_NAME, vault_dir / CONFIG_NAME)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert list(vault.tree.list(vault.tree.root)) == []


def test_flipped_bytes(vault_dir: Path) -> None:
    """Letters that say something; each is refused, most of them before any key is derived."""
    content = (vault_dir / CONFIG_NAME).read_bytes()
    places = [place for place in range(0, len(content), 9) if not content[place : place + 1].isspace()]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1
        (vault_dir / CONFIG_NAME).write_bytes(changed)
        with pytest.raises(VaultError):
            unlock(vault_dir)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 60000,
        b'{"format": "cryptfs", "version": 1}',
        b" " * (MAX_CONFIG_SIZE + 1),
    ],
)
def test_content_that_is_no_config(vault_dir: Path, content: bytes) -> None:
    (vault_dir / CONFIG_NAME).write_bytes(content)
    with pytest.raises(VaultConfigError):
        unlock(vault_dir)


def test_cut_config(vault_dir: Path) -> None:
    content = (vault_dir / CONFIG_NAME).read_bytes().rstrip()
    for length in range(1, len(content), 37):
        (vault_dir / CONFIG_NAME).write_bytes(content[:length])
        with pytest.raises(VaultConfigError):
            unlock(vault_dir)


def test_missing_config(vault_dir: Path) -> None:
    (vault_dir / CONFIG_NAME).unlink()
    with pytest.raises(NotAVaultError, match=r"cryptfs init"):
        unlock(vault_dir)
