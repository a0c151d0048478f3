"""Directories that somebody moves, exchanges, restores elsewhere or puts in a file's place, on mounts."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import (
    RECORD_NAME,
    open_directory_record,
    pack_directory_record,
)
from soaklib.sealed import Sealer
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted

GRACE = 2.5
LONG = "l" * 200
REASON = "the directory belongs to another place, by its record"


class Ground:
    """One directory `where` in a vault, and its ciphertext.

    In it: a file `file`, and the DIRECTORIES, each with a file `doc` that holds the path of its directory.
    """

    def __init__(self, sealer: Sealer, where: str) -> None:
        self.sealer = sealer
        self.where = where

    def backing(self, path: str) -> Path:
        """The ciphertext of a path."""
        return self.sealer.entry(f"{self.where}/{path}")


Act = Callable[[Ground], dict[str, bool]]
"""Tampers; returns the paths that it concerns, and for each whether programs may still reach it."""


def swap(one: Path, two: Path) -> None:
    aside = one.with_name(".aside")
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)


def exchanged_with_a_sibling(ground: Ground) -> dict[str, bool]:
    swap(ground.backing("one"), ground.backing("two"))
    return {"one": False, "two": False}


def exchanged_with_another_parents_child(ground: Ground) -> dict[str, bool]:
    """Both have one name, and each parent has an entry of that name."""
    swap(ground.backing("one"), ground.backing("deep/one"))
    return {"one": False, "deep/one": False}


def moved_to_another_parent(ground: Ground) -> dict[str, bool]:
    ground.backing("two").rename(ground.backing("deep/free"))
    return {"deep/free": False}


def renamed(ground: Ground) -> dict[str, bool]:
    """To a name that the directory once had in it."""
    ground.backing("one").rename(ground.backing("free"))
    return {"free": False}


def long_name_exchanged(ground: Ground) -> dict[str, bool]:
    swap(ground.backing(LONG), ground.backing("two"))
    return {LONG: False, "two": False}


def put_in_a_files_place(ground: Ground) -> dict[str, bool]:
    target = ground.backing("file")
    target.unlink()
    ground.backing("one").rename(target)
    return {"file": False}


def restored_elsewhere(ground: Ground) -> dict[str, bool]:
    """A copy from a backup, beside the present one."""
    shutil.copytree(ground.backing("one"), ground.backing("free"))
    return {"free": False, "one": True}


def parent_exchanged(ground: Ground) -> dict[str, bool]:
    """What is below goes with it, and cannot be reached."""
    swap(ground.backing("deep"), ground.backing("two"))
    return {"deep": False, "two": False, "two/one": False}


def record_of_before_the_upgrade(ground: Ground) -> dict[str, bool]:
    record = ground.backing("one") / RECORD_NAME
    keys = ground.sealer._keys
    dir_id = open_directory_record(record.read_bytes(), keys).dir_id
    record.write_bytes(pack_directory_record(dir_id, keys))
    return {"one": False}


ACTS: list[Act] = [
    exchanged_with_a_sibling,
    exchanged_with_another_parents_child,
    moved_to_another_parent,
    renamed,
    long_name_exchanged,
    put_in_a_files_place,
    restored_elsewhere,
    parent_exchanged,
    record_of_before_the_upgrade,
]
DIRECTORIES = ("one", "two", LONG, "deep", "deep/one")


def furnish(top: Path) -> None:
    """Through the mount."""
    for path in DIRECTORIES:
        (top / path).mkdir(parents=True)
        (top / path / "doc").write_text(path)
    (top / "file").write_text("file")


def reached(shown: Path) -> str | int:
    """What a program gets from the document in a directory; an errno."""
    try:
        return (shown / "doc").read_text()
    except OSError as error:
        assert error.errno is not None
        return error.errno


def listed(shown: Path) -> bool:
    """Whether a program can list a directory; EIO if not."""
    try:
        os.listdir(shown)
    except OSError as error:
        assert error.errno == errno.EIO
        return False
    return True


def settles(shown: Path, path: str, *, reachable: bool) -> None:
    """What a program sees of a path comes true in time, and is never another directory's content."""
    deadline = time.monotonic() + GRACE
    wanted: str | int = path if reachable else errno.EIO
    while (seen := reached(shown)) != wanted or listed(shown) != reachable:
        assert seen in (path, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE), f"{shown}: {seen}"
        assert time.monotonic() < deadline, f"{shown}: {seen}"
        time.sleep(0.05)


@pytest.fixture(scope="module", params=ENGINES)
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """One mount for each engine; each act has a directory there, and its effect at hand."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.allow_log(
            rf"ERROR .*: {REASON}", r"ERROR .*: the directory record does not say where", r"WARNING "
        )
        yield mount


@contextlib.contextmanager
def sealer_of(vault_dir: Path) -> Iterator[Sealer]:
    sealer = Sealer(vault_dir, PASSPHRASE.encode())
    try:
        yield sealer
    finally:
        sealer.close()


def test_directories_that_somebody_moves_under_a_mount(mount: Mounted) -> None:
    """Warm, after everything was read; then cold, after another mount. What nobody touched goes on."""
    effects: dict[str, dict[str, bool]] = {}
    for act in ACTS:
        furnish(mount.mountpoint / act.__name__)
    with sealer_of(mount.vault_dir) as sealer:
        for act in ACTS:
            top = mount.mountpoint / act.__name__
            for path in DIRECTORIES:
                assert reached(top / path) == path
                assert listed(top / path)
            effects[act.__name__] = act(Ground(sealer, act.__name__))

    def look() -> None:
        for name, effect in effects.items():
            top = mount.mountpoint / name
            for path, reachable in effect.items():
                settles(top / path, path, reachable=reachable)
            for path in {*DIRECTORIES} - {*effect}:
                if not any(path.startswith(f"{each}/") for each in effect) and (top / path).exists():
                    settles(top / path, path, reachable=True)

    look()
    mount.remount()
    look()
    lines = mount.new_log_lines()
    assert any(REASON in line for line in lines)
    assert all("doc" not in line for line in lines)
    # Programs put them where they belong; what stays is removed.
    top = mount.mountpoint / exchanged_with_a_sibling.__name__
    (top / "one").rename(top / "aside")
    (top / "two").rename(top / "one")
    (top / "aside").rename(top / "two")
    assert [reached(top / each) for each in ("one", "two")] == ["one", "two"]
    top = mount.mountpoint / exchanged_with_another_parents_child.__name__
    (top / "one").rename(top / "elsewhere")  # no rename makes authentic what somebody has put there
    assert reached(top / "elsewhere") == errno.EIO
    (mount.mountpoint / "record_of_before_the_upgrade/two").rename(top / "two of another")
    assert reached(top / "two of another") == "two"
