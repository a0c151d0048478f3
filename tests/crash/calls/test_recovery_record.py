"""Changes of the recovery record, killed before every call: old or new secrets open, and nothing is left."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.errors import NoKeyError, NotAVaultError, VaultError, WrongPassphraseError
from cryptfs.storage import vaultdir
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import HeldSecret, opened_recovery
from cryptfs.vfs.restore import restorable
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, read_config
from tests.crash.striking import Strike
from tests.support import MIB
from tests.unlock.vaults import (
    CONTENT,
    PASSPHRASE,
    add,
    age,
    content,
    make_vault,
    new_shares,
    new_words,
    record_files,
    remove,
    shares_offer,
    wiped_later,
    words_offer,
)

pytestmark = pytest.mark.waits

WORDS, SHARES, NEW = new_words(), new_shares(), new_words()
OFFERS = {WORDS: words_offer(WORDS), SHARES: shares_offer(SHARES), NEW: words_offer(NEW)}


class _Killed(Strike):
    def exception(self) -> BaseException:
        os._exit(9)


def killed_at_each_call(
    vault_dir: Path, saved: Path, action: Callable[[], object], check: Callable[[int], object]
) -> int:
    """Do something once for each of its calls, killed right before it; returns the number of its calls."""
    shutil.copytree(vault_dir, saved, symlinks=True)
    counted = Strike()
    with counted.without_syncs():
        action()
    assert len(counted.calls) >= 4, counted.calls
    for call in range(len(counted.calls)):
        shutil.rmtree(vault_dir)
        shutil.copytree(saved, vault_dir, symlinks=True)
        child = os.fork()
        if not child:
            try:
                with _Killed(at=call).without_syncs():
                    action()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, call
        check(call)
    return len(counted.calls)


def opening(vault_dir: Path) -> frozenset[HeldSecret]:
    """The secrets that open the vault, without a look at it for writing."""
    found = set()
    for held, offer in OFFERS.items():
        try:
            with Vault.unlock(vault_dir, offer, read_only=True, lock=False):
                found.add(held)
        except (WrongPassphraseError, NoKeyError):
            continue
    return frozenset(found)


def replace(vault_dir: Path) -> None:
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        table.remove(WORDS.about.short_id)
        table.add(wiped_later(NEW))
        table.save()


def remove_all(vault_dir: Path) -> None:
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        for held in (WORDS, SHARES):
            table.remove(held.about.short_id)
        table.save()


CHANGES: dict[str, tuple[Callable[[Path], object], set[HeldSecret]]] = {
    "add": (lambda vault_dir: add(vault_dir, NEW), {WORDS, SHARES, NEW}),
    "remove": (lambda vault_dir: remove(vault_dir, WORDS), {SHARES}),
    "replace": (replace, {SHARES, NEW}),
    "remove all": (remove_all, set()),
}
BEFORE = frozenset({WORDS, SHARES})


def assert_at_rest(
    vault_dir: Path, expected: frozenset[HeldSecret], caplog: pytest.LogCaptureFixture
) -> None:
    """After an unlock for writing the record fits, and nothing is said of it."""
    caplog.clear()
    assert content(vault_dir) == CONTENT
    assert [line for line in caplog.messages if RECOVERY_NAME in line] == []
    assert opening(vault_dir) == expected
    for name in record_files(vault_dir):
        age(vault_dir / name)
    assert content(vault_dir) == CONTENT
    assert record_files(vault_dir) == ({RECOVERY_NAME} if expected else set())
    assert opening(vault_dir) == expected


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_whole_or_not_at_all(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, WORDS)
    add(vault_dir, SHARES)
    change, after = CHANGES[name]
    seen = set()

    def check(call: int) -> None:
        listed = set(read_config(vault_dir).recovery)
        now = opening(vault_dir)
        seen.add(now)
        assert now in (BEFORE, frozenset(after)), call
        assert listed == {held.about.recovery_id.hex() for held in now}, call
        # Another change right away ends the killed one first, and is killed nowhere.
        again = tmp_path / "again"
        shutil.copytree(vault_dir, again, symlinks=True)
        other = new_shares()
        add(again, other)
        assert content(again, shares_offer(other)) == CONTENT
        assert opening(again) == now, call
        shutil.rmtree(again)
        assert_at_rest(vault_dir, now, caplog)

    killed_at_each_call(vault_dir, tmp_path / "saved", lambda: change(vault_dir), check)
    assert seen == {BEFORE, frozenset(after)}


def test_a_change_after_a_killed_one_is_killed_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first change was killed before its rename: the record that fits is the next one."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, WORDS)
    old = (vault_dir / RECOVERY_NAME).read_bytes()
    add(vault_dir, SHARES)
    (vault_dir / RECOVERY_NAME).rename(vault_dir / NEXT_RECOVERY_NAME)
    (vault_dir / RECOVERY_NAME).write_bytes(old)
    seen = set()

    def check(call: int) -> None:
        now = opening(vault_dir)
        seen.add(now)
        assert now in (BEFORE, frozenset(OFFERS)), call
        assert_at_rest(vault_dir, now, caplog)

    killed_at_each_call(vault_dir, tmp_path / "saved", lambda: add(vault_dir, NEW), check)
    assert seen == {BEFORE, frozenset(OFFERS)}


def test_a_vault_of_version_0_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=())
    add(vault_dir, WORDS, SHARES)
    seen = set()

    def check(call: int) -> None:
        now = opening(vault_dir)
        seen.add(now)
        assert now in (BEFORE, frozenset({SHARES, NEW})), call
        assert_at_rest(vault_dir, now, caplog)

    killed_at_each_call(vault_dir, tmp_path / "saved", lambda: replace(vault_dir), check)
    assert seen >= {BEFORE}


def test_init(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault_dir = tmp_path / "vault"
    vault_dir.mkdir()

    def make() -> None:
        Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB, recovery=wiped_later(WORDS))

    made = set()

    def check(call: int) -> None:
        try:
            with Vault.unlock(vault_dir, PASSPHRASE):
                pass
        except NotAVaultError:
            make()  # as if nothing had been
        else:
            made.add(call)
        assert opening(vault_dir) == {WORDS}
        assert record_files(vault_dir) == {RECOVERY_NAME}

    calls = killed_at_each_call(vault_dir, tmp_path / "saved", make, check)
    assert 0 < len(made) < calls


def test_init_is_interrupted_just_after_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault_dir, write = tmp_path / "vault", vaultdir.write_config_file

    def interrupted(*args: Any) -> None:
        write(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr("cryptfs.vfs.vault.write_config_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 * MIB, recovery=wiped_later(WORDS))
    with Vault.unlock(vault_dir, PASSPHRASE):
        pass
    assert opening(vault_dir) == {WORDS}
    assert record_files(vault_dir) == {RECOVERY_NAME}


@pytest.mark.parametrize("features", [(), ("slots",)], ids=str)
def test_an_upgrade_keeps_words_and_shares(
    features: tuple[str, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is killed, a config that is lost then comes back with features that open the vault."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, features=features)
    add(vault_dir, WORDS, SHARES)
    restored = set()

    def check(call: int) -> None:
        assert opening(vault_dir) == BEFORE, call
        lost = tmp_path / "lost"
        shutil.copytree(vault_dir, lost, symlinks=True)
        (lost / "cryptfs.json").unlink()
        with restorable(lost, OFFERS[SHARES]) as found:
            found.write(b"a new one", kdf_memory=64 * MIB)
        restored.add((read_config(lost).version, tuple(read_config(lost).features)))
        assert content(lost, b"a new one") == CONTENT, call
        assert opening(lost) == BEFORE, call
        shutil.rmtree(lost)
        upgrade(vault_dir, [PASSPHRASE])
        assert_at_rest(vault_dir, BEFORE, caplog)
        assert set(read_config(vault_dir).recovery) == {held.about.recovery_id.hex() for held in BEFORE}

    killed_at_each_call(vault_dir, tmp_path / "saved", lambda: upgrade(vault_dir, [PASSPHRASE]), check)
    assert len(restored) == 3, restored  # of before, upgrading, of after


def test_restoring_a_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir, WORDS)
    add(vault_dir, SHARES)
    (vault_dir / "cryptfs.json").unlink()

    def restore() -> None:
        with restorable(vault_dir, OFFERS[WORDS]) as found:
            found.write(b"a new one", kdf_memory=64 * MIB)

    done = set()

    def check(call: int) -> None:
        try:
            restore()
        except VaultError as error:
            assert "nothing to restore" in str(error), call
            done.add(call)
        assert content(vault_dir, b"a new one") == CONTENT
        assert opening(vault_dir) == BEFORE, call

    calls = killed_at_each_call(vault_dir, tmp_path / "saved", restore, check)
    assert 0 < len(done) < calls


def test_offers_are_whole() -> None:
    """They are used again and again here: nothing may have wiped them."""
    assert all(isinstance(offer, Offer) and any(offer.words or offer.shares[0]) for offer in OFFERS.values())
