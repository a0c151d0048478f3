"""New files that are written whole, or in pieces by others: on disk they are what a mount writes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import time
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.core.format.header import NO_JOURNAL
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import HeaderError
from cryptfs.fsck.check import check_vault
from cryptfs.fsck.findings import Severity
from cryptfs.vfs import newcontent
from tests.support import crash_in, pattern, state_files
from tests.transfer.conftest import PASSPHRASE

SIZES = [0, 1, 4096, 16384, 16385, 100_000]


def header_of(vault: cryptfs.Vault, name: bytes) -> dict[str, Any] | None:
    """The fields of a file's header but its id, None if it has none."""
    fd = os.open(vault.tree.root.entry_name(name), os.O_RDONLY, dir_fd=vault.tree.root.fd)
    try:
        header = vault.context.header_of(fd)
    finally:
        os.close(fd)
    return None if header is None else {**dataclasses.asdict(header), "file_id": None}


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_file_is_as_if_it_was_written_and_closed(size: int, opened: cryptfs.Vault) -> None:
    content, root = pattern(size), opened.tree.root
    with opened.open("slow", "wb") as file:
        file.write(content)
    fd, _ = newcontent.create_whole(opened.tree, root, b"fast", 0o640, memoryview(content))
    os.close(fd)
    one, other = header_of(opened, b"slow"), header_of(opened, b"fast")
    assert one == other
    if one is not None:
        assert (one["size"], one["size_min"]) == (size, 0)
        assert one["journal_id"] != NO_JOURNAL
    assert opened.stat("slow").st_size == opened.stat("fast").st_size == size
    with opened.open("fast", "r+b") as file:
        assert file.read() == content
        file.write(b"more")
    with opened.open("fast", "rb") as file:
        assert file.read() == content + b"more"


def test_no_file_stays_if_it_cannot_be_written(
    opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(newcontent, "write_fully", full)
    with pytest.raises(OSError, match="No space left"):
        newcontent.create_whole(opened.tree, opened.tree.root, b"new", 0o600, memoryview(b"content"))
    assert opened.listdir() == []


@pytest.mark.parametrize("size", [1, 1 << 20, (3 << 20) + 5])
def test_pieces_come_in_any_order(size: int, opened: cryptfs.Vault) -> None:
    content, tree = memoryview(pattern(size)), opened.tree
    file = tree.create(tree.root, b"new", os.O_RDWR | os.O_EXCL, 0o600)
    content_id = newcontent.expect(file)
    for start in reversed(range(0, size, 1 << 20)):
        piece = newcontent.NewContent(opened.context, tree.root, b"new", content_id)
        piece.write(start, content[start : start + (1 << 20)])
        piece.close()
    newcontent.arrived(file, content_id, size)
    tree.release(file)
    header = header_of(opened, b"new")
    assert header is not None
    assert (header["size"], header["size_min"]) == (size, 0)
    with opened.open("other", "wb") as other:
        other.write(content)
    assert header == header_of(opened, b"other")
    with opened.open("new", "rb") as again:
        assert again.read() == content


def test_a_piece_that_is_missing_is_noticed(opened: cryptfs.Vault) -> None:
    tree = opened.tree
    file = tree.create(tree.root, b"new", os.O_RDWR | os.O_EXCL, 0o600)
    content_id = newcontent.expect(file)
    piece = newcontent.NewContent(opened.context, tree.root, b"new", content_id)
    with pytest.raises(ValueError, match="whole chunks"):
        piece.write(5, memoryview(b"x"))
    piece.write(0, memoryview(b"x" * 16384))
    piece.close()
    with pytest.raises(HeaderError, match="not all of it"):
        newcontent.arrived(file, content_id, 20_000)
    tree.release(file)


@pytest.mark.parametrize("content", [b"", b"of its own"])
def test_only_a_file_that_waits_gets_pieces(content: bytes, opened: cryptfs.Vault) -> None:
    with opened.open("file", "wb") as file:
        file.write(content)
    with pytest.raises(HeaderError, match="waits for no content"):
        newcontent.NewContent(opened.context, opened.tree.root, b"file", bytes(32))
    assert open_descriptors(opened) == []


def open_descriptors(opened: cryptfs.Vault) -> list[str]:
    """Files of the vault that this process has open, but for directories and the lock."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if stat.S_ISREG(each.stat().st_mode):
                found.append(str(each.readlink()))
    return [each for each in found if each.startswith(f"{opened.vault_dir}/") and "/cryptfs." not in each]


def test_a_copy_that_was_killed_leaves_an_empty_file(opened: cryptfs.Vault) -> None:
    """Gaps and torn chunks: no damage, and nothing that comes back, whatever is done with the file."""
    tree = opened.tree
    file = tree.create(tree.root, b"new", os.O_RDWR | os.O_EXCL, 0o600)
    content_id = newcontent.expect(file)
    piece = newcontent.NewContent(opened.context, tree.root, b"new", content_id)
    for start in (4 << 20, 1 << 20):
        piece.write(start, memoryview(pattern(100_000)))
    piece.close()
    place = opened.vault_dir / tree.root.entry_name(b"new")
    with place.open("r+b") as backing:
        backing.truncate(place.stat().st_size - 1)
    tree.release(file)  # it seals the length that the header says
    assert opened.stat("new").st_size > 0  # as stat claims, which reads no header
    with opened.open("new", "rb") as again:
        assert again.read() == b""
    findings = list(check_vault(opened, deep=True).run())
    assert [each.kind for each in findings if each.severity is Severity.ERROR] == []
    with opened.open("new", "r+b") as again:
        again.write(b"another")
    with opened.open("new", "rb") as again:
        assert again.read() == b"another"
    assert place.stat().st_size < 1000


@pytest.mark.serial
def test_the_next_session_frees_its_space(vault_dir: Path) -> None:
    def work() -> None:
        vault = cryptfs.Vault.unlock(vault_dir, PASSPHRASE, start=False)
        tree = vault.tree
        file = tree.create(tree.root, b"new", os.O_RDWR | os.O_EXCL, 0o600)
        piece = newcontent.NewContent(vault.context, tree.root, b"new", newcontent.expect(file))
        piece.write(4 << 20, memoryview(pattern(100_000)))

    crash_in(work)
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        place = vault_dir / vault.tree.root.entry_name(b"new")
        sweep = vault.workers.unsettled
        assert sweep is not None
        until = time.monotonic() + 30
        while not sweep.over:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert place.stat().st_size == HEADER_SIZE
        with vault.open("new", "rb") as file:
            assert file.read() == b""
    assert state_files(vault_dir, "unsettled") == []
