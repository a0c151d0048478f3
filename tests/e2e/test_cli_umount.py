"""Each option of `umount` and `status`, by what it does to a real mount; as a process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at, wait_until
from tests.e2e.desk import Desk
from tests.e2e.deskmounts import ENDS, Mounts
from tests.schema import check_answer

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]


@pytest.mark.parametrize("option", ["--restore", "--lazy"])
def test_umount(mounts: Mounts, option: str) -> None:
    mounts.mount()
    said = mounts.umount(option)
    assert mount_at(mounts.point) is None
    if option == "--restore":
        assert "is an ordinary directory now" in said
        (mounts.point / "file").touch()
    assert wait_until(lambda: mounts.desk.info()["held_by"] is None, ENDS)


def test_what_cannot_be_restored(desk: Desk) -> None:
    (desk.base / "plain").mkdir()
    for place, reason in (
        ("none", " does not exist"),
        ("passfile", " is not a directory"),
        ("plain", ": cryptfs did"),
    ):
        told = desk("umount", "--restore", desk.base / place, code=10)
        assert told.err.startswith(f"cryptfs: {desk.base / place}{reason}")


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace of its own needs root")
def test_umount_all(mounts: Mounts) -> None:
    """In a mount namespace: nobody else's mount goes."""
    script = 'set -e; umount -a -t fuse.cryptfs; "$@"; exec "$0" -m cryptfs umount --all'
    program = (*mounts.desk.python, "-m", "cryptfs")
    mount = [*program, "mount", str(mounts.desk.vault), str(mounts.point), "--engine", mounts.engine]
    apart = ("unshare", "--mount", "--propagation", "private", "sh", "-c")
    done = subprocess.run(
        [*apart, script, *mounts.desk.python, *mount],
        env=mounts.desk.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"{mounts.point} is unmounted.\n")
    for words in (("--all", str(mounts.point)), ("--all", "--restore")):
        assert "--all takes no MOUNTPOINT" in mounts.desk("umount", *words, code=1).err


def test_status_watch(mounts: Mounts) -> None:
    """`--interval`: a look each tenth of a second, until Ctrl-C."""
    mounts.mount()
    watch = ("status", "--watch", "--json", "--interval", "0.1", mounts.point)
    with subprocess.Popen(
        [*mounts.desk.python, "-m", "cryptfs", *watch],
        env=mounts.desk.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        uptimes = [
            check_answer("status", process.stdout.readline().decode())["uptime_seconds"] for _ in range(4)
        ]
        process.send_signal(2)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, b"")
    assert uptimes == sorted(uptimes) and 0.25 < uptimes[-1] - uptimes[0] < 5
