"""Programs back up and sync a vault while it is mounted, and others write to the mount: docs/SYNC.md."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import cryptfs
from soaklib.sealed import Sealer
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.programs import require
from tests.support import pattern

pytestmark = pytest.mark.waits

SIZE = 300_000
PIECE = 5_000
SECONDS = 20.0
LONG = "l" * 180
CLOSED = ("overwritten", "longer", "replaced", "untouched", LONG)
ROUNDS = 12

CHANGED_MEANWHILE = {"rsync": {0, 24}, "restic": {0, 3}, "borg": {0, 1}}
"""Exit codes that say at most: a file changed, or went, while it was read."""


@pytest.fixture(params=ENGINES)
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as made:
        made.allow_log("WARNING .*somebody else deleted or replaced it while a program was writing to it")
        yield made


def carry(
    program: str, *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run one of the programs on a vault that changes meanwhile."""
    done = subprocess.run(
        [program, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | dict(env or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in CHANGED_MEANWHILE[program], f"{arguments}: {done.stdout}{done.stderr}"


def _rsync(vault: Path, copy: Path) -> None:
    carry("rsync", "-aHX", f"{vault}/", f"{copy}/")


def _restic(vault: Path, copy: Path) -> None:
    store, out = copy.with_name("store"), copy.with_name("out")
    env = {"RESTIC_PASSWORD": "x", "HOME": str(copy.parent), "RESTIC_CACHE_DIR": str(copy.parent / "cache")}
    carry("restic", "-r", store, "init", env=env)
    carry("restic", "-r", store, "backup", vault, env=env)
    carry("restic", "-r", store, "restore", "latest", "--target", out, env=env)
    out.joinpath(*vault.parts[1:]).rename(copy)


def _borg(vault: Path, copy: Path) -> None:
    store, env = copy.with_name("store"), {"BORG_BASE_DIR": str(copy.parent), "BORG_PASSPHRASE": "x"}
    carry("borg", "init", "-e", "repokey", store, env=env)
    carry("borg", "create", f"{store}::one", ".", cwd=vault, env=env)
    copy.mkdir()
    carry("borg", "extract", f"{store}::one", cwd=copy, env=env)


PROGRAMS: dict[str, Callable[[Path, Path], None]] = {"rsync": _rsync, "restic": _restic, "borg": _borg}


def change(mount: Mounted) -> dict[str, bytes]:
    """Files that are closed, each written in another way; what they hold."""
    here = mount.mountpoint
    for number, name in enumerate(CLOSED):
        (here / name).write_bytes(pattern(SIZE, number))
    mount.remount()
    for name in ("overwritten", LONG):
        with (here / name).open("r+b") as file:
            file.seek(40_000)
            file.write(b"changed" * 1000)
    with (here / "longer").open("ab") as file:
        file.write(b"more" * 1000)
    (here / "temporary").write_bytes(b"another version" * 10_000)
    (here / "temporary").rename(here / "replaced")
    return {name: (here / name).read_bytes() for name in CLOSED}


def come_to_rest(mount: Mounted) -> None:
    """Wait until the vault has the newest content of every file."""
    sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
    try:
        backing = [sealer.entry(name) for name in CLOSED]
        deadline = time.monotonic() + SECONDS
        while not all(sealer.settled(path.read_bytes()) for path in backing):
            assert time.monotonic() < deadline, "a closed file does not come to rest"
            time.sleep(0.05)
    finally:
        sealer.close()


@contextlib.contextmanager
def busy(here: Path) -> Iterator[None]:
    """Programs at work: one writes to a file that stays open, one makes, replaces and removes files."""
    over, errors = threading.Event(), []

    def work() -> None:
        dice, count = random.Random(1), 0
        try:
            with (here / "busy").open("w+b", buffering=0) as file:
                file.write(pattern(SIZE))
                while not over.is_set():
                    count += 1
                    os.pwrite(file.fileno(), pattern(PIECE, count), dice.randrange(SIZE))
                    (here / f"small {count}").write_bytes(pattern(1000, count))
                    (here / f"small {count}").rename(here / f"again {count % 7}")
        except OSError as error:
            errors.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        over.set()
        worker.join()
    assert not errors


def contents(vault_dir: Path) -> dict[str, bytes]:
    """Every file of a vault that is not mounted."""
    found = {}
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE.encode()) as vault:
        for name in vault.listdir():
            with vault.open(name, "rb") as file:
                found[name] = file.read()
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_backup_has_every_closed_file(mount: Mounted, tmp_path: Path, program: str) -> None:
    """Files that were closed and came to rest are whole in it, whatever programs do to others meanwhile."""
    require(program)
    copy = tmp_path / "there" / "copy"
    copy.parent.mkdir()
    closed = change(mount)
    come_to_rest(mount)
    with busy(mount.mountpoint):
        PROGRAMS[program](mount.vault_dir, copy)
    with cryptfs.Vault.unlock(copy, PASSPHRASE.encode()) as vault:
        for name, content in closed.items():
            with vault.open(name, "rb") as file:
                assert file.read() == content, name
    for name, content in closed.items():
        assert (mount.mountpoint / name).read_bytes() == content


def test_the_last_run_of_rsync_copies_the_newest_state(mount: Mounted, tmp_path: Path) -> None:
    """Earlier runs read files in the middle of changes; none of that stays, although rsync compares times."""
    require("rsync")
    copy, here, dice = tmp_path / "copy", mount.mountpoint, random.Random(2)
    change(mount)
    over = threading.Event()

    def copies() -> None:
        while not over.is_set():
            carry("rsync", "-a", "--delete", f"{mount.vault_dir}/", f"{copy}/")

    copier = threading.Thread(target=copies)
    copier.start()
    try:
        for number in range(ROUNDS):
            for name in CLOSED:
                with (here / name).open("r+b") as file:
                    for _ in range(20):
                        file.seek(dice.randrange(SIZE))
                        file.write(pattern(PIECE, number))
            time.sleep(dice.random() * 0.8)
    finally:
        over.set()
        copier.join()
    newest = {path.name: path.read_bytes() for path in here.iterdir()}
    mount.unmount()
    carry("rsync", "-a", "--delete", f"{mount.vault_dir}/", f"{copy}/")
    assert contents(copy) == newest


def test_rsync_into_a_mounted_vault(mount: Mounted, tmp_path: Path) -> None:
    """What another machine changed shows, and a file that a program writes to meanwhile is there twice."""
    require("rsync")
    here, copy = mount.mountpoint, tmp_path / "copy"
    closed = change(mount)
    (here / "doc").write_bytes(b"of both")
    mount.unmount()
    carry("rsync", "-a", f"{mount.vault_dir}/", f"{copy}/")
    with cryptfs.Vault.unlock(copy, PASSPHRASE.encode()) as vault:
        for name in ("doc", "overwritten", LONG, "new"):
            with vault.open(name, "wb") as file:
                file.write(b"by the other machine")
        vault.unlink("untouched")
    mount.start()
    with (here / "doc").open("r+b", buffering=0) as file:
        file.write(b"by us  ")
        carry("rsync", "-a", "--delete", f"{copy}/", f"{mount.vault_dir}/")
        file.write(b"!")
    wanted = dict.fromkeys(("doc", "overwritten", LONG, "new"), b"by the other machine")
    wanted |= {name: closed[name] for name in ("longer", "replaced")}

    def shown() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in here.iterdir() if "(conflict" not in path.name}

    deadline = time.monotonic() + SECONDS
    while shown() != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert shown() == wanted
    (kept,) = here.glob("doc (conflict *")
    assert kept.read_bytes() == b"by us  !"
