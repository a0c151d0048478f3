"""A mount whose daemon has no rights but those of an ordinary user, and other users who come in."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.vfs.vault import Vault
from tests.commands import runner
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.test_users import NOBODY, OTHER, as_user
from tests.e2e.trace import Record, Trace, first_difference, run_case
from tests.support import everything_below, make_old_vault

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act as several users"),
    pytest.mark.skipif(
        shutil.which("fusermount3") is None, reason="needs fusermount3: apt-get install fuse3"
    ),
    pytest.mark.usefixtures("fuse_for_everybody"),
]


@pytest.fixture(scope="module", params=ENGINES)
def private(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """NOBODY's mount for NOBODY alone, and a plain directory of NOBODY beside it."""
    spec = MountSpec(request.param, uid=NOBODY[0], gid=NOBODY[1], tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as mount:
        plain = mount.scratch / "plain"
        plain.mkdir()
        os.chown(plain, *NOBODY)
        yield mount


@pytest.fixture(scope="module", params=ENGINES)
def shared(request: pytest.FixtureRequest, allow_other_for_everybody: None) -> Iterator[Mounted]:
    """NOBODY's mount, which others may enter; all may write in `open`."""
    spec = MountSpec(request.param, options="allow_other", uid=NOBODY[0], gid=NOBODY[1])
    require_fuse(spec)
    with mounted(spec) as mount:

        def prepare() -> None:
            os.umask(0)
            mount.mountpoint.chmod(0o755)
            (mount.mountpoint / "open").mkdir(0o777)

        as_user(NOBODY, prepare)
        yield mount


def test_another_user_makes_entries_and_they_belong_to_the_mounting_user(shared: Mounted) -> None:
    place = shared.mountpoint / "open"

    def make() -> None:
        os.umask(0)
        os.chdir(place)
        (place / "file").write_bytes(b"written by another user")
        (place / ("l" * 250)).write_bytes(b"long")
        os.mkdir("directory", 0o777)
        os.symlink("file", "link")
        os.rename("link", "renamed")
        os.mkfifo("fifo")
        os.close(os.open("suid", os.O_CREAT | os.O_WRONLY, 0o6755))
        os.mknod("node", stat.S_IFREG | 0o4711)
        os.link("file", "second")

    as_user(OTHER, make)
    names = {"file", "l" * 250, "directory", "renamed", "fifo", "suid", "node", "second"}
    assert set(os.listdir(place)) == names
    assert {place.joinpath(name).lstat().st_uid for name in names} == {NOBODY[0]}
    assert as_user(OTHER, (place / "file").read_bytes) == b"written by another user"
    assert oct((place / "suid").stat().st_mode) == oct(stat.S_IFREG | 0o755), "it would lend NOBODY's rights"
    assert oct((place / "node").stat().st_mode) == oct(stat.S_IFREG | 0o711)
    as_user(OTHER, lambda: shutil.rmtree(place / "directory"))
    if shared.spec.engine == "native":  # libfuse's path interface has no O_TMPFILE

        def unnamed() -> tuple[int, int]:
            found = os.fstat(os.open(place, os.O_TMPFILE | os.O_RDWR, 0o4755))
            return found.st_uid, found.st_mode & 0o7777

        assert as_user(OTHER, unnamed) == (NOBODY[0], 0o755)


def compare(mount: Mounted, case: Callable[[Trace], None]) -> None:
    """A case as NOBODY on the mount and on the plain directory."""

    def on(directory: Path) -> list[Record]:
        place = directory / case.__name__
        place.mkdir()
        return run_case(case, place)

    expected = as_user(NOBODY, lambda: on(mount.scratch / "plain"))
    assert not first_difference(as_user(NOBODY, lambda: on(mount.mountpoint)), expected)


def changes_in(t: Trace, directory: str, file: str) -> None:
    """Each way to make an entry in a directory, under a short and under a long name; and to remove one."""
    for name in (f"{directory}/new", f"{directory}/" + "n" * 220):
        for flags in (0, os.O_EXCL, os.O_TRUNC):
            t.open(f"create {flags}", name, os.O_CREAT | os.O_RDWR | flags)
        t.do("mkdir", os.mkdir, name)
        t.do("symlink", os.symlink, "target", name)
        t.do("mkfifo", os.mkfifo, name)
        t.do("link", os.link, file, name)
        t.do("rename", os.rename, file, name)
    t.do("unlink", os.unlink, f"{directory}/old")
    t.do("rmdir", os.rmdir, f"{directory}/below")


def no_right_to_write(t: Trace) -> None:
    os.makedirs("d/below")
    Path("d/old").write_bytes(b"x")
    Path("file").write_bytes(b"x")
    os.chmod("d", 0o500)
    changes_in(t, "d", "file")
    t.do("list", lambda: sorted(os.listdir("d")))
    os.chmod("d", 0o700)


def no_right_to_search(t: Trace) -> None:
    os.makedirs("d/below")
    Path("d/old").write_bytes(b"x")
    Path("file").write_bytes(b"x")
    t.do("chmod", os.chmod, "d", 0o600)
    t.do("list", lambda: sorted(os.listdir("d")))
    t.do("list with types", lambda: sorted((e.name, e.is_dir()) for e in os.scandir("d")))
    changes_in(t, "d", "file")
    t.do("open", os.open, "d/old", os.O_RDONLY)
    t.do("stat", os.stat, "d/old")
    t.do("access", os.access, "d", os.R_OK)
    t.do("utime", os.utime, "d", (10, 20))
    t.do("setxattr", os.setxattr, "d", "user.a", b"value")
    t.do("listxattr", os.listxattr, "d")
    t.do("statvfs", lambda: os.statvfs("d").f_namemax)
    t.stat("d", "d", mtime=True)
    t.do("chmod", os.chmod, "d", 0o700)


def no_right_to_read(t: Trace) -> None:
    os.makedirs("d/below")
    Path("d/old").write_bytes(b"x")
    t.do("chmod", os.chmod, "d", 0o300)
    t.do("list", os.listdir, "d")
    t.do("stat", lambda: os.stat("d/old").st_size)
    t.do("create", Path("d/new").write_bytes, b"x")
    t.do("chmod", os.chmod, "d", 0o700)


def acls_whatever_the_mode(t: Trace) -> None:
    """The owner needs no right to a file for its ACL; the attribute that we keep it in asks for some."""
    for mode in (0o000, 0o400, 0o200, 0o044):
        Path("file").write_bytes(b"x")
        os.mkdir("d")
        for path in ("file", "d"):
            os.chmod(path, mode)
            for command in (
                ["setfacl", "-m", "u:12345:rw", path],
                ["chmod", "u=,g=r", path],
                ["getfacl", "-cn", path],
                ["setfacl", "-b", path],
                ["getfacl", "-cn", path],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                t.note(f"{mode:o} {command}", (done.returncode, done.stdout))
        os.chmod("d", 0o700)
        os.unlink("file")
        os.rmdir("d")


CASES = [no_right_to_write, no_right_to_search, no_right_to_read, acls_whatever_the_mode]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_rights_of_the_backing_directories(case: Callable[[Trace], None], private: Mounted) -> None:
    compare(private, case)


def test_an_immutable_directory_says_so(private: Mounted) -> None:
    """EPERM from the disk stays EPERM."""
    before = set(os.listdir(private.vault_dir))
    as_user(NOBODY, lambda: (private.mountpoint / "fixed").mkdir())
    (made,) = set(os.listdir(private.vault_dir)) - before
    subprocess.run(["chattr", "+i", str(private.vault_dir / made)], check=True)
    try:

        def work() -> list[Record]:
            (private.mountpoint / "outside").touch()
            t = Trace()
            changes_in(t, str(private.mountpoint / "fixed"), str(private.mountpoint / "outside"))
            return t.records

        found = as_user(NOBODY, work)
    finally:
        subprocess.run(["chattr", "-i", str(private.vault_dir / made)], check=True)
    assert found[:-2] == [(label, "EPERM") for label, _ in found[:-2]]


def test_a_directory_without_the_right_to_search_after_a_remount(private: Mounted) -> None:
    """Its record cannot be read, and so none of its names: EACCES, and a line in the log."""
    place = private.mountpoint / "cold"
    as_user(NOBODY, lambda: (place / "below").mkdir(parents=True))
    as_user(NOBODY, lambda: place.chmod(0o400))
    private.remount()
    private.allow_log("its record cannot be read: the directory needs the permission to search")

    def listing() -> object:
        t = Trace()
        t.do("list", os.listdir, place)
        place.chmod(0o700)
        t.do("list", os.listdir, place)
        return t.records

    assert as_user(NOBODY, listing) == [("list", "EACCES"), ("list", ["below"])]


def owners_below(vault_dir: Path) -> set[int]:
    return {
        path.lstat().st_uid
        for path in (vault_dir, *everything_below(vault_dir))
        if path == vault_dir or path.name.startswith("cryptfs.")
    }


@pytest.mark.parametrize("options", ["", "allow_other"])
@pytest.mark.parametrize("engine", ENGINES)
def test_root_mounts_the_vault_of_a_user_once(engine: str, options: str) -> None:
    """What cryptfs needs stays the user's, and follows what root gives away on the mount."""
    spec = MountSpec(engine, options=options, tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.unmount()
        for path in (mount.vault_dir, *everything_below(mount.vault_dir)):
            os.chown(path, *NOBODY)
        mount.start()
        top, long = mount.mountpoint, "l" * 250
        (top / "mine" / long).mkdir(parents=True)
        (top / "mine" / long / "file").write_bytes(b"x" * 100_000)
        with (top / "mine" / long / "file").open("r+b") as file:
            file.write(b"overwritten, by way of a journal")
        (top / "mine" / "long link").symlink_to("t" * 3000)
        if options:
            top.chmod(0o755)
            (top / "open").mkdir(0o777)
            (top / "open").chmod(0o777)
            as_user(NOBODY, lambda: (top / "open" / "theirs" / long).mkdir(parents=True))
        subprocess.run(["chown", "-R", f"{NOBODY[0]}:{NOBODY[1]}", str(top)], check=True)
        mount.unmount()
        assert owners_below(mount.vault_dir) == {NOBODY[0]}
        mount.start()  # root once more, with all that a session makes
        (top / "roots").mkdir()
        with (top / "mine" / long / "file").open("r+b") as file:
            file.write(b"OVERWRITTEN")
        mount.unmount()
        of_root = [
            path.name
            for path in everything_below(mount.vault_dir)
            if path.name.startswith("cryptfs.") and path.lstat().st_uid == 0
        ]
        assert of_root == ["cryptfs.dir"], "of the directory that is root's"
        assert {path.lstat().st_uid for path in mount.vault_dir.glob("cryptfs.*")} == {NOBODY[0]}
        mount.spec = MountSpec(engine, uid=NOBODY[0], gid=NOBODY[1], tmpfs=False)
        os.chown(mount.mountpoint, *NOBODY)
        mount.start()
        found = as_user(NOBODY, (top / "mine" / long / "file").read_bytes)
        assert found.startswith(b"OVERWRITTEN, by way of a journal")
        assert as_user(NOBODY, lambda: os.readlink(top / "mine" / "long link")) == "t" * 3000
        as_user(NOBODY, lambda: shutil.rmtree(top / "mine"))


def test_commands_of_root_in_the_vault_of_a_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever they make or replace in it is the user's."""
    run = runner(capsys)
    vault_dir, passfile = tmp_path / "vault", tmp_path / "passfile"
    make_old_vault(vault_dir, b"correct horse", kdf_memory=64 << 20)
    passfile.touch(mode=0o600)
    passfile.write_text("correct horse\n")
    given = ("--passfile", passfile)
    with Vault.unlock(vault_dir, b"correct horse") as vault:
        tree = vault.tree
        tree.make_directory(tree.root, b"d" * 200, 0o755)
        inner = tree.directory(tree.root, b"d" * 200)
        tree.make_symlink(inner, b"link", b"t" * 3000)
        file = tree.create(inner, b"file", os.O_RDWR, 0o600)
        file.write(0, bytes(100_000))
        tree.release(file)
    for path in (vault_dir, *everything_below(vault_dir)):
        os.chown(path, *NOBODY, follow_symlinks=False)
    new = ("--new-passfile", passfile, "--kdf-memory", "64m")
    words, key = tmp_path / "words", tmp_path / "key"
    for command in (
        ("upgrade", vault_dir, *given),
        ("passwd", vault_dir, *given, *new),
        ("key", "add", "keyfile", vault_dir, key, "--generate", *given),
        ("recovery", "words", vault_dir, "--output", words, *given),
        ("fsck", "--deep", "--repair", vault_dir, *given),
        ("rekey", vault_dir, *given, "--drop-slots", "--no-recovery"),
    ):
        if command[0] == "fsck":
            backing = max(everything_below(vault_dir), key=lambda path: path.lstat().st_size)
            raw = backing.read_bytes()
            backing.write_bytes(raw[:50_000] + b"damage" + raw[50_006:])
        told = run(*command)
        assert told.code == 0, told
        of_others = [path.name for path in everything_below(vault_dir) if path.lstat().st_uid != NOBODY[0]]
        assert of_others == [], command
