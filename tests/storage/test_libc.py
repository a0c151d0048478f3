"""Calls of the C library that only some of its users make; test_storage.py has those on files."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.storage import libc
from tests.support import child_environment


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOENT, FileNotFoundError),
        (errno.EEXIST, FileExistsError),
        (errno.EACCES, PermissionError),
        (errno.EPERM, PermissionError),
        (errno.ESTALE, OSError),
    ],
)
def test_an_errno_makes_the_error_of_its_class(code: int, kind: type[OSError]) -> None:
    error = libc.os_error(code)
    assert type(error) is kind
    assert (error.errno, error.strerror, error.filename) == (code, os.strerror(code), None)


def test_a_listing_comes_in_pieces(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"entry {number:03}").touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    buffer = memoryview(bytearray(512))
    raw = b""
    try:
        while size := libc.getdents64(fd, buffer):
            assert size <= len(buffer)
            raw += buffer[:size]
        os.lseek(fd, 0, os.SEEK_SET)
        with pytest.raises(OSError) as raised:
            libc.getdents64(fd, buffer[:1])
    finally:
        os.close(fd)
    assert raised.value.errno == errno.EINVAL
    assert len(raw) > len(buffer)
    assert raw.count(b"entry ") == 40


def test_birth_time_and_device(tmp_path: Path) -> None:
    st = tmp_path.stat()
    assert libc.statx_device(tmp_path) == (os.major(st.st_dev), os.minor(st.st_dev))
    (tmp_path / "link").symlink_to(tmp_path)
    assert libc.statx_device(tmp_path / "link") == libc.statx_device(tmp_path)
    born = libc.statx_birth_time(libc.AT_FDCWD, str(tmp_path))
    assert born is None or abs(born - st.st_ctime_ns) < 60 * 10**9
    with pytest.raises(FileNotFoundError):
        libc.statx_device(tmp_path / "missing")


@pytest.mark.parametrize("flags", [0, libc.UMOUNT_NOFOLLOW, libc.UMOUNT_DETACH | libc.UMOUNT_NOFOLLOW])
def test_no_mount_is_taken_away_where_there_is_none(tmp_path: Path, flags: int) -> None:
    with pytest.raises(OSError) as raised:
        libc.umount2(tmp_path, flags)
    assert raised.value.errno in (errno.EINVAL, errno.EPERM)


def test_what_the_kernel_refuses_to_mount_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError) as raised:
        libc.mount("none", tmp_path, "no-such-filesystem", 0, "")
    assert raised.value.errno in (errno.ENODEV, errno.EPERM)


@pytest.mark.parametrize("call", ["_mount", "_umount2", "_prctl", "_getdents64", "_statx"])
def test_missing_calls_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str) -> None:
    monkeypatch.setattr(libc, call, None)
    uses: dict[str, Callable[[], object]] = {
        "_mount": lambda: libc.mount("none", tmp_path, "tmpfs", 0, ""),
        "_umount2": lambda: libc.umount2(tmp_path, 0),
        "_prctl": libc.forbid_dumps,
        "_getdents64": lambda: libc.getdents64(-1, memoryview(bytearray(8))),
        "_statx": lambda: libc.statx_device(tmp_path),
    }
    with pytest.raises(OSError) as raised:
        uses[call]()
    assert raised.value.errno == errno.ENOSYS


def test_nothing_happens_where_memory_cannot_be_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libc, "_malloc_trim", None)
    libc.release_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_process_forbids_dumps_of_itself() -> None:
    code = (
        "from cryptfs.storage.libc import _libc, forbid_dumps\n"
        "forbid_dumps(); print(_libc.prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "0"
