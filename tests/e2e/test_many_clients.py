"""Many programs at once on one mount: all get on, none waits for ever, nothing is mixed up."""

from __future__ import annotations

import itertools
import os
import statistics
import struct
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.mounting import Mounted

pytestmark = pytest.mark.serial

CLIENTS = 64
SECONDS = 3.0
ENOUGH = 20  # a client that does so many times less than the median is starved
COUNT = struct.Struct("=q")


def work(directory: Path, client: int, until: float) -> int:
    """What a program does with small files, checked; how often. Stops with an error at a difference."""
    for number in itertools.count():
        if number and time.monotonic() >= until:
            return number
        content = b"%d:%d " % (client, number) * 500
        path, moved = directory / f"file-{client}", directory / f"moved-{client}-{number % 7}"
        with path.open("wb") as file:
            file.write(content)
            if number % 10 == 0:
                os.fsync(file.fileno())
        assert path.stat().st_size == len(content)
        path.rename(moved)
        assert moved.read_bytes() == content
        assert f"moved-{client}-{number % 7}" in os.listdir(directory)
        if number % 3 == 0:
            moved.unlink()
    raise AssertionError("unreachable")


def as_processes(directory: Path, until: float) -> list[int]:
    """Each client a process of its own; what each has done."""
    readers, children = [], []
    for client in range(CLIENTS):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.write(writer, COUNT.pack(work(directory, client, until)))
                code = 0
            except BaseException:  # noqa: BLE001 - nothing may get out of a forked child
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writer)
        readers.append(reader)
        children.append(child)
    done = [COUNT.unpack(os.read(reader, COUNT.size) or COUNT.pack(-1))[0] for reader in readers]
    for reader, child in zip(readers, children, strict=True):
        os.close(reader)
        os.waitpid(child, 0)
    return done


def as_threads(directory: Path, until: float) -> list[int]:
    """Each client a thread of this process."""
    done = [-1] * CLIENTS

    def run(client: int) -> None:
        done[client] = work(directory, client, until)

    threads = [threading.Thread(target=run, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


@pytest.mark.timeout(120)
@pytest.mark.parametrize("clients", [as_processes, as_threads], ids=["processes", "threads"])
def test_sixty_four_clients_get_on(own_mount: Mounted, clients: Callable[[Path, float], list[int]]) -> None:
    done = clients(own_mount.mountpoint, time.monotonic() + SECONDS)
    assert min(done) > 0, f"a client failed: {sorted(done)}"
    assert min(done) * ENOUGH >= statistics.median(done), f"a client is starved: {sorted(done)}"
    own_mount.assert_quiet()
    before = {path.name: path.read_bytes() for path in own_mount.mountpoint.iterdir()}
    assert before
    own_mount.remount()
    assert {path.name: path.read_bytes() for path in own_mount.mountpoint.iterdir()} == before
