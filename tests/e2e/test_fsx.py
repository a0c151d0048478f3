"""Random operations on one file through every way that leads to it, against a model: in the manner of fsx.

CRYPTFS_E2E_FSX_OPERATIONS says how many there are for each configuration (the default takes a second or
two), CRYPTFS_E2E_FSX_SEED where they begin; a failure names both and the last operations.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, fallocate
from tests.e2e.conftest import Pair
from tests.e2e.mounting import MountSpec
from tests.e2e.posix import write

OPERATIONS = int(os.environ.get("CRYPTFS_E2E_FSX_OPERATIONS", "400"))
SEED = int(os.environ.get("CRYPTFS_E2E_FSX_SEED", "1"))
LARGEST = 3 << 20
PAGE = mmap.PAGESIZE


class Exerciser:
    """A file, what it must hold, and the operations."""

    def __init__(self, path: Path, spec: MountSpec, seed: int) -> None:
        self.path = path
        self.spec = spec
        self.random = random.Random(seed)
        self.model = bytearray()
        self.done: deque[str] = deque(maxlen=12)
        write(os.fsencode(path), b"")
        self.fd = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.operations: list[Callable[[], str]] = [
            self.write, self.write, self.write, self.append, self.write_direct, self.write_mapped, self.read,
            self.read, self.read_direct, self.read_mapped, self.shrink, self.grow, self.punch, self.zero,
            self.allocate, self.copy, self.sync, self.reopen, self.drop_pages, self.seek,
        ]  # fmt: skip

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.direct)

    def step(self) -> None:
        """One operation; the size is right after each."""
        operation = self.random.choice(self.operations)
        self.done.append(operation.__name__)
        self.done[-1] = f"{operation.__name__} {operation()}"
        assert os.fstat(self.fd).st_size == len(self.model)

    # ---- where

    def size(self) -> int:
        return self.random.choice((1, 7, 100, PAGE, 16_384, 65_536, self.random.randrange(1, 200_000)))

    def offset(self) -> int:
        around = self.random.choice(
            (0, PAGE, 16_384, 1 << 20, len(self.model), self.random.randrange(LARGEST))
        )
        return max(
            0, min(LARGEST, around + self.random.choice((0, 0, -1, 1, self.random.randrange(-300, 300))))
        )

    def data(self, size: int) -> bytes:
        return self.random.randbytes(size) if self.random.random() < 0.9 else bytes(size)

    def put(self, offset: int, data: bytes) -> None:
        self.extend(offset)
        self.model[offset : offset + len(data)] = data

    def extend(self, size: int) -> None:
        self.model.extend(bytes(max(0, size - len(self.model))))

    # ---- operations

    def write(self) -> str:
        offset, data = self.offset(), self.data(self.size())
        assert os.pwrite(self.fd, data, offset) == len(data)
        self.put(offset, data)
        return f"{len(data)} at {offset}"

    def append(self) -> str:
        data = self.data(self.size())
        if len(self.model) + len(data) > LARGEST:
            return "nothing"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(fd, data) == len(data)
        finally:
            os.close(fd)
        self.model += data
        return f"{len(data)}"

    def write_direct(self) -> str:
        offset = self.offset() // PAGE * PAGE
        room = mmap.mmap(-1, -(-self.size() // PAGE) * PAGE)
        room[:] = self.data(len(room))
        assert os.pwrite(self.direct, room, offset) == len(room)
        self.put(offset, room[:])
        return f"{len(room)} at {offset}"

    def write_mapped(self) -> str:
        if not self.model:
            return "nothing"
        with mmap.mmap(self.fd, len(self.model)) as mapping:
            offset = self.random.randrange(len(mapping))
            data = self.data(min(self.size(), len(mapping) - offset))
            mapping[offset : offset + len(data)] = data
            if self.random.random() < 0.3:
                mapping.flush()
        self.put(offset, data)
        return f"{len(data)} at {offset}"

    def read(self) -> str:
        offset, size = self.offset(), self.size()
        assert os.pread(self.fd, size, offset) == self.model[offset : offset + size]
        return f"{size} at {offset}"

    def read_direct(self) -> str:
        offset = self.offset() // PAGE * PAGE
        room = mmap.mmap(-1, -(-self.size() // PAGE) * PAGE)
        got = os.preadv(self.direct, [room], offset)
        assert room[:got] == self.model[offset : offset + len(room)]
        return f"{len(room)} at {offset}"

    def read_mapped(self) -> str:
        if not self.model:
            return "nothing"
        with mmap.mmap(self.fd, len(self.model), prot=mmap.PROT_READ) as mapping:
            offset = self.random.randrange(len(mapping))
            assert mapping[offset : offset + 70_000] == self.model[offset : offset + 70_000]
        return f"at {offset}"

    def shrink(self) -> str:
        size = self.random.randrange(len(self.model) + 1)
        if self.random.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        del self.model[size:]
        return f"to {size}"

    def grow(self) -> str:
        size = max(self.offset(), len(self.model))
        os.ftruncate(self.fd, size)
        self.extend(size)
        return f"to {size}"

    def punch(self) -> str:
        offset, size = self.offset(), self.size()
        fallocate(self.fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, size)
        end = min(offset + size, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))
        return f"{size} at {offset}"

    def zero(self) -> str:
        offset, size = self.offset(), self.size()
        keep = self.random.random() < 0.5
        fallocate(self.fd, FALLOC_ZERO_RANGE | (FALLOC_KEEP_SIZE if keep else 0), offset, size)
        if not keep:
            self.extend(offset + size)
        end = min(offset + size, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))
        return f"{size} at {offset}"

    def allocate(self) -> str:
        offset, size = self.offset(), self.size()
        keep = self.random.random() < 0.5
        fallocate(self.fd, FALLOC_KEEP_SIZE if keep else 0, offset, size)
        if not keep:
            self.extend(offset + size)
        return f"{size} at {offset}"

    def copy(self) -> str:
        start, to, size = self.offset(), self.offset(), self.size()
        wanted = min(size, max(0, len(self.model) - start))
        if wanted == 0 or abs(start - to) < size:
            return "nothing"
        done = 0
        while done < wanted:
            done += os.copy_file_range(self.fd, self.fd, wanted - done, start + done, to + done)
        self.put(to, bytes(self.model[start : start + wanted]))
        return f"{size} from {start} to {to}"

    def sync(self) -> str:
        (os.fsync if self.random.random() < 0.5 else os.fdatasync)(self.fd)
        return ""

    def reopen(self) -> str:
        os.close(self.fd)
        if self.random.random() < 0.5:
            self.whole()
        self.fd = os.open(self.path, os.O_RDWR)
        return ""

    def drop_pages(self) -> str:
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return ""

    def seek(self) -> str:
        """No data is passed over."""
        at = self.offset()
        try:
            found = os.lseek(self.fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO
            found = len(self.model)
        assert not any(self.model[at:found])
        return f"from {at} to {found}"

    def whole(self) -> None:
        assert self.path.read_bytes() == self.model


def run(path: Path, spec: MountSpec, seed: int) -> Exerciser:
    """All operations on a file of its own."""
    exerciser = Exerciser(path, spec, seed)
    try:
        for _ in range(OPERATIONS):
            exerciser.step()
        exerciser.whole()
    except (AssertionError, OSError) as error:
        raise AssertionError(f"{spec}, seed {seed}: {error}; the last were {list(exerciser.done)}") from error
    finally:
        exerciser.close()
    return exerciser


def test_random_operations(pair: Pair) -> None:
    directory, _ = pair.directories("fsx")
    done = run(directory / "f", pair.mount.spec, SEED)
    pair.mount.assert_quiet()
    pair.mount.remount()
    done.whole()
