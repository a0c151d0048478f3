"""Listings by the native engine: what it keeps of one for the next, and how much."""

from __future__ import annotations

import array

import pytest

from cryptfs.core.names.names import NameCipher
from cryptfs.mount.native import directories, structs
from cryptfs.mount.native.context import Demand
from cryptfs.mount.native.directories import Block, Blocks
from cryptfs.mount.opcodes import Op
from tests.mount.native_kernel import FakeKernel, plus_entries, read_in

LONG = b"l" * 200


def _listed(kernel: FakeKernel, nodeid: int, *, room: int = 64 * 1024) -> bytes:
    """The entries of a directory, by as many requests as it takes."""
    fh, offset, pieces = kernel.open_directory(nodeid), 0, []
    while payload := kernel.good(Op.READDIR, nodeid, read_in(fh, offset, room)):
        pieces.append(payload)
        at = 0
        while at < len(payload):
            _, offset, size, _ = structs.DIRENT.unpack_from(payload, at)
            at += -(-(structs.DIRENT.size + size) // 8) * 8
    return b"".join(pieces)


class _Opened:
    """Counts the names that are decrypted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        whole = NameCipher.open_unverified

        def counting(cipher: NameCipher, cipher_name: str) -> tuple[bytes, bytes]:
            self.count += 1
            return whole(cipher, cipher_name)

        monkeypatch.setattr(NameCipher, "open_unverified", counting)


@pytest.fixture
def nodeid(kernel: FakeKernel) -> int:
    """A directory with 300 entries."""
    made = kernel.mkdir(b"dir").nodeid
    for number in range(300):
        kernel.create(b"entry %d" % number, made)
    return made


@pytest.mark.parametrize("room", [400, 4096, 64 * 1024])
def test_the_size_of_the_requests_changes_nothing(kernel: FakeKernel, nodeid: int, room: int) -> None:
    whole = _listed(kernel, nodeid)
    assert _listed(kernel, nodeid, room=room) == whole
    assert whole.count(b"entry ") == 300


def test_the_next_listing_decrypts_nothing(
    kernel: FakeKernel, nodeid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _listed(kernel, nodeid)
    decrypted = []
    whole = directories.DirectoryHandle._decrypted

    def counting(handle: directories.DirectoryHandle, raw: bytes, place: tuple[bytes, int]) -> Block:
        decrypted.append(place)
        return whole(handle, raw, place)

    monkeypatch.setattr(directories.DirectoryHandle, "_decrypted", counting)
    assert _listed(kernel, nodeid) == first
    assert not decrypted
    kernel.create(b"another", nodeid)
    assert _listed(kernel, nodeid).count(b"another") == 1
    assert decrypted


def test_a_block_with_a_long_name_is_read_anew(
    kernel: FakeKernel, nodeid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sidecar is not in what getdents64(2) gives."""
    kernel.create(LONG, nodeid)
    first = _listed(kernel, nodeid)
    opened = _Opened(monkeypatch)
    assert _listed(kernel, nodeid) == first
    assert LONG in first
    assert opened.count


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "_KEPT_SIZE", 1000)
    blocks = Blocks()
    made = {number: Block(bytes((number,)) * 300, b"", array.array("I"), 0) for number in range(5)}
    for number in range(4):
        blocks.keep((b"dir", number), made[number])
        blocks.find((b"dir", 0), made[0].raw)
    kept = {number for number in range(4) if blocks.find((b"dir", number), made[number].raw) is not None}
    assert kept == {0, 2, 3}
    assert blocks.find((b"dir", 0), made[4].raw) is None
    assert blocks.find((b"other", 0), made[0].raw) is None
    blocks.keep((b"dir", 0), made[4])  # in the place of the other one
    assert blocks.find((b"dir", 0), made[4].raw) is made[4]
    blocks.keep((b"dir", 4), Block(bytes(2000), b"", array.array("I"), 0))
    assert not any(blocks.find((b"dir", number), made[number].raw) for number in range(5))


# ---- attributes


class _Tree:
    """Directories with 40 files and a directory in each."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.count = 0

    def directory(self, files: int = 40) -> int:
        """A new one: its nodeid."""
        self.count += 1
        made = self.kernel.mkdir(b"dir %d" % self.count).nodeid
        self.kernel.mkdir(b"inner", made)
        for number in range(files):
            entry, fh = self.kernel.create(b"file %d" % number, made)
            self.kernel.release(fh, entry.nodeid)
        return made

    def withheld(self, nodeid: int, thread: int = 1) -> list[bytes]:
        """List a directory by one request: the entries without attributes."""
        self.kernel.thread = thread
        fh = self.kernel.open_directory(nodeid)
        payload = self.kernel.good(Op.READDIRPLUS, nodeid, read_in(fh, 0, 64 * 1024))
        entries = [(name, number) for name, number in plus_entries(payload) if name not in (b".", b"..")]
        assert b"inner" in dict(entries)
        return [name for name, number in entries if not number]


@pytest.fixture
def tree(kernel: FakeKernel) -> _Tree:
    return _Tree(kernel)


def test_the_first_listing_of_a_thread_withholds_one(tree: _Tree) -> None:
    (withheld,) = tree.withheld(tree.directory())
    assert withheld.startswith(b"file")


def test_whoever_looks_at_no_file_gets_names_alone(tree: _Tree, kernel: FakeKernel) -> None:
    first = tree.directory()
    tree.withheld(first)
    for _ in range(3):
        kernel.lookup(b"inner", first)  # walks down, and looks at nothing else
        first = tree.directory()
        assert len(tree.withheld(first)) == 41


def test_whoever_looks_gets_them_again(tree: _Tree, kernel: FakeKernel) -> None:
    first = tree.directory()
    (name,) = tree.withheld(first)
    kernel.lookup(name, first)
    assert [len(tree.withheld(tree.directory())) for _ in range(6)] == [0, 0, 0, 1, 41, 41]
    last = tree.directory()
    assert len(tree.withheld(last)) == 41
    kernel.lookup(b"file 7", last)
    assert not tree.withheld(tree.directory())


def test_another_thread_may_look(tree: _Tree, kernel: FakeKernel) -> None:
    """As where a pool of threads serves a program."""
    first = tree.directory()
    (name,) = tree.withheld(first, thread=7)
    kernel.thread = 8
    kernel.lookup(name, first)
    assert not tree.withheld(tree.directory(), thread=7)
    assert len(tree.withheld(tree.directory(), thread=8)) == 1


def test_few_entries_are_not_worth_it(tree: _Tree) -> None:
    for _ in range(3):
        assert not tree.withheld(tree.directory(files=10))
    assert len(tree.withheld(tree.directory())) == 1


def test_a_thread_that_is_not_known_gets_all(tree: _Tree) -> None:
    for _ in range(3):
        assert not tree.withheld(tree.directory(), thread=0)


def test_the_rest_of_a_listing_has_them(tree: _Tree, kernel: FakeKernel) -> None:
    """The kernel goes on with READDIRPLUS only if the program has looked at an entry."""
    tree.withheld(tree.directory())
    nodeid = tree.directory()
    fh = kernel.open_directory(nodeid)
    first = kernel.good(Op.READDIRPLUS, nodeid, read_in(fh, 0, 2000))
    assert not any(number for _, number in plus_entries(first))
    (*_, offset, _, _) = structs.DIRENT.unpack_from(first, len(first) - structs.DIRENT.size - 8)
    rest = kernel.good(Op.READDIRPLUS, nodeid, read_in(fh, offset, 64 * 1024))
    assert len(plus_entries(rest)) > 20
    assert all(number for name, number in plus_entries(rest) if name not in (b".", b".."))


def test_demand_forgets_threads() -> None:
    demand = Demand()
    for thread in range(1, 1000):
        demand.watch(thread, thread)
    assert demand.withheld(1) == 1  # as a new one
    assert demand.withheld(999) > 1
    assert len(demand._listings) == len(demand._watched) == 64
