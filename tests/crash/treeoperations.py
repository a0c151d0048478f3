"""Operations on names, for interrupting each of them: before, after, and what a crash may leave between."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptfs.errors import DirectoryRecordError, IntegrityError, NameError_
from cryptfs.storage.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.directory import Directory
from tests.support import OWNERS, BareVault, may_mark_links, pattern

LONG = b"n" * 200
LONGER = b"m" * 250
FAR = b"t" * 3500
Tree = dict[bytes, object]
"""Paths to content: bytes of a file, its xattrs; a link's target; None for a directory."""
DAMAGED = "damaged"


def tree_of(vault: BareVault) -> Tree:
    """All of a vault, as it reads."""
    found: Tree = {}

    def walk(directory: Directory, prefix: bytes) -> None:
        for entry in vault.tree.list(directory):
            path = prefix + entry.name
            mode = vault.tree.stat(directory, entry.name).st.st_mode
            if stat.S_ISDIR(mode):
                try:
                    child = vault.tree.directory(directory, entry.name)
                    found[path] = None
                    walk(child, path + b"/")
                except DirectoryRecordError:
                    found[path] = DAMAGED
            elif stat.S_ISLNK(mode):
                try:
                    found[path] = (
                        "link",
                        vault.tree.symlinks.read(directory, entry.name),
                        *_values(vault, directory, entry.name),
                    )
                except NameError_:
                    found[path] = DAMAGED
            elif stat.S_ISREG(mode):
                names = sorted(vault.tree.xattrs.list(directory, entry.name))
                values = [(name, vault.tree.xattrs.get(directory, entry.name, name)) for name in names]
                try:
                    found[path] = (vault.get(entry.name, directory), values)
                except IntegrityError:
                    found[path] = DAMAGED
            else:
                found[path] = stat.S_IFMT(mode)

    walk(vault.root, b"")
    return found


def _values(vault: BareVault, directory: Directory, name: bytes) -> list[tuple[bytes, bytes]]:
    """The attributes of a symlink."""
    xattrs = vault.tree.xattrs
    return [(each, xattrs.get(directory, name, each)) for each in sorted(xattrs.list(directory, name))]


def prepare(vault: BareVault) -> None:
    """What the operations begin with."""
    if vault.tree.binding.is_on:
        prepare_directories(vault)
    for name in (b"file", b"other", LONG, b"attributed"):
        vault.put(name, name + pattern(5000))
    vault.put(b"empty", b"")
    vault.tree.xattrs.set(vault.root, b"attributed", b"user.old", b"old value", 0)
    vault.tree.make_symlink(vault.root, b"link", b"target")
    vault.tree.make_symlink(vault.root, b"far", FAR)
    vault.tree.make_symlink(vault.root, b"twice", b"linked twice")
    vault.tree.link(vault.root, b"twice", vault.root, b"twice again")
    for name in (b"bare", b"bare too"):
        vault.make_directory(name)
    inner = vault.make_directory(b"full")
    vault.put(b"inner", b"content", inner)


@dataclass(frozen=True)
class TreeOperation:
    """One operation. between: what else may be found of some paths, because it cannot be done in one."""

    name: str
    run: Callable[[BareVault], object]
    between: tuple[dict[bytes, object], ...] = ()

    @property
    def moves(self) -> bool:
        """Whether it moves what was there before."""
        return self.name.startswith(("rename", "exchange"))


GONE = "gone"
"""In `between`: the path is not there."""


def _create(name: bytes) -> Callable[[BareVault], object]:
    def run(vault: BareVault) -> None:
        file = vault.tree.create(vault.root, name, os.O_RDWR | os.O_EXCL, 0o600)
        vault.tree.release(file)

    return run


def _rename(old: bytes, new: bytes, flags: int = 0) -> Callable[[BareVault], object]:
    return lambda vault: vault.tree.rename(vault.root, old, vault.root, new, flags)


def _into(old: bytes, new: bytes) -> Callable[[BareVault], object]:
    return lambda vault: vault.tree.rename(vault.root, old, vault.tree.directory(vault.root, b"full"), new)


def _synced(run: Callable[[BareVault], object]) -> Callable[[BareVault], object]:
    def both(vault: BareVault) -> None:
        run(vault)
        vault.tree.sync_directory(vault.root)

    return both


def _write_unlinked(vault: BareVault) -> None:
    with vault.opened(b"file") as file:
        vault.tree.unlink(vault.root, b"file")
        file.write(100, b"to a file without a name")


def _unnamed(vault: BareVault) -> None:
    file = vault.tree.create_unnamed(vault.root, os.O_RDWR, 0o600)
    held = -1
    try:
        held = os.open(f"/proc/self/fd/{file.state.fd}", os.O_PATH)
        try:
            file.write(0, b"content")
        finally:
            vault.tree.release(file)
        vault.tree.link_open(held, vault.root, b"named")
    finally:
        if held >= 0:
            os.close(held)


OPERATIONS = [
    TreeOperation("create", _create(b"new")),
    TreeOperation("create, long name", _synced(_create(LONGER))),
    TreeOperation("create without a name, then link", _unnamed, ({b"named": (b"", [])},)),
    TreeOperation("mkdir", _synced(lambda v: v.tree.make_directory(v.root, b"new", 0o755))),
    TreeOperation("mkdir, long name", lambda v: v.tree.make_directory(v.root, LONGER, 0o755)),
    TreeOperation("rmdir", lambda v: v.tree.remove_directory(v.root, b"bare")),
    TreeOperation("mkfifo", lambda v: v.tree.make_node(v.root, b"new", stat.S_IFIFO | 0o600, 0)),
    TreeOperation("symlink", _synced(lambda v: v.tree.make_symlink(v.root, b"new", b"target"))),
    TreeOperation("symlink, long target", lambda v: v.tree.make_symlink(v.root, b"new", FAR)),
    TreeOperation("symlink, long name", lambda v: v.tree.make_symlink(v.root, LONGER, b"target")),
    TreeOperation("link", lambda v: v.tree.link(v.root, b"file", v.root, b"new")),
    TreeOperation("link, long names", lambda v: v.tree.link(v.root, LONG, v.root, LONGER)),
    TreeOperation("link of a symlink", lambda v: v.tree.link(v.root, b"link", v.root, b"new")),
    TreeOperation("link of a long symlink", lambda v: v.tree.link(v.root, b"far", v.root, b"new")),
    TreeOperation("unlink", lambda v: v.tree.unlink(v.root, b"file")),
    TreeOperation("unlink, long name", lambda v: v.tree.unlink(v.root, LONG)),
    TreeOperation("unlink of a symlink", lambda v: v.tree.unlink(v.root, b"link")),
    TreeOperation("unlink of a long symlink", lambda v: v.tree.unlink(v.root, b"far")),
    TreeOperation("unlink and go on writing", _write_unlinked),
    TreeOperation("rename", _rename(b"file", b"new")),
    TreeOperation("rename over a file", _synced(_rename(b"file", b"other"))),
    TreeOperation("rename to a long name", _rename(b"file", LONGER)),
    TreeOperation("rename from a long name", _rename(LONG, b"new")),
    TreeOperation("rename over a long name", _rename(b"file", LONG)),
    TreeOperation("rename exclusively", _rename(b"file", LONGER, RENAME_NOREPLACE)),
    TreeOperation("exchange", _rename(b"file", b"other", RENAME_EXCHANGE)),
    TreeOperation("exchange with a long name", _rename(b"file", LONG, RENAME_EXCHANGE)),
    TreeOperation("rename into a directory", _into(b"file", LONGER)),
    TreeOperation("rename of a directory", _rename(b"full", b"new")),
    TreeOperation("rename over a bare directory", _rename(b"full", b"bare"), ({b"bare": GONE},)),
    TreeOperation("rename of a symlink", _rename(b"link", b"new"), ({b"new": ("link", b"target")},)),
    TreeOperation(
        "rename of a symlink over a file", _rename(b"link", b"file"), ({b"file": ("link", b"target")},)
    ),
    TreeOperation("rename of a long symlink", _rename(b"far", b"new"), ({b"new": ("link", FAR)},)),
    TreeOperation("rename of a twice linked symlink", _rename(b"twice", b"new")),
    TreeOperation("setxattr", lambda v: v.tree.xattrs.set(v.root, b"attributed", b"user.new", b"new", 0)),
    TreeOperation(
        "setxattr, replacing", lambda v: v.tree.xattrs.set(v.root, b"attributed", b"user.old", b"!", 0)
    ),
    TreeOperation(
        "setxattr of an empty file", lambda v: v.tree.xattrs.set(v.root, b"empty", b"user.new", b"1", 0)
    ),
    TreeOperation("removexattr", lambda v: v.tree.xattrs.remove(v.root, b"attributed", b"user.old")),
]

MARKS = ((b"security.mark", b"two"), (b"trusted.mark", b"one"))
"""Attributes of the symlink `marked`, which only root can set."""
MARKED = ("link", b"of the marked", *MARKS)

LINK_OPERATIONS = [
    TreeOperation("move of a symlink with xattrs", _rename(b"marked", b"new"), ({b"new": MARKED},)),
    TreeOperation(
        "move of a symlink with xattrs over a file", _rename(b"marked", b"file"), ({b"file": MARKED},)
    ),
    TreeOperation("move of a symlink with xattrs, whiteout", _rename(b"marked", b"new", RENAME_WHITEOUT)),
    TreeOperation("link of a symlink with xattrs", lambda v: v.tree.link(v.root, b"marked", v.root, b"new")),
    TreeOperation("swap of symlinks with xattrs", _rename(b"marked", b"link", RENAME_EXCHANGE)),
    TreeOperation(
        "setxattr of a symlink", lambda v: v.tree.xattrs.set(v.root, b"marked", b"trusted.mark", b"!", 0)
    ),
    TreeOperation(
        "removexattr of a symlink", lambda v: v.tree.xattrs.remove(v.root, b"marked", b"trusted.mark")
    ),
]
"""All that can be done with a symlink and its attributes."""

DIRECTORY_OPERATIONS = [
    *(LINK_OPERATIONS if may_mark_links() else ()),
    TreeOperation("mkdir", lambda v: v.tree.make_directory(v.root, b"new", 0o755)),
    TreeOperation("mkdir, long name", lambda v: v.tree.make_directory(v.root, LONGER, 0o755)),
    TreeOperation("rmdir", lambda v: v.tree.remove_directory(v.root, b"bare")),
    TreeOperation("rename of a directory", _rename(b"full", b"new")),
    TreeOperation("rename of a directory, exclusively", _rename(b"full", b"new", RENAME_NOREPLACE)),
    TreeOperation("rename of a directory, with a whiteout", _rename(b"full", b"new", RENAME_WHITEOUT)),
    TreeOperation("rename of a directory to a long name", _rename(b"full", LONGER)),
    TreeOperation("rename of a directory from a long name", _rename(b"l" * 200, b"new")),
    TreeOperation("rename over a bare directory", _rename(b"full", b"bare"), ({b"bare": GONE},)),
    TreeOperation("rename of a directory into another", _into(b"bare", b"moved")),
    TreeOperation("rename of a directory into another, long name", _into(b"l" * 200, LONGER)),
    TreeOperation("exchange of two directories", _rename(b"full", b"l" * 200, RENAME_EXCHANGE)),
    TreeOperation("exchange of a directory and a file", _rename(b"file", b"full", RENAME_EXCHANGE)),
    TreeOperation("exchange of a directory and a symlink", _rename(b"full", b"link", RENAME_EXCHANGE)),
    TreeOperation(
        "exchange over two levels",
        lambda v: v.tree.rename(
            v.root, b"l" * 200, v.tree.directory(v.root, b"full"), b"inner", RENAME_EXCHANGE
        ),
    ),
]
"""All that can be done with a directory that is bound to its place."""


BOTH_FORMATS = [*((False, each) for each in OPERATIONS), *((True, each) for each in DIRECTORY_OPERATIONS)]
"""Whether the directories are bound to their places, and an operation."""


def operation_id(value: object) -> str:
    """For the id of a test."""
    return value.name if isinstance(value, TreeOperation) else "bound" if value else "0.1"


def new_vault(vault_dir: Path, *, bound: bool, durability: Durability = Durability.POWER) -> BareVault:
    """A vault with bound directories, or as 0.1 made it; `prepare` it."""
    return BareVault(vault_dir, durability=durability, owner=OWNERS[bound], bound=bound)


def prepare_directories(vault: BareVault) -> None:
    """What DIRECTORY_OPERATIONS need besides."""
    inner = vault.make_directory(b"l" * 200)
    vault.put(b"in a long name", b"content", inner)
    if may_mark_links():
        vault.tree.make_symlink(vault.root, b"marked", b"of the marked")
        for name, value in MARKS:
            vault.tree.xattrs.set(vault.root, b"marked", name, value, 0)


def allowed(operation: TreeOperation, before: Tree, after: Tree) -> list[Tree]:
    """The trees that may be found when the operation was interrupted."""
    trees = [before, after]
    for changes in operation.between:
        tree = dict(before)
        for path, content in changes.items():
            if content is GONE:
                tree.pop(path, None)
            else:
                tree[path] = content
        trees.append(tree)
    return trees
