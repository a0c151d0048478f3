"""Where a vault stands for the harness: an ext4 of its own, which gives inode numbers again at once."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.crash.blockdevice import loop_device, mounted_disk
from tests.e2e.mounting import TMPFS, Mounted, MountSpec

MIB = 1 << 20

AT_ONCE = (("cryptfs.vfs.content.checkpoint", "CLOSED_SECONDS", 0),)
"""What was overwritten goes home to its file at once, so that nobody has to wait for it."""


@contextlib.contextmanager
def ext4(mib: int = 256) -> Iterator[Path]:
    """A mounted ext4 in a file on tmpfs. It has a journal: without one ext4 spares freed inodes."""
    scratch = Path(tempfile.mkdtemp(prefix="outside-", dir=TMPFS))
    scratch.chmod(0o755)
    image = scratch / "image"
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    try:
        words = ["mkfs.ext4", "-q", "-F", "-I", "256", "-E", "lazy_itable_init=0,lazy_journal_init=0"]
        subprocess.run([*words, image], check=True, capture_output=True)
        with loop_device(image) as device, mounted_disk(device, scratch / "disk") as disk:
            disk.chmod(0o755)
            yield disk
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def mounted_on(ground: Path, spec: MountSpec) -> Iterator[Mounted]:
    """A fresh vault on this ground, mounted; afterwards no mount and no daemon stays behind."""
    scratch = Path(tempfile.mkdtemp(prefix="vault-", dir=ground))
    scratch.chmod(0o755)
    mount = Mounted(spec, scratch)
    try:
        mount.create()
        mount.start()
        yield mount
    finally:
        mount.abandon()
