"""Direct I/O beside the page cache: what O_DIRECT wrote is what a buffered read shows, from then on.

Linux drops the pages of a range before a direct write goes out. A buffered reader may fetch them again before
the write is done; where the write is asynchronous and FUSE_ASYNC_DIO was negotiated, Linux does not drop
them a second time, and they stay. See docs/decisions/0016-asynchronous-direct-io.md.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.programs import require

pytestmark = pytest.mark.timeout(120)

SIZE = 8 << 20
ROUNDS = 4
BLOCK = 4096


@contextmanager
def buffered_reader(path: Path, pause: int, engine: str = "psync") -> Iterator[None]:
    """Several who read the whole file through the page cache, again and again.

    Args: pause: microseconds between two reads.   engine: of fio.
    """
    words = [
        "fio", "--name=buffered", f"--filename={path}", f"--ioengine={engine}", "--rw=randread", "--direct=0",
        "--bs=64k", f"--size={SIZE}", "--time_based", "--runtime=60", "--invalidate=0", "--norandommap",
        "--numjobs=4", "--minimal", f"--thinktime={pause}",
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/") as reader:
        try:
            yield
            assert reader.poll() is None, "the reader ended before the writer"
        finally:
            reader.terminate()


def overwrite(path: Path, engine: str, size: str) -> None:
    """Asynchronous direct overwrites at random places, sixteen at a time, for a second."""
    words = [
        "fio", "--name=direct", f"--filename={path}", f"--ioengine={engine}", "--rw=randwrite", "--direct=1",
        "--iodepth=16", f"--bs={size}", f"--size={SIZE}", "--time_based", "--runtime=1",
        "--fallocate=none", "--refill_buffers", "--overwrite=1", "--norandommap", "--minimal",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False, cwd="/")
    assert done.returncode == 0, done.stderr + done.stdout


def direct_content(path: Path) -> bytes:
    """The file as it is, past the page cache."""
    block = mmap.mmap(-1, SIZE)  # aligned, as O_DIRECT wants it
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.preadv(fd, [block], 0) == SIZE
        return bytes(block)
    finally:
        os.close(fd)
        block.close()


@pytest.mark.parametrize(
    ("engine", "size", "pause"),
    [("libaio", "1m", 0), ("io_uring", "1m", 0), ("libaio", "64k", 3000), ("io_uring", "4k", 1000)],
)
def test_buffered_reads_after_asynchronous_direct_writes(
    on_mount: Path, engine: str, size: str, pause: int
) -> None:
    """With pauses there are moments in which nothing of the file is in the page cache."""
    check(on_mount / "file", engine, size, pause)


@pytest.mark.parametrize(
    ("options", "reader"), [("max_threads=1", "psync"), ("nowriteback", "psync"), ("", "mmap")]
)
def test_the_same_on_other_mounts_and_through_a_mapping(options: str, reader: str) -> None:
    """One thread has to answer the reads that a dropping of pages waits for."""
    spec = MountSpec("native", options=options)
    require_fuse(spec)
    with mounted(spec) as mount:
        check(mount.mountpoint / "file", "libaio", "256k", 500, reader)


def check(path: Path, engine: str, size: str, pause: int, reader: str = "psync") -> None:
    """Overwrite with readers beside, and compare what they see afterwards with what there is."""
    require("fio")
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb", buffering=0) as held, buffered_reader(path, pause, reader):
        for _ in range(ROUNDS):
            overwrite(path, engine, size)
            truth = direct_content(path)
            for seen in (os.pread(held.fileno(), SIZE, 0), path.read_bytes()):
                stale = [
                    at for at in range(0, SIZE, BLOCK) if seen[at : at + BLOCK] != truth[at : at + BLOCK]
                ]
                assert not stale, f"{len(stale)} of {SIZE // BLOCK} blocks are stale, the first at {stale[0]}"
