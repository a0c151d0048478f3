"""Asking the kernel to forget: whom, in which words, and what happens when it does not."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, islice

import pytest

from cryptfs.mount.native import pruning, structs
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.native.pruning import Pruner
from cryptfs.mount.native.structs import Notification
from cryptfs.vfs.tree.attributes import Attributes
from tests.mount.native_kernel import fake_stat

pytestmark = pytest.mark.serial

LIMIT = 1000
INODES = count(10**6)
SECONDS = 10.0


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "MAX_NODES", LIMIT)


class Kernel:
    """Gets the notifications; `react` is what it does about each node that it is asked to drop."""

    def __init__(self, table: NodeTable) -> None:
        self.table = table
        self.codes: list[int] = []
        self.payloads: list[bytes] = []
        self.threads: set[int] = set()
        self.used: set[int] = set()
        self.refuses = 0

    def notify(self, code: int, payload: bytes) -> None:
        self.codes.append(code)
        self.payloads.append(payload)
        self.threads.add(threading.get_ident())
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        if code == Notification.PRUNE:
            for nodeid in self.pruned(payload):
                if nodeid not in self.used:
                    self.table.forget(nodeid, 1)

    @staticmethod
    def pruned(payload: bytes) -> list[int]:
        """The nodes of one PRUNE."""
        (said,) = structs.PRUNE_OUT.unpack_from(payload)
        numbers = [number for (number,) in structs.NODEID.iter_unpack(payload[structs.PRUNE_OUT.size :])]
        assert len(numbers) == said
        return numbers


@pytest.fixture
def kernel(table: NodeTable) -> Kernel:
    return Kernel(table)


@pytest.fixture
def pruner(table: NodeTable, kernel: Kernel) -> Iterator[Pruner]:
    made = Pruner(table, kernel.notify)
    yield made
    made.stop()


def fill(table: NodeTable, wanted: int, parent: Node | None = None) -> list[Node]:
    """Nodes as lookups make them."""
    device = table.file_key(table.root)[0]
    return [
        table.remember(
            parent or table.root, b"%d" % number, Attributes(fake_stat(st_dev=device, st_ino=number), 0)
        )
        for number in islice(INODES, wanted)
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.005)


def test_the_oldest_go_until_a_quarter_is_free(table: NodeTable, kernel: Kernel, pruner: Pruner) -> None:
    pruner.start(structs.PRUNE_MINOR)
    nodes = fill(table, LIMIT - 1)
    time.sleep(0.05)
    assert not kernel.codes  # not before there are too many
    nodes += fill(table, 1)
    wait_until(lambda: len(table) <= LIMIT * 3 // 4)
    assert set(kernel.codes) == {Notification.PRUNE}
    assert table.get(nodes[-1].nodeid) is nodes[-1]
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        table.get(nodes[0].nodeid)
    assert threading.get_ident() not in kernel.threads  # a notification may wait for a reply of ours


def test_it_goes_on_as_more_come(table: NodeTable, kernel: Kernel, pruner: Pruner) -> None:
    pruner.start(structs.PRUNE_MINOR)
    for _ in range(10):
        fill(table, LIMIT)
        wait_until(lambda: len(table) <= LIMIT)
    assert len(kernel.codes) >= 10


def test_children_are_named_before_their_parents(table: NodeTable, kernel: Kernel, pruner: Pruner) -> None:
    pruner.start(structs.PRUNE_MINOR)
    (parent,) = fill(table, 1)
    children = fill(table, LIMIT, parent)
    wait_until(lambda: bool(kernel.payloads))
    asked = kernel.pruned(kernel.payloads[0])
    assert asked.index(parent.nodeid) > asked.index(children[0].nodeid)


def test_nodes_in_use_are_asked_for_again_only_after_a_while(
    table: NodeTable, kernel: Kernel, pruner: Pruner
) -> None:
    pruner.start(structs.PRUNE_MINOR)
    nodes = fill(table, LIMIT - 1)
    kernel.used = {node.nodeid for node in nodes}
    fill(table, 1)
    wait_until(lambda: sum(len(kernel.pruned(payload)) for payload in kernel.payloads) >= LIMIT)
    time.sleep(0.1)  # for the end of that round
    asked = len(kernel.codes)
    fill(table, LIMIT // 4 - 1)
    time.sleep(0.1)
    assert len(kernel.codes) == asked
    fill(table, 5)
    wait_until(lambda: len(table) <= LIMIT + 10)  # those that came last are not in use


def test_an_old_kernel_is_not_asked(table: NodeTable, kernel: Kernel, pruner: Pruner) -> None:
    pruner.start(structs.PRUNE_MINOR - 1)
    fill(table, 3 * LIMIT)
    time.sleep(0.05)
    assert not kernel.codes
    assert len(table) == 3 * LIMIT + 1


def test_a_kernel_that_refuses_is_not_asked_again(
    table: NodeTable, kernel: Kernel, pruner: Pruner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kernel.refuses = errno.EINVAL
    pruner.start(structs.PRUNE_MINOR)
    fill(table, LIMIT + 1)
    wait_until(lambda: bool(caplog.records))
    fill(table, 3 * LIMIT)
    time.sleep(0.05)
    assert len(kernel.codes) == 1
    assert "cannot be asked" in caplog.text


def test_the_end_of_the_mount_is_no_news(
    table: NodeTable, kernel: Kernel, pruner: Pruner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    kernel.refuses = errno.ENODEV
    pruner.start(structs.PRUNE_MINOR)
    fill(table, LIMIT + 1)
    wait_until(lambda: bool(kernel.codes))
    pruner.stop()
    assert not caplog.records
