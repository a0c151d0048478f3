"""A daemon does not grow with the files that were looked at, and nothing in use is lost when it forgets."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from cryptfs.vfs.vault import Vault
from tests.e2e.conftest import require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, scratch_directory
from tests.e2e.test_memory import memory_of

pytestmark = pytest.mark.serial

LIMIT = 2_000
FILES = 10_000
IN_DIRECTORIES = 20
MANY = int(os.environ.get("CRYPTFS_E2E_MANY_FILES", "0"))  # 1,000,000 takes some three minutes
SECONDS = 20.0

LIMITED = (("cryptfs.mount.native.pruning", "MAX_NODES", LIMIT),)
NEVER = ("cryptfs.mount.native.structs", "PRUNE_MINOR", 10**6)
NEEDS = (6, 18)
"""The kernel that can be asked."""


def kernel() -> tuple[int, ...]:
    """Its version, as far as it counts here."""
    return tuple(int(part) for part in platform.release().split(".")[:2])


@contextlib.contextmanager
def filled_mount(spec: MountSpec, files: int) -> Iterator[Mounted]:
    """A mount of a vault that has been filled beforehand, which is many times faster."""
    require_fuse(spec)
    mount = Mounted(spec, scratch_directory(tmpfs=spec.tmpfs))
    try:
        mount.create()
        with Vault.unlock(mount.vault_dir, PASSPHRASE.encode()) as vault:
            tree = vault.tree
            for outer in range(IN_DIRECTORIES):
                name = b"many %d" % outer
                tree.make_directory(tree.root, name, 0o755)
                directory = tree.directory(tree.root, name)
                for inner in range(files // IN_DIRECTORIES):
                    tree.make_node(directory, b"file %d" % inner, stat.S_IFREG | 0o644, 0)
        mount.start()
        yield mount
        mount.unmount()
        mount.assert_quiet()
    finally:
        mount.abandon()


@pytest.fixture
def mount() -> Iterator[Mounted]:
    """One that keeps few nodes."""
    if kernel() < NEEDS:
        pytest.skip("this kernel cannot be asked to forget")
    with filled_mount(MountSpec("native", options="allow_other", constants=LIMITED), FILES) as made:
        yield made


def walk(mount: Mounted, rest: float = 0.0) -> int:
    """Look at every file of the filling; how many there are. rest: seconds after each directory."""
    seen = 0
    for top, _, files in os.walk(mount.mountpoint):
        time.sleep(rest)
        if "many" in top:
            for name in files:
                seen += stat.S_ISREG(os.lstat(os.path.join(top, name)).st_mode)
    return seen


def wait_for_nodes(mount: Mounted, most: int) -> None:
    """Return when the daemon keeps no more than that."""
    deadline = time.monotonic() + SECONDS
    while (nodes := mount.nodes()) > most:
        assert time.monotonic() < deadline, f"{nodes} nodes are kept"
        time.sleep(0.02)


def churn(mount: Mounted) -> None:
    """Have everything forgotten that nobody uses."""
    for _ in range(2):
        assert walk(mount) == FILES
        wait_for_nodes(mount, LIMIT)


def test_nodes_are_bounded(mount: Mounted) -> None:
    most = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, mount.nodes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert walk(mount, 0.05) == FILES  # the limit is a fiftieth of the real one, so it is soon passed
    finally:
        ended.set()
        watcher.join()
    assert LIMIT // 2 < most < 2 * LIMIT
    wait_for_nodes(mount, LIMIT)


def test_nodes_are_bounded_while_several_look(mount: Mounted) -> None:
    threads = [threading.Thread(target=walk, args=(mount,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(300):  # and others make and remove meanwhile
        path = mount.mountpoint / f"made {number}"
        path.write_bytes(b"content")
        assert path.read_bytes() == b"content"
        path.unlink()
    for thread in threads:
        thread.join()
    wait_for_nodes(mount, LIMIT)
    assert walk(mount) == FILES


def test_open_files_stay(mount: Mounted) -> None:
    top = mount.mountpoint / "in use"
    top.mkdir()
    (top / "file").write_bytes(b"before")
    (top / "gone").write_bytes(b"unlinked")
    with (top / "file").open("r+b", buffering=0) as file, (top / "gone").open("r+b", buffering=0) as gone:
        (top / "gone").unlink()
        handle = os.open(top / "file", os.O_PATH)
        fcntl.flock(file, fcntl.LOCK_EX)
        churn(mount)
        assert os.readlink(f"/proc/self/fd/{file.fileno()}") == str(top / "file")
        assert os.readlink(f"/proc/self/fd/{handle}") == str(top / "file")
        assert file.read(100) == b"before"
        os.pwrite(file.fileno(), b"after", 0)
        assert (top / "file").read_bytes() == b"aftere"
        assert os.fstat(handle).st_ino == (top / "file").stat().st_ino
        with (top / "file").open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(gone.fileno(), b"still", 0)
        assert os.pread(gone.fileno(), 100, 0) == b"stillked"
        os.close(handle)


def test_working_directories_stay(mount: Mounted) -> None:
    top = mount.mountpoint / "a" / "b"
    top.mkdir(parents=True)
    script = (
        "/bin/pwd; read line; /bin/pwd; echo written >file; cd -P ..; ls; rmdir b 2>&1 || rm -r b; /bin/pwd"
    )
    with subprocess.Popen(
        ["sh", "-c", script], cwd=top, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdin is not None and shell.stdout is not None
        assert shell.stdout.readline() == f"{top}\n"
        churn(mount)
        os.rename(mount.mountpoint / "a", mount.mountpoint / "c")
        rest, _ = shell.communicate("go\n", timeout=SECONDS)
    moved = mount.mountpoint / "c"
    assert rest.splitlines() == [
        str(moved / "b"),
        "b",
        f"rmdir: failed to remove 'b': {os.strerror(39)}",
        str(moved),
    ]
    assert os.listdir(moved) == []


def test_mappings_stay(mount: Mounted) -> None:
    path = mount.mountpoint / "mapped"
    path.write_bytes(b"x" * 100_000)
    with path.open("r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0)
    churn(mount)
    assert mapping[50_000] == ord("x")
    mapping[50_000] = ord("y")
    mapping.flush()
    assert path.read_bytes()[49_999:50_002] == b"xyx"
    mapping.close()


_IN_MODIFY, _IN_CREATE = 0x2, 0x100


def test_watches_stay(mount: Mounted) -> None:
    top = mount.mountpoint / "watched"
    top.mkdir()
    (top / "file").write_bytes(b"before")
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    watches = [
        libc.inotify_add_watch(descriptor, os.fsencode(top / "file"), _IN_MODIFY),
        libc.inotify_add_watch(descriptor, os.fsencode(top), _IN_CREATE),
    ]
    churn(mount)
    with (top / "file").open("ab", buffering=0) as file:
        file.write(b"more")
    (top / "new").touch()
    raw = os.read(descriptor, 4096)
    os.close(descriptor)
    seen = set()
    while raw:
        watch, mask, _, length = struct.unpack_from("=iIII", raw)
        seen.add((watch, mask))
        raw = raw[16 + length :]
    assert seen == {(watches[0], _IN_MODIFY), (watches[1], _IN_CREATE)}


def test_sockets_and_fifos_stay(mount: Mounted) -> None:
    path = mount.mountpoint / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(mount.mountpoint / "socket"))
        server.listen()
        churn(mount)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(mount.mountpoint / "socket"))
    writer = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(writer)
    os.close(reader)


def test_the_other_name_of_a_file_whose_directory_was_forgotten(mount: Mounted) -> None:
    first, second = mount.mountpoint / "first", mount.mountpoint / "second"
    first.mkdir()
    second.mkdir()
    (second / "y").write_bytes(b"content")
    os.link(second / "y", first / "x")  # known by the name that was looked up last
    (first / "x").stat()
    handle = os.open(second / "y", os.O_PATH)  # this name stays, and nobody asks for it again
    churn(mount)
    os.rename(first, mount.mountpoint / "moved")
    with open(f"/proc/self/fd/{handle}", "rb") as file:
        assert file.read() == b"content"
    assert (second / "y").read_bytes() == b"content"
    os.unlink(mount.mountpoint / "moved" / "x")
    assert os.fstat(handle).st_nlink == 1
    os.close(handle)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting on files needs root")
def test_what_is_mounted_on_files_and_directories_stays(mount: Mounted) -> None:
    top = mount.mountpoint / "below"
    top.mkdir()
    (top / "covered").write_bytes(b"covered")
    (top / "directory").mkdir()
    (top / "over").write_bytes(b"over")
    try:
        subprocess.run(["mount", "--bind", top / "over", top / "covered"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", top / "directory"], check=True)
        (top / "directory" / "inside").touch()
        churn(mount)
        assert (top / "covered").read_bytes() == b"over"
        assert os.listdir(top / "directory") == ["inside"]
    finally:
        for name in ("covered", "directory"):
            subprocess.run(["umount", top / name], check=True)
    assert (top / "covered").read_bytes() == b"covered"


def test_a_kernel_that_cannot_be_asked() -> None:
    spec = MountSpec("native", constants=(*LIMITED, NEVER))
    with filled_mount(spec, FILES) as mount:
        most = 0
        for _ in range(5):  # short of memory, the kernel forgets by itself
            assert walk(mount) == FILES
            most = max(most, mount.nodes())
            if most > FILES:
                break
        assert most > FILES
        assert walk(mount) == FILES


@pytest.mark.skipif(not MANY, reason="takes minutes; CRYPTFS_E2E_MANY_FILES says how many files")
def test_memory_after_a_walk_over_many_files() -> None:
    if kernel() < NEEDS:
        pytest.skip("this kernel cannot be asked to forget")
    with filled_mount(MountSpec("native"), MANY) as mount:
        for _ in range(2):
            assert walk(mount) == MANY // IN_DIRECTORIES * IN_DIRECTORIES
            print(f"resident memory in MiB: {memory_of(mount.pid)}")
            assert memory_of(mount.pid)["VmRSS"] < 150
