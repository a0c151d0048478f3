"""The table of inodes: where a node's file is, whatever becomes of its names."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys

import pytest

from cryptfs.mount.native import node as module
from cryptfs.mount.native.node import MAX_KEPT_NUMBERS, Node
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Unnamed
from tests.mount.native_kernel import fake_stat
from tests.support import BareVault, open_descriptors


class Acting:
    """What entries.py does with a table, in a line each."""

    def __init__(self, vault: BareVault, table: NodeTable) -> None:
        self.vault, self.table, self.tree = vault, table, vault.tree

    def look(self, name: bytes, parent: Node | None = None) -> Node:
        parent = parent or self.table.root
        directory = self.table.directory(parent)
        return self.table.remember(parent, name, self.tree.stat(directory, name))

    def make(self, name: bytes, parent: Node | None = None) -> Node:
        self.vault.put(name, b"content of " + name, self.table.directory(parent or self.table.root))
        return self.look(name, parent)

    def mkdir(self, name: bytes, parent: Node | None = None) -> Node:
        self.tree.make_directory(self.table.directory(parent or self.table.root), name, 0o755)
        return self.look(name, parent)

    def rename(self, old: bytes, new: bytes, parent: Node | None = None, target: Node | None = None) -> None:
        source, target = parent or self.table.root, target or self.table.root
        source_dir, target_dir = self.table.directory(source), self.table.directory(target)
        node, held = self.table.hold(source_dir, old)
        try:
            replaced, lost = self.table.hold(target_dir, new)
        except FileNotFoundError:
            replaced, lost = None, held
        with self.table.displaced(node, held), self.table.displaced(replaced, lost):
            self.tree.rename(source_dir, old, target_dir, new)
            self.table.lost(replaced, lost)
            self.table.moved(node, target, new, self.tree.stat(target_dir, new).st, held)

    def remove(self, name: bytes, parent: Node | None = None) -> None:
        directory = self.table.directory(parent or self.table.root)
        node, held = self.table.hold(directory, name)
        with self.table.displaced(node, held):
            if os.path.isdir(self.vault.backing(name, directory)):
                self.tree.remove_directory(directory, name)
            else:
                self.tree.unlink(directory, name)
            self.table.lost(node, held)


@pytest.fixture
def acting(vault: BareVault, table: NodeTable) -> Acting:
    return Acting(vault, table)


def settled_descriptors(acting: Acting) -> int:
    """Open descriptors, without those that wait for the next fsync."""
    acting.tree.pending.flush()
    gc.collect()
    return open_descriptors()


def inode_of(acting: Acting, node: Node) -> int:
    return acting.table.attributes(node).st.st_ino


def test_a_file_has_one_node_under_all_names(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    acting.tree.link(acting.vault.root, b"a", acting.vault.root, b"b")
    assert acting.look(b"b") is node
    assert acting.look(b"a") is node
    assert node.lookups == 3
    assert len(table) == 2


def test_places_follow_renames(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    directory = acting.mkdir(b"d")
    inner = acting.make(b"inner", directory)
    inode = inode_of(acting, node)
    acting.rename(b"a", b"b")
    assert table.place(node)[1] == b"b"
    acting.rename(b"b", b"c", target=directory)
    assert table.place(node)[1] == b"c"
    acting.rename(b"d", b"e")
    assert table.place(directory)[1] == b"e"
    assert inode_of(acting, node) == inode
    assert inode_of(acting, inner)
    assert acting.look(b"c", directory) is node


def test_a_lost_name_leaves_the_file(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    inode = inode_of(acting, node)
    acting.remove(b"a")
    assert inode_of(acting, node) == inode
    assert table.attributes(node).st.st_nlink == 0
    assert isinstance(table.file_of(node)[0], Unnamed)
    with pytest.raises(OSError) as raised:
        table.place(node)
    assert raised.value.errno == errno.ESTALE


def test_a_name_is_found_again_through_another(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    acting.tree.link(acting.vault.root, b"a", acting.vault.root, b"b")
    acting.remove(b"a")
    assert isinstance(table.file_of(node)[0], Unnamed)
    assert acting.look(b"b") is node
    assert table.place(node)[1] == b"b"


def test_a_replaced_file_goes_on_beside_the_new_one(acting: Acting, table: NodeTable) -> None:
    old, new = acting.make(b"old"), acting.make(b"new")
    inodes = inode_of(acting, old), inode_of(acting, new)
    acting.rename(b"new", b"old")
    assert (inode_of(acting, old), inode_of(acting, new)) == inodes
    assert acting.look(b"old") is new
    assert table.attributes(old).st.st_nlink == 0


def test_a_reused_inode_number_is_another_file(acting: Acting, table: NodeTable) -> None:
    # While the kernel knows the old node its file is held, and its number cannot come back; the backing
    # filesystem is made to say it does all the same.
    old = acting.make(b"a")
    acting.remove(b"a")
    device, inode = table.file_key(old)
    again = table.remember(table.root, b"a", Attributes(fake_stat(st_dev=device, st_ino=inode), 0))
    assert again is not old
    assert again.nodeid != old.nodeid
    assert table.get(old.nodeid) is old
    assert table.attributes(old).st.st_nlink == 0
    table.forget(old.nodeid, 1)
    assert table.find(fake_stat(st_dev=device, st_ino=inode)) is again  # not taken along


def test_a_number_that_really_comes_back(acting: Acting, table: NodeTable) -> None:
    # ext4 and tmpfs differ in how soon; nothing may go wrong whether it does or not.
    seen: dict[int, int] = {}
    for number in range(50):
        node = acting.make(b"file %d" % number)
        assert node.nodeid not in seen
        seen[node.nodeid] = node.inode
        assert acting.vault.get(b"file %d" % number) == b"content of file %d" % number
        acting.remove(b"file %d" % number)
        if number % 2:
            table.forget(node.nodeid, 1)
    assert len(table) == 1 + 25


def test_another_file_in_a_nodes_place_is_noticed(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    backing = acting.vault.backing(b"a")
    backing.rename(backing.with_name("elsewhere"))
    acting.vault.put(b"a", b"planted")
    with pytest.raises(OSError) as raised:
        table.attributes(node)
    assert raised.value.errno == errno.ESTALE


def test_a_file_that_was_opened_with_other_content_is_another_node(acting: Acting, table: NodeTable) -> None:
    """Others have changed it in place. With the writeback cache, the kernel keeps the size of its node."""
    node = acting.make(b"a")
    acting.vault.put(b"longer", b"content of somebody else")
    acting.vault.backing(b"a").write_bytes(acting.vault.backing(b"longer").read_bytes())
    file = acting.tree.open(acting.vault.root, b"a", os.O_RDONLY)
    table.attributes(node)
    assert node.stale
    new = acting.look(b"a")
    assert new is not node
    assert new.size == len(b"content of somebody else")
    acting.tree.release(file)


def make_link(acting: Acting, name: bytes) -> Node:
    acting.tree.make_symlink(acting.vault.root, name, b"target")
    return acting.look(name)


def test_a_renamed_symlink_keeps_its_number(acting: Acting, table: NodeTable) -> None:
    node = make_link(acting, b"link")
    number = node.inode
    for old, new in ((b"link", b"a"), (b"a", b"b"), (b"b", b"c")):
        acting.rename(old, new)
        assert node.inode == number
        assert table.find(acting.tree.stat(acting.vault.root, new).st) is node
        assert acting.look(new) is node


def test_no_other_file_gets_a_kept_number(acting: Acting) -> None:
    kept = {}
    for number in range(100):
        node = make_link(acting, b"link %d" % number)
        acting.rename(b"link %d" % number, b"moved %d" % number)
        kept[node.inode] = node.nodeid
        other = acting.make(b"file %d" % number)
        assert other.inode not in kept
    assert len(kept) == 100


def test_kept_numbers_are_bounded(acting: Acting, table: NodeTable) -> None:
    before = open_descriptors()
    made = []
    for number in range(MAX_KEPT_NUMBERS + 20):
        made.append(make_link(acting, b"link %d" % number))
        acting.rename(b"link %d" % number, b"moved %d" % number)
    assert sum(node.first is not None for node in made) <= MAX_KEPT_NUMBERS
    assert all(node.first is None and node.inode == node.key for node in made[:20])
    assert open_descriptors() - before <= MAX_KEPT_NUMBERS + 5
    for node in made:
        table.forget(node.nodeid, 1)
    # The list of kept ones holds nodes, but no descriptors of those that are forgotten.
    assert open_descriptors() - before <= 5


def test_directories_are_closed_and_come_back(
    acting: Acting, table: NodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_DIRECTORIES", 20)
    before = settled_descriptors(acting)
    made = [acting.mkdir(b"d%d" % number) for number in range(100)]
    for node in made:
        table.directory(node)
    assert settled_descriptors(acting) - before <= 30
    assert sum(node.directory is not None for node in made) <= 20
    for node in made:  # all of them, also those that were closed, and deep ones through closed parents
        inner = acting.mkdir(b"inner", node)
        deep = acting.make(b"file", inner)
        assert table.place(deep)[1] == b"file"
    for node in made[:10]:
        assert inode_of(acting, node)


def test_a_closed_directory_is_still_used_by_who_holds_it(
    acting: Acting, table: NodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_DIRECTORIES", 4)
    first = acting.mkdir(b"first")
    held = table.directory(first)
    for number in range(20):
        table.directory(acting.mkdir(b"d%d" % number))
    assert first.directory is None
    acting.vault.put(b"file", b"content", held)
    assert acting.vault.get(b"file", held) == b"content"


def test_a_removed_directory_stays_open_and_its_place_is_gone(acting: Acting, table: NodeTable) -> None:
    node = acting.mkdir(b"d")
    acting.remove(b"d")
    assert table.attributes(node).st.st_nlink == 0
    directory = table.directory(node)  # for what comes for its entries
    with pytest.raises(FileNotFoundError):
        acting.tree.stat(directory, b"anything")
    assert acting.mkdir(b"d") is not node


def test_forgetting(acting: Acting, table: NodeTable) -> None:
    node = acting.make(b"a")
    acting.look(b"a")
    table.forget(node.nodeid, 1)
    assert table.get(node.nodeid) is node
    table.forget(node.nodeid, 1)
    for nodeid in (node.nodeid, 0, 999):
        with pytest.raises(OSError) as raised:
            table.get(nodeid)
        assert raised.value.errno == errno.ESTALE
    table.forget(node.nodeid, 1)
    table.forget(table.root.nodeid, 10**9)
    assert table.get(1) is table.root


def test_no_descriptor_outlives_its_node(acting: Acting, table: NodeTable) -> None:
    before = settled_descriptors(acting)
    made = []
    for number in range(40):
        made.append(acting.make(b"f%d" % number))
        acting.remove(b"f%d" % number)
        made.append(acting.mkdir(b"d%d" % number))
        table.directory(made[-1])
        acting.remove(b"d%d" % number)
        made.append(make_link(acting, b"l%d" % number))
        acting.rename(b"l%d" % number, b"m%d" % number)
    assert settled_descriptors(acting) - before >= 100
    for node in made:
        table.forget(node.nodeid, node.lookups)
    assert settled_descriptors(acting) == before
    assert len(table) == 1


def test_a_failed_change_leaves_the_place(acting: Acting, table: NodeTable) -> None:
    node = acting.mkdir(b"d")
    acting.make(b"inner", node)
    with pytest.raises(OSError, match="not empty"):
        acting.remove(b"d")
    assert node.held is None
    assert table.place(node)[1] == b"d"
    assert acting.look(b"d") is node


def test_a_removed_and_forgotten_directory_does_not_keep_its_descendants_places(
    acting: Acting, table: NodeTable
) -> None:
    parent = acting.mkdir(b"d")
    child = acting.make(b"file", parent)
    acting.remove(b"file", parent)
    acting.remove(b"d")
    table.forget(parent.nodeid, parent.lookups)
    assert table.attributes(child).st.st_nlink == 0


def test_deep_paths_without_open_directories(
    acting: Acting, table: NodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_DIRECTORIES", 4)
    node = table.root
    for number in range(60):
        node = acting.mkdir(b"%d" % number, node)
    file = acting.make(b"file", node)
    for number in range(10):
        table.directory(acting.mkdir(b"other %d" % number))
    gc.collect()
    assert table.place(file)[1] == b"file"
    assert inode_of(acting, file) == file.inode


def test_a_forgotten_directory_is_kept_for_what_is_known_below_it(acting: Acting, table: NodeTable) -> None:
    # A file with two names, known here by the one in `a`; the kernel forgets `a` and keeps the other name.
    top = acting.mkdir(b"top")
    parent = acting.mkdir(b"a", top)
    node = acting.make(b"x", parent)
    acting.tree.link(table.directory(parent), b"x", acting.vault.root, b"y")
    for forgotten in (parent, top):
        table.forget(forgotten.nodeid, forgotten.lookups)
    assert len(table) == 2  # the root and the file
    acting.rename(b"top", b"moved")
    again = acting.look(b"moved")
    assert again is top
    acting.rename(b"a", b"b", top)
    assert table.place(node)[1] == b"x"
    assert inode_of(acting, node) == node.inode
    assert table.get(again.nodeid) is top
    table.forget(top.nodeid, 1)
    table.forget(node.nodeid, 1)
    assert len(table) == 1
    assert not table.root.children
    for left in (top, parent, node):
        assert table.find(fake_stat(st_dev=table.file_key(left)[0], st_ino=left.inode)) is None


def test_a_kept_directory_goes_when_its_last_child_moves_away(acting: Acting, table: NodeTable) -> None:
    parent, other = acting.mkdir(b"a"), acting.mkdir(b"b")
    node = acting.make(b"x", parent)
    table.forget(parent.nodeid, 1)
    assert table.find(acting.tree.stat(acting.vault.root, b"a").st) is parent
    acting.rename(b"x", b"x", parent, other)
    assert table.find(acting.tree.stat(acting.vault.root, b"a").st) is None
    assert acting.look(b"a") is not parent
    assert table.place(node) == (table.directory(other), b"x")


def test_paths_deeper_than_the_interpreters_stack(
    acting: Acting, table: NodeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_OPEN_DIRECTORIES", 4)
    node = table.root
    for _ in range(sys.getrecursionlimit() + 50):
        node = acting.mkdir(b"d", node)
    for number in range(8):
        table.directory(acting.mkdir(b"other %d" % number))
    assert node.directory is None
    file = acting.make(b"file", node)
    assert inode_of(acting, file) == file.inode
    subprocess.run(["rm", "-r", acting.vault.vault_dir], check=True)  # pytest cannot
    acting.vault.vault_dir.mkdir()
