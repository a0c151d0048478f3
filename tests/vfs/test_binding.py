"""Renames of directories that are bound to their places: modes, times, other users, other threads."""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME, open_directory_record, pack_bound_record
from cryptfs.mount.native.node import Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.storage.libc import RENAME_EXCHANGE
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.tree import VaultTree
from tests.crash.backing_calls import CHANGES, READS, Call, intercepted
from tests.e2e.mounting import scratch_directory
from tests.support import OWNERS, BareVault, crash_in

SOMEBODY = 65534


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault", owner=OWNERS[1], bound=True, durability=Durability.PROCESS)
    yield vault
    vault.close()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where other users come to."""
    directory = scratch_directory(tmpfs=True)
    yield directory
    shutil.rmtree(directory)


def places_of(vault: BareVault, backing: Path) -> tuple[bytes, ...]:
    return open_directory_record((backing / RECORD_NAME).read_bytes(), vault.keys).places


def test_times_and_modes_stay(vault: BareVault) -> None:
    for name, mode in ((b"open", 0o755), (b"closed", 0o000), (b"read-only", 0o555), (b"sticky", 0o1770)):
        vault.put(b"inside", name, vault.make_directory(name))
        backing = vault.backing(name)
        backing.chmod(mode)
        os.utime(backing, ns=(10**18, 10**18 + 7))
        vault.tree.rename(vault.root, name, vault.root, b"new " + name)
        st = vault.backing(b"new " + name).stat()
        assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns) == (mode, 10**18 + 7)
        assert places_of(vault, vault.backing(b"new " + name)) == (vault.root.place_of(b"new " + name),)


@pytest.mark.waits
@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
def test_an_owner_without_rights_renames_a_directory(scratch: Path) -> None:
    """As on a plain directory; and somebody else's directory stays where it is."""
    vault_dir = scratch / "vault"
    vault_dir.mkdir()
    for path in (scratch, vault_dir):
        path.chmod(0o777)

    def work() -> None:
        os.setgid(SOMEBODY)
        os.setuid(SOMEBODY)
        vault = BareVault(vault_dir, owner=OWNERS[1], bound=True)
        for mode in (0o000, 0o555, 0o311):
            vault.put(b"inside", b"1", vault.make_directory(b"mine"))
            vault.backing(b"mine").chmod(mode)
            vault.tree.rename(vault.root, b"mine", vault.root, b"renamed")
            backing = vault.backing(b"renamed")
            assert stat.S_IMODE(backing.stat().st_mode) == mode
            backing.chmod(0o700)
            assert vault.get(b"inside", vault.tree.directory(vault.root, b"renamed")) == b"1"
            assert places_of(vault, backing) == (vault.root.place_of(b"renamed"),)
            vault.tree.rename(vault.root, b"renamed", vault.root, b"%o" % mode)
        vault.close()

    crash_in(work)
    vault = BareVault(vault_dir, owner=OWNERS[1], bound=True)
    vault.make_directory(b"of root")
    backing = vault.backing(b"of root")
    before = places_of(vault, backing)
    vault.close()

    def refused() -> None:
        os.setgid(SOMEBODY)
        os.setuid(SOMEBODY)
        vault = BareVault(vault_dir, owner=OWNERS[1], bound=True)
        with pytest.raises(PermissionError):
            vault.tree.rename(vault.root, b"of root", vault.root, b"taken")
        vault.close()

    crash_in(refused)
    assert places_of(vault, backing) == before


def test_renames_in_many_threads(vault: BareVault) -> None:
    """Each record names its place at the end, whoever moved what meanwhile."""
    for number in range(4):
        vault.put(b"inside", b"%d" % number, vault.make_directory(b"%d" % number))
        vault.make_directory(b"to and fro %d" % number)

    def work(number: int) -> None:
        other = vault.tree.directory(vault.root, b"to and fro %d" % number)
        for _ in range(20):
            vault.tree.rename(vault.root, b"%d" % number, other, b"moved")
            vault.tree.rename(other, b"moved", vault.root, b"%d" % number)
            vault.tree.rename(
                vault.root, b"%d" % number, vault.root, b"to and fro %d" % number, RENAME_EXCHANGE
            )
            vault.tree.rename(
                vault.root, b"%d" % number, vault.root, b"to and fro %d" % number, RENAME_EXCHANGE
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        found = vault.tree.directory(vault.root, b"%d" % number)
        assert vault.get(b"inside", found) == b"%d" % number
        assert places_of(vault, vault.backing(b"%d" % number)) == (vault.root.place_of(b"%d" % number),)


def test_a_conflict_copy_counts_and_becomes_an_ordinary_directory(vault: BareVault) -> None:
    """Its record is that of its original."""
    vault.put(b"inside", b"1", vault.make_directory(b"dir"))
    original = vault.backing(b"dir")
    original.rename(f"{original}.sync-conflict-20260101-120000-ABCDEFG")
    (name,) = vault.names()
    assert name == b"dir.sync-conflict-20260101-120000-ABCDEFG"
    assert vault.get(b"inside", vault.tree.directory(vault.root, name)) == b"1"
    vault.tree.rename(vault.root, name, vault.root, b"other")
    assert vault.get(b"inside", vault.tree.directory(vault.root, b"other")) == b"1"
    assert places_of(vault, vault.backing(b"other")) == (vault.root.place_of(b"other"),)
    vault.tree.rename(vault.root, b"other", vault.root, b"dir")
    assert vault.backing(b"dir") == original


def test_only_a_directory_where_it_was_seen_is_finished(vault: BareVault) -> None:
    """An open may have read the record before a rename of this mount, and come to its end after it."""
    vault.make_directory(b"dir")
    place, backing = vault.root.place_of(b"dir"), vault.backing(b"dir")
    record = open_directory_record((backing / RECORD_NAME).read_bytes(), vault.keys)
    moving = record._replace(places=(place, b"q" * 32), host=vault.owner.digest)
    (backing / RECORD_NAME).write_bytes(pack_bound_record(moving, vault.keys))
    fd = os.open(backing, os.O_PATH)
    try:
        vault.tree.binding.finish(fd, moving, place, vault.entry(b"elsewhere"))
        assert places_of(vault, backing) == moving.places
        vault.tree.binding.finish(fd, moving, place, vault.entry(b"dir"))
        assert places_of(vault, backing) == (place,)
    finally:
        os.close(fd)


def test_the_check_costs_no_call_to_the_disk(tmp_path: Path) -> None:
    """A lookup, the first use of a directory, mkdir, and the rename of a file: as in a vault of 0.1."""
    counts = []
    for bound in (False, True):
        vault = BareVault(tmp_path / f"vault {bound}", owner=OWNERS[1], bound=bound)
        tree, nodes = vault.tree, NodeTable(vault.tree)
        found: dict[str, Counter[str]] = {}

        def counted(name: str, work: Callable[[], object], found: dict[str, Counter[str]] = found) -> None:
            calls = found[name] = Counter()

            def pass_on(call: Call) -> object:
                calls[call.name] += 1
                return call.proceed()

            with intercepted(pass_on, CHANGES | READS):
                work()

        def look(tree: VaultTree = tree, nodes: NodeTable = nodes) -> Node:
            return nodes.remember(nodes.root, b"dir", tree.stat(nodes.directory(nodes.root), b"dir"))

        vault.put(b"file", b"")
        counted("mkdir", lambda tree=tree: tree.make_directory(tree.root, b"dir", 0o755))  # type: ignore[misc]
        counted("cold lookup", look)
        counted("warm lookup", look)
        counted("first use", lambda look=look, nodes=nodes: nodes.directory(look()))  # type: ignore[misc]
        counted("lookup in use", look)
        counted("rename", lambda tree=tree: tree.rename(tree.root, b"file", tree.root, b"new"))  # type: ignore[misc]
        assert all(found.values())
        counts.append(found)
        nodes.close()
        vault.close()
    assert counts[0] == counts[1]
