"""Every kind of key slot with params that an attacker wrote: it opens nothing, and touches nothing before.

Each field of each kind is left out, doubled by another one, and replaced by values of each type, out of
bounds and huge. No key is derived, no device is asked, and no program is started for what cannot be right.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.slots import kdf
from cryptfs.core.slots.agekeys import identities_of
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import NoKeyError, TokenError, VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.unlock.kinds import KINDS
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.vault import Vault, read_config
from tests.all_keys import AllKeys
from tests.softtoken import Person
from tests.tamper.test_config_costs import cheap_key

KIND_NAMES = [kind.name for kind in KINDS]
HUGE = ("A" * 4000, 2**53, 2**62)
VALUES: tuple[Any, ...] = ("", "AAAA", "!" * 43, "\x00", -1, 0, 1, *HUGE)
NO_JSON: tuple[Any, ...] = (None, True, 1.5, [], {}, ["x"], {"a": 1}, 2**70, "A" * 40_000)
"""Not a number nor a string, or too large for a config at all."""


class Watch:
    """What a hostile config must not reach."""

    def __init__(self) -> None:
        self.derived: list[int] = []
        self.devices = 0
        self.programs = 0


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    seen = Watch()

    def derive(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
        seen.derived.append(memory)
        return cheap_key(passphrase, salt, memory, passes)

    def start(*_: object, **__: object) -> None:
        seen.programs += 1
        raise AssertionError("a config starts no program")

    monkeypatch.setattr(kdf, "passphrase_key", derive)
    monkeypatch.setattr(subprocess, "Popen", start)
    return seen


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllKeys]:
    keys = AllKeys(tmp_path_factory.mktemp("kinds"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdf, "passphrase_key", cheap_key)
        keys.make()
    yield keys


@pytest.fixture
def keys(made: AllKeys, tmp_path: Path) -> AllKeys:
    """A copy of the vault, with the keys of the original."""
    shutil.copytree(made.vault, tmp_path / "vault")
    return AllKeys(tmp_path, "", made.ways, made.slots, made.recovery, made.plugged)


class Counting(Person):
    """Tokens that count how often they are listed."""

    def __init__(self, keys: AllKeys, watch: Watch) -> None:
        super().__init__(keys.tokens("a token"))
        self._watch = watch

    def devices(self) -> Any:
        self._watch.devices += 1
        return super().devices()


def offers(keys: AllKeys, watch: Watch) -> dict[str, Callable[[], Offer]]:
    """For each kind what opens its slot, and no other."""

    def content(way: str, option: str) -> bytes:
        words = keys.ways[way]
        return Path(words[words.index(option) + 1]).read_bytes()

    return {
        "passphrase": lambda: Offer(passphrase=content("another passphrase", "--passfile")),
        "key-file": lambda: Offer(key_file=content("a key file", "--keyfile")),
        "passphrase-key-file": lambda: Offer(
            passphrase=content("a passphrase and a file", "--passfile"),
            key_file=content("a passphrase and a file", "--keyfile"),
        ),
        "fido2": lambda: Offer(tokens=Counting(keys, watch)),
        "hpke": lambda: Offer(identities=identities_of(content("an age identity", "--identity"))),
    }


SLOT_OF = {
    "passphrase": "another passphrase",
    "key-file": "a key file",
    "passphrase-key-file": "a passphrase and a file",
    "fido2": "a token",
    "hpke": "an age identity",
}


def slot_of(config: dict[str, Any], keys: AllKeys, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(slot for slot in config["slots"] if slot["id"] == keys.slots[SLOT_OF[kind]])
    assert found["kind"] == kind
    return found


def changes(params: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every change of the params, with words about it."""
    for name in params:
        yield f"without {name}", {each: value for each, value in params.items() if each != name}
        for value in (*VALUES, *NO_JSON):
            yield f"{name} is {str(value)[:20]!r}", {**params, name: value}
    for name in ("extra", "path", "command", "x" * 200):
        yield f"more: {name[:20]}", {**params, name: "/bin/sh"}
    yield "nothing", {}
    yield "33 of them", {f"p{number}": 1 for number in range(33)}


def refused(vault_dir: Path, offer: Offer) -> VaultError:
    with pytest.raises(VaultError) as raised:
        Vault.unlock(vault_dir, offer)
    assert isinstance(raised.value, VaultConfigError | WrongPassphraseError | NoKeyError | TokenError)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000
    return raised.value


def test_every_kind_is_here(keys: AllKeys, watch: Watch) -> None:
    assert sorted(SLOT_OF) == sorted(KIND_NAMES) == sorted(offers(keys, watch))
    for kind, offer in offers(keys, watch).items():
        with Vault.unlock(keys.vault, offer()) as vault:
            assert vault.slot is not None
            assert vault.slot.kind == kind


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_params_of_an_attacker(kind: str, keys: AllKeys, watch: Watch) -> None:
    """In the only slot of the kind. A passphrase of another slot says that the config was changed."""
    good = json.loads((keys.vault / CONFIG_NAME).read_text())
    others = [slot for slot in good["slots"] if slot["kind"] != kind]
    mine = slot_of(good, keys, kind)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    number = 0
    for words, params in changes(mine["params"]):
        if params == mine["params"]:
            continue
        number += 1
        config = {**good, "slots": [*others, {**mine, "params": params}]}
        (keys.vault / CONFIG_NAME).write_text(json.dumps(config))
        watch.derived.clear()
        watch.devices = 0
        error = refused(keys.vault, offers(keys, watch)[kind]())
        is_right_form = isinstance(error, WrongPassphraseError | TokenError)
        assert is_right_form or (watch.derived, watch.devices) == ([], 0), words
        assert all(memory <= 4 << 30 for memory in watch.derived), words
        if kind != "passphrase":
            refused(keys.vault, Offer(passphrase=(Path(keys.ways["a passphrase"][1])).read_bytes()))
    assert number > 15
    assert watch.programs == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024  # KiB


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_each_field_of_a_slot_is_bound(kind: str, keys: AllKeys, watch: Watch) -> None:
    """Its key is right, and its commitment and wrapping are those of another slot, or its kind is."""
    good = json.loads((keys.vault / CONFIG_NAME).read_text())
    mine = slot_of(good, keys, kind)
    other = next(slot for slot in good["slots"] if slot["kind"] != kind)
    for field in ("commitment", "wrapped", "id", "kind", "label"):
        value = "theirs" if field == "label" else other[field] if field != "id" else 99
        config = {**good, "slots": [{**mine, field: value}]}
        (keys.vault / CONFIG_NAME).write_text(json.dumps(config))
        refused(keys.vault, offers(keys, watch)[kind]())


@pytest.mark.parametrize("name", ["later-kind", "tpm2", "x" * 32, "../etc", "KEY-FILE", "", "pässe"])
def test_a_kind_that_nobody_knows_leaves_the_others(name: str, keys: AllKeys, watch: Watch) -> None:
    """Kept as it is where its name can be one; else the config is refused before a key is derived."""
    good = json.loads((keys.vault / CONFIG_NAME).read_text())
    unknown = {**good["slots"][0], "id": 50, "kind": name, "params": {"command": "/bin/sh -c reboot"}}
    (keys.vault / CONFIG_NAME).write_text(json.dumps({**good, "slots": [*good["slots"], unknown]}))
    for kind in KIND_NAMES:
        error = refused(keys.vault, offers(keys, watch)[kind]())
        assert isinstance(error, VaultConfigError)  # of the form, or of the mac
    assert watch.programs == 0
    if name in ("later-kind", "tpm2"):
        assert [slot.kind for slot in read_config(keys.vault).slots][-1] == name
