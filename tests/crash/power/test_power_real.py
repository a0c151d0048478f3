"""Power cuts under a real ext4: what was fsynced is there, whatever the disk kept of the rest."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.vfs.content.redo import Durability
from tests.crash import expectations
from tests.crash.blockdevice import RecordingDevice, loop_device, missing, mounted_disk
from tests.crash.killing import KEEP, KNOWN_LINES, look
from tests.crash.program import Program, Promise, replayed
from tests.e2e.mounting import PROJECT, Mounted, MountSpec, scratch_directory

pytestmark = pytest.mark.serial

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
CUTS = int(os.environ.get("CRYPTFS_CRASH_CUTS", "4"))
SECONDS = float(os.environ.get("CRYPTFS_CRASH_CUT_SECONDS", "3"))
SIZE = 192 << 20  # two journals of 16 MiB among it
PROGRAMS = 2
DAMAGE = (
    r"ERROR cryptfs\.mount\.errno_map: ",
    r"WARNING cryptfs\.vfs\.tree\.leftout: \S+: left out of the listing: the sidecar does not belong",
)
"""Files that were new, and the names of such, may be damaged; what else is found to be so, or missing, fails
by the rules of the history."""
FILE_SIZE = 200 << 10
SPEC = MountSpec("native", chunk_size=4096, deltas=True)


@dataclass(frozen=True)
class Moment:
    """When the power goes: a place in the log of writes, and what each program had (done, asked) by then."""

    place: int
    programs: tuple[tuple[int, int], ...]


@contextlib.contextmanager
def vault_on(disk: Path, scratch: Path) -> Iterator[Mounted]:
    """A mount whose vault lies on a disk of one's own."""
    mount = Mounted(SPEC, scratch / "mount")
    mount.scratch.mkdir()
    (mount.scratch / "vault").symlink_to(disk / "vault")
    try:
        yield mount
        mount.unmount()
    finally:
        mount.abandon()


def counted(log: Path, word: str) -> int:
    return sum(1 for line in log.read_text().splitlines() if line.startswith(word)) if log.exists() else 0


def work(device: RecordingDevice, mount: Mounted, scratch: Path, seed: int) -> list[Moment]:
    """Programs run on the mount; moments are noted meanwhile."""
    logs = [scratch / f"log {number}" for number in range(PROGRAMS)]
    orders = []
    for number, log in enumerate(logs):
        directory = mount.mountpoint / f"program {number}"
        directory.mkdir()
        order = {"directory": str(directory), "seed": seed + number, "log": str(log)}
        orders.append(order | {"promise": Promise.SYNCED.name, "file_size": FILE_SIZE})
    os.sync()  # the directories, and with them the vault
    command = [sys.executable, "-m", "tests.crash.writer", json.dumps(orders)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    writer = subprocess.Popen(command, cwd=PROJECT, env=environment)
    moments, dice = [], random.Random(seed)
    try:
        for _ in range(CUTS):
            time.sleep(dice.uniform(0.2, 2 * SECONDS / CUTS))
            assert writer.poll() is None, [log.read_text().splitlines()[-1] for log in logs]
            done = [counted(log, "done") for log in logs]
            place = device.moment()
            asked = [counted(log, "asked") for log in logs]
            moments.append(Moment(place, tuple(zip(done, asked, strict=True))))
    finally:
        writer.kill()
        writer.wait()
    return moments


def wrong_after(moment: Moment, image: Path, scratch: Path, seed: int) -> list[str]:
    """Bring an image of the disk up, mount its vault, and compare."""
    found: list[str] = []
    with loop_device(image) as device, mounted_disk(device, scratch / "disk") as disk:
        with vault_on(disk, scratch) as mount:
            mount.mountpoint.mkdir()
            mount.allow_log(*KNOWN_LINES, *DAMAGE)
            mount.start()
            for number, (done, asked) in enumerate(moment.programs):
                program = Program(seed + number, Promise.SYNCED, FILE_SIZE)
                replayed(program, done, asked)
                directory = os.fsencode(mount.mountpoint / f"program {number}")
                rules = expectations.after_a_power_cut(SPEC.chunk_size, Durability.POWER)
                found += program.names.findings(look(directory, SPEC.chunk_size), rules)
        shutil.rmtree(mount.scratch, ignore_errors=True)
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, f"this is not what ext4 may find after a power cut:\n{checked.stdout}"
    return found


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
def test_power_cuts_under_ext4() -> None:
    scratch = scratch_directory(tmpfs=True)
    try:
        with RecordingDevice(scratch, SIZE) as device:
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "nodiscard", device.device], check=True)
            with mounted_disk(device.device, scratch / "disk") as disk, vault_on(disk, scratch) as mount:
                (disk / "vault").mkdir()
                mount.create()
                mount.start()
                moments = work(device, mount, scratch, SEED * 1000)
            shutil.rmtree(mount.scratch, ignore_errors=True)
        open_writes = 0
        for number, moment in enumerate(moments):
            image = scratch / "image"
            dice = random.Random(f"{SEED} {number}")
            open_writes += device.after_power_cut(moment.place, dice, image)
            found = wrong_after(moment, image, scratch, SEED * 1000)
            if found:
                KEEP.mkdir(exist_ok=True)
                kept = KEEP / f"power-{SEED}-{number}-{time.time_ns()}"
                device.after_power_cut(moment.place, random.Random(f"{SEED} {number}"), kept)
                raise AssertionError(f"seed {SEED}, {moment}, image kept in {kept}:\n" + "\n".join(found))
        assert open_writes, "no write was on its way at any cut"
        print(f"{len(moments)} cuts, {open_writes} writes on their way, {moments[-1].programs} operations")
    finally:
        shutil.rmtree(scratch)
