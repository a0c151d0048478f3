"""What a mount's log holds after much work and many failures: no name, target, attribute or content."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.mount.mounts import wait_until
from cryptfs.storage.vaultdir import lock_holder
from tests.e2e.conftest import ENGINES
from tests.e2e.mounting import detach, is_mounted
from tests.support import child_environment, everything_below

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

WORD = "Zauberwort"
PROGRAM = (sys.executable, "-m", "cryptfs")


def run(*args: object) -> None:
    done = subprocess.run(
        [*PROGRAM, *map(str, args)],
        input="passphrase\n",
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def work(place: Path) -> None:
    """Whatever succeeds."""
    for number in range(20):
        directory = place / f"{WORD} directory {number}"
        directory.mkdir()
        (directory / f"{WORD} file").write_text(WORD * 1000)
        (directory / (WORD * 20)).write_text(WORD)
        (directory / f"{WORD} link").symlink_to(f"/{WORD}/target")
        os.link(directory / f"{WORD} file", directory / f"{WORD} second name")
        os.setxattr(directory / f"{WORD} file", f"user.{WORD}", WORD.encode())
        (directory / f"{WORD} file").rename(directory / f"{WORD} renamed")
        os.listdir(directory)
    os.mkfifo(place / f"{WORD} fifo")


def fail(place: Path) -> int:
    """Whatever fails; how many did."""
    first = place / f"{WORD} directory 0"
    file, missing = first / f"{WORD} renamed", first / f"{WORD} missing"
    attempts: list[Callable[[], object]] = [
        lambda: missing.read_bytes(),
        lambda: missing.unlink(),
        lambda: missing.rmdir(),
        lambda: missing.readlink(),
        lambda: missing.rename(file),
        lambda: first.mkdir(),
        lambda: first.rmdir(),
        lambda: first.unlink(),
        lambda: (first / (WORD * 30)).touch(),
        lambda: (first / f"{WORD} long link").symlink_to(WORD * 500),
        lambda: os.link(first, missing),
        lambda: file.rename(first),
        lambda: first.rename(first / "inside itself"),
        lambda: os.getxattr(file, f"user.no {WORD}"),
        lambda: os.setxattr(file, f"user.{WORD}", b"x", os.XATTR_CREATE),
        lambda: os.removexattr(file, f"user.no {WORD}"),
        lambda: os.setxattr(file, f"strange.{WORD}", b"x"),
        lambda: (file / WORD).touch(),
        lambda: os.truncate(file, 2**63 - 1),
        lambda: os.mknod(file),
    ]
    failed = 0
    for attempt in attempts:
        try:
            attempt()
        except OSError:
            failed += 1
    return failed


def damage(vault: Path) -> None:
    """A bit in the middle of everything; of one directory record only, to reach what is in the others."""
    seen = set()
    spared = [path for path in everything_below(vault) if path.name == "cryptfs.dir"][1:]
    for path in everything_below(vault):
        if path in spared or (path.parent == vault and path.name.startswith("cryptfs.")):
            continue
        if path.is_symlink():
            path.unlink()
            path.symlink_to("damaged")
        elif path.is_file() and path.stat().st_ino not in seen:  # else the second name would undo it
            seen.add(path.stat().st_ino)
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)


def touch_everything(place: Path) -> None:
    for directory, names, files in os.walk(place):
        for name in (*names, *files):
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                path.readlink()
            with contextlib.suppress(OSError):
                for attribute in os.listxattr(path):
                    os.getxattr(path, attribute)
            with contextlib.suppress(OSError):
                if path.is_file():
                    path.read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_no_plaintext_in_the_log(engine: str, tmp_path: Path) -> None:
    vault, place, log = tmp_path / "vault", tmp_path / "mountpoint", tmp_path / "log"
    place.mkdir()
    run("init", vault, "--kdf-memory", "64m")
    mount = ("mount", "--engine", engine, "--log-file", log, vault, place)
    try:
        run(*mount)
        work(place)
        assert fail(place) == 20
        run("umount", place)
        damage(vault)
        run(*mount)
        touch_everything(place)
        survivor = (place / f"{WORD} still open").open("w")
        holder = lock_holder(vault)
        assert holder is not None
        os.kill(holder.pid, signal.SIGTERM)
        assert wait_until(lambda: not is_mounted(place), 30)
        with contextlib.suppress(OSError):
            survivor.close()
    finally:
        detach(place)
    text = log.read_text()
    assert text.count(" ERROR ") > 30
    assert text.count(" WARNING ") > 15
    assert "is still in use by pid" in text
    for form in (WORD, WORD.encode().hex(), WORD.lower(), "still open\n", "directory 0"):
        assert form not in text
