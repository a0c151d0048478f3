"""A node: what the kernel has looked up, and the descriptors that keep its file."""

from __future__ import annotations

import os

from cryptfs.vfs.directory import NO_NAME, Directory, Unnamed
from cryptfs.vfs.identity import Known

NodeKey = int
"""A backing inode: its number, and the device's above it where that is not the vault's own."""

INODE = 2**64 - 1
"""The bits of a NodeKey that hold the inode number."""


class HeldFile(Unnamed):
    """An O_PATH descriptor, closed with its last reference: never under a request that uses it.

    st: of when it was opened.   gone: the file has lost its last name since.
    """

    __slots__ = ("gone", "st")

    def __init__(self, fd: int, cipher_path: str = NO_NAME) -> None:
        super().__init__(fd, cipher_path)
        self.gone = False
        self.st = os.fstat(fd)

    def __del__(self) -> None:
        os.close(self.fd)


class Node(Known):
    """One file, directory or other that the kernel has looked up.

    parent, name: one of its places; meaningless while held is set.
    children:     nodes whose parent this is; with any it is kept after the kernel has forgotten it.
    inode:        number shown to programs; stays although a symlink that is renamed is made anew.
    first:        while they differ: holds the backing file of that number, so that no other can get it.
    lookups:      references that the kernel holds.
    held:         descriptor of a file without a place known here.
    renamed:      since the kernel told its times last.
    stale:        another file has its place, or other content: it is found by descriptors only.
    """

    __slots__ = (
        "children",
        "directory",
        "first",
        "held",
        "inode",
        "key",
        "lookups",
        "name",
        "nodeid",
        "parent",
        "renamed",
        "stale",
    )

    def __init__(self, nodeid: int, key: NodeKey, parent: Node | None, name: bytes) -> None:
        super().__init__()
        self.nodeid = nodeid
        self.key = key
        self.inode = key if key <= INODE else key & INODE  # one object for both, nearly always
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.children = 0
        self.renamed = False
        self.stale = False
        self.held: HeldFile | None = None
        self.first: HeldFile | None = None
        self.directory: Directory | None = None


class Displaced:
    """See NodeTable.displaced. A class: a generator would cost as much again as the unlink itself."""

    __slots__ = ("_held", "_node")

    def __init__(self, node: Node | None, held: HeldFile) -> None:
        self._node = node
        self._held = held

    def __enter__(self) -> None:
        if self._node is not None:
            self._node.held = self._held

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._node is not None:
            self._node.held = None
