"""A vault with some of everything that a vault can hold, and all that a program can see of it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cryptfs.core.acl import AclEntry, pack_acl
from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import IntegrityError
from cryptfs.rekey.begin import begin, plan_slots
from cryptfs.rekey.change import go_on
from cryptfs.rekey.report import Report
from cryptfs.storage.libc import UTIME_OMIT, utimensat
from cryptfs.unlock.offer import Offer
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.attributes import Attributes, backing_stat
from cryptfs.vfs.tree.directory import SELF, Directory
from cryptfs.vfs.tree.xattrs import ACL_ACCESS, ACL_DEFAULT
from cryptfs.vfs.vault import Vault
from tests.support import KIB, MIB, may_mark_links, pattern

CHUNK = 4 * KIB
PASSPHRASE = b"of the vault"
LONG = b"l" * 200
LONG_TARGET = b"/" + b"t" * 3500
CONFLICT = ".sync-conflict-20261129-131011-ABCDEFG"
ACL = pack_acl(
    (
        *(AclEntry(1, 6, 0xFFFFFFFF), AclEntry(2, 4, 1000), AclEntry(4, 4, 0xFFFFFFFF)),
        *(AclEntry(16, 4, 0xFFFFFFFF), AclEntry(32, 0, 0xFFFFFFFF)),
    )
)
Shown = dict[bytes, Any]


def make_vault(vault_dir: Path, cipher: str = "aegis-256", *, deltas: bool = True) -> None:
    """A new vault, as small and cheap as can be. deltas: whether its journal may have deltas."""
    Vault.create(vault_dir, PASSPHRASE, cipher=cipher, chunk_size=CHUNK, kdf_memory=64 * MIB, deltas=deltas)


def put(vault: Vault, where: Directory, name: bytes, content: bytes, mode: int = 0o640) -> None:
    """A new file."""
    file = vault.tree.create(where, name, os.O_RDWR | os.O_CREAT, mode)
    if content:
        file.write(0, content)
    vault.tree.release(file)


def make_directory(vault: Vault, parent: Directory, name: bytes) -> Directory:
    """A new directory, opened."""
    vault.tree.make_directory(parent, name, 0o755)
    return vault.tree.directory(parent, name)


def furnish(vault_dir: Path) -> None:
    """Fill a vault."""
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        tree, root = vault.tree, vault.tree.root
        tree.xattrs.supports_acls = True
        put(vault, root, b"file", pattern(5 * CHUNK + 1000))
        put(vault, root, b"whole chunks", pattern(3 * CHUNK, 1))
        put(vault, root, b"one byte", b"1")
        put(vault, root, b"empty", b"")
        put(vault, root, LONG, b"long", 0o400)
        _holes(vault, root)
        docs = make_directory(vault, root, b"docs")
        put(vault, docs, b"report", pattern(2 * CHUNK + 7, 2))
        _marks(vault, root, docs)
        tree.make_symlink(docs, b"link", b"../file")
        deep = make_directory(vault, docs, b"deep " + LONG)
        put(vault, deep, b"below", pattern(100, 3), 0o4755)
        tree.make_symlink(deep, b"far", LONG_TARGET)
        tree.make_symlink(root, LONG + b" link", b"target")
        tree.make_symlink(root, b"linked", b"somewhere")
        tree.link(root, b"linked", deep, b"linked again")
        for number in range(3):
            tree.link(docs, b"report", deep, b"hard %d" % number)
        tree.link(docs, b"report", root, LONG + b" hard")
        _mark_links(vault, (docs, b"link"), (deep, b"far"), (root, LONG + b" link"), (deep, b"linked again"))
        put(vault, deep, b"no content", b"")
        tree.link(deep, b"no content", docs, b"no content")
        make_directory(vault, root, b"bare")
        for kind, name in ((stat.S_IFIFO, b"fifo"), (stat.S_IFSOCK, b"socket")):
            tree.make_node(deep, name, kind | 0o600, 0)
        if os.geteuid() == 0:
            tree.make_node(root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            tree.make_node(root, b"block", stat.S_IFBLK | 0o600, os.makedev(7, 77))
        _copies(vault, vault_dir, docs)
    _set_times(vault_dir)


def _marks(vault: Vault, root: Directory, docs: Directory) -> None:
    """Attributes and access control lists, of files and directories, the root among them."""
    xattrs = vault.tree.xattrs
    for where, name in ((root, b"file"), (root, b"docs"), (root, SELF), (docs, b"report"), (docs, SELF)):
        xattrs.set(where, name, b"user.note", b"note of " + (name or b"itself"), 0)
    xattrs.set(root, b"empty", b"user.of an empty file", b"yes", 0)
    xattrs.set(docs, b"report", b"user." + b"n" * 200, b"long name", 0)
    xattrs.set(root, b"docs", b"user." + b"n" * 200, b"long name", 0)
    xattrs.set(root, b"file", ACL_ACCESS, ACL, 0)
    xattrs.set(root, b"docs", ACL_DEFAULT, ACL, 0)


def _mark_links(vault: Vault, *places: tuple[Directory, bytes]) -> None:
    """Attributes of symlinks, which only root has, in vaults that keep them."""
    if vault.tree.binding.is_on and may_mark_links():
        for where, name in places:
            vault.tree.xattrs.set(where, name, b"trusted.note", b"note of " + name, 0)
            vault.tree.xattrs.set(where, name, b"security." + b"n" * 200, b"long name", 0)


def _holes(vault: Vault, root: Directory) -> None:
    """Files with holes: at the beginning, in the middle, at the end, and nothing else."""
    for name, pieces, size in (
        (b"sparse", ((0, 100), (40 * CHUNK + 5, 3 * CHUNK)), 200 * CHUNK + 9),
        (b"only a hole", (), 100 * CHUNK + 1),
        (b"hole first", ((3000 * CHUNK, 10),), 3000 * CHUNK + 10),
    ):
        file = vault.tree.create(root, name, os.O_RDWR | os.O_CREAT, 0o600)
        file.truncate(size)
        for at, length in pieces:
            file.write(at, pattern(length, at))
        vault.tree.release(file)


def _copies(vault: Vault, vault_dir: Path, docs: Directory) -> None:
    """Conflict copies, as sync clients make them: of a file, a long name, a directory, a link."""
    put(vault, docs, LONG, b"has a copy")
    below = make_directory(vault, docs, b"twice")
    put(vault, below, b"inside", b"of both")
    for name in (b"report", LONG, b"twice", b"link"):
        original = vault_dir / docs.cipher_path / docs.entry_name(name)
        copy = original.with_name(original.name + CONFLICT)
        if original.is_dir():
            shutil.copytree(original, copy)
        else:
            shutil.copy2(original, copy, follow_symlinks=False)


def _set_times(vault_dir: Path) -> None:
    """Times that no program would give by itself, inside before outside."""
    number = 0
    for parent, directories, files in os.walk(vault_dir, topdown=False):
        for name in sorted((*directories, *files)):
            number += 1
            times = (10**18 + number * 1001, 10**18 + number * 7_000_003)
            os.utime(Path(parent) / name, ns=times, follow_symlinks=False)
    os.utime(vault_dir, ns=(10**18 + 5, 10**18 + 6))


def shown(vault_dir: Path, passphrase: bytes = PASSPHRASE, *, link_atimes: bool = True) -> Shown:
    """All of a vault, by plain path, as a program sees it. Writes nothing."""
    with Vault.unlock(vault_dir, passphrase, read_only=True, durability=Durability.OFF) as vault:
        vault.tree.xattrs.supports_acls = True
        vault.context.noatime = vault.context.nodiratime = True
        found: Shown = {}
        inodes: dict[int, int] = {}
        places = list(_everything(vault, vault.tree.root, b""))
        links = {path: backing_stat(where, name) for path, where, name in places}
        stats = [vault.tree.stat(where, name) for _, where, name in places]  # it reads some links
        for (path, where, name), seen in zip(places, stats, strict=True):
            seen = Attributes(links[path], seen.size)
            found[path] = _one(vault, where, name, seen, inodes, link_atimes=link_atimes)
        return found


def differences(one: Shown, other: Shown) -> list[tuple[bytes, Any, Any]]:
    """Paths, and what they show in both."""
    return [
        (path, one.get(path), other.get(path))
        for path in sorted({*one, *other})
        if one.get(path) != other.get(path)
    ]


def _everything(vault: Vault, directory: Directory, path: bytes) -> Iterator[tuple[bytes, Directory, bytes]]:
    yield path, directory, SELF
    for entry in sorted(vault.tree.list(directory), key=lambda entry: entry.name):
        below = path + b"/" + entry.name
        if stat.S_ISDIR(backing_stat(directory, entry.name).st_mode):
            yield from _everything(vault, vault.tree.directory(directory, entry.name), below)
        else:
            yield below, directory, entry.name


def _one(
    vault: Vault,
    where: Directory,
    name: bytes,
    attributes: Attributes,
    inodes: dict[int, int],
    *,
    link_atimes: bool,
) -> tuple[Any, ...]:
    tree, st = vault.tree, attributes.st
    kind = stat.S_IFMT(st.st_mode)
    fields: list[Any] = [st.st_mode, st.st_uid, st.st_gid, st.st_rdev]
    if kind != stat.S_IFDIR:
        fields += [attributes.size, st.st_nlink, inodes.setdefault(st.st_ino, len(inodes))]
    fields += [st.st_mtime_ns]
    if kind != stat.S_IFDIR and (link_atimes or kind != stat.S_IFLNK):
        fields += [st.st_atime_ns]
    if kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        names = tree.xattrs.list(where, name)
        fields.append(sorted((each, tree.xattrs.get(where, name, each)) for each in names))
    if kind == stat.S_IFLNK:
        fields.append(tree.symlinks.read(where, name))
        utimensat(where.fd, where.entry_name(name), (*divmod(st.st_atime_ns, 10**9), 0, UTIME_OMIT))
    if kind == stat.S_IFREG:
        file = tree.open(where, name, os.O_RDONLY)
        try:
            fields.append(_content(file, attributes.size))
        finally:
            tree.release(file)
    return tuple(fields)


def _content(file: Any, size: int) -> list[tuple[int, bytes]]:
    """The pieces of a file that are not holes; or why it cannot be read."""
    pieces: list[tuple[int, bytes]] = []
    at = 0
    try:
        while at < size:
            try:
                start = ranges.seek(file, at, os.SEEK_DATA)
            except OSError:
                break
            stop = ranges.seek(file, start, os.SEEK_HOLE)
            pieces.append((start, file.read(start, stop - start)))
            at = stop
        file.read(0, min(size, MIB))  # holes read as zeros
    except IntegrityError as error:
        return [(error.chunk_index or 0, error.reason.encode())]
    return pieces


def begin_change(vault_dir: Path, *offers: Offer | bytes) -> None:
    """The beginning of a change, up to the new config."""
    given = [Offer(passphrase=each) if isinstance(each, bytes) else each for each in offers]
    with Vault.unlock(vault_dir, given[0], durability=Durability.OFF) as vault:
        plan = plan_slots(vault.config, given)
        begin(vault, plan)


def change_masterkey(
    vault_dir: Path, offers: Sequence[Offer] = (Offer(passphrase=PASSPHRASE),), report: Report | None = None
) -> VaultConfig:
    """All of a change, or the rest of one that has begun."""
    begin_change(vault_dir, *offers)
    return go_on(vault_dir, offers[0], report or Report(), workers=2)


def finish(
    vault_dir: Path, offer: Offer | None = None, report: Report | None = None, *, take_over: bool = False
) -> VaultConfig:
    """The rest of a change that has begun."""
    offer = offer or Offer(passphrase=PASSPHRASE)
    return go_on(vault_dir, offer, report or Report(), take_over=take_over, workers=2)


def furnish_small(vault_dir: Path) -> None:
    """One of each kind that is changed in a way of its own, in few calls."""
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        tree, root = vault.tree, vault.tree.root
        put(vault, root, b"file", pattern(CHUNK + 7))
        put(vault, root, b"empty", b"")
        below = make_directory(vault, root, LONG)
        tree.xattrs.set(root, LONG, b"user.note", b"of a directory", 0)
        put(vault, below, LONG, b"long")
        tree.xattrs.set(below, LONG, b"user.note", b"of a file", 0)
        tree.link(below, LONG, root, b"hard")
        tree.make_symlink(below, b"far", LONG_TARGET)
        tree.make_symlink(root, b"linked", b"somewhere")
        tree.link(root, b"linked", below, b"linked again")
        _mark_links(vault, (below, b"far"), (root, b"linked"))
        tree.make_node(below, b"fifo", stat.S_IFIFO | 0o600, 0)
        make_directory(vault, below, b"bare")
    _set_times(vault_dir)
    for path in vault_dir.iterdir():
        if path.is_dir() and path.name != "cryptfs.links":
            path.chmod(0o500)


def copy_of(vault_dir: Path, target: Path) -> Path:
    """A copy with everything that cp can keep."""
    subprocess.run(["cp", "-a", vault_dir, target], check=True)
    return target
