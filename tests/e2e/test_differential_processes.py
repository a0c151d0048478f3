"""Several processes on one file: locks, appends, readers beside a writer."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Pair
from tests.e2e.trace import Case, Cases, Trace

CASES = Cases()


def in_child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python process in the current directory, with pipes for a conversation."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


_HOLD = """
import fcntl, os, sys
fd = os.open('f', os.O_RDWR)
kind, start, length = sys.argv[1:]
if kind == 'flock':
    fcntl.flock(fd, fcntl.LOCK_EX)
else:
    fcntl.lockf(fd, fcntl.LOCK_EX if kind == 'lockf' else fcntl.LOCK_SH, int(length), int(start))
print('held', flush=True)
sys.stdin.readline()
"""


def hold(kind: str, start: int = 0, length: int = 0) -> subprocess.Popen[str]:
    """A process that holds a lock on `f`."""
    child = in_child(_HOLD, kind, str(start), str(length))
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def let_go(child: subprocess.Popen[str]) -> None:
    child.communicate("done\n", timeout=30)


@CASES.add
def flock_between_processes(t: Trace) -> None:
    Path("f").write_bytes(b"content")
    fd = os.open("f", os.O_RDWR)
    t.do("free", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.do("unlock", fcntl.flock, fd, fcntl.LOCK_UN)
    child = hold("flock")
    t.do("exclusive is held", fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    t.do("shared, too", fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    let_go(child)
    t.do("free again", fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.close(fd)


@CASES.add
def posix_locks_between_processes(t: Trace) -> None:
    Path("f").write_bytes(bytes(100))
    fd = os.open("f", os.O_RDWR)
    child = hold("lockf", 10, 20)
    for start, length in ((0, 10), (0, 11), (29, 1), (30, 5), (15, 2), (0, 0)):
        t.do(f"{start} {length}", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        t.do("unlock", fcntl.lockf, fd, fcntl.LOCK_UN, length, start)
    asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    t.note("who holds it", (kind, start, length, pid == child.pid))
    let_go(child)
    t.do("free", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    child = hold("shared")
    fd = os.open("f", os.O_RDWR)
    t.do("two readers", fcntl.lockf, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    t.do("no writer", fcntl.lockf, fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    let_go(child)
    os.close(fd)


_APPEND = """
import os, sys
fd = os.open('log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(400):
    os.write(fd, b'%s %d %s\\n' % (sys.argv[1].encode(), number, b'x' * (number % 300)))
"""


@CASES.add
def appends_from_four_processes(t: Trace) -> None:
    children = [in_child(_APPEND, str(number)) for number in range(4)]
    for child in children:
        child.communicate(timeout=60)
    lines = Path("log").read_bytes().splitlines()
    wanted = {b"%d %d %s" % (who, number, b"x" * (number % 300)) for who in range(4) for number in range(400)}
    t.note("no record is lost or torn", (len(lines), set(lines) == wanted))
    Path("log").unlink()


_WRITE = """
import os, sys
fd = os.open('f', os.O_RDWR)
for step in range(300):
    os.pwrite(fd, bytes([step % 256]) * 4096, (step % 16) * 4096)
"""


@CASES.add
def exclusive_creation_has_one_winner(t: Trace) -> None:
    code = (
        "import os\n"
        "try: os.open('once', os.O_CREAT | os.O_EXCL); print('won')\n"
        "except FileExistsError: print('lost')"
    )
    children = [in_child(code) for _ in range(6)]
    t.note("winners", sorted(child.communicate(timeout=60)[0] for child in children))


@CASES.add
def a_child_inherits_descriptors(t: Trace) -> None:
    fd = os.open("f", os.O_RDWR | os.O_CREAT)
    subprocess.run(["sh", "-c", "echo from the child"], stdout=fd, check=True)
    os.write(fd, b"and the parent\n")
    t.do("both", os.pread, fd, 100, 0)
    os.unlink("f")
    subprocess.run(["sh", "-c", "echo after unlink"], stdout=fd, check=True)
    t.do("all", os.pread, fd, 100, 0)
    os.close(fd)


@CASES.add
def execution_from_the_mount(t: Trace) -> None:
    Path("script").write_text("#!/bin/sh\necho ran with $1\n")
    os.chmod("script", 0o755)
    t.note("script", subprocess.run(["./script", "this"], capture_output=True, check=True).stdout)
    with Path("/bin/true").open("rb") as file:
        Path("true").write_bytes(file.read())
    os.chmod("true", 0o755)
    t.note("binary", subprocess.run(["./true"], check=False).returncode)
    os.chmod("script", 0o644)
    try:
        subprocess.run(["./script"], check=False)
    except OSError as error:
        t.note("no right to", errno.errorcode[error.errno or 0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_processes(case: Case, pair: Pair) -> None:
    pair.check(case)


def test_a_reader_beside_a_writer(pair: Pair) -> None:
    """A page is old or new, never half of each, wherever the kernel hands whole pages over.

    Read with O_DIRECT: in its page cache the kernel lets a read see half a write. With the writeback cache
    it also sends pages while a program writes to them (FUSE has no stable pages), so that a WRITE request
    can arrive torn, for a moment: then each half must still be something that was written to that page.
    """
    directory, _ = pair.directories("reader-beside-writer")
    (directory / "f").write_bytes(bytes(16 * 4096))
    spec = pair.mount.spec
    whole_pages = "nowriteback" in spec.options
    child = subprocess.Popen([sys.executable, "-c", _WRITE], cwd=directory)
    fd = os.open(directory / "f", os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as buffer:
        while child.poll() is None:
            for page in range(16):
                os.preadv(fd, [buffer], page * 4096)
                values = set(buffer[:])
                assert all(value % 16 == page or value == 0 for value in values)
                assert len(values) == 1 or not whole_pages
    os.close(fd)
    assert child.wait() == 0
    last = {step % 16: step % 256 for step in range(300)}
    assert (directory / "f").read_bytes() == b"".join(bytes([last[page]]) * 4096 for page in range(16))
    pair.mount.assert_quiet()
