"""Key slots for public keys under attack: everything but the identity may be known, and be changed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cryptfs.cli import main as main_module
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.core.names.names import decode_text, encode_text
from cryptfs.core.slots.agekeys import identities_of
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.config import decode_config
from cryptfs.errors import NoKeyError, VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.unlock.hybrid import HPKE, new_hybrid
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.table import changing_slots, sealed
from cryptfs.vfs.vault import Vault
from tests.age_keys import NPM

PASSPHRASE = b"correct horse"
KDF_MEMORY = 64 << 20
MINE, THEIRS = NPM[0], NPM[1]
SERVER, COLLEAGUE = 1, 2  # ids of slots


def make(vault_dir: Path) -> None:
    """A vault with a slot for a passphrase, for MINE and for THEIRS; one file."""
    Vault.create(vault_dir, PASSPHRASE, cipher="aegis-256", kdf_memory=KDF_MEMORY)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        for keys in (MINE, THEIRS):
            table.add(new_hybrid(keys["recipient"], table.vault_id, table.next_id))
        table.save()
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.tree.release(vault.tree.create(vault.tree.root, b"mine", 2, 0o600))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vault_dir = tmp_path_factory.mktemp("public-keys") / "vault"
    make(vault_dir)
    return vault_dir


@pytest.fixture
def vault_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "vault"))


def load(vault_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((vault_dir / CONFIG_NAME).read_text())
    return found


def store(vault_dir: Path, config: dict[str, Any]) -> None:
    (vault_dir / CONFIG_NAME).write_text(json.dumps(config))


def offer(keys: dict[str, str] = MINE) -> Offer:
    return Offer(identities=identities_of(keys["identity"].encode()))


def names(vault_dir: Path, offered: Offer) -> list[bytes]:
    with Vault.unlock(vault_dir, offered) as vault:
        return [entry.name for entry in vault.tree.list(vault.tree.root)]


def flipped(text: str, place: int) -> str:
    data = decode_text(text)
    assert data is not None
    changed = bytearray(data)
    changed[place] ^= 1
    return encode_text(bytes(changed))


def run(*arguments: object) -> int:
    """The exit code of a command."""
    return main_module.main([str(each) for each in arguments])


def assert_shut(vault_dir: Path, config: dict[str, Any], error: type[VaultError], why: str) -> None:
    """MINE opens it no more, for this reason."""
    store(vault_dir, config)
    with pytest.raises(error, match=why) as raised:
        Vault.unlock(vault_dir, offer())
    assert type(raised.value) is error


def test_spelling_is_free(vault_dir: Path) -> None:
    store(vault_dir, load(vault_dir))
    assert names(vault_dir, offer(MINE)) == names(vault_dir, offer(THEIRS)) == [b"mine"]


def test_every_part_of_a_sealed_slot_key_matters(vault_dir: Path) -> None:
    """A byte in each field of each part, from the first to the last; what is left of it opens nothing."""
    good = load(vault_dir)
    places = {"enc": [*range(0, 1088, 64), 1087, 1088, 1100, 1118], "ciphertext": range(48)}
    for field, at in places.items():
        for place in at:
            config = json.loads(json.dumps(good))
            params = config["slots"][SERVER]["params"]
            params[field] = flipped(params[field], place)
            assert_shut(vault_dir, config, WrongPassphraseError, "age identity opens no key slot")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("enc", ""), ("enc", "AAAA"), ("enc", "A" * 1493), ("enc", "!" * 1494), ("enc", "A" * 4000)],
        *[("ciphertext", ""), ("ciphertext", "A" * 63), ("ciphertext", "A" * 4000)],
        *[("recipient", ""), ("recipient", "age1pq1"), ("recipient", "a" * 1959), ("recipient", "a" * 4000)],
        *[("enc", 1), ("recipient", 2**53), ("kem", "x25519")],
    ],
)
def test_malformed_params_leave_the_other_slots(vault_dir: Path, field: str, value: str | int) -> None:
    """The slot cannot be used, and says so; that is no crash, and no damage of the vault."""
    config = load(vault_dir)
    config["slots"][SERVER]["params"][field] = value
    config["slots"] = [slot for slot in config["slots"] if slot["id"] != COLLEAGUE]
    assert_shut(
        vault_dir,
        config,
        VaultConfigError,
        "key slot 1 of cryptfs.json (cannot be used|is of a newer cryptfs)",
    )
    with pytest.raises(VaultConfigError, match="was changed by somebody without the masterkey"):
        Vault.unlock(vault_dir, PASSPHRASE)  # the slot opens; the mac tells


def test_a_replaced_recipient_is_noticed(vault_dir: Path) -> None:
    """Else a change of the masterkey would be sealed for somebody else."""
    config = load(vault_dir)
    config["slots"][SERVER]["params"]["recipient"] = NPM[2]["recipient"]
    assert_shut(vault_dir, config, VaultConfigError, "the key is right, but key slot 1 .* was changed")
    with pytest.raises(VaultConfigError, match="was changed by"):
        Vault.unlock(vault_dir, PASSPHRASE)


def test_a_sealed_slot_key_moved_to_another_slot_or_vault(vault_dir: Path, tmp_path: Path) -> None:
    make(tmp_path / "other")
    good, other = load(vault_dir), load(tmp_path / "other")
    server, colleague = good["slots"][SERVER], good["slots"][COLLEAGUE]
    shut = (WrongPassphraseError, "age identity opens no key slot")
    assert_shut(vault_dir, {**good, "slots": [{**server, "id": 7}]}, *shut)
    assert_shut(vault_dir, {**good, "slots": [{**server, "id": 2}, {**colleague, "id": 1}]}, *shut)
    assert_shut(vault_dir, {**good, "slots": [{**colleague, "params": server["params"]}]}, *shut)
    assert_shut(vault_dir, {**good, "slots": [{**server, "params": colleague["params"]}]}, *shut)
    assert_shut(vault_dir, {**good, "slots": [other["slots"][SERVER]]}, *shut)
    assert_shut(vault_dir, {**good, "vault_id": other["vault_id"]}, *shut)
    assert_shut(vault_dir, {**good, "slots": [{**server, "kind": "passphrase"}]}, NoKeyError, "passphrase")


def test_a_slot_that_was_planted_for_a_known_public_key(vault_dir: Path) -> None:
    """An attacker can make a slot for MINE, but has no masterkey to wrap in it but one of their own."""
    good = load(vault_dir)
    config = decode_config((vault_dir / CONFIG_NAME).read_bytes())
    new = new_hybrid(MINE["recipient"], config.slot_context.vault_id, 9)
    planted = json.loads(msgspec.json.encode(sealed(config, 9, "", new, os.urandom(32))))
    for slots in ([planted], [planted, *good["slots"]]):
        changed = {**good, "slots": slots}
        assert_shut(vault_dir, changed, VaultConfigError, "was changed by somebody without the masterkey")


def test_with_a_public_key_alone_anybody_makes_a_vault_that_opens(vault_dir: Path, tmp_path: Path) -> None:
    """Not detected: an identity shows for whom a vault was made, not by whom. Its old files are gone."""
    Vault.create(tmp_path / "forged", b"theirs", cipher="aegis-256", kdf_memory=KDF_MEMORY)
    with changing_slots(tmp_path / "forged", b"theirs") as table:
        table.add(new_hybrid(MINE["recipient"], table.vault_id, table.next_id))
        table.save()
    for name, secret in (("true", PASSPHRASE), ("forger", b"theirs")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(secret)
    manifest = tmp_path / "manifest"
    assert run("snapshot", vault_dir, "--output", manifest, "--passfile", tmp_path / "true") == ExitCode.OK
    shutil.copy(tmp_path / "forged" / CONFIG_NAME, vault_dir / CONFIG_NAME)
    assert names(vault_dir, offer()) == []
    verify = ("verify", vault_dir, manifest, "--passfile", tmp_path / "forger")
    assert run(*verify) == ExitCode.UNEXPECTED_VAULT  # this machine has seen the true one
    assert run(*verify, "--no-pin") == ExitCode.MANIFEST_INVALID
    with pytest.raises(WrongPassphraseError):
        Vault.unlock(vault_dir, PASSPHRASE)


def test_who_may_open_a_vault_is_in_clear(vault_dir: Path) -> None:
    params = [slot["params"] for slot in load(vault_dir)["slots"] if slot["kind"] == HPKE]
    assert [each["recipient"] for each in params] == [MINE["recipient"], THEIRS["recipient"]]
    text = (vault_dir / CONFIG_NAME).read_text()
    assert MINE["identity"][19:] not in text and MINE["identity"][19:].lower() not in text


def test_a_removed_public_key_opens_nothing(vault_dir: Path) -> None:
    """But a copy of the config from before does: only a change of the masterkey ends that."""
    before = load(vault_dir)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.remove(SERVER)
        table.save()
    with pytest.raises(WrongPassphraseError, match="opens no key slot"):
        Vault.unlock(vault_dir, offer())
    assert names(vault_dir, offer(THEIRS)) == [b"mine"]
    store(vault_dir, before)
    assert names(vault_dir, offer()) == [b"mine"]
