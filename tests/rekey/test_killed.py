"""A change of the masterkey that is killed anywhere: nothing is lost, and a second run ends in the same."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.errors import VaultError
from cryptfs.vfs.vault import Vault, read_config
from tests.crash.striking import Strike
from tests.rekey.material import (
    PASSPHRASE,
    Shown,
    change_masterkey,
    copy_of,
    differences,
    finish,
    furnish_small,
    make_vault,
    shown,
)
from tests.rekey.test_rekey import faults
from tests.support import everything_below

pytestmark = pytest.mark.waits


class Killed(Strike):
    """The process ends at a call."""

    def exception(self) -> BaseException:
        os._exit(9)


def killed_at(call: int, action: Callable[[Path], object], vault_dir: Path) -> bool:
    """Do something in a process that ends at a call; whether it came so far."""
    child = os.fork()
    if not child:
        code = 1
        try:
            with Killed(at=call).without_syncs():
                action(vault_dir)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), call
    return code == 9


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vault_dir = tmp_path_factory.mktemp("killed") / "vault"
    make_vault(vault_dir)
    furnish_small(vault_dir)
    return vault_dir


def seen(vault_dir: Path) -> Shown:
    """A kill may move the time of access of a symlink that was just read."""
    return shown(vault_dir, link_atimes=False)


def calls_of(action: Callable[[], object]) -> int:
    counted = Strike()
    with counted.without_syncs():
        action()
    return len(counted.calls)


def to_the_end(vault_dir: Path) -> None:
    """Whatever state a kill has left: run the command again."""
    if read_config(vault_dir).is_rekeying:
        with pytest.raises(VaultError, match="cryptfs rekey"):
            Vault.unlock(vault_dir, PASSPHRASE, read_only=True, lock=False)
        finish(vault_dir)
    else:
        change_masterkey(vault_dir)


def assert_whole(vault_dir: Path, before: Shown, where: object) -> None:
    found = differences(before, seen(vault_dir))
    assert [path for path, _, _ in found if path] == [], where  # a kill may move the root's time of change
    assert faults(vault_dir) == [], where
    left = [
        str(path)
        for path in everything_below(vault_dir)
        if path.name.startswith(("cryptfs.rekey", "cryptfs.set-aside", "cryptfs.tmp"))
    ]
    assert left == [], where


def test_killed_at_each_call(original: Path, tmp_path: Path) -> None:
    calls = calls_of(lambda: change_masterkey(copy_of(original, tmp_path / "counted")))
    assert calls > 90
    states = set()
    for call in range(calls):
        vault_dir = copy_of(original, tmp_path / "vault")
        before = seen(vault_dir)  # not of the original: copying moves its times of access
        killed = killed_at(call, change_masterkey, vault_dir)
        states.add((killed, read_config(vault_dir).is_rekeying))
        to_the_end(vault_dir)
        assert_whole(vault_dir, before, call)
        shutil.rmtree(vault_dir)
    assert {(True, False), (True, True)} <= states


def test_killed_again_and_again(original: Path, tmp_path: Path) -> None:
    """Each run gets a few calls further, and is killed."""
    seed = int(os.environ.get("CRYPTFS_CRASH_SEED", "1"))
    draw = random.Random(seed)
    for number in range(10):
        vault_dir = copy_of(original, tmp_path / "vault")
        before = seen(vault_dir)  # not of the original: copying moves its times of access
        runs = 0
        while killed_at(draw.randrange(1, 60), to_the_end, vault_dir):
            runs += 1
            assert runs < 500
        assert_whole(vault_dir, before, (seed, number))
        shutil.rmtree(vault_dir)
