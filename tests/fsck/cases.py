"""Kinds of damage, what they are found as, and what is there after a repair."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptfs.core.format.header import NO_FLAGS, HeaderFlag
from cryptfs.core.format.salvage import adoption_mark
from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.fsck.directories import ADOPTION_MARK
from cryptfs.fsck.findings import FindingKind
from cryptfs.vfs.tree.xattrs import ACL_ACCESS
from tests.fsck.scene import (
    CHUNK,
    CONTENT,
    LONG,
    SIZE,
    flip,
    path_of,
    put_in,
    record_of,
    sidecar_of,
)
from tests.support import BareVault

DOCS, DEEP = b"docs", b"deep"
DOCS_NAMES = (b"report", b"other", LONG, b"link", b"deep")
GONE = object()


@dataclass(frozen=True)
class Case:
    """One kind of damage.

    found:   what a check finds that is more than for information.
    changed: plain path -> what is there after the repair; GONE for nothing.
    deep:    whether it takes a deep check.
    prepare: what is made before.
    """

    name: str
    damage: Callable[[BareVault], object]
    found: list[FindingKind]
    changed: dict[bytes, object] = field(default_factory=dict)
    deep: bool = False
    prepare: Callable[[BareVault], object] = lambda _: None


def header_of(vault: BareVault, *names: bytes) -> bytes:
    return path_of(vault, *names).read_bytes()[:256]


def rewrite_header(vault: BareVault, **fields: object) -> None:
    path = path_of(vault, b"file")
    header = vault.context.unpack_header(path.read_bytes()[:256])
    raw = vault.context.pack_header(header.changed(**fields))  # type: ignore[arg-type]
    with path.open("r+b") as file:
        file.write(raw)


def zeroed(*chunks: int) -> bytes:
    expected = bytearray(CONTENT)
    for index in chunks:
        part = expected[index * CHUNK : (index + 1) * CHUNK]
        expected[index * CHUNK : (index + 1) * CHUNK] = bytes(len(part))
    return bytes(expected)


def spoil_chunks(vault: BareVault, *chunks: int) -> None:
    for index in chunks:
        flip(path_of(vault, b"file"), vault.geometry.record_offset(index) + 50)


def cut_file(vault: BareVault, size: int) -> None:
    os.truncate(path_of(vault, b"file"), size)


def append(vault: BareVault, *names: bytes) -> None:
    with path_of(vault, *names).open("ab") as file:
        file.write(b"surplus")


def replace_text(vault: BareVault, *names: bytes, text: str) -> None:
    path = path_of(vault, *names)
    path.unlink()
    path.symlink_to(text)


def zero_chunk(vault: BareVault, index: int) -> None:
    raw = bytearray(path_of(vault, b"file").read_bytes())
    start = vault.geometry.record_offset(index)
    raw[start : start + vault.geometry.record_size] = bytes(vault.geometry.record_size)
    path_of(vault, b"file").write_bytes(raw)


def zero_and_cut(vault: BareVault) -> None:
    zero_chunk(vault, 0)
    cut_file(vault, vault.geometry.record_offset(4))


def cut_below_size_min(vault: BareVault) -> None:
    rewrite_header(vault, flags=NO_FLAGS, size=SIZE, size_min=SIZE)
    cut_file(vault, vault.geometry.record_offset(5))


def make_pair(vault: BareVault) -> None:
    """Two directories beside each other, both with names in them."""
    for name in (b"pair a", b"pair b"):
        where = vault.make_directory(name)
        vault.put(b"in " + name, b"1", where)
        vault.tree.make_symlink(where, b"link", b"/to/" + name)


def exchange_records(vault: BareVault) -> None:
    first, second = record_of(vault, b"pair a"), record_of(vault, b"pair b")
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def interrupt_removal(vault: BareVault) -> None:
    record_of(vault, b"bare").rename(vault.vault_dir / "cryptfs.tmp.interrupted")


def interrupt_adoption(vault: BareVault) -> None:
    """A repair that died after the new record, before any name."""
    where = path_of(vault, DOCS)
    dir_id = b"another dir_id.."
    (where / ADOPTION_MARK).write_bytes(adoption_mark(dir_id, vault.keys))
    place = vault.root.place_of(DOCS)
    (where / RECORD_NAME).write_bytes(vault.tree.binding.pack(dir_id, place))


def plant_directory(vault: BareVault) -> None:
    record_of(vault, DOCS).unlink()
    record_of(vault, DOCS).mkdir()


def move_entry(vault: BareVault) -> None:
    path = path_of(vault, DOCS, b"other")
    path.rename(vault.vault_dir / path.name)


def spoil_xattr(vault: BareVault, *names: bytes) -> None:
    path = path_of(vault, *names)
    name = next(name for name in os.listxattr(path) if name.startswith("user.cryptfs."))
    os.setxattr(path, name, bytes(60))


def sealed_acl(vault: BareVault, value: bytes) -> None:
    vault.tree.xattrs.supports_acls = True
    vault.tree.xattrs.set(vault.root, b"file", ACL_ACCESS, value, 0)
    vault.tree.xattrs.supports_acls = False


NAMED_ACL = bytes.fromhex(
    "0200000001000600ffffffff020004000100000004000400ffffffff10000600ffffffff20000000ffffffff"
)
LOST_DOCS: dict[bytes, object] = {b"docs/link": GONE, b"docs user.note": GONE}


CASES = [
    Case("record missing", lambda v: record_of(v, DOCS).unlink(), [FindingKind.DIRECTORY_RECORD], LOST_DOCS),
    Case(
        "record emptied",
        lambda v: os.truncate(record_of(v, DOCS), 0),
        [FindingKind.DIRECTORY_RECORD],
        LOST_DOCS,
    ),
    Case("record is a directory", plant_directory, [FindingKind.DIRECTORY_RECORD], LOST_DOCS),
    Case("record mac", lambda v: flip(record_of(v, DOCS), 40), [FindingKind.DIRECTORY_RECORD]),
    Case("record magic", lambda v: flip(record_of(v, DOCS), 0, 16), [FindingKind.DIRECTORY_RECORD]),
    Case("record dir_id", lambda v: flip(record_of(v, DOCS), 20), [FindingKind.DIRECTORY_RECORD]),
    Case(
        "record lengthened",
        lambda v: record_of(v, DOCS).write_bytes(record_of(v, DOCS).read_bytes() + b"x"),
        [FindingKind.DIRECTORY_RECORD],
    ),
    Case(
        "records exchanged",
        exchange_records,
        [FindingKind.DIRECTORY_RECORD, FindingKind.DIRECTORY_RECORD],
        prepare=make_pair,
    ),
    Case(
        "empty directory without record",
        lambda v: record_of(v, b"bare").unlink(),
        [FindingKind.DIRECTORY_RECORD],
    ),
    Case("removal interrupted", interrupt_removal, [FindingKind.DIRECTORY_RECORD, FindingKind.LEFTOVER]),
    Case(
        "adoption interrupted",
        interrupt_adoption,
        [FindingKind.UNFINISHED_ADOPTION],
        LOST_DOCS,
    ),
    Case(
        "entry moved",
        move_entry,
        [FindingKind.UNVERIFIED_NAME],
        {b"docs/other": GONE, b"lost+found": 0o040000, b"lost+found/other": b"other"},
    ),
    Case(
        "sidecar missing",
        lambda v: sidecar_of(v, DOCS, LONG).unlink(),
        [FindingKind.SIDECAR],
        {b"docs/" + LONG: GONE},
    ),
    Case(
        "sidecar damaged in one place",
        lambda v: flip(sidecar_of(v, DOCS, LONG), 0),
        [FindingKind.SIDECAR],
    ),
    Case(
        "sidecar with a line end for the first letter",
        lambda v: put_in(sidecar_of(v, DOCS, LONG), 0, 1, b"\n"),
        [FindingKind.SIDECAR],
    ),
    Case(
        "sidecar with a line end for the last letter",
        lambda v: put_in(sidecar_of(v, DOCS, LONG), -1, None, b"\n"),
        [FindingKind.SIDECAR],
    ),
    Case(
        "sidecar with a line end",
        lambda v: sidecar_of(v, DOCS, LONG).write_bytes(sidecar_of(v, DOCS, LONG).read_bytes() + b"\n"),
        [FindingKind.SIDECAR],
    ),
    Case(
        "sidecar orphaned",
        lambda v: path_of(v, DOCS, LONG).unlink(),
        [FindingKind.ORPHANED_SIDECAR],
        {b"docs/" + LONG: GONE},
    ),
    Case("header mac", lambda v: flip(path_of(v, b"file"), 230), [FindingKind.HEADER]),
    Case("header file_id", lambda v: flip(path_of(v, b"file"), 20), [FindingKind.HEADER]),
    Case("header state", lambda v: flip(path_of(v, b"file"), 80, 100), [FindingKind.HEADER]),
    Case(
        "header and its file_id",
        lambda v: flip(path_of(v, b"file"), 20, 100),
        [FindingKind.HEADER],
        {b"file": GONE, b"file user.note": GONE},
    ),
    Case(
        "file cut at a chunk",
        lambda v: cut_file(v, v.geometry.record_offset(2)),
        [FindingKind.FILE_CUT],
        {b"file": zeroed(2, 3, 4, 5)},
    ),
    Case(
        "file cut within a chunk",
        lambda v: cut_file(v, v.geometry.record_offset(2) + 100),
        [FindingKind.FILE_CUT],
        {b"file": zeroed(2, 3, 4, 5)},
    ),
    Case(
        "file cut within its last chunk",
        lambda v: cut_file(v, v.geometry.cipher_size(SIZE) - 1),
        [FindingKind.FILE_CUT],
        {b"file": zeroed(5)},
    ),
    Case(
        "file cut to its header", lambda v: cut_file(v, 256), [FindingKind.FILE_CUT], {b"file": bytes(SIZE)}
    ),
    Case(
        "file cut within its header",
        lambda v: cut_file(v, 255),
        [FindingKind.HEADER],
        {b"file": bytes(SIZE)},
    ),
    Case(
        "file emptied",
        lambda v: cut_file(v, 0),
        [FindingKind.FILE_EMPTIED],
        {b"file": b"", b"file user.note": GONE},
    ),
    Case(
        "chunks",
        lambda v: spoil_chunks(v, 1, 2, 5),
        [FindingKind.CHUNKS],
        {b"file": zeroed(1, 2, 5)},
        deep=True,
    ),
    Case("chunk zeroed", lambda v: zero_chunk(v, 3), [FindingKind.CHUNKS], {b"file": zeroed(3)}, deep=True),
    Case(
        "chunk zeroed and cut",
        zero_and_cut,
        [FindingKind.CHUNKS, FindingKind.FILE_CUT],
        {b"file": zeroed(0, 4, 5)},
        deep=True,
    ),
    Case("surplus", lambda v: append(v, b"file"), [FindingKind.SURPLUS]),
    Case(
        "not settled",
        lambda v: rewrite_header(v, flags=NO_FLAGS, size=100, size_min=100),
        [FindingKind.NOT_SETTLED],
    ),
    Case(
        "not settled and cut",
        cut_below_size_min,
        [FindingKind.FILE_CUT],
        {b"file": zeroed(5)},
    ),
    Case(
        "void",
        lambda v: rewrite_header(v, flags=HeaderFlag.VOID, size=0, size_min=0, epoch=1),
        [FindingKind.NOT_SETTLED],
        {b"file": b""},
    ),
    Case(
        "void over content",
        lambda v: rewrite_header(v, flags=HeaderFlag.VOID, size=0, size_min=0),
        [FindingKind.NOT_SETTLED],
    ),
    Case(
        "clean and empty over content",
        lambda v: rewrite_header(v, flags=HeaderFlag.CLEAN, size=0, size_min=0),
        [FindingKind.NOT_SETTLED],
    ),
    Case(
        "clean and shorter than its content",
        lambda v: rewrite_header(v, flags=HeaderFlag.CLEAN, size=CHUNK + 5, size_min=CHUNK + 5),
        [FindingKind.NOT_SETTLED],
    ),
    Case(
        "symlink damaged",
        lambda v: replace_text(v, DOCS, b"link", text="A" * 80),
        [FindingKind.SYMLINK],
        {b"docs/link": GONE},
    ),
    Case(
        "symlink planted",
        lambda v: replace_text(v, DOCS, b"link", text="/etc/passwd"),
        [FindingKind.SYMLINK],
        {b"docs/link": GONE},
    ),
    Case(
        "long target missing",
        lambda v: next((v.vault_dir / "cryptfs.links").iterdir()).unlink(),
        [FindingKind.SYMLINK],
        {b"docs/deep/far": GONE},
    ),
    Case(
        "long target orphaned",
        lambda v: path_of(v, DOCS, DEEP, b"far").unlink(),
        [FindingKind.ORPHANED_TARGET],
        {b"docs/deep/far": GONE},
    ),
    Case(
        "xattr of a file", lambda v: spoil_xattr(v, b"file"), [FindingKind.XATTR], {b"file user.note": GONE}
    ),
    Case(
        "xattr of a directory", lambda v: spoil_xattr(v, DOCS), [FindingKind.XATTR], {b"docs user.note": GONE}
    ),
    Case(
        "xattr of another name",
        lambda v: os.setxattr(path_of(v, b"file"), "user.cryptfs.A", b""),
        [FindingKind.XATTR],
    ),
    Case("acl that is none", lambda v: sealed_acl(v, b"nonsense"), [FindingKind.ACL]),
    Case("acl and mode", lambda v: sealed_acl(v, NAMED_ACL), [FindingKind.ACL_MODE]),
    Case(
        "missing journal",
        lambda v: rewrite_header(v, flags=NO_FLAGS, journal_id=b"of another crash"),
        [FindingKind.MISSING_JOURNAL],
    ),
    Case("leftover directory", lambda v: (v.vault_dir / "cryptfs.tmp.x").mkdir(), [FindingKind.LEFTOVER]),
    Case(
        "leftover file",
        lambda v: (path_of(v, DOCS) / "cryptfs.tmp.x").write_bytes(bytes(64)),
        [FindingKind.LEFTOVER],
    ),
    Case(
        "leftover link",
        lambda v: (path_of(v, DOCS) / "cryptfs.tmp.x").symlink_to("/"),
        [FindingKind.LEFTOVER],
    ),
    Case(
        "stray file",
        lambda v: os.link(path_of(v, DOCS, b"other"), v.vault_dir / "other (conflicted copy)"),
        [FindingKind.STRAY],
        {b"lost+found": 0o040000, b"lost+found/other (conflicted copy)": b"other"},
    ),
    Case(
        "stray directory",
        lambda v: path_of(v, b"docs").rename(v.vault_dir / "docs (copy)"),
        [FindingKind.STRAY],
        {},
    ),
    Case(
        "orphaned journal",
        lambda v: (path_of(v, DOCS) / "cryptfs.journal.a").touch(),
        [FindingKind.ORPHANED_JOURNAL],
    ),
    Case(
        "list of sessions",
        lambda v: (v.vault_dir / v.owner.sessions).write_bytes(bytes(70)),
        [FindingKind.SESSIONS],
    ),
    Case("special file", lambda v: os.mkfifo(v.vault_dir / "cryptfs.lock"), [FindingKind.SPECIAL_FILE]),
]
UNREPAIRED = {FindingKind.ORPHANED_JOURNAL, FindingKind.SPECIAL_FILE}
