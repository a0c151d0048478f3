"""The pass-through of scripts/bench: it must do right what it is compared by."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchlib.cpassthrough import SOURCE
from benchlib.peers import C_PASS_THROUGHS, chosen, pass_through
from benchlib.subjects import Mounted
from cryptfs.mount.mounts import mount_at
from tests.e2e.mounting import PROJECT

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(PROJECT / "scripts"), str(PROJECT))))
    subject = pass_through()
    subject.create(tmp_path)
    subject.start()
    try:
        yield subject
    finally:
        subject.stop()


def test_files_directories_and_links(mounted: Mounted, tmp_path: Path) -> None:
    there, behind = mounted.directory, tmp_path / "vault"
    (there / "d").mkdir()
    (there / "d" / "file").write_bytes(b"content" * 1000)
    (there / "d" / "file").rename(there / "moved")
    os.link(there / "moved", there / "second")
    (there / "link").symlink_to("moved")
    assert (behind / "moved").read_bytes() == b"content" * 1000
    assert sorted(os.listdir(there)) == sorted(os.listdir(behind)) == ["d", "link", "moved", "second"]
    assert (there / "second").stat().st_ino == (there / "moved").stat().st_ino
    assert (there / "link").read_bytes() == b"content" * 1000
    (there / "moved").chmod(0o600)
    os.truncate(there / "moved", 7)
    os.utime(there / "moved", ns=(5, 6))
    st = (behind / "second").stat()
    assert (st.st_mode & 0o777, st.st_size, st.st_mtime_ns) == (0o600, 7, 6)
    shutil.rmtree(there / "d")
    assert not (behind / "d").exists()
    with pytest.raises(FileNotFoundError):
        (there / "nothing").stat()


@pytest.mark.skipif(not SOURCE.exists(), reason="needs the examples of libfuse3-dev")
@pytest.mark.parametrize("name", list(C_PASS_THROUGHS))
def test_the_one_in_c(name: str, tmp_path: Path) -> None:
    """It is compiled, shows the directory, and goes away."""
    (subject,) = chosen([], [name], tmp_path)
    assert subject.missing() is None
    place = tmp_path / "place"
    place.mkdir()
    subject.create(place)
    subject.start()
    try:
        assert subject.healthy()
        (subject.directory / "file").write_bytes(b"content" * 10_000)
        assert (place / "vault" / "file").read_bytes() == b"content" * 10_000
        assert subject.pid is not None
        assert Path(f"/proc/{subject.pid}/comm").read_text().strip() == "passthrough_ll"
    finally:
        subject.stop()
    assert mount_at(subject.directory) is None
    assert os.listdir(place / "vault") == ["file"]


def test_a_file_without_a_name_stays_usable(mounted: Mounted) -> None:
    with (mounted.directory / "file").open("w+b") as file:
        file.write(b"before")
        file.flush()
        (mounted.directory / "file").unlink()
        file.write(b", after")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 13
        file.seek(0)
        assert file.read() == b"before, after"
    os.sync()
    (mounted.directory / "file").write_bytes(b"another")  # its inode number may be the same
    assert (mounted.directory / "file").read_bytes() == b"another"


def test_large_data_and_long_listings_come_back_whole(mounted: Mounted) -> None:
    data = os.urandom(5_000_000)
    (mounted.directory / "large").write_bytes(data)
    for number in range(3000):
        (mounted.directory / f"name {number}").touch()
    mounted.stop()
    mounted.start()
    found = hashlib.sha256((mounted.directory / "large").read_bytes())
    assert found.digest() == hashlib.sha256(data).digest()
    names = os.listdir(mounted.directory)
    assert len(names) == len(set(names)) == 3001
    with os.scandir(mounted.directory) as entries:
        assert sum(entry.stat().st_size == 0 for entry in entries) == 3000
