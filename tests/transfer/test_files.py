"""`Vault.open` gives what open() gives: the same calls on a file in a vault and on a plain one."""

from __future__ import annotations

import csv
import errno
import io
import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.vfs.content.openfile import OpenFile
from tests.support import pattern

MODES = ("r", "w", "x", "a", "r+", "w+", "x+", "a+")


def outcome(action: Callable[[], Any]) -> Any:
    """What it returns, or the kind of its error."""
    try:
        return action()
    except OSError as error:
        return type(error), error.errno
    except ValueError as error:
        return type(error)


def both(tmp_path: Path, opened: cryptfs.Vault, path: str, *args: Any, **named: Any) -> tuple[Any, Any]:
    """A file opened on both sides."""
    return (
        outcome(lambda: opened.open(path, *args, **named)),
        outcome(lambda: open(tmp_path / "plain" / path, *args, **named)),  # noqa: PTH123
    )


@pytest.fixture(autouse=True)
def _same_files(tmp_path: Path, opened: cryptfs.Vault) -> None:
    (tmp_path / "plain").mkdir()
    for name, content in (("file", pattern(100_000)), ("text", "a\r\nb\nü\rend".encode()), ("empty", b"")):
        (tmp_path / "plain" / name).write_bytes(content)
        with opened.open(name, "wb") as file:
            file.write(content)
    (tmp_path / "plain" / "directory").mkdir()
    opened.mkdir("directory")
    for target, link in (("file", "link"), ("new", "dangling"), ("loop", "loop")):
        (tmp_path / "plain" / link).symlink_to(target)
        opened.symlink(target, link)


def same_now(tmp_path: Path, opened: cryptfs.Vault) -> None:
    """Both sides hold the same files."""
    plain = tmp_path / "plain"
    assert sorted(opened.listdir()) == sorted(os.listdir(plain))
    for name in os.listdir(plain):
        if (plain / name).is_file():
            with opened.open(name, "rb") as file:
                assert file.read() == (plain / name).read_bytes(), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", ["file", "absent", "empty", "directory", "link", "dangling", "loop"])
def test_every_mode(mode: str, path: str, tmp_path: Path, opened: cryptfs.Vault) -> None:
    ours, plain = both(tmp_path, opened, path, mode + "b")
    if isinstance(plain, tuple):
        assert ours == plain
        return
    with ours, plain:
        assert type(ours) is type(plain)
        for each in (ours, plain):
            assert each.readable() == ("r" in mode or "+" in mode)
        assert (ours.readable(), ours.writable(), ours.seekable(), ours.tell()) == (
            plain.readable(), plain.writable(), plain.seekable(), plain.tell(),
        )  # fmt: skip
        assert ours.mode == plain.mode
        steps: list[Callable[[Any], Any]] = [
            lambda file: file.read(10),
            lambda file: file.write(b"some words"),
            lambda file: file.tell(),
            lambda file: file.seek(50_000),
            lambda file: file.write(b"x" * 70_000),
            lambda file: file.seek(-5, io.SEEK_END),
            lambda file: file.read(),
            lambda file: file.seek(200_000),
            lambda file: file.write(b"after a gap"),
            lambda file: file.flush(),
            lambda file: file.truncate(150_000),
            lambda file: file.tell(),
            lambda file: file.seek(-1),
            lambda file: file.seek(3),
            lambda file: file.read1(7),
            lambda file: file.readline(),
            lambda file: list(file)[:2],
        ]
        for number, step in enumerate(steps):
            assert outcome(lambda: step(ours)) == outcome(lambda: step(plain)), number  # noqa: B023
    assert ours.closed
    same_now(tmp_path, opened)


@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("mode", ["r", "r+", "a", "w+"])
def test_text(mode: str, newline: str | None, tmp_path: Path, opened: cryptfs.Vault) -> None:
    ours, plain = both(tmp_path, opened, "text", mode, encoding="utf-8", newline=newline)
    with ours, plain:
        assert type(ours) is io.TextIOWrapper
        assert ours.mode == plain.mode
        steps: list[Callable[[Any], Any]] = [
            lambda file: file.readlines(),
            lambda file: file.write("line\nä\n"),
            lambda file: file.seek(0),
            lambda file: file.read(3),
        ]
        for step in steps:
            assert outcome(lambda: step(ours)) == outcome(lambda: step(plain))  # noqa: B023
    same_now(tmp_path, opened)


@pytest.mark.parametrize("mode", ["", "rw", "z", "rb+t", "rr", "b", "U", "+"])
def test_wrong_modes(mode: str, tmp_path: Path, opened: cryptfs.Vault) -> None:
    assert both(tmp_path, opened, "file", mode) == (ValueError, ValueError)


@pytest.mark.parametrize(
    "arguments",
    [("r", 0), ("rb", -1, "utf-8"), ("rb", -1, None, "strict"), ("rb", -1, None, None, "\n")],
)
def test_arguments_that_contradict(arguments: Any, tmp_path: Path, opened: cryptfs.Vault) -> None:
    assert both(tmp_path, opened, "file", *arguments) == (ValueError, ValueError)


def test_unbuffered_and_line_buffered(opened: cryptfs.Vault) -> None:
    with opened.open("raw", "wb", buffering=0) as file:
        assert isinstance(file, io.RawIOBase)
        file.write(b"at once")
        with opened.open("raw", "rb") as reader:
            assert reader.read() == b"at once"
    with opened.open("lines", "w", buffering=1) as file:
        file.write("one\ntwo")
        with opened.open("lines") as reader:
            assert reader.read() == "one\ntwo"


def test_there_is_no_descriptor(opened: cryptfs.Vault) -> None:
    with opened.open("file") as file, pytest.raises(io.UnsupportedOperation):
        file.fileno()
    with pytest.raises(ValueError, match="closed file"):
        file.read()


def test_random_calls_are_as_on_a_plain_file(tmp_path: Path, opened: cryptfs.Vault) -> None:
    chance = random.Random(5)
    ours, plain = both(tmp_path, opened, "file", "r+b", buffering=0)
    with ours, plain:
        for _ in range(300):
            kind, at, size = chance.randrange(5), chance.randrange(300_000), chance.randrange(40_000)
            data = chance.randbytes(size)
            for_each: list[Callable[[Any], Any]] = [
                lambda file: (file.seek(at), file.write(data)),  # noqa: B023
                lambda file: (file.seek(at), file.read(size)),  # noqa: B023
                lambda file: file.truncate(at),  # noqa: B023
                lambda file: file.seek(-1, io.SEEK_CUR) if file.tell() else 0,
                lambda file: (file.seek(at), file.readall()),  # noqa: B023
            ]
            assert for_each[kind](ours) == for_each[kind](plain)
    same_now(tmp_path, opened)


def test_libraries_take_it_for_a_file(opened: cryptfs.Vault) -> None:
    with opened.open("archive.zip", "w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("inside", pattern(50_000))
        with zipfile.ZipFile(file) as archive:
            assert archive.read("inside") == pattern(50_000)
    with opened.open("table.csv", "w", newline="") as file:
        csv.writer(file).writerow(["a", "b,c"])
    with opened.open("table.csv", newline="") as file:
        assert list(csv.reader(file)) == [["a", "b,c"]]
    with opened.open("file", "rb") as source, opened.open("copy", "wb") as target:
        shutil.copyfileobj(source, target)
    with opened.open("copy", "rb") as file:
        assert file.read() == pattern(100_000)


def test_a_file_that_nobody_closed_is_whole(vault_dir: Path, opened: cryptfs.Vault) -> None:
    left = [opened.open("raw", "wb", buffering=0), opened.open("buffered", "wb"), opened.open("text", "w")]
    for file in left:
        file.write("x" * 3_000 if file is left[2] else b"x" * 3_000)
    opened.close()
    assert all(file.closed for file in left)
    with cryptfs.Vault.unlock(vault_dir, b"transfer", read_only=True) as again:
        assert [again.stat(name).st_size for name in ("raw", "buffered", "text")] == [3_000] * 3


def test_a_file_that_cannot_be_written_keeps_no_vault_open(
    vault_dir: Path, opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opened.open("new", "w")
    file.write("words")

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OpenFile, "write", fail)
    with pytest.raises(OSError, match="No space left") as raised:
        opened.close()
    assert raised.value.filename == "new"
    monkeypatch.undo()
    cryptfs.Vault.unlock(vault_dir, b"transfer").close()


def test_damage_is_an_oserror_that_says_where(opened: cryptfs.Vault) -> None:
    name = opened.tree.root.entry_name(b"file")
    backing = opened.vault_dir / name
    raw = bytearray(backing.read_bytes())
    raw[40_000] ^= 1
    backing.write_bytes(raw)
    with opened.open("file", "rb") as file, pytest.raises(OSError, match="does not authenticate") as raised:
        file.read()
    assert raised.value.errno == errno.EIO
    assert raised.value.filename == "file"
    assert f"{name}, chunk 2" in str(raised.value)
    assert isinstance(raised.value.__cause__, cryptfs.ChunkError)


@pytest.mark.parametrize("damage", ["header", "cut at a chunk", "cut to the header"])
@pytest.mark.parametrize("how", ["read all", "read some", "unbuffered", "text", "to the end and back"])
def test_a_file_without_a_size_is_damaged_and_not_empty(damage: str, how: str, opened: cryptfs.Vault) -> None:
    backing = opened.vault_dir / opened.tree.root.entry_name(b"file")
    raw = bytearray(backing.read_bytes())
    if damage == "header":
        raw[100] ^= 1
    else:
        chunks = 1 if damage == "cut at a chunk" else 0
        del raw[opened.context.geometry.record_offset(chunks) :]
    backing.write_bytes(raw)
    with pytest.raises(OSError, match=r"does not authenticate|was cut") as raised:
        if how == "text":
            opened.open("file", encoding="latin-1").read()
        elif how == "unbuffered":
            opened.open("file", "rb", 0).read()
        elif how == "read some":
            opened.open("file", "rb").read(5)
        else:
            with opened.open("file", "rb") as file:
                if how != "read all":
                    file.seek(0, os.SEEK_END)
                    file.seek(0)
                file.read()
    assert raised.value.errno == errno.EIO
