"""Checks of a vault that is mounted and in use: nothing is reported that is only under way."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from cryptfs.errors import ReadOnlyVaultError, VaultLockedError
from cryptfs.fsck.check import check_vault
from cryptfs.fsck.findings import Finding, FindingKind, Severity
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault
from tests.e2e.mounting import PASSPHRASE, Mounted
from tests.fsck.scene import flip

pytestmark = pytest.mark.waits

CHECKS = 5


def use(directory: Path, seed: int, stop: threading.Event) -> None:
    """Files, directories, links and long names that come, change and go, for as long as that is wanted."""
    dice = random.Random(seed)
    directory.mkdir()
    while not stop.is_set():
        name = directory / (dice.choice(["a", "b", "c", "l" * 200, "m" * 240]) + str(dice.randrange(4)))
        match dice.randrange(7):
            case 0 | 1:
                _file(name, dice)
            case 2:
                _gone(name)
            case 3:
                _gone(name)
                name.symlink_to("t/" * dice.choice([5, 1750]))
            case 4:
                _gone(name)
                name.mkdir()
                (name / "below").write_bytes(dice.randbytes(5000))
            case 5:
                target = directory / ("r" * dice.choice([3, 200]) + str(dice.randrange(4)))
                if name.exists() or name.is_symlink():
                    _gone(target)
                    name.rename(target)
            case _:
                if name.is_file() and not name.is_symlink():
                    os.setxattr(name, "user.note", dice.randbytes(50))


def _file(name: Path, dice: random.Random) -> None:
    if name.is_symlink() or name.is_dir():
        _gone(name)
    with name.open("r+b" if name.exists() else "wb") as file:
        for _ in range(20):
            file.seek(dice.randrange(300_000))
            file.write(dice.randbytes(dice.randrange(40_000)))
        file.truncate(dice.randrange(300_000))
        os.fsync(file.fileno())


def _gone(name: Path) -> None:
    if name.is_dir() and not name.is_symlink():
        shutil.rmtree(name)
    else:
        name.unlink(missing_ok=True)


def check(mount: Mounted, *, deep: bool) -> list[Finding]:
    with Vault.unlock(mount.vault_dir, PASSPHRASE.encode(), read_only=True, lock=False) as vault:
        return list(check_vault(vault, deep=deep).run())


def test_a_vault_in_use_has_no_errors(own_mount: Mounted) -> None:
    stop = threading.Event()
    users = [
        threading.Thread(target=use, args=(own_mount.mountpoint / f"user {seed}", seed, stop))
        for seed in range(2)
    ]
    for user in users:
        user.start()
    try:
        found = [finding for round_ in range(CHECKS) for finding in check(own_mount, deep=bool(round_ % 2))]
    finally:
        stop.set()
        for user in users:
            user.join()
    assert [finding for finding in found if finding.severity is not Severity.INFO] == []
    assert check(own_mount, deep=True) == []


def test_damage_is_found_while_mounted(own_mount: Mounted) -> None:
    for name in ("damaged", "sound"):
        (own_mount.mountpoint / name).write_bytes(bytes(100_000))
    own_mount.remount()
    victim = next(path for path in own_mount.vault_dir.iterdir() if path.stat().st_size > 100_000)
    flip(victim, 20_000)
    (finding,) = check(own_mount, deep=True)
    assert (finding.kind, finding.cipher_path) == (FindingKind.CHUNKS, victim.name)


def test_a_mounted_vault_is_not_repaired(own_mount: Mounted) -> None:
    with pytest.raises(VaultLockedError):
        Vault.unlock(own_mount.vault_dir, PASSPHRASE.encode())
    looking = Vault.unlock(own_mount.vault_dir, PASSPHRASE.encode(), read_only=True, lock=False)
    with looking, pytest.raises(ReadOnlyVaultError):
        check_vault(looking, repair=True)
    with pytest.raises(ValueError, match="lock"):
        Vault.unlock(own_mount.vault_dir, PASSPHRASE.encode(), lock=False)


def test_after_a_kill(own_mount: Mounted) -> None:
    """No error that a replay takes away is told before it; a repair leaves a vault in order."""
    path = own_mount.mountpoint / "file"
    path.write_bytes(bytes(300_000))
    own_mount.remount()
    fd = os.open(path, os.O_RDWR)
    for offset in range(0, 300_000, 7000):
        os.pwrite(fd, b"overwritten", offset)
    os.fsync(fd)
    os.pwrite(fd, bytes(50_000), 300_000)
    own_mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    found = check(own_mount, deep=True)
    assert [finding for finding in found if finding.severity is Severity.ERROR] == []
    assert FindingKind.UNFINISHED_JOURNAL in {finding.kind for finding in found}
    with Vault.unlock(own_mount.vault_dir, PASSPHRASE.encode(), durability=Durability.OFF) as vault:
        repaired = list(check_vault(vault, deep=True, repair=True).run())
        assert [finding for finding in repaired if finding.remains] == []
    assert check(own_mount, deep=True) == []
    own_mount.start()
    assert path.read_bytes()[7000:7011] == b"overwritten"
