"""The engine that is given paths: what was told of them holds, and how long the kernel may keep its pages."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cryptfs.mount.fusepy import told as module
from cryptfs.mount.fusepy.operations import CryptOperations
from cryptfs.mount.options import MountOptions
from cryptfs.storage.libc import RENAME_EXCHANGE
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.filetable import FileTable
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.tree.tree import VaultTree
from tests.property.test_threads import run_together
from tests.support import BareVault, open_descriptors

CONTENT = b"content" * 1000


class Kernel:
    """What libfuse asks for what a program does, in a line each."""

    def __init__(self, vault: BareVault, options: MountOptions) -> None:
        self.vault = vault
        self.do = CryptOperations(cast(Any, SimpleNamespace(tree=vault.tree)), options, lambda *_: None)

    def open(self, path: str, flags: int = os.O_RDONLY) -> Any:
        """A fuse_file_info: fh, keep_cache, direct_io."""
        fi = SimpleNamespace(flags=flags, fh=0, keep_cache=False, direct_io=False)
        self.do.open(path, fi)
        return fi

    def create(self, path: str, content: bytes = CONTENT) -> None:
        """As `create; write; close`."""
        fi = SimpleNamespace(flags=os.O_RDWR | os.O_CREAT, fh=0, keep_cache=False, direct_io=False)
        self.do.create(path, 0o644, fi)
        self.do.getattr(path, fi.fh)
        self.do.write(fi.fh, 0, memoryview(content), append=False, cached=False)
        self.do.release(None, fi)

    def close(self, fi: Any) -> None:
        self.do.release(None, fi)

    def look(self, path: str) -> int:
        """LOOKUP: the size that is told."""
        size: int = self.do.getattr(path, None).size
        return size

    def replace(self, path: str, by: str) -> None:
        """Somebody else puts a copy of another file under a name of the root."""
        target = self.vault.backing(path[1:].encode())
        shutil.copyfile(self.vault.backing(by[1:].encode()), target.with_name(".incoming"))
        target.with_name(".incoming").rename(target)


@pytest.fixture
def kernel(vault: BareVault) -> Kernel:
    """One that was told that others may change the vault."""
    return Kernel(vault, MountOptions())


def refused(action: Callable[..., object], *arguments: object) -> None:
    """The kernel is to look again."""
    with pytest.raises(OSError, match="Stale file handle") as info:
        action(*arguments)
    assert info.value.errno == errno.ESTALE


def test_pages_stay_while_the_content_does(kernel: Kernel) -> None:
    kernel.create("/doc")
    kernel.look("/doc")
    for _ in range(2):
        fi = kernel.open("/doc")
        assert (fi.keep_cache, fi.direct_io) == (True, False)
        kernel.close(fi)
    fi = kernel.open("/doc", os.O_RDWR)
    kernel.do.write(fi.fh, 0, memoryview(b"by us"), append=False, cached=False)
    assert kernel.open("/doc").keep_cache
    kernel.close(fi)
    kernel.create("/other", bytes(len(CONTENT)))
    kernel.replace("/doc", "/other")
    kernel.look("/doc")
    assert kernel.open("/other").keep_cache


def test_pages_go_with_the_content(kernel: Kernel) -> None:
    kernel.create("/doc")
    kernel.create("/other", bytes(len(CONTENT)))
    kernel.replace("/doc", "/other")
    refused(kernel.open, "/doc")
    kernel.look("/doc")
    fi = kernel.open("/doc")
    assert (fi.keep_cache, fi.direct_io) == (False, False)
    kernel.close(fi)
    assert kernel.open("/doc").keep_cache


def test_a_file_that_is_opened_beside_an_older_one_has_no_pages(kernel: Kernel) -> None:
    kernel.create("/doc")
    kernel.create("/other", b"other")
    old = kernel.open("/doc")
    kernel.replace("/doc", "/other")
    assert kernel.look("/doc") == 5
    new = kernel.open("/doc")
    assert new.direct_io
    kernel.close(old)
    assert kernel.open("/doc").keep_cache is False  # its size was told by the old one last
    kernel.close(new)


def test_a_handle_that_is_given_back_late_changes_no_answer(kernel: Kernel) -> None:
    """Linux gives a handle back after close(2) has returned, also between a new look and the second open."""
    kernel.create("/doc")
    kernel.create("/other", b"other")
    old = kernel.open("/doc")
    kernel.do.read(old.fh, 0, memoryview(bytearray(len(CONTENT))))
    kernel.replace("/doc", "/other")
    refused(kernel.open, "/doc", os.O_RDWR)
    assert kernel.look("/doc") == 5
    refused(kernel.open, "/doc", os.O_RDWR)  # a copy gets a file_id of its own
    assert kernel.look("/doc") == 5
    kernel.close(old)
    new = kernel.open("/doc", os.O_RDWR)  # Linux asks once more after ESTALE, not twice
    assert (new.keep_cache, new.direct_io) == (False, False)
    kernel.close(new)


def test_a_read_by_an_older_handle_tells_its_size_and_the_next_open_asks_again(kernel: Kernel) -> None:
    kernel.create("/doc")
    kernel.create("/other", b"other")
    old = kernel.open("/doc")
    kernel.replace("/doc", "/other")
    kernel.look("/doc")
    assert kernel.do.getattr(None, old.fh).size == len(CONTENT)
    refused(kernel.open, "/doc")
    assert kernel.look("/doc") == 5
    new = kernel.open("/doc")
    kernel.close(new)
    kernel.close(old)
    refused(kernel.open, "/doc")
    assert kernel.look("/doc") == 5
    assert not kernel.open("/doc").direct_io


def test_what_is_told_while_an_older_handle_is_given_back_is_right(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may take long, and Linux tries a second time only: ESTALE twice is what a program sees."""
    kernel.create("/doc")
    kernel.create("/new")
    kernel.look("/doc")
    old = kernel.open("/doc", os.O_RDWR)
    kernel.replace("/doc", by="/new")
    kernel.look("/doc")
    release = VaultTree.release

    def looked_up_meanwhile(tree: VaultTree, file: OpenFile) -> None:
        kernel.look("/doc")
        release(tree, file)

    monkeypatch.setattr(VaultTree, "release", looked_up_meanwhile)
    kernel.close(old)
    kernel.close(kernel.open("/doc"))


def test_what_is_told_of_a_kept_file_stays_when_its_older_self_is_given_back(kernel: Kernel) -> None:
    """A new file has the name by then, and the content that is told is its own."""
    kernel.create("/doc")
    kernel.look("/doc")
    old = kernel.open("/doc", os.O_RDWR)
    kernel.do.write(old.fh, 0, memoryview(b"by us"), append=False, cached=False)
    kernel.vault.backing(b"doc").unlink()
    with pytest.raises(FileNotFoundError):
        kernel.look("/doc")
    files = kernel.vault.tree.files
    keep, looks = files.before_loss, []

    def looked_up_meanwhile(state: FileState) -> None:
        keep(state)
        looks.append(kernel.look("/doc"))

    files.before_loss = looked_up_meanwhile
    kernel.close(old)
    assert looks == [len(CONTENT)]
    kernel.close(kernel.open("/doc"))


def test_a_file_that_is_gone_is_not_told_of(kernel: Kernel) -> None:
    """Each way to lose a name; else the table grew with all files that ever were."""
    for number in range(12):
        kernel.create(f"/{number}", b"")
        kernel.look(f"/{number}")
    size = kernel.do.told.files
    for number in range(0, 12, 4):
        kernel.do.unlink(f"/{number}")
        kernel.do.rename(f"/{number + 1}", f"/{number + 2}", 0)
        kernel.vault.backing(b"%d" % (number + 3)).unlink()
        with pytest.raises(FileNotFoundError):
            kernel.look(f"/{number + 3}")
    assert (size, kernel.do.told.files) == (12, 3)


def test_a_rename_takes_along_what_was_told_of_all_below(kernel: Kernel) -> None:
    kernel.do.mkdir("/one", 0o755)
    kernel.do.mkdir("/two", 0o755)
    for path in ("/one", "/two"):
        kernel.look(path)
        kernel.create(f"{path}/doc", path.encode())
    kernel.do.rename("/one", "/three", 0)
    kernel.do.chmod("/three/doc", 0o600, None)
    refused(kernel.do.chmod, "/one/doc", 0o600, None)
    kernel.do.rename("/two", "/three", RENAME_EXCHANGE)
    for path, size in (("/two/doc", 4), ("/three/doc", 4)):
        kernel.do.truncate(path, size - 1, None)
        assert kernel.look(path) == size - 1


@pytest.mark.parametrize("what", ["chmod", "utimens", "truncate", "setxattr", "link", "rename", "unlink"])
def test_only_what_was_told_is_changed(kernel: Kernel, what: str) -> None:
    kernel.create("/doc")
    kernel.create("/other", b"other")
    calls: dict[str, tuple[object, ...]] = {
        "chmod": ("/doc", 0o600, None),
        "utimens": ("/doc", (1, 0, 1, 0), None),
        "truncate": ("/doc", 3, None),
        "setxattr": ("/doc", "user.a", b"value", 0),
        "link": ("/made", "/doc"),
        "rename": ("/doc", "/made", 0),
        "unlink": ("/doc",),
    }
    kernel.replace("/doc", "/other")
    kernel.vault.backing(b"other").unlink()  # else the two would share a file_id
    backing = kernel.vault.backing(b"doc")
    before = (backing.stat(), backing.read_bytes(), os.listxattr(backing))
    refused(getattr(kernel.do, what), *calls[what])
    assert (backing.stat(), backing.read_bytes(), os.listxattr(backing)) == before
    kernel.look("/doc")
    getattr(kernel.do, what)(*calls[what])
    assert not backing.exists() or (backing.stat(), backing.read_bytes(), os.listxattr(backing)) != before


def test_the_table_is_bounded_and_keeps_what_is_open(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOLD", 10)
    kernel.create("/doc")
    fi = kernel.open("/doc")
    before = open_descriptors()
    for number in range(50):
        kernel.create(f"/{number}", b"")
        kernel.look(f"/{number}")
    assert len(kernel.do.told) <= 10
    assert open_descriptors() == before
    kernel.do.chmod("/doc", 0o600, None)
    refused(kernel.do.chmod, "/1", 0o600, None)
    kernel.close(fi)


def test_a_directory_that_others_have_replaced_is_not_used(kernel: Kernel) -> None:
    kernel.do.mkdir("/top", 0o755)
    kernel.look("/top")
    kernel.create("/top/doc")
    backing = kernel.vault.backing(b"top")
    shutil.copytree(backing, backing.with_name(".restored"))
    shutil.rmtree(backing)
    refused(kernel.do.mkdir, "/top/new", 0o755)
    for path in ("/top", "/top/doc", "/top/new"):
        with pytest.raises(FileNotFoundError):
            kernel.look(path)
    backing.with_name(".restored").rename(backing)
    assert kernel.look("/top/doc") == len(CONTENT)
    kernel.do.mkdir("/top/new", 0o755)
    assert len(list(backing.iterdir())) == 3  # with its record


def test_an_exclusive_mount_takes_paths_for_what_they_are(vault: BareVault) -> None:
    kernel = Kernel(vault, MountOptions(exclusive=True))
    kernel.create("/doc")
    kernel.create("/other", b"other")
    kernel.replace("/doc", "/other")
    kernel.do.chmod("/doc", 0o600, None)
    kernel.do.unlink("/doc")


@pytest.mark.parametrize("replaced", [False, True])
def test_libfuse_hides_what_it_takes_for_open_a_moment_after_the_last_close(
    kernel: Kernel, replaced: bool
) -> None:
    """It forgets such a path, which would stay in the vault."""
    kernel.create("/doc")
    kernel.create("/new")
    kernel.look("/doc")
    fi = kernel.open("/doc")
    if replaced:
        kernel.replace("/doc", by="/new")
    kernel.close(fi)
    kernel.look("/doc")
    kernel.do.rename("/doc", "/.fuse_hidden0000000200000001", 0)
    assert kernel.vault.names() == [b"new"]


def unlinked_while_open(kernel: Kernel, flags: int, *, made: bool = False) -> tuple[Any, str]:
    """A handle, and the path by which libfuse asks for the file then. made: the file is there."""
    if not made:
        kernel.create("/doc")
    kernel.look("/doc")
    fi = kernel.open("/doc", flags)
    hidden = "/.fuse_hidden0000000200000001"
    kernel.do.rename("/doc", hidden, 0)
    return fi, hidden


@pytest.mark.parametrize(
    ("request_", "step"),
    [
        (lambda do, path: do.chmod(path, 0o600, None), (FileTable, "find")),
        (lambda do, path: do.utimens(path, (1, 0, 1, 0), None), (FileTable, "find")),
        (lambda do, path: do.truncate(path, 0, None), (OpenFile, "truncate")),
        (lambda do, path: do.getattr(path, None).st.st_ino, (VaultTree, "stat_open")),
    ],
    ids=["chmod", "utimens", "truncate", "getattr"],
)
def test_an_unlinked_file_is_closed_while_it_is_asked_for(
    kernel: Kernel,
    monkeypatch: pytest.MonkeyPatch,
    request_: Callable[[CryptOperations, str], object],
    step: tuple[type, str],
) -> None:
    """Else the request went to whatever has the number of its descriptor next."""
    kernel.create("/other")
    kernel.look("/other")
    before = kernel.vault.backing(b"other").stat()
    fi, path = unlinked_while_open(kernel, os.O_RDWR)
    original = getattr(*step)
    closed = []

    def closed_first(*arguments: Any) -> Any:
        monkeypatch.undo()
        kernel.close(fi)
        kernel.do.unlink(path)
        closed.append(kernel.open("/other", os.O_RDWR))  # takes the lowest number that is free
        return original(*arguments)

    monkeypatch.setattr(*step, closed_first)
    assert request_(kernel.do, path) != before.st_ino
    assert closed
    assert kernel.vault.backing(b"other").stat() == before
    assert kernel.look("/other") == len(CONTENT)


def test_whoever_asks_for_an_unlinked_file_gives_back_what_was_taken(kernel: Kernel) -> None:
    """A file is kept, where it is lost, when its last writer has gone: they are counted."""
    kernel.create("/doc")
    files, st = kernel.vault.tree.files, kernel.vault.backing(b"doc").stat()
    fi, path = unlinked_while_open(kernel, os.O_RDWR, made=True)
    state = files.find(st)
    assert state is not None
    before = state.handles, state.writers
    kernel.do.getattr(path, None)
    kernel.do.chmod(path, 0o600, None)
    kernel.do.truncate(path, 10, None)
    assert (state.handles, state.writers) == before
    kernel.close(fi)
    kernel.do.unlink(path)
    assert files.find(st) is None


def test_an_unlinked_file_that_is_only_read_is_not_cut_by_its_old_name(kernel: Kernel) -> None:
    """Linux looks at the name again, and finds what the program means."""
    fi, path = unlinked_while_open(kernel, os.O_RDONLY)
    refused(kernel.do.truncate, path, 0, None)
    kernel.close(fi)


def test_each_write_gets_a_time_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without the writeback cache takes its pages for right while the time stays."""
    vault = BareVault(tmp_path / "power", durability=Durability.POWER)
    kernel = Kernel(vault, MountOptions())
    kernel.create("/doc", bytes(100_000))
    kernel.look("/doc")
    fi = kernel.open("/doc", os.O_RDWR)
    times: set[int] = set()
    hold = FileState.hold_mtime

    def note(state: FileState, mtime_ns: int) -> None:
        times.add(mtime_ns)
        hold(state, mtime_ns)

    def write(number: int) -> None:
        for _ in range(100):
            kernel.do.write(fi.fh, 5000 * number, memoryview(b"changed"), append=False, cached=False)

    monkeypatch.setattr(FileState, "hold_mtime", note)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        run_together(*(partial(write, number) for number in range(8)))
    finally:
        sys.setswitchinterval(usual)
    assert len(times) == 800
    kernel.close(fi)
    vault.close()
