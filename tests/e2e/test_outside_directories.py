"""Directories that others move, remove and put back in a mounted vault."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.outside import FRESH, OLD, SAME, Outside

pytestmark = pytest.mark.waits


def _removed_and_restored(backing: Path) -> None:
    shutil.copytree(backing, backing.with_name(".restored"))
    shutil.rmtree(backing)
    backing.with_name(".restored").rename(backing)


def _made_anew(backing: Path) -> None:
    record = (backing / "cryptfs.dir").read_bytes()
    shutil.rmtree(backing)
    backing.mkdir()
    (backing / "cryptfs.dir").write_bytes(record)


@pytest.mark.parametrize("wait", [0.0, 0.4])
@pytest.mark.parametrize("change", [_removed_and_restored, _made_anew])
def test_a_path_leads_at_once_into_a_directory_that_was_put_back(
    outside: Outside, change: Callable[[Path], None], wait: float
) -> None:
    """What is shown there is made from the path; the native engine goes by what the kernel has looked up."""
    if outside.mount.spec.engine == "native":
        wait = FRESH
    top = outside.shown / "top"
    (top / "sub").mkdir(parents=True)
    outside.make("top/sub/doc", OLD)
    assert (top / "sub/doc").read_bytes() == OLD
    change(outside.backing("top/sub"))
    time.sleep(wait)
    (top / "sub/dir").mkdir()
    (top / "sub/file").write_bytes(SAME)
    (top / "sub/link").symlink_to("file")
    os.mkfifo(top / "sub/fifo")
    (top / "sub/file").rename(top / "moved")
    (top / "sub/file").hardlink_to(top / "moved")
    made = {"dir", "file", "link", "fifo"}
    assert made <= set(os.listdir(top / "sub"))
    assert (top / "sub/link").read_bytes() == SAME
    assert outside.backing("top/sub/dir").is_dir()
    assert outside.backing("top/sub/file").is_file()


def test_nothing_is_made_in_a_directory_that_is_gone(outside: Outside) -> None:
    top = outside.shown / "top"
    (top / "sub").mkdir(parents=True)
    outside.make("top/sub/doc", OLD)
    shutil.rmtree(outside.backing("top/sub"))
    if outside.mount.spec.engine == "native":
        time.sleep(FRESH)
    makers: tuple[Callable[[Path], object], ...] = (Path.mkdir, Path.touch, os.mkfifo, Path.read_bytes)
    for make in makers:
        with pytest.raises(FileNotFoundError):
            make(top / "sub/new")
    with pytest.raises(FileNotFoundError):
        (top / "sub/doc").unlink()
    (top / "sub").mkdir()
    assert os.listdir(top / "sub") == []


def test_a_directory_that_moved_is_not_reached_by_its_old_path(outside: Outside) -> None:
    for name in ("one", "two"):
        (outside.shown / name / "deep").mkdir(parents=True)
        outside.make(f"{name}/deep/doc", name.encode())
    one, two = outside.backing("one"), outside.backing("two")
    one.rename(one.with_name(".swap"))
    two.rename(one)
    one.with_name(".swap").rename(two)
    for path in ("one", "two"):
        outside.was_moved(path)
    time.sleep(FRESH)
    assert (outside.shown / "one/deep/doc").read_bytes() == b"two"
    assert (outside.shown / "two/deep/doc").read_bytes() == b"one"
    (outside.shown / "one/deep/new").write_bytes(SAME)
    assert sorted(os.listdir(outside.shown / "one/deep")) == ["doc", "new"]
    assert os.listdir(outside.shown / "two/deep") == ["doc"]
