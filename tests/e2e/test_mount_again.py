"""A mount at once after umount(8) or fusermount3, which do not wait until the daemon has closed the vault."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from cryptfs.mount.mounts import mount_at, wait_until
from cryptfs.storage.libc import UMOUNT_NOFOLLOW, umount2
from cryptfs.storage.vaultdir import lock_holder
from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import ENVIRONMENT, PROGRAM, Place

pytestmark = [
    pytest.mark.serial,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="umount(8) of a FUSE mount needs root"),
    pytest.mark.skipif(
        shutil.which("fusermount3") is None, reason="needs fusermount3: apt-get install fuse3"
    ),
]

WAYS = (("umount",), ("fusermount3", "-u"), ("umount", "-l"))
ROUNDS = int(os.environ.get("CRYPTFS_TEST_ROUNDS", "2"))  # of all ways, for each engine
SAID = "is still being closed after its unmount. Waiting for that ..."


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "vault", tmp_path / "mountpoint", tmp_path / "passfile")
    place.prepare()
    place.cryptfs("init", place.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    yield place
    while place.is_mounted():
        subprocess.run(["umount", "-l", place.mountpoint], check=True)
    place.assert_log_quiet()


@pytest.mark.parametrize("engine", ENGINES)
def test_unwritten_data_and_another_mount_at_once(place: Place, engine: str) -> None:
    """Files that are new, overwritten, and longer than what the journal waits for; nothing is synced."""
    place.mount("--engine", engine)
    for number in range(ROUNDS * len(WAYS)):
        content = os.urandom(3_000_000)
        (place.mountpoint / "large").write_bytes(content)
        with (place.mountpoint / "overwritten").open("r+b" if number else "w+b") as file:
            file.write(content[:200_000])
        for each in range(20):
            (place.mountpoint / f"small {each}").write_bytes(content[each : each + 100])
        subprocess.run([*WAYS[number % len(WAYS)], place.mountpoint], check=True)
        place.mount("--engine", engine, *(["--read-only"] if number % 2 else []))
        assert (place.mountpoint / "large").read_bytes() == content
        assert (place.mountpoint / "overwritten").read_bytes() == content[:200_000]
        for each in range(20):
            assert (place.mountpoint / f"small {each}").read_bytes() == content[each : each + 100]
        if number % 2:
            subprocess.run(["umount", place.mountpoint], check=True)
            place.mount("--engine", engine)
    place.umount()
    place.cryptfs("fsck", "--deep", place.vault, "--passfile", place.passfile)


class Stopped:
    """A daemon that got no processor since its mount went: it holds the vault."""

    def __init__(self, place: Place) -> None:
        holder = lock_holder(place.vault)
        assert holder is not None
        self.pid = holder.pid
        os.kill(self.pid, signal.SIGSTOP)
        umount2(str(place.mountpoint), UMOUNT_NOFOLLOW)  # umount(8) would ask it for its root

    def goes_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def stopped(place: Place) -> Iterator[Stopped]:
    place.mount()
    stopped = Stopped(place)
    yield stopped
    stopped.goes_on()
    assert wait_until(lambda: not Path(f"/proc/{stopped.pid}").exists(), 20)


def test_a_slow_daemon_is_waited_for(place: Place, stopped: Stopped) -> None:
    words = ["mount", place.vault, place.mountpoint, "--passfile", place.passfile]
    with subprocess.Popen(
        [*PROGRAM, *map(str, words), "--log-file", str(place.log_file)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    ) as again:
        assert again.stderr is not None
        with selectors.DefaultSelector() as selector:
            selector.register(again.stderr, selectors.EVENT_READ)
            assert selector.select(20), "it says nothing"
        said = os.read(again.stderr.fileno(), 65536).decode()
        assert said == f"The vault {place.vault} {SAID}\n"
        assert not place.is_mounted()
        stopped.goes_on()
        assert again.wait(30) == 0
    assert place.is_mounted()
    place.umount()


def test_quiet_waits_and_says_nothing(place: Place, stopped: Stopped) -> None:
    with subprocess.Popen(
        [*PROGRAM, "ls", "--quiet", place.vault, "--passfile", place.passfile],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
    ) as listing:
        time.sleep(3)
        assert listing.poll() is None
        stopped.goes_on()
        assert listing.communicate(timeout=30)[1] == b""
        assert listing.returncode == 0


def test_mounting_from_python_waits(place: Place, stopped: Stopped) -> None:
    script = (
        "import sys, cryptfs\n"
        "with cryptfs.mount_vault(sys.argv[1], sys.argv[2], b'correct horse'): print('mounted')\n"
    )
    with subprocess.Popen(
        [PROGRAM[0], "-c", script, place.vault, place.mountpoint], env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as program:
        time.sleep(2)
        assert program.poll() is None
        stopped.goes_on()
        assert program.communicate(timeout=30)[0] == b"mounted\n"
    assert mount_at(place.mountpoint) is None
    with cryptfs.Vault.unlock(place.vault, b"correct horse"):
        pass
