"""A vault with some of everything in it, ways to check and repair it, and to compare what is in it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.errors import CryptfsError
from cryptfs.fsck.check import VaultCheck
from cryptfs.fsck.findings import Finding, FindingKind, Severity
from cryptfs.fsck.repair import Repairer
from cryptfs.vfs.tree.directory import SELF, Directory
from tests.support import KIB, BareVault, everything_below, pattern

CHUNK = 4 * KIB
LONG = b"l" * 200
SIZE = 5 * CHUNK + 1000
CONTENT = pattern(SIZE, 1)
LONG_TARGET = b"/" + b"t" * 3500

Tree = dict[bytes, object]


def furnish(vault: BareVault) -> None:
    """Files, directories, links, long names and attributes, two levels deep."""
    tree, xattrs = vault.tree, vault.tree.xattrs
    vault.put(b"file", CONTENT)
    vault.put(b"empty", b"")
    docs = vault.make_directory(b"docs")
    vault.put(b"report", CONTENT, docs)
    vault.put(b"other", b"other", docs)
    vault.put(LONG, b"long", docs)
    tree.make_symlink(docs, b"link", b"../file")
    deep = vault.make_directory(b"deep", docs)
    vault.put(b"below", CONTENT[:100], deep)
    vault.put(b"beside", b"beside", deep)
    tree.make_symlink(deep, b"far", LONG_TARGET)
    tree.link(docs, b"report", deep, b"hard")
    os.mkfifo(vault.vault_dir / vault.root.entry_name(b"fifo"))
    vault.make_directory(b"bare")
    for where, name in ((vault.root, b"file"), (vault.root, b"docs"), (docs, b"report")):
        xattrs.set(where, name, b"user.note", b"note of " + name, 0)


def check(vault: BareVault, *, deep: bool = True) -> list[Finding]:
    """What a check finds that writes nothing."""
    return list(VaultCheck(vault.context, vault._vault_fd, deep=deep, workers=2).run())


def repair(vault: BareVault, *, deep: bool = True) -> list[Finding]:
    """What a repair finds, on a vault that was opened anew."""
    vault.reopen()
    repairer = Repairer(vault.tree, vault._vault_fd)
    checking = VaultCheck(vault.context, vault._vault_fd, deep=deep, repairer=repairer, workers=2)
    try:
        return list(checking.run())
    finally:
        vault.reopen()


def kinds(findings: list[Finding]) -> list[FindingKind]:
    return sorted(finding.kind for finding in findings)


def bad(findings: list[Finding]) -> list[Finding]:
    """Those that are not only for information."""
    return [finding for finding in findings if finding.severity is not Severity.INFO]


def content(vault: BareVault, directory: Directory | None = None, path: bytes = b"") -> Tree:
    """All that can be read of the plaintext tree: path -> content, target, or kind; {} of attributes too."""
    found: Tree = {}
    where = directory or vault.root
    for entry in vault.tree.list(where):
        here = path + b"/" + entry.name if path else entry.name
        found[here] = _one(vault, where, entry.name, entry.kind)
        for attribute in _attributes(vault, where, entry.name):
            with contextlib.suppress(CryptfsError, OSError):
                found[here + b" " + attribute] = vault.tree.xattrs.get(where, entry.name, attribute)
        if entry.kind == stat.S_IFDIR:
            with contextlib.suppress(CryptfsError):
                found |= content(vault, vault.tree.directory(where, entry.name), here)
    return found


def _attributes(vault: BareVault, where: Directory, name: bytes) -> list[bytes]:
    try:
        return vault.tree.xattrs.list(where, name)
    except OSError:
        return []


def _one(vault: BareVault, where: Directory, name: bytes, kind: int) -> object:
    try:
        if kind == stat.S_IFREG:
            return vault.get(name, where)
        if kind == stat.S_IFLNK:
            return b"-> " + vault.tree.symlinks.read(where, name)
    except CryptfsError as error:
        return type(error)
    return kind


def directory_of(vault: BareVault, *names: bytes) -> Directory:
    """Open a directory by its path."""
    where = vault.root
    for name in names:
        where = vault.tree.directory(where, name)
    return where


def path_of(vault: BareVault, *names: bytes) -> Path:
    """The backing path of an entry by its plain path."""
    where = directory_of(vault, *names[:-1])
    return vault.backing(names[-1], where) if names[-1] != SELF else vault.vault_dir / where.cipher_path


def record_of(vault: BareVault, *names: bytes) -> Path:
    """The directory record of a directory by its plain path."""
    return path_of(vault, *names) / RECORD_NAME


def sidecar_of(vault: BareVault, *names: bytes) -> Path:
    """The sidecar of a long name by its plain path."""
    return Path(f"{path_of(vault, *names)}{SIDECAR_SUFFIX}")


def flip(path: Path, offset: int, length: int = 1) -> None:
    """Change bytes of a file in the vault."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + length] = bytes(byte ^ 0x55 for byte in raw[offset : offset + length])
    path.write_bytes(raw)


def put_in(path: Path, start: int, stop: int | None, content: bytes) -> None:
    """Put other bytes in the place of some."""
    raw = bytearray(path.read_bytes())
    raw[start:stop] = content
    path.write_bytes(raw)


def snapshot(vault_dir: Path) -> dict[str, tuple[object, ...]]:
    """Everything that stands in the vault directory, to the byte, with times of change and attributes."""

    def paths() -> Iterator[Path]:
        yield vault_dir
        yield from everything_below(vault_dir)

    found: dict[str, tuple[object, ...]] = {}
    for path in paths():
        st = path.lstat()
        data: object = None
        if stat.S_ISREG(st.st_mode):
            data = path.read_bytes()
        elif stat.S_ISLNK(st.st_mode):
            data = os.readlink(path)
        attributes = (
            {} if stat.S_ISLNK(st.st_mode) else {name: os.getxattr(path, name) for name in os.listxattr(path)}
        )
        found[str(path)] = (
            st.st_ino,
            st.st_mode,
            st.st_nlink,
            st.st_size,
            st.st_mtime_ns,
            st.st_ctime_ns,
            data,
            attributes,
        )
    return found
