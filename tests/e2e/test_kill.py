"""The daemon is killed in the middle of a copy: what was synced is intact, and the rest can be read."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.mounting import Mounted

pytestmark = pytest.mark.waits

ROUNDS = int(os.environ.get("CRYPTFS_E2E_KILL_ROUNDS", "5"))

_COPY = """
# Copies a tree; each file that was synced and closed is named on stdout, and answered with a byte on stdin.
# It may be AHEAD names ahead of the answers: so it is not over before the kill, however slow the test is.
import os, sys
source, target = map(os.fsencode, sys.argv[1:])
number = 0
for directory, names, files in os.walk(source):
    names.sort()
    below = os.path.relpath(directory, source)
    os.makedirs(os.path.join(target, below), exist_ok=True)
    for name in sorted(files):
        with open(os.path.join(directory, name), 'rb') as file:
            content = file.read()
        relative = os.path.join(below, name)
        fd = os.open(os.path.join(target, relative), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for start in range(0, len(content), 50_000):
            os.write(fd, content[start : start + 50_000])
        number += 1
        synced = number % 3 == 0
        if synced:
            os.fsync(fd)
        os.close(fd)
        if synced:
            os.write(1, relative + b'\\n')
            if number > 3 * AHEAD:
                os.read(0, 1)
"""
_AHEAD = 20


def make_source(directory: Path, seed: int) -> None:
    """A tree with files of 0 to 400 KB."""
    dice = random.Random(seed)
    for number in range(12):
        branch = directory / f"directory {number}" / ("n" * 200 if number % 4 == 0 else "sub")
        branch.mkdir(parents=True)
        for index in range(40):
            size = dice.choice([0, 1, 100, 4096, 16_384, 16_385, dice.randrange(400_000)])
            name = f"file {index}" if index % 10 else "l" * 240 + str(index)
            (branch / name).write_bytes(dice.randbytes(size))


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_kill_during_a_copy(own_mount: Mounted, tmp_path: Path, round_: int) -> None:
    source = tmp_path / "source"
    make_source(source, round_)
    target = own_mount.mountpoint / "target"
    target.mkdir()
    copy = subprocess.Popen(
        [sys.executable, "-c", f"AHEAD = {_AHEAD}\n{_COPY}", source, target],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    )  # fmt: skip
    assert copy.stdin is not None
    assert copy.stdout is not None
    dice = random.Random(round_ + 1000)
    synced = set()
    for _ in range(dice.randrange(1, 120)):
        synced.add(copy.stdout.readline().rstrip(b"\n"))
        copy.stdin.write(b".")
    time.sleep(dice.uniform(0, 0.02))
    own_mount.kill()
    synced |= {line for line in copy.communicate(timeout=60)[0].split(b"\n") if line}
    assert copy.returncode != 0, "the copy was over before the kill"
    own_mount.allow_log(r"WARNING .*(was interrupted|bytes at its end|did not end)")
    own_mount.start()
    intact, prefixes = 0, 0
    for directory, _, names in os.walk(os.fsencode(target)):
        below = os.path.relpath(directory, os.fsencode(target))
        for name in names:
            relative = os.path.join(below, name)
            expected = Path(os.fsdecode(os.path.join(os.fsencode(source), relative))).read_bytes()
            content = Path(os.fsdecode(os.path.join(directory, name))).read_bytes()
            if relative in synced:
                assert content == expected, f"a synced file has changed: {relative!r}"
                intact += 1
            else:
                # The writeback cache may bring pages to the vault out of order: what is there is right,
                # or a hole that is filled with zeros.
                pairs = zip(content, expected, strict=False)
                assert len(content) <= len(expected)
                assert all(ours in (theirs, 0) for ours, theirs in pairs), f"wrong bytes in {relative!r}"
                prefixes += 1
    assert intact == len(synced), "a file that was synced is gone"
    print(f"round {round_}: {intact} synced and intact, {prefixes} others readable")
    for line in own_mount.new_log_lines():
        assert line.startswith("WARNING") and "Traceback" not in line, line
    shutil.rmtree(target)
    assert os.listdir(own_mount.mountpoint) == []
    (own_mount.mountpoint / "afterwards").write_bytes(b"works")


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_kill_during_overwrites_of_synced_files(own_mount: Mounted, round_: int) -> None:
    """Files that nobody touches stay as they were, whatever happens to the one that is written."""
    quiet = own_mount.mountpoint / "quiet"
    quiet.mkdir()
    contents = {f"f{number}": os.urandom(number * 3000) for number in range(40)}
    for name, content in contents.items():
        with (quiet / name).open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    busy = own_mount.mountpoint / "busy"
    code = (
        "import os, sys\nfd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "while True:\n    os.pwrite(fd, os.urandom(100_000), 0); os.ftruncate(fd, 30_000); os.fsync(fd)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, busy], stderr=subprocess.DEVNULL)
    time.sleep(random.Random(round_ + 2000).uniform(0.2, 0.8))
    own_mount.kill()
    writer.wait(60)
    own_mount.allow_log(r"WARNING .*(was interrupted|bytes at its end|did not end)")
    own_mount.start()
    assert {name: (quiet / name).read_bytes() for name in contents} == contents
    assert len(busy.read_bytes()) in (30_000, 100_000)  # all of it can be read: nothing is torn
    busy.unlink()
