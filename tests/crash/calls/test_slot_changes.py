"""A change of the key slots is whole or not at all: a kill, or an error of the disk, at each of its calls."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.core.names.names import TEMP_PREFIX
from cryptfs.errors import WrongPassphraseError
from cryptfs.unlock.keyfile import generate_key_file, new_key_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import SlotTable, changing_slots
from cryptfs.vfs.vault import Vault, which_opens
from tests.crash.striking import ProcessDeath, Strike, each_strike

MEMORY = 64 << 20
KEY = generate_key_file(bytes(range(32)))
OTHER_KEY = generate_key_file(bytes(range(1, 33)))
# The offer that opens before, after, or both; no derivation for key files, so that each call can be tried.
OFFERS = {name: Offer(key_file=key) for name, key in (("key", KEY), ("other", OTHER_KEY))}

CHANGES: dict[str, tuple[Callable[[SlotTable], object], set[str]]] = {
    "add": (lambda table: table.add(new_key_file(OTHER_KEY)), {"key", "other"}),
    "remove": (lambda table: table.remove(0), {"key"}),
    "replace": (lambda table: table.replace(1, new_key_file(OTHER_KEY)), {"other"}),
    "relabel": (lambda table: table.relabel(1, "another"), {"key"}),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with a passphrase, and KEY in slot 1."""
    vault = tmp_path_factory.mktemp("slots") / "vault"
    Vault.create(vault, b"passphrase", kdf_memory=MEMORY)
    with changing_slots(vault, b"passphrase") as table:
        table.add(new_key_file(KEY))
        table.save()
    return vault


def opening(vault: Path) -> set[str]:
    found = set()
    for name, offer in OFFERS.items():
        try:
            which_opens(vault, offer)
            found.add(name)
        except WrongPassphraseError:
            pass
    return found


@pytest.mark.parametrize("error", [None, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", CHANGES)
def test_every_call(original: Path, tmp_path: Path, name: str, error: int | None) -> None:
    change, after = CHANGES[name]
    vault = tmp_path / "vault"
    gone = ""

    def work() -> None:
        nonlocal gone
        with changing_slots(vault, OFFERS["key"]) as table:
            gone = table.config.slots[0 if name == "remove" else 1].wrapped
            change(table)
            table.save()

    def fresh() -> None:
        shutil.rmtree(vault, ignore_errors=True)
        shutil.copytree(original, vault)

    fresh()
    outcomes = []
    for number in each_strike(work):
        fresh()
        before = (vault / "cryptfs.json").read_bytes()
        strike = Strike(at=number, error=error)
        failed = strike.during(work)
        assert strike.struck
        assert failed is None or isinstance(failed, ProcessDeath | OSError)
        is_new = (vault / "cryptfs.json").read_bytes() != before
        outcomes.append(is_new)
        assert opening(vault) == (after if is_new else {"key"})
        if failed is not None and error is not None:
            assert not [each for each in vault.iterdir() if each.name.startswith(TEMP_PREFIX)]
        # Another change afterwards leaves nothing that a killed one left.
        with changing_slots(vault, OFFERS["key" if "key" in opening(vault) else "other"]) as table:
            table.relabel(1, "later")
            table.save()
        left = [each for each in vault.iterdir() if each.name.startswith(TEMP_PREFIX)]
        assert [each.stat().st_size for each in left] == [0] * len(left)  # killed before it wrote
        if is_new and name in ("remove", "replace"):
            assert not [each for each in vault.iterdir() if gone.encode() in each.read_bytes()]
    assert outcomes[0] is False and outcomes[-1] is True


def test_a_killed_command_leaves_the_vault_as_it_was(original: Path, tmp_path: Path) -> None:
    """The passphrase slot, which costs a derivation: a kill at each of the calls of one replacement."""
    vault = tmp_path / "vault"
    shutil.copytree(original, vault)

    def work() -> None:
        with changing_slots(vault, OFFERS["key"]) as table:
            table.replace(0, new_passphrase(b"new", MEMORY, 3))
            table.save()

    for number in each_strike(work):
        shutil.rmtree(vault)
        shutil.copytree(original, vault)
        before = (vault / "cryptfs.json").read_bytes()
        Strike(at=number).during(work)
        is_new = (vault / "cryptfs.json").read_bytes() != before
        slot = which_opens(vault, b"new" if is_new else b"passphrase").slot
        assert slot is not None
        assert slot.id == 0
