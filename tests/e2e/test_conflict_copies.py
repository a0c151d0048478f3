"""Sync clients change a vault that is mounted: conflict copies are seen, and what was written is not lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.machines import findings
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.support import everything_below

pytestmark = pytest.mark.waits

FRESH = {"native": "", "fusepy": "entry_timeout=0,attr_timeout=0,nowriteback"}
OLD = bytes(range(256)) * 200
THEIRS = b"written by another machine"
LONG = "l" * 180
SUFFIXES = {
    ".sync-conflict-20261129-131011-ABCDEFG": ".sync-conflict-20261129-131011-ABCDEFG",
    " (host's conflicted copy 2026-11-29)": " (host's conflicted copy 2026-11-29)",
    " (conflicted copy 2026-11-29 131011)": " (conflicted copy 2026-11-29 131011)",
    "_conflict-20261129-131011": "_conflict-20261129-131011",
    "-LAPTOP": " (conflict copy of LAPTOP)",
    " (1)": " (conflict copy 1)",
    ".conflict1": ".conflict1",
    "..path1": " (conflict copy from path1)",
    " (SFConflict bob@example.org 2026-11-29-13-10-11)": " (SFConflict bob@example.org 2026-11-29-13-10-11)",
    " (In Konflikt stehende Kopie von HOST 2026-11-29)": (
        " (conflict copy: In Konflikt stehende Kopie von HOST 2026-11-29)"
    ),
    "-laptop-safeBackup-0001": " (conflict copy of laptop-safeBackup-0001)",
    " 2": " (conflict copy number 2)",
}


@pytest.fixture(params=ENGINES)
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A fresh vault that others change, too."""
    spec = MountSpec(request.param, options=FRESH[request.param])
    require_fuse(spec)
    with mounted(spec) as made:
        yield made


def backing(mount: Mounted, path: Path) -> Path:
    """The backing file: the mount shows the inodes of the vault."""
    wanted = path.lstat().st_ino
    return next(each for each in everything_below(mount.vault_dir) if each.lstat().st_ino == wanted)


def make(mount: Mounted, name: str, content: bytes) -> Path:
    """A file: its path on the mount."""
    path = mount.mountpoint / name
    path.write_bytes(content)
    return path


def names(mount: Mounted) -> list[str]:
    return sorted(os.listdir(mount.mountpoint))


def conflict(mount: Mounted, path: Path, suffix: str) -> None:
    """As clients do: the local version is renamed, the other one gets the name."""
    original = backing(mount, path)
    stem, dot, extension = original.name.rpartition(".")
    copy = original.with_name(f"{stem}{suffix}{dot}{extension}" if dot else original.name + suffix)
    temporary = mount.vault_dir / "client.tmp"
    shutil.copy2(original, temporary)
    original.rename(copy)
    temporary.rename(original)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_conflict_copy_is_an_entry_like_any_other(mount: Mounted, suffix: str) -> None:
    mount.allow_log("INFO")
    make(mount, "report.odt", OLD)
    make(mount, LONG, OLD)
    mount.remount()
    shown = mount.mountpoint / f"report{SUFFIXES[suffix]}.odt"
    long = mount.mountpoint / (LONG + SUFFIXES[suffix])
    conflict(mount, mount.mountpoint / "report.odt", suffix)
    conflict(mount, mount.mountpoint / LONG, suffix)
    assert names(mount) == sorted(["report.odt", LONG, shown.name, long.name])
    for path in (shown, long):
        assert path.read_bytes() == OLD
        with path.open("r+b") as file:
            file.write(b"changed")
        assert path.read_bytes() == b"changed" + OLD[7:]
        os.truncate(path, 100)
        assert path.stat().st_size == 100
        path.chmod(0o600)
        os.setxattr(path, "user.note", b"note")
        with path.open("ab") as file:
            file.write(b"more")
        assert path.read_bytes() == b"changed" + OLD[7:100] + b"more"
        assert os.getxattr(path, "user.note") == b"note"
    for path in (mount.mountpoint / "report.odt", mount.mountpoint / LONG):
        assert path.read_bytes() == OLD
    shown.rename(mount.mountpoint / "normal.odt")
    long.unlink()
    assert names(mount) == sorted(["report.odt", LONG, "normal.odt"])
    assert "." not in backing(mount, mount.mountpoint / "normal.odt").name
    mount.remount()
    assert (mount.mountpoint / "normal.odt").read_bytes() == b"changed" + OLD[7:100] + b"more"
    assert os.getxattr(mount.mountpoint / "normal.odt", "user.note") == b"note"


def test_moving_a_copy_over_the_original(mount: Mounted) -> None:
    path = make(mount, "report.odt", OLD)
    mount.remount()
    conflict(mount, path, "-LAPTOP")
    (mount.mountpoint / "report (conflict copy of LAPTOP).odt").replace(path)
    assert names(mount) == ["report.odt"]
    assert path.read_bytes() == OLD


def test_copies_of_links_and_directories(mount: Mounted) -> None:
    (mount.mountpoint / "docs").mkdir()
    (mount.mountpoint / "docs/inner").write_bytes(OLD)
    (mount.mountpoint / "link").symlink_to("docs/inner")
    mount.remount()
    docs, link = backing(mount, mount.mountpoint / "docs"), backing(mount, mount.mountpoint / "link")
    subprocess.run(["cp", "-a", docs, f"{docs} (1)"], check=True)
    subprocess.run(["cp", "-a", link, f"{link} (1)"], check=True)
    assert names(mount) == ["docs", "docs (conflict copy 1)", "link", "link (conflict copy 1)"]
    assert (mount.mountpoint / "docs (conflict copy 1)/inner").read_bytes() == OLD
    assert (mount.mountpoint / "link (conflict copy 1)").read_bytes() == OLD
    subprocess.run(["rm", "-r", mount.mountpoint / "docs (conflict copy 1)"], check=True)
    (mount.mountpoint / "link (conflict copy 1)").rename(mount.mountpoint / "other")
    assert os.readlink(mount.mountpoint / "other") == "docs/inner"
    assert names(mount) == ["docs", "link", "other"]


@pytest.mark.parametrize(
    "suffix", [" [conflicted]", "_HOST_Nov-29-131011-2026_Conflict", " (copie en conflit é)"]
)
def test_a_copy_under_another_name_comes_back_by_a_repair(mount: Mounted, suffix: str) -> None:
    """No mount knows such a suffix, so it shows nothing; the content is not lost."""
    mount.allow_log("WARNING .*left out of the listing")
    for name in ("report.odt", LONG):
        make(mount, name, OLD)
    mount.remount()  # libfuse tells the daemon of a close later than the program: a copy would not be whole
    for name in ("report.odt", LONG):
        conflict(mount, mount.mountpoint / name, suffix)
        (mount.mountpoint / name).write_bytes(THEIRS)
    assert names(mount) == sorted(["report.odt", LONG])
    mount.unmount()
    code, found = findings(mount)
    assert [each["kind"] for each in found] == ["stray", "stray"]
    code, found = findings(mount, "--repair")
    assert code == 0
    mount.start()
    rescued = sorted((mount.mountpoint / "lost+found").iterdir())
    assert [path.read_bytes() for path in rescued] == [OLD, OLD]
    assert all(suffix in path.name for path in rescued)
    assert [(mount.mountpoint / name).read_bytes() for name in ("report.odt", LONG)] == [THEIRS, THEIRS]


# ---- both write


def replace(mount: Mounted, path: Path) -> None:
    """A client brings another version of a file."""
    temporary = mount.vault_dir / "client.tmp"
    shutil.copy2(backing(mount, mount.mountpoint / "theirs"), temporary)
    temporary.rename(backing(mount, path))


def eventually(look: Callable[[], list[str]]) -> list[str]:
    """What a look finds in the end: nobody waits for the daemon to close a file."""
    deadline = time.monotonic() + 5
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def the_other(mount: Mounted) -> Path:
    (name,) = eventually(lambda: [each for each in names(mount) if each not in ("doc.txt", "theirs")])
    assert name.startswith("doc (conflict 20") and name.endswith(".txt")
    return mount.mountpoint / name


@pytest.fixture
def doc(mount: Mounted) -> Path:
    """A file that is there for long, and a version of another machine."""
    mount.allow_log(
        "WARNING .*somebody else deleted or replaced it while a program was writing to it; kept as"
    )
    make(mount, "theirs", THEIRS)
    path = make(mount, "doc.txt", OLD)
    mount.remount()
    return path


@pytest.mark.parametrize("way", ["write", "mmap"])
def test_replaced_while_a_program_writes(mount: Mounted, doc: Path, way: str) -> None:
    with doc.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), len(OLD)) as mapping:
        assert mapping[:4] == OLD[:4]
        replace(mount, doc)
        if way == "write":
            file.write(b"mine")
        else:
            mapping[:4] = b"mine"
    other = the_other(mount)
    assert doc.read_bytes() == THEIRS
    assert other.read_bytes() == b"mine" + OLD[4:]
    mount.remount()
    assert the_other(mount).read_bytes() == b"mine" + OLD[4:]


def test_deleted_while_a_program_writes(mount: Mounted, doc: Path) -> None:
    os.setxattr(doc, "user.note", b"note")
    doc.chmod(0o640)
    with doc.open("r+b", buffering=0) as file:
        backing(mount, doc).unlink()
        file.write(b"mine")
    assert eventually(lambda: [name for name in names(mount) if name == "doc.txt"])
    assert doc.read_bytes() == b"mine" + OLD[4:]
    assert os.getxattr(doc, "user.note") == b"note"
    assert doc.stat().st_mode & 0o7777 == 0o640


def test_a_new_file_is_deleted_while_it_is_written(mount: Mounted, doc: Path) -> None:
    with (mount.mountpoint / "new").open("xb", buffering=0) as file:
        file.write(OLD)
        os.fsync(file.fileno())
        backing(mount, mount.mountpoint / "new").unlink()
        file.write(OLD)
        os.fsync(file.fileno())
    assert (mount.mountpoint / "new").read_bytes() == 2 * OLD


def test_what_a_program_removes_itself_stays_removed(mount: Mounted, doc: Path) -> None:
    with doc.open("r+b", buffering=0) as file:
        file.write(b"mine")
        doc.unlink()
        os.fsync(file.fileno())
        file.write(b"more")
    (mount.mountpoint / "new").write_bytes(b"new")
    (mount.mountpoint / "old").write_bytes(b"old")
    with (mount.mountpoint / "old").open("r+b", buffering=0) as file:
        file.write(b"mine")
        (mount.mountpoint / "new").rename(mount.mountpoint / "old")
    assert (mount.mountpoint / "old").read_bytes() == b"new"
    assert names(mount) == ["old", "theirs"]


def test_a_file_without_a_name_leaves_none(mount: Mounted, doc: Path) -> None:
    try:
        fd = os.open(mount.mountpoint, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        assert error.errno in (errno.EOPNOTSUPP, errno.EISDIR) and mount.spec.engine == "fusepy"
        return
    os.write(fd, b"unnamed")
    os.fsync(fd)
    os.close(fd)
    assert names(mount) == ["doc.txt", "theirs"]


@pytest.mark.parametrize("engine_dies_after", ["deleted", "replaced", "replaced, twice"])
def test_what_was_synced_is_there_after_a_kill(mount: Mounted, doc: Path, engine_dies_after: str) -> None:
    mount.allow_log("WARNING .*(did not end|was interrupted|crash)")
    fd = os.open(doc, os.O_RDWR)
    if engine_dies_after == "deleted":
        backing(mount, doc).unlink()
    else:
        replace(mount, doc)
    for content in (b"mine", b"MINE")[: 2 if "twice" in engine_dies_after else 1]:
        os.pwrite(fd, content, 0)
        os.fsync(fd)
    mount.kill()
    with contextlib.suppress(OSError):  # the mount is dead
        os.close(fd)
    mount.start()
    if engine_dies_after == "deleted":
        assert names(mount) == ["doc.txt", "theirs"]
        assert doc.read_bytes() == b"mine" + OLD[4:]
    else:
        assert doc.read_bytes() == THEIRS
        assert the_other(mount).read_bytes() == content + OLD[4:]


def test_two_files_with_one_file_id_keep_their_synced_data(mount: Mounted) -> None:
    """As a client leaves them that copies: both are overwritten and synced, and the daemon is killed."""
    mount.allow_log("INFO", "WARNING .*(did not end|was interrupted|crash)")
    first, second = make(mount, "a", OLD), make(mount, "b", b"")
    mount.remount()
    shutil.copyfile(backing(mount, first), backing(mount, second))
    mount.remount()
    for path in (first, second):
        with path.open("r+b", buffering=0) as file:
            for place in range(0, len(OLD), 5000):
                os.pwrite(file.fileno(), path.name.encode() * 3000, place)
            os.fsync(file.fileno())
    mount.kill()
    mount.start()
    for path in (first, second):
        expected = bytearray(OLD)
        for place in range(0, len(OLD), 5000):
            expected[place : place + 3000] = path.name.encode() * 3000
        assert path.read_bytes() == expected


@pytest.mark.parametrize("way", ["truncate", "open", "append"])
def test_whatever_the_first_write_is(mount: Mounted, way: str) -> None:
    """The copy gets a file_id of its own, and the program does not notice."""
    mount.allow_log("INFO")
    path = make(mount, "report.odt", OLD)
    mount.remount()
    conflict(mount, path, "-LAPTOP")
    copy = mount.mountpoint / "report (conflict copy of LAPTOP).odt"
    before = copy.stat()
    if way == "truncate":
        os.truncate(copy, 1000)
    elif way == "open":
        copy.write_bytes(b"new")
    else:
        with copy.open("ab") as file:
            file.write(b"new")
    expected = {"truncate": OLD[:1000], "open": b"new", "append": OLD + b"new"}[way]
    assert copy.read_bytes() == expected
    assert path.read_bytes() == OLD
    assert copy.stat().st_ino != before.st_ino
    file_ids = {backing(mount, each).read_bytes()[16:48] for each in (path, copy)}
    assert len(file_ids) == 2
