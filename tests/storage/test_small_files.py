"""Small files that are replaced at once, and files whose mode keeps their owner out."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cryptfs.core.names.host import SHARED_STATE
from cryptfs.storage import backing
from cryptfs.storage.backing import reopen_for_owner
from cryptfs.storage.dirs import put_small
from cryptfs.storage.libc import os_error
from cryptfs.storage.vaultdir import replace_file
from tests.support import open_descriptors


@pytest.fixture
def dir_fd(tmp_path: Path) -> int:
    (tmp_path / "vault").mkdir()
    return os.open(tmp_path / "vault", os.O_RDONLY | os.O_DIRECTORY)


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("old", [None, b"a longer content than the new one"])
def test_a_small_file_is_put_in_its_place(
    dir_fd: int, tmp_path: Path, old: bytes | None, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "vault" / "name"
    if old is not None:
        place.write_bytes(old)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    fd = put_small(dir_fd, "name", b"new", SHARED_STATE, sync=sync)
    assert place.read_bytes() == b"new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert os.fstat(fd).st_ino == place.stat().st_ino
    assert os.listdir(dir_fd) == ["name"]
    assert synced == [fd] * sync


@pytest.mark.parametrize("call", ["pwritev", "fsync", "rename"])
def test_what_cannot_be_replaced_stays(
    dir_fd: int, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "vault" / "name"
    place.write_bytes(b"old")

    def refuse(*_: object, **__: object) -> None:
        raise os_error(errno.ENOSPC)

    descriptors = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError) as raised:
            replace_file(dir_fd, "name", b"new", SHARED_STATE)
    assert raised.value.errno == errno.ENOSPC
    assert place.read_bytes() == b"old"
    assert os.listdir(dir_fd) == ["name"]
    assert open_descriptors() == descriptors


def test_a_directory_in_its_place_is_put_aside(dir_fd: int, tmp_path: Path) -> None:
    place = tmp_path / "vault" / "name"
    place.mkdir()
    with pytest.raises(IsADirectoryError):
        put_small(dir_fd, "name", b"new", SHARED_STATE, sync=False)
    assert os.listdir(dir_fd) == ["name"]
    replace_file(dir_fd, "name", b"new", SHARED_STATE)
    assert place.read_bytes() == b"new"
    (aside,) = set(os.listdir(dir_fd)) - {"name"}
    assert aside.startswith(SHARED_STATE.temp_prefix)
    assert (tmp_path / "vault" / aside).is_dir()


@pytest.fixture
def as_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mode says holds, for root as well."""
    reopen = backing.reopen

    def checked(fd: int, flags: int) -> int:
        if os.fstat(fd).st_mode & 0o600 != 0o600:
            raise os_error(errno.EACCES)
        return reopen(fd, flags)

    monkeypatch.setattr(backing, "reopen", checked)


@pytest.mark.usefixtures("as_owner")
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o244, 0o4511, 0o600])
@pytest.mark.parametrize("held", [os.O_PATH, os.O_RDONLY])
def test_the_mode_grants_it_for_a_moment(tmp_path: Path, mode: int, held: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    fd = os.open(path, held)
    path.chmod(mode)
    writing = reopen_for_owner(fd)
    assert os.pwrite(writing, b"2", 0) == 1
    os.close(writing)
    os.close(fd)
    assert stat.S_IMODE(path.stat().st_mode) & 0o777 == mode & 0o777


@pytest.mark.usefixtures("as_owner")
def test_the_mode_of_somebody_elses_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"1")
    path.chmod(0o444)
    fd = os.open(path, os.O_RDONLY)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    changed: list[object] = []
    monkeypatch.setattr(os, "chmod", lambda *given: changed.append(given))
    with pytest.raises(PermissionError):
        reopen_for_owner(fd)
    assert not changed
    os.close(fd)
