"""SIGKILL before each call to the disk of each command that writes a config, a record, a pin or a key file.

Afterwards the vault opens by what opened it before, or by what opens it after the command; never by nothing.
What the dead command left does not hinder the next one.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli import main as main_module
from cryptfs.core.names.names import TEMP_PREFIX
from cryptfs.errors import NoKeyError, NotAVaultError, WrongPassphraseError
from cryptfs.storage.pins import pinned
from cryptfs.storage.userstate import recall
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.vault import Vault, read_config, which_opens
from tests.crash.striking import Strike
from tests.support import make_old_vault
from tests.tamper.test_config_costs import cheap_key

pytestmark = pytest.mark.waits

MEMORY = 64 << 20
CHEAP = ("--kdf-memory", "64m")
FIRST, SECOND = b"the first of them", b"another of random words"


@pytest.fixture(autouse=True)
def _deriving_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryptfs.core.slots.kdf.passphrase_key", cheap_key)


class _Killed(Strike):
    def exception(self) -> BaseException:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("SIGKILL cannot be survived")


@dataclass(frozen=True)
class Command:
    """A command, and what opens the vault before and after it.

    words: {} stands for the directory.   opens: the options of a next command, by one of the keys.
    finished: what the same command says when it is run again: exit codes.   prepare: before everything.
    """

    words: tuple[str, ...]
    before: Set[str] = frozenset({"first", "key", "words"})
    after: Set[str] = frozenset({"first", "key", "words"})
    opens: tuple[str, ...] = ("--keyfile", "{}/key")
    finished: Set[int] = frozenset({0})
    prepare: Callable[[Path], object] = field(default=lambda place: None)


def lose_config(place: Path) -> None:
    (place / "vault" / "cryptfs.json").unlink()


def make_older(place: Path) -> None:
    """A vault as 0.1 made it in the place of the other one."""
    shutil.rmtree(place / "vault")
    shutil.rmtree(place / "state")
    make_old_vault(place / "vault", FIRST, kdf_memory=MEMORY)


def forget_state(place: Path) -> None:
    shutil.rmtree(place / "state")


BY_KEY, BY_FIRST = ("--keyfile", "{}/key"), ("--passfile", "{}/first")
ALL = frozenset({"first", "key", "words"})
COMMANDS = {
    "key add keyfile": Command(
        ("key", "add", "keyfile", "{}/vault", "{}/made", "--generate", *BY_KEY),
        after=ALL | {"made"},
        finished={0, 1},  # 1: the file is there; the message says how to add it as it is
    ),
    "key add passphrase": Command(
        ("key", "add", "passphrase", "{}/vault", "--new-passfile", "{}/second", *CHEAP, *BY_KEY),
        after=ALL | {"second"},
    ),
    "key remove": Command(
        ("key", "remove", "{}/vault", "0", *BY_KEY),
        after=ALL - {"first"},
        finished={0, 1},  # 1: there is no such slot
    ),
    "key label": Command(("key", "label", "{}/vault", "1", "a label", *BY_KEY)),
    "key test": Command(("key", "test", "{}/vault", *BY_KEY), prepare=forget_state),
    "passwd": Command(
        ("passwd", "{}/vault", "--new-passfile", "{}/second", *CHEAP, *BY_FIRST),
        after=ALL - {"first"} | {"second"},
        finished={0, 12},  # 12: the old one is wrong by now
    ),
    "recovery words": Command(
        ("recovery", "words", "{}/vault", "--output", "{}/new words", *BY_KEY),
        after=ALL - {"words"} | {"new words"},
        finished={0, 11},  # 11: the file is there
    ),
    "recovery restore-config": Command(
        (
            *("recovery", "restore-config", "{}/vault", "--words-file", "{}/words"),
            *("--new-passfile", "{}/second", *CHEAP),
        ),
        before=frozenset(),
        after=frozenset({"second", "words"}),
        opens=("--passfile", "{}/second"),
        finished={0, 11},  # 11: there is a config
        prepare=lose_config,
    ),
    "upgrade": Command(
        ("upgrade", "{}/vault", *BY_FIRST),
        before=frozenset({"first"}),
        after=frozenset({"first"}),
        opens=BY_FIRST,
        prepare=make_older,
    ),
}


def run(place: Path, words: tuple[str, ...]) -> int:
    return main_module.main([word.format(place) for word in words])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A vault with a passphrase, a key file and words, and what cryptfs remembers of it."""
    place = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cryptfs.core.slots.kdf.passphrase_key", cheap_key)
        patch.setenv("XDG_STATE_HOME", str(place / "state"))
        Vault.create(place / "vault", FIRST, kdf_memory=MEMORY)
        for name, passphrase in (("first", FIRST), ("second", SECOND)):
            (place / name).touch(mode=0o600)
            (place / name).write_bytes(passphrase)
        assert run(place, ("key", "add", "keyfile", "{}/vault", "{}/key", "--generate", *BY_FIRST)) == 0
        assert run(place, ("recovery", "words", "{}/vault", "--output", "{}/words", *BY_KEY)) == 0
        yield place


def opening(place: Path) -> set[str]:
    """The keys that open the vault, tried without a pin; nothing is written."""
    offers: dict[str, Callable[[bytes], Offer]] = {
        "first": lambda content: Offer(passphrase=content),
        "second": lambda content: Offer(passphrase=content),
        "key": lambda content: Offer(key_file=content),
        "made": lambda content: Offer(key_file=content),
        "words": lambda content: Offer(words=content),
        "new words": lambda content: Offer(words=content),
    }
    found = set()
    for name, offer in offers.items():
        if not (place / name).exists() or not (place / name).stat().st_size:
            continue
        try:
            which_opens(place / "vault", offer((place / name).read_bytes()))
        except (WrongPassphraseError, NoKeyError, NotAVaultError):
            continue
        found.add(name)
    return found


@pytest.mark.usefixtures("capfd")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_each_call(
    name: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, place = COMMANDS[name], tmp_path / "place"
    monkeypatch.setenv("XDG_STATE_HOME", str(place / "state"))

    def fresh() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(original, place, symlinks=True)
        command.prepare(place)

    fresh()
    assert opening(place) == command.before
    counted = Strike()
    with counted.without_syncs():
        assert run(place, command.words) == 0
    assert opening(place) == command.after
    assert len(counted.calls) >= 3
    outcomes: list[Any] = []
    for call in range(len(counted.calls)):
        fresh()
        if not (child := os.fork()):
            try:
                with _Killed(at=call).without_syncs():
                    run(place, command.words)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, call
        found = opening(place)
        assert found in (command.before, command.after), (call, counted.calls)
        outcomes.append(found)
        code = run(place, command.words)  # a person does it again
        assert code in command.finished, call
        if code == 0:
            assert opening(place) == command.after
        if (place / "vault" / "cryptfs.json").exists():
            slot = read_config(place / "vault").slots[-1].id
            assert run(place, ("key", "label", "{}/vault", str(slot), "later", *command.opens)) == 0
            assert run(place, ("key", "test", "{}/vault", *command.opens)) == 0
            mark = pinned(place / "vault")
            assert mark is not None and mark.generation == read_config(place / "vault").generation
            assert recall(read_config(place / "vault").vault_id).slot is not None or name == "upgrade"
        left = [each for each in (place / "vault").iterdir() if each.name.startswith(TEMP_PREFIX)]
        assert [each.stat().st_size for each in left] == [0] * len(left), call
    assert outcomes[0] == command.before and outcomes[-1] == command.after
