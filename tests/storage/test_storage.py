"""The storage layer: special files, sidecars, rmdir and its way back, what waits for a sync, libc."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME, RECORD_SIZE
from cryptfs.errors import IntegrityError
from cryptfs.storage import durability, libc
from cryptfs.storage.backing import create_small, open_backing, read_fully, read_small, write_fully
from cryptfs.storage.dirs import rename_exclusive, scan
from cryptfs.storage.durability import MAX_PENDING, PendingSync
from cryptfs.storage.removal import remove_directory
from cryptfs.storage.vaultdir import LOCK_NAME, lock_holder
from tests.support import BareVault, open_descriptors


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    gc.collect()  # what earlier tests left in reference loops
    before = open_descriptors()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
    assert open_descriptors() == before


# ---- backing files


@pytest.mark.timeout(20)
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])
def test_open_backing_refuses_what_is_no_file(dir_fd: int, tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "target").write_bytes(b"1")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("fifo", "link", "dangling"):
        with pytest.raises(IntegrityError) as raised:
            open_backing(dir_fd, name, flags, 0o600)
        assert raised.value.cipher_path == name
    assert not (tmp_path / "nothing").exists()
    fd, st = open_backing(dir_fd, "target", flags & ~os.O_CREAT)
    assert st.st_size == 1
    os.close(fd)


def test_open_backing_never_creates_over_anything(dir_fd: int, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"1")
    (tmp_path / "link").symlink_to("nothing")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            open_backing(dir_fd, name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)


def test_create_small_leaves_nothing_behind_when_the_disk_is_full(
    dir_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError) as raised:
        create_small(dir_fd, "small", b"content", 0o600)
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_read_small_shows_that_there_is_more(dir_fd: int) -> None:
    os.close(create_small(dir_fd, "small", b"0123456789", 0o600))
    assert read_small(dir_fd, "small", 10) == b"0123456789"
    assert read_small(dir_fd, "small", 9) == b"0123456789"
    assert read_small(dir_fd, "small", 3) == b"0123"


def test_read_and_write_fully(dir_fd: int, tmp_path: Path) -> None:
    fd, _ = open_backing(dir_fd, "file", os.O_RDWR | os.O_CREAT, 0o600)
    write_fully(fd, (b"ab", memoryview(b"cd"), b"", b"e"), 3)
    assert (tmp_path / "file").read_bytes() == b"\0\0\0abcde"
    room = memoryview(bytearray(10))
    assert read_fully(fd, room, 4) == 4
    assert bytes(room[:4]) == b"bcde"
    assert read_fully(fd, room, 100) == 0
    os.close(fd)


# ---- directories


def test_listing_hides_internal_names_only(dir_fd: int, tmp_path: Path) -> None:
    shown = ("name", "cryptfs.long.abc", ".hidden")
    hidden = (
        "cryptfs.json",
        "cryptfs.dir",
        "cryptfs.lock",
        "cryptfs.long.abc.name",
        "cryptfs.tmp.x",
        "cryptfs.x",
    )
    for name in (*shown, *hidden):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("directory")
    kinds = {entry.entry_name: entry.kind for entry in scan(dir_fd)}
    others = {"directory": stat.S_IFDIR, "pipe": stat.S_IFIFO, "link": stat.S_IFLNK}
    assert kinds == dict.fromkeys(shown, stat.S_IFREG) | others


def test_failed_rmdir_puts_the_record_back(
    dir_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something comes in between the look and the removal."""
    directory = tmp_path / "d"
    directory.mkdir(0o755)
    (directory / RECORD_NAME).write_bytes(b"r" * RECORD_SIZE)
    rmdir = os.rmdir

    def late(name: str, *, dir_fd: int) -> None:
        (tmp_path / name / "newcomer").write_bytes(b"")
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", late)
    with pytest.raises(OSError) as raised:
        remove_directory(dir_fd, "d")
    assert raised.value.errno == errno.ENOTEMPTY
    assert sorted(os.listdir(directory)) == [RECORD_NAME, "newcomer"]
    assert (directory / RECORD_NAME).read_bytes() == b"r" * RECORD_SIZE
    assert os.listdir(tmp_path) == ["d"]


def test_rmdir_clears_leftovers_of_operations(dir_fd: int, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / RECORD_NAME).write_bytes(b"")
    (directory / "cryptfs.long.x.name").write_bytes(b"orphan")
    (directory / "cryptfs.tmp.file").write_bytes(b"")
    (directory / "cryptfs.tmp.mkdir").mkdir()
    (directory / "cryptfs.tmp.mkdir" / RECORD_NAME).write_bytes(b"")
    remove_directory(dir_fd, "d")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["entry", "cryptfs.long.x", "cryptfs.unknown", "cryptfs.tmp.full/file"])
def test_rmdir_touches_nothing_where_anything_else_is(dir_fd: int, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "d"
    (directory / name).parent.mkdir(parents=True)
    (directory / name).write_bytes(b"")
    (directory / RECORD_NAME).write_bytes(b"")
    with pytest.raises(OSError) as raised:
        remove_directory(dir_fd, "d")
    assert raised.value.errno == errno.ENOTEMPTY
    assert (directory / name).exists()
    assert (directory / RECORD_NAME).exists()


def test_rmdir_restores_the_mode(dir_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that may not be listed is opened up for the look, and closed again if it stays."""
    directory = tmp_path / "d"
    directory.mkdir(0o311)
    (directory / "entry").write_bytes(b"")
    open_now, refusals = os.open, [PermissionError(errno.EACCES, "")]

    def refuse_once(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "." and refusals:
            raise refusals.pop()
        return open_now(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refuse_once)
    with pytest.raises(OSError) as raised:
        remove_directory(dir_fd, "d")
    assert raised.value.errno == errno.ENOTEMPTY
    assert directory.stat().st_mode & 0o7777 == 0o311
    (directory / "entry").unlink()
    remove_directory(dir_fd, "d")
    assert not directory.exists()


def test_rmdir_beside_the_creation_of_a_long_name_keeps_its_sidecar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between sidecar and entry, an rmdir must not take the sidecar for an orphan."""
    vault = BareVault(tmp_path / "vault")
    directory = vault.make_directory(b"d")
    outcomes: list[int | None] = []

    def remove() -> None:
        try:
            vault.tree.remove_directory(vault.root, b"d")
        except OSError as error:
            outcomes.append(error.errno)

    thread = threading.Thread(target=remove)
    write = vault.tree.sidecars.write

    def write_and_be_interrupted(fd: int, cipher_name: str) -> None:
        write(fd, cipher_name)
        thread.start()
        thread.join(0.2)

    monkeypatch.setattr(vault.tree.sidecars, "write", write_and_be_interrupted)
    vault.put(b"l" * 200, b"long", directory)
    thread.join()
    assert outcomes == [errno.ENOTEMPTY]
    assert vault.names(directory) == [b"l" * 200]
    vault.close()


@pytest.mark.parametrize("supported", [True, False])
def test_rename_exclusive(
    dir_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, "")

        monkeypatch.setattr("cryptfs.storage.dirs.renameat2", refuse)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("nothing")
    for taken in ("b", "link"):
        with pytest.raises(FileExistsError):
            rename_exclusive(dir_fd, "a", dir_fd, taken)
    rename_exclusive(dir_fd, "a", dir_fd, "c")
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "link"]
    with pytest.raises(FileNotFoundError):
        rename_exclusive(dir_fd, "a", dir_fd, "d")


# ---- what waits for a sync


def test_pending_files_are_synced_once_and_closed(
    dir_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    pending = PendingSync(dir_fd)
    pending.flush()
    before = open_descriptors()
    fds = [create_small(dir_fd, str(number), b"1", 0o600) for number in range(5)]
    for fd in fds:
        pending.add(fd)
    pending.flush()
    assert sorted(synced) == sorted(fds)
    assert open_descriptors() == before
    pending.flush()
    assert len(synced) == len(fds)


def test_many_pending_files_take_bounded_descriptors_and_one_syncfs(
    dir_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(durability, "syncfs", calls.append)
    monkeypatch.setattr(os, "fdatasync", lambda fd: pytest.fail("syncfs has done it"))
    pending = PendingSync(dir_fd)
    before = open_descriptors()
    for number in range(MAX_PENDING + 40):
        pending.add(create_small(dir_fd, str(number), b"1", 0o600))
    assert open_descriptors() == before + MAX_PENDING
    pending.flush()
    assert calls == [dir_fd]
    assert open_descriptors() == before
    pending.flush()
    assert calls == [dir_fd]


@pytest.mark.parametrize("count", [3, MAX_PENDING + 3])
def test_what_could_not_be_synced_stays_pending(
    dir_fd: int, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    pending = PendingSync(dir_fd)
    for number in range(count):
        pending.add(create_small(dir_fd, str(number), b"1", 0o600))

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(durability, "syncfs", fail)
        for _ in range(2):
            with pytest.raises(OSError):
                pending.flush()
    pending.flush()
    pending.close()


def test_fsync_of_a_file_brings_records_and_sidecars_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = BareVault(tmp_path / "vault")
    directory = vault.make_directory(b"d" * 200)
    synced: list[str] = []
    fdatasync = os.fdatasync

    def watching(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fdatasync(fd)

    monkeypatch.setattr(os, "fdatasync", watching)
    with vault.opened(b"f", os.O_RDWR | os.O_CREAT, directory) as file:
        vault.tree.sync_file(file, data_only=True)
    sidecar = f"{Path(directory.cipher_path).name}.name"
    assert sorted(synced[:-1]) == sorted([RECORD_NAME, sidecar])
    assert synced[-1] == vault.backing(b"f", directory).name  # the file itself comes last
    vault.close()


# ---- libc


def test_renameat2(dir_fd: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    libc.renameat2(dir_fd, "a", dir_fd, "b", libc.RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")
    with pytest.raises(FileExistsError):
        libc.renameat2(dir_fd, "a", dir_fd, "b", libc.RENAME_NOREPLACE)
    libc.renameat2(dir_fd, "a", dir_fd, "b", 0)
    assert os.listdir(tmp_path) == ["b"]
    with pytest.raises(FileNotFoundError):
        libc.renameat2(dir_fd, "a", dir_fd, "c", libc.RENAME_EXCHANGE)


def test_times_keep_nanoseconds_and_can_be_left_out(dir_fd: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    (tmp_path / "link").symlink_to("f")
    libc.utimensat(dir_fd, "f", (1, 123456789, -5, 987654321))
    st = (tmp_path / "f").stat()
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_123456789, -5 * 10**9 + 987654321)
    libc.utimensat(dir_fd, "link", (7, 0, 8, 1))
    assert (tmp_path / "link").lstat().st_mtime_ns == 8 * 10**9 + 1
    assert (tmp_path / "f").stat().st_mtime_ns == st.st_mtime_ns
    fd = os.open(tmp_path / "f", os.O_RDWR)
    libc.futimens(fd, (0, libc.UTIME_OMIT, 3, 4))
    st = os.fstat(fd)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_123456789, 3 * 10**9 + 4)
    libc.futimens(fd, (0, libc.UTIME_NOW, 0, libc.UTIME_OMIT))
    assert os.fstat(fd).st_atime_ns > 10**18
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        libc.utimensat(dir_fd, "missing", (0, 0, 0, 0))
    with pytest.raises(OSError) as raised:
        libc.futimens(fd, (0, 0, 0, 0))
    assert raised.value.errno == errno.EBADF


def test_fallocate_and_syncfs(dir_fd: int, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    big = 5 * 1024**3  # an offset that 32 bits do not hold
    libc.fallocate(fd, libc.FALLOC_KEEP_SIZE, big, 4096)
    assert os.fstat(fd).st_size == 0
    assert os.fstat(fd).st_blocks > 0
    os.ftruncate(fd, big)
    libc.fallocate(fd, libc.FALLOC_PUNCH_HOLE | libc.FALLOC_KEEP_SIZE, big - 4096, 8192)
    with pytest.raises(OSError) as raised:
        libc.fallocate(fd, 0, -1, 10)
    assert raised.value.errno == errno.EINVAL
    os.close(fd)
    libc.syncfs(dir_fd)
    with pytest.raises(OSError) as raised:
        libc.syncfs(fd)
    assert raised.value.errno == errno.EBADF


def test_missing_calls_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "_renameat2", None)
    with pytest.raises(OSError) as raised:
        libc.renameat2(-1, "a", -1, "b", libc.RENAME_EXCHANGE)
    assert raised.value.errno == errno.ENOSYS


@pytest.mark.parametrize("content", [b"[" * 8000, b'{"pid": 1, "mountpoint": "\\ud800\\u001b[2J"}'])
def test_hostile_lock_file(tmp_path: Path, content: bytes) -> None:
    """What it says goes to a terminal, and it may be nested as deep as it likes."""
    (tmp_path / LOCK_NAME).write_bytes(content)
    fd = os.open(tmp_path / LOCK_NAME, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        holder = lock_holder(tmp_path)
    finally:
        os.close(fd)
    assert holder is not None
    assert holder.describe().isprintable()
