"""What a vault does not notice, as a mount shows it: changed at rest, and after a look at everything.

Nothing here is promised. A row of docs/THREAT_MODEL.md that is not detected says what happens instead.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.mount.options import FRESH_SECONDS
from soaklib.sealed import Sealer
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.tamper_trees import backing_xattrs
from tests.e2e.test_users import NOBODY, as_user
from tests.outside.stage import until
from tests.support import everything_below, state_files

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users"),
]

ACL = bytes.fromhex("02000000" "01000600ffffffff" "02000400e8030000" "04000400ffffffff" "10000400ffffffff"
                    "20000000ffffffff")  # fmt: skip
"""system.posix_acl_access: rw for the owner, r for user 1000, r for the group, nothing for others."""


class Case:
    """A directory of its own: what is in it, and what it was some time ago."""

    def __init__(self, scene: Scene, name: str) -> None:
        self.scene = scene
        self.shown = scene.mount.mountpoint / name
        self.shown.mkdir(mode=0o755)
        self.write("one", b"content of one")
        self.write("two", b"content of two")
        self.write("private", b"for me")
        (self.shown / "private").chmod(0o600)
        (self.shown / "link").symlink_to("old target")
        os.setxattr(self.shown / "one", "user.note", b"old note")
        os.setxattr(self.shown / "two", "user.note", b"note")
        if scene.has_acls:
            os.setxattr(self.shown / "private", "system.posix_acl_access", ACL)
        (self.shown / "directory").mkdir()
        (self.shown / "directory" / "kept").write_bytes(b"old")
        (self.shown / "directory" / "deleted").write_bytes(b"deleted since")
        (self.shown / "unbound").symlink_to("unbound target")
        os.link(self.shown / "unbound", self.shown / "second name", follow_symlinks=False)

    def write(self, name: str, content: bytes) -> None:
        (self.shown / name).write_bytes(content)

    def cipher(self, name: str) -> Path:
        """The backing entry of a name."""
        return self.scene.sealer.entry(f"{self.shown.name}/{name}")

    def remember(self) -> None:
        """What an attacker keeps; then the programs go on."""
        self.old_link = os.readlink(self.cipher("link"))
        self.old_xattrs = {
            name: os.getxattr(self.cipher("one"), name) for name in backing_xattrs(self.cipher("one"))
        }
        self.old_directory = self.scene.mount.scratch / f"old {self.shown.name}"
        shutil.copytree(self.cipher("directory"), self.old_directory)
        (self.shown / "link").unlink()
        (self.shown / "link").symlink_to("new target")
        os.setxattr(self.shown / "one", "user.note", b"new note")
        (self.shown / "directory" / "kept").write_bytes(b"new")
        (self.shown / "directory" / "deleted").unlink()

    def look(self) -> None:
        """The kernel learns all that there is to know."""
        for path in everything_below(self.shown):
            os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()


class Scene:
    """A mount for several users, and the cases on it, which have happened."""

    def __init__(self, mount: Mounted, *, live: bool) -> None:
        self.mount = mount
        self.has_acls = mount.spec.engine == "native"
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        mount.mountpoint.chmod(0o755)
        self.cases = {name: Case(self, name) for name in CHANGES}
        mount.remount()
        for case in self.cases.values():
            case.remember()
        mount.remount()
        if live:
            for case in self.cases.values():
                case.look()
        else:
            mount.unmount()
        for name, case in self.cases.items():
            CHANGES[name][0](case)
        if live:
            shows_at = time.monotonic() + FRESH_SECONDS
            assert until(lambda: time.monotonic() > shows_at)
        else:
            mount.start()


def exchange(case: Case) -> None:
    one, two, between = case.cipher("one"), case.cipher("two"), case.cipher("two").with_name("between")
    one.rename(between)
    two.rename(one)
    between.rename(two)


def exchanged(case: Case) -> None:
    assert (case.shown / "one").read_bytes() == b"content of two"
    assert (case.shown / "two").read_bytes() == b"content of one"


def give_a_name_away(case: Case) -> None:
    case.cipher("one").rename(case.cipher("two"))


def given_away(case: Case) -> None:
    assert (case.shown / "two").read_bytes() == b"content of one"
    assert not (case.shown / "one").exists()


def delete(case: Case) -> None:
    case.cipher("one").unlink()
    shutil.rmtree(case.cipher("directory"))


def deleted(case: Case) -> None:
    assert {"one", "directory"} & set(os.listdir(case.shown)) == set()
    case.write("one", b"new")
    assert (case.shown / "one").read_bytes() == b"new"


def put_directory_back(case: Case) -> None:
    for path in case.old_directory.iterdir():
        target = case.cipher("directory") / path.name
        shutil.copyfile(path, target.with_name("coming"))
        target.with_name("coming").rename(target)


def directory_is_back(case: Case) -> None:
    shown = case.shown / "directory"
    assert {path.name: path.read_bytes() for path in shown.iterdir()} == {
        "kept": b"old",
        "deleted": b"deleted since",
    }


def put_link_back(case: Case) -> None:
    path = case.cipher("link")
    path.unlink()
    path.symlink_to(case.old_link)


def link_is_back(case: Case) -> None:
    assert os.readlink(case.shown / "link") == "old target"


def put_xattr_back(case: Case) -> None:
    for name, value in case.old_xattrs.items():
        os.setxattr(case.cipher("one"), name, value)


def xattr_is_back(case: Case) -> None:
    assert os.getxattr(case.shown / "one", "user.note") == b"old note"


def remove_xattrs(case: Case) -> None:
    for entry in ("one", "private"):
        for name in backing_xattrs(case.cipher(entry)):
            os.removexattr(case.cipher(entry), name)


def no_xattrs(case: Case) -> None:
    """Also no ACL: then the mode of the file decides, and its middle bits are those of the group."""
    assert os.listxattr(case.shown / "one") == []
    assert os.listxattr(case.shown / "private") == []
    assert os.listxattr(case.shown / "two") == ["user.note"]


def widen(case: Case) -> None:
    for name in backing_xattrs(case.cipher("private")):
        os.removexattr(case.cipher("private"), name)  # an ACL would still decide
    case.cipher("private").chmod(0o4666)
    os.chown(case.cipher("one"), *NOBODY)
    os.utime(case.cipher("two"), ns=(10**18, 10**18))


def widened(case: Case) -> None:
    """Another user of the machine reads and changes the file; a set-id bit does nothing on the mount."""
    path = case.shown / "private"
    assert stat.S_IMODE(path.stat().st_mode) == 0o4666
    assert as_user(NOBODY, path.read_bytes) == b"for me"
    as_user(NOBODY, lambda: path.write_bytes(b"from nobody"))
    assert path.read_bytes() == b"from nobody"
    assert os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    assert (case.shown / "one").stat().st_uid == NOBODY[0]
    assert (case.shown / "two").stat().st_mtime_ns == 10**18


def copy_unbound(case: Case) -> None:
    text = os.readlink(case.cipher("unbound"))
    case.cipher("link").unlink()
    case.cipher("link").symlink_to(text)


def unbound_is_anywhere(case: Case) -> None:
    assert os.readlink(case.shown / "link") == "unbound target"


CHANGES: dict[str, tuple[Callable[[Case], None], Callable[[Case], None]]] = {
    "two files exchanged": (exchange, exchanged),
    "a name given to another file": (give_a_name_away, given_away),
    "entries deleted": (delete, deleted),
    "an older directory": (put_directory_back, directory_is_back),
    "an older link": (put_link_back, link_is_back),
    "an older xattr": (put_xattr_back, xattr_is_back),
    "xattrs removed": (remove_xattrs, no_xattrs),
    "mode, owner and times": (widen, widened),
    "a link with several names copied": (copy_unbound, unbound_is_anywhere),
}


@pytest.fixture(
    scope="module", params=[(engine, live) for engine in ENGINES for live in (False, True)], ids=str
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    engine, live = request.param
    spec = MountSpec(engine, options="allow_other")
    require_fuse(spec)
    with mounted(spec) as mount:
        scene = Scene(mount, live=live)
        yield scene
        scene.sealer.close()


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_authentic_or_in_clear(scene: Scene, name: str) -> None:
    CHANGES[name][1](scene.cases[name])


def test_what_the_lock_file_shows(scene: Scene) -> None:
    """To a reader of the vault: the process and its mountpoint, and the session."""
    shown: dict[str, object] = {}
    for name in state_files(scene.mount.vault_dir, "lock"):
        raw = (scene.mount.vault_dir / name).read_bytes()
        shown |= json.loads(raw) if raw else {}
    assert set(shown) <= {"pid", "mountpoint", "session", "journal_id"}
    assert (shown["pid"], shown["mountpoint"]) == (scene.mount.pid, str(scene.mount.mountpoint))
