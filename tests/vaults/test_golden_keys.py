"""The golden vaults and their keys: those of v2 open by every kind, and vaults of all versions gain keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.vfs.vault import Vault, read_config
from tests.age_keys import NPM, identity_file
from tests.all_keys import CHEAP, KEYS, AllKeys
from tests.softtoken import SoftToken
from tests.vaults.make_golden import MANIFEST, PASSPHRASE, VERSION, describe
from tests.vaults.test_golden import GOLDEN, HERE, golden

__all__ = ["golden"]  # a fixture

WITH_KEYS = sorted(path.parent.name for path in HERE.glob(f"*/{KEYS}"))


@pytest.fixture(autouse=True)
def _remembers_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(params=WITH_KEYS)
def keys(request: pytest.FixtureRequest, tmp_path: Path) -> AllKeys:
    """A copy of a vault, and its keys."""
    return AllKeys.load(Path(shutil.copytree(HERE / request.param, tmp_path / "golden", symlinks=True)))


def opened_by(keys: AllKeys, name: str, capsys: pytest.CaptureFixture[str]) -> int | str:
    """The id of the slot that a key opens, or that of words or shares."""
    capsys.readouterr()
    keys.run("key", "test", keys.vault, "--json", *keys.ways[name], tokens=keys.tokens(name))
    answer = json.loads(capsys.readouterr().out)
    found: int | str = answer["slot"]["id"] if "slot" in answer else answer["recovery"]
    return found


def contents(golden: Path, passphrase: bytes = PASSPHRASE) -> bool:
    """Whether the vault holds what its manifest says."""
    with Vault.unlock(golden / "vault", passphrase) as vault:
        found = describe(vault.tree, vault.tree.root)
    return bool(found == json.loads((golden / MANIFEST).read_text()))


def test_the_last_version_has_all_keys() -> None:
    assert {name for name in GOLDEN if name.startswith(f"{VERSION}-")} <= set(WITH_KEYS)


def test_every_kind_opens(keys: AllKeys, capsys: pytest.CaptureFixture[str]) -> None:
    expected: dict[str, int | str] = {**keys.slots, **keys.recovery}
    assert len(expected) == 9
    assert {name: opened_by(keys, name, capsys) for name in keys.ways} == expected


def gain(keys: AllKeys, by: list[str], *, kinds: bool = True) -> None:
    """One key more of each kind, or passphrases alone."""
    first = keys.file("third", "a passphrase of later years")
    run, vault, base = keys.run, keys.vault, keys.base
    run("key", "add", "passphrase", vault, "--new-passfile", first, *CHEAP, *by)
    keys.ways["third"] = ["--passfile", first]
    code = 0 if kinds else 27
    run("key", "add", "keyfile", vault, base / "later", "--generate", *by, code=code)
    run("key", "add", "recipient", vault, NPM[0]["recipient"], *by, code=code)
    token = SoftToken("Green")
    run("key", "add", "fido2", vault, *by, tokens=[token], code=code)
    both = ("--with-passphrase", "--new-passfile", first, *CHEAP)
    (base / "later photo").write_bytes(bytes(4000))
    run("key", "add", "keyfile", vault, base / "later photo", *both, *by, code=code)
    if not kinds:
        return
    run("key", "test", vault, "--keyfile", base / "later")
    run("key", "test", vault, "--identity", keys.file("another", identity_file(NPM[0]["identity"])))
    run("key", "test", vault, "--fido2", tokens=[token])
    run("key", "test", vault, "--keyfile", base / "later photo", "--passfile", first)


def test_it_gains_and_loses_keys(keys: AllKeys, capsys: pytest.CaptureFixture[str]) -> None:
    """New keys of each kind beside the old ones, which still open; then the old ones go."""
    gain(keys, keys.ways["a key file"])
    old = [name for name in keys.ways if name != "third"]
    assert {opened_by(keys, name, capsys) for name in old} == {*keys.slots.values(), *keys.recovery.values()}
    for name in old:
        keys.remove(name, by="third")
    assert contents(keys.base, b"a passphrase of later years")
    config = read_config(keys.vault)
    assert (len(config.slots), config.recovery) == (5, [])
    assert not (keys.vault / "cryptfs.recovery").exists()


def test_words_make_a_lost_config_again(keys: AllKeys, capsys: pytest.CaptureFixture[str]) -> None:
    (keys.vault / CONFIG_NAME).unlink()
    new = ("--new-passfile", keys.file("third", "a passphrase of later years"), *CHEAP)
    keys.run("recovery", "restore-config", keys.vault, *new, *keys.ways["two of three shares"])
    assert contents(keys.base, b"a passphrase of later years")
    assert opened_by(keys, "recovery words", capsys) == keys.recovery["recovery words"]


def test_a_passphrase_changes(keys: AllKeys) -> None:
    new = keys.file("third", "a passphrase of later years")
    keys.run("passwd", keys.vault, *keys.ways["another passphrase"], "--new-passfile", new, *CHEAP)
    keys.run("key", "test", keys.vault, *keys.ways["another passphrase"], code=12)
    assert contents(keys.base, b"a passphrase of later years")
    assert contents(keys.base)


def test_a_vault_of_the_first_version_gains_all_keys(tmp_path: Path) -> None:
    """A passphrase and words at once, the other kinds after its upgrade."""
    base = Path(shutil.copytree(HERE / "v1-aegis-256", tmp_path / "golden", symlinks=True))
    keys = AllKeys(base)
    by = ["--passfile", keys.file("first", PASSPHRASE)]
    keys.run("recovery", "words", keys.vault, "--output", base / "words", *by)
    gain(keys, by, kinds=False)
    assert len(read_config(keys.vault).slots) == 2
    keys.run("upgrade", keys.vault, *by, "--slot-passfile", base / "third")
    (base / "third").unlink()
    gain(keys, by)
    keys.run("key", "test", keys.vault, "--words-file", base / "words")
    assert len(read_config(keys.vault).slots) == 7
    assert contents(base)


def test_a_change_of_the_masterkey_keeps_everything(golden: Path) -> None:
    """Of vaults of the first version after their upgrade, which the command asks for."""
    keys = AllKeys(golden)
    by = ["--passfile", keys.file("first", PASSPHRASE), "--drop-slots"]
    if read_config(keys.vault).version == 1:
        keys.run("rekey", keys.vault, *by, code=27)
        keys.run("upgrade", keys.vault, *by[:2])
    keys.run("rekey", keys.vault, *by)
    assert contents(golden)
    assert len(read_config(keys.vault).slots) == (2 if (golden / KEYS).exists() else 1)
