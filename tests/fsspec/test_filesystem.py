"""What fsspec's users call, beside the same calls on a local directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

import cryptfs
from cryptfs.fsspec.filesystem import CryptfsFileSystem
from tests.transfer.conftest import PASSPHRASE

NAMES = (
    "a.txt",
    "with blank.txt",
    "a:b",
    "ä€.bin",
    "deep/er/c.txt",
    "deep/d.csv",
    "::",
    "[x]*?.txt",
    "#%20?q=1",
)
SAME = ("name", "size", "type", "islink", "mode", "uid", "gid", "nlink", "destination")


@pytest.fixture
def local(tmp_path: Path) -> Any:
    """A directory on the disk, as fsspec sees it."""
    (tmp_path / "beside").mkdir(mode=0o700)
    return DirFileSystem(str(tmp_path / "beside"), LocalFileSystem(auto_mkdir=True))


@pytest.fixture
def both(fs: CryptfsFileSystem, local: Any) -> tuple[Any, Any]:
    """The same files on both."""
    for each in (fs, local):
        for name in NAMES:
            with each.open(name, "wb") as file:
                file.write(name.encode() * 3)
        each.mkdirs("empty/dir")
    for where in (lambda path: fs.opened, lambda path: None):
        vault = where("")
        make: Callable[..., None] = os.symlink if vault is None else vault.symlink
        top = f"{local.path}/" if vault is None else ""
        make("a.txt", f"{top}link")
        make("deep", f"{top}to deep")
        make("nowhere", f"{top}broken")
        (os.chmod if vault is None else vault.chmod)(f"{top}a.txt", 0o640)
    return fs, local


def same_info(info: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between any two filesystems: numbers of inodes, times, sizes of directories."""
    kept = {key: info[key] for key in SAME if key in info}
    if info["type"] == "directory":
        del kept["size"], kept["nlink"]
    return kept


def outcome(call: Callable[[], Any]) -> Any:
    """Its result, or the type of its error."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - any of them is compared
        return type(error)


@pytest.mark.parametrize(
    "call",
    [
        lambda fs: sorted(fs.find("")),
        lambda fs: sorted(fs.find("deep", withdirs=True)),
        lambda fs: sorted(fs.find("", maxdepth=1)),
        lambda fs: sorted(fs.find("deep")),
        lambda fs: sorted((here, sorted(dirs), sorted(files)) for here, dirs, files in fs.walk("")),
        lambda fs: sorted(fs.glob("*")),
        lambda fs: sorted(fs.glob("**/*.txt")),
        lambda fs: fs.glob("a.t?t"),
        lambda fs: fs.glob("nothing*"),
        lambda fs: sorted(fs.ls("", detail=False)),
        lambda fs: fs.ls("deep/d.csv", detail=False),
        lambda fs: fs.ls("empty/dir"),
        lambda fs: fs.ls("nothing"),
        lambda fs: [fs.exists(name) for name in ("", "a.txt", "deep", "link", "broken", "x", "a.txt/x")],
        lambda fs: [fs.isdir(name) for name in ("", "a.txt", "deep", "to deep", "broken", "x")],
        lambda fs: [fs.isfile(name) for name in ("", "a.txt", "deep", "link", "broken", "x")],
        lambda fs: [same_info(fs.info(name)) for name in ("a.txt", "deep", "link", "to deep", "ä€.bin")],
        lambda fs: fs.info("broken"),
        lambda fs: fs.info("x"),
        lambda fs: fs.info("a.txt/x"),
        lambda fs: fs.du("deep"),
        lambda fs: fs.size("deep/d.csv"),
        lambda fs: fs.cat("a.txt"),
        lambda fs: fs.cat(["a.txt", "::"]),
        lambda fs: fs.cat("deep", recursive=True),
        lambda fs: fs.cat_file("a.txt", start=2, end=5),
        lambda fs: fs.cat_file("a.txt", start=-4),
        lambda fs: fs.cat_file("a.txt", end=-4),
        lambda fs: fs.cat_file("deep"),
        lambda fs: fs.cat_ranges(["a.txt", "a.txt", "::"], [0, 3, 1], [2, 6, 100]),
        lambda fs: fs.cat_ranges(["a.txt", "::"], 1, 3),
        lambda fs: [type(each) for each in fs.cat_ranges(["x", "a.txt"], [0, 0], [1, 1])],
        lambda fs: fs.cat_ranges(["x"], [0], [1], on_error="raise"),
        lambda fs: fs.head("a.txt", 4),
        lambda fs: fs.tail("a.txt", 4),
        lambda fs: fs.read_block("a.txt", 3, 4),
        lambda fs: fs.read_text("deep/er/c.txt"),
        lambda fs: fs.get_mapper("deep")["er/c.txt"],
        lambda fs: sorted(fs.get_mapper("deep")),
    ],
)
def test_reading_is_as_on_a_local_directory(both: tuple[Any, Any], call: Callable[[Any], Any]) -> None:
    inside, outside = (outcome(lambda each=each: call(each)) for each in both)  # type: ignore[misc]
    assert inside == outside


def listing(fs: Any) -> list[Any]:
    """All there is, with its content. Of a symlink to a file, a vault gives the type of the file."""
    found = sorted(fs.find("", withdirs=True, detail=True).values(), key=lambda info: str(info["name"]))
    return [
        (
            info["name"],
            info["type"] if not info["islink"] else "link",
            fs.cat_file(info["name"]) if fs.isfile(info["name"]) else b"",
        )
        for info in found
        if info["name"]  # the root, which one of them lists
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda fs: fs.mkdir("deep"),
        lambda fs: fs.mkdir("new/er"),
        lambda fs: fs.mkdir("new/er", create_parents=False),
        lambda fs: fs.makedirs("deep", exist_ok=True),
        lambda fs: fs.makedirs("deep"),
        lambda fs: fs.rmdir("deep"),
        lambda fs: fs.rmdir("empty/dir"),
        lambda fs: fs.rm_file("a.txt"),
        lambda fs: fs.rm("x"),
        lambda fs: fs.rm("deep"),
        lambda fs: fs.rm("deep", recursive=True),
        lambda fs: fs.rm(["a.txt", "::"]),
        lambda fs: fs.rm("to deep", recursive=True),
        lambda fs: fs.rm("[x]*?.txt"),
        lambda fs: fs.cp_file("a.txt", "b.txt"),
        lambda fs: fs.cp_file("a.txt", "new/b.txt"),
        lambda fs: fs.cp_file("a.txt", "::"),
        lambda fs: fs.cp_file("x", "b.txt"),
        lambda fs: fs.copy("deep", "copy", recursive=True),
        lambda fs: fs.mv("a.txt", "b.txt"),
        lambda fs: fs.mv("a.txt", "::"),
        lambda fs: fs.mv("a.txt", "deep"),
        lambda fs: fs.mv("deep", "deeper", recursive=True),
        lambda fs: fs.mv("x", "b.txt"),
        lambda fs: fs.touch("a.txt"),
        lambda fs: fs.touch("a.txt", truncate=False),
        lambda fs: fs.touch("new/empty"),
        lambda fs: fs.pipe_file("a.txt", b"other"),
        lambda fs: fs.pipe({"one": b"1", "two/2": b"2"}),
        lambda fs: fs.write_text("a.txt", "ä"),
        lambda fs: fs.get_mapper("deep").update({"x/y": b"z"}),
        lambda fs: fs.get_mapper("deep").clear(),
    ],
)
def test_changes_are_as_on_a_local_directory(both: tuple[Any, Any], call: Callable[[Any], Any]) -> None:
    inside, outside = (outcome(lambda each=each: call(each)) for each in both)  # type: ignore[misc]
    assert (isinstance(inside, type), inside if isinstance(inside, type) else None) == (
        isinstance(outside, type),
        outside if isinstance(outside, type) else None,
    )
    assert listing(both[0]) == listing(both[1])


def steps(file: Any, mode: str) -> list[Any]:
    """Some work with an open file, and what each step gave."""
    found: list[Any] = []
    for step in (
        lambda: file.seek(0, os.SEEK_END),
        lambda: file.write(b"end"),
        lambda: file.seek(2),
        lambda: file.read(4),
        lambda: file.readline(),
        lambda: file.seek(1),
        lambda: file.write(b"XY"),
        lambda: file.flush(),
        lambda: file.truncate(5),
        lambda: file.tell(),
        lambda: (file.seek(0), list(file)),
    ):
        try:
            found.append(step())
        except OSError:  # io.UnsupportedOperation is one
            found.append("refused")
    return found


@pytest.mark.parametrize("mode", ["rb", "wb", "ab", "xb", "r+b", "w+b", "a+b"])
def test_modes_are_those_of_open(fs: CryptfsFileSystem, tmp_path: Path, mode: str) -> None:
    (tmp_path / "file").write_bytes(b"one\ntwo\nthree\n")
    fs.pipe_file("file", b"one\ntwo\nthree\n")
    if "x" in mode:
        with pytest.raises(FileExistsError):
            fs.open("file", mode)
        (tmp_path / "file").unlink()
        fs.rm("file")
    with fs.open("file", mode) as inside, (tmp_path / "file").open(mode) as outside:
        assert steps(inside, mode) == steps(outside, mode)
        assert (inside.fs, inside.path, inside.mode) == (fs, "file", outside.mode)
    assert fs.cat_file("file") == (tmp_path / "file").read_bytes()


def test_text_lines_and_compression(fs: CryptfsFileSystem) -> None:
    with fs.open("t", "w", encoding="latin-1", newline="\r\n") as file:
        file.write("ä\nb\n")
    assert fs.cat_file("t") == b"\xe4\r\nb\r\n"
    with fs.open("t", "r", encoding="latin-1") as file:
        assert list(file) == ["ä\n", "b\n"]
    with fs.open("t", "a", encoding="latin-1") as file:
        file.write("c")
    assert fs.tail("t", 1) == b"c"
    with fs.open("z.gz", "wb", compression="infer") as file:
        file.write(b"packed" * 1000)
    assert fs.size("z.gz") < 1000
    with fs.open("z.gz", "rt", compression="infer") as file:
        assert file.read() == "packed" * 1000
    with pytest.raises(FileNotFoundError):
        fs.open("missing", "rb")
    with pytest.raises(IsADirectoryError):
        fs.open("", "rb")
    with pytest.raises(ValueError, match="mode"):
        fs.open("t", "rwb")


def test_times(fs: CryptfsFileSystem) -> None:
    fs.touch("a")
    fs.opened.utime("a", ns=(1_000_000_000, 86_400 * 10**9))
    assert fs.modified("a").isoformat() == "1970-01-02T00:00:00+00:00"
    before, created = fs.ukey("a"), fs.created("a")
    fs.touch("a", truncate=False)
    assert fs.modified("a") > created
    assert fs.ukey("a") != before


def test_a_transaction_is_all_or_nothing(fs: CryptfsFileSystem) -> None:
    fs.pipe_file("old", b"old")
    fs.chmod("old", 0o604)
    fs.symlink("old", "link")
    with fs.transaction:
        for name, mode in (("new", "wb"), ("link", "wb"), ("log", "ab"), ("once", "xb"), ("both", "w+b")):
            with fs.open(name, mode) as file:
                file.write(name.encode())
        assert [fs.exists(name) for name in ("new", "log", "once", "both")] == [False] * 4
        assert fs.cat_file("old") == b"old"
    assert fs.cat(["new", "link", "log", "once", "both"]) == {
        name: name.encode() for name in ("new", "link", "log", "once", "both")
    }
    assert fs.islink("link")
    assert stat.S_IMODE(fs.info("old")["mode"]) == 0o604
    before = listing(fs)
    with pytest.raises(RuntimeError, match="on purpose"), fs.transaction:
        fs.pipe_file("new", b"changed")
        with fs.open("log", "ab") as file:
            file.write(b" and more")
        raise RuntimeError("on purpose")
    assert listing(fs) == before
    with fs.transaction, fs.open("log", "ab") as file:
        file.write(b" and more")
    assert fs.cat_file("log") == b"log and more"
    with fs.transaction, pytest.raises(FileExistsError):
        fs.open("once", "xb")


def test_a_copy_that_fails_leaves_nothing(fs: CryptfsFileSystem, vault_dir: Path) -> None:
    fs.pipe_file("a", b"1" * 100_000)
    fs.pipe_file("b", b"good")
    cipher_path = max(
        (path for path in vault_dir.iterdir() if path.is_file()), key=lambda path: path.stat().st_size
    )
    with cipher_path.open("r+b") as file:
        file.seek(50_000)
        file.write(b"damage")
    with pytest.raises(OSError, match="Input/output error") as caught:
        fs.cp_file("a", "b")
    assert caught.value.errno == errno.EIO
    assert sorted(fs.ls("", detail=False)) == ["a", "b"]
    assert fs.cat_file("b") == b"good"
    (error,) = fs.cat_ranges(["a"], [0], [100_000])
    assert isinstance(error.__cause__, cryptfs.ChunkError)
    assert fs.cat_file("a", 0, 10) == b"1" * 10


def test_a_file_copied_to_itself_stays(fs: CryptfsFileSystem) -> None:
    fs.pipe_file("a", b"content")
    fs.link("a", "second")
    fs.cp_file("a", "a")
    fs.cp_file("a", "second")
    assert fs.cat(["a", "second"]) == {"a": b"content", "second": b"content"}


def test_links_that_lead_out_of_the_vault(fs: CryptfsFileSystem) -> None:
    fs.symlink("/etc/passwd", "absolute")
    fs.symlink("../up", "up")
    for name in ("absolute", "up"):
        with pytest.raises(OSError, match="cross-device") as caught:
            fs.open(name, "rb")
        assert caught.value.errno == errno.EXDEV
        with pytest.raises(OSError), fs.transaction:
            fs.pipe_file(name, b"")
    assert {info["type"] for info in fs.ls("")} == {"other"}


def test_many_threads(fs: CryptfsFileSystem) -> None:
    def work(number: int) -> bytes:
        fs.pipe_file(f"t{number % 4}/{number}", bytes([number]) * 50_000)
        assert fs.exists(f"t{number % 4}")
        return fs.cat_file(f"t{number % 4}/{number}", 10, 20)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(64))) == [bytes([number]) * 10 for number in range(64)]
    assert len(fs.find("")) == 64


def test_a_directory_as_the_working_tree(options: dict[str, Any]) -> None:
    """DirFileSystem, get, put and generic.rsync are made of the calls above."""
    with CryptfsFileSystem(**options) as fs:
        fs.pipe({"top/a": b"a", "top/b/c": b"c"})
        below = DirFileSystem("top", fs)
        assert sorted(below.find("")) == ["a", "b/c"]
        assert below.cat("b/c") == b"c"


def test_passphrases_of_both_types(vault_dir: Path) -> None:
    for passphrase in (PASSPHRASE, PASSPHRASE.decode()):
        with CryptfsFileSystem(vault_dir, passphrase=passphrase) as fs:
            assert fs.ls("") == []
