"""overlayfs with its upper layer on the mount, as containers and live systems have it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PROJECT, Mounted, MountSpec, mounted

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount an overlay"),
    pytest.mark.skipif(
        "overlay" not in Path("/proc/filesystems").read_text().split(), reason="the kernel has no overlayfs"
    ),
]

LONG = "l" * 200


def fill(lower: Path) -> None:
    (lower / "directory").mkdir(parents=True)
    (lower / "directory" / "below").write_text("below")
    for name in ("removed", "appended", "moved", LONG):
        (lower / name).write_text(name)
    (lower / "link").symlink_to("moved")


WORK = """
set -e; cd "$1"
rm removed; printf more >> appended; mv moved moved2; mv "$2" short; mv link link2
rm -r directory; mkdir directory; printf new > directory/new
mkdir made; ln appended made/second; chmod 751 made; chown 12:34 made
mv made renamed; printf x > file; mv file "$2"; rm "$2"
"""


def check(merged: Path, upper: Path) -> None:
    assert set(os.listdir(merged)) == {"appended", "moved2", "short", "link2", "directory", "renamed"}
    assert (merged / "appended").read_text() == (merged / "renamed" / "second").read_text() == "appendedmore"
    assert (merged / "moved2").read_text() == "moved"
    assert (merged / "short").read_text() == LONG
    assert os.readlink(merged / "link2") == "moved"
    assert os.listdir(merged / "directory") == ["new"]
    for name in ("removed", "moved", LONG, "link"):
        whiteout = (upper / name).lstat()
        assert stat.S_ISCHR(whiteout.st_mode) and whiteout.st_rdev == 0, name


@pytest.fixture(params=ENGINES)
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    spec = MountSpec(request.param, options="allow_other", tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as made:
        yield made


def test_an_overlay_with_its_upper_layer_here(mount: Mounted) -> None:
    upper, work = mount.mountpoint / "upper", mount.mountpoint / "work"
    lower, merged = mount.scratch / "lower", mount.scratch / "merged"
    for directory in (upper, work, lower, merged):
        directory.mkdir()
    fill(lower)
    layers = f"lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)]
    subprocess.run(command, check=True)
    try:
        subprocess.run(["sh", "-c", WORK, "sh", str(merged), LONG], check=True)
        check(merged, upper)
        subprocess.run(["umount", str(merged)], check=True)
        mount.remount()
        subprocess.run(command, check=True)
        check(merged, upper)
        (merged / "removed").write_text("again")
        assert (merged / "removed").read_text() == "again"
    finally:
        subprocess.run(["umount", str(merged)], check=False)


def test_links_and_special_files_are_copied_up(mount: Mounted) -> None:
    """Only links take attributes; afterwards overlayfs still marks directories as opaque, and as moved."""
    upper, work = mount.mountpoint / "upper", mount.mountpoint / "work"
    lower, merged = mount.scratch / "lower", mount.scratch / "merged"
    for directory in (upper, work, lower, merged):
        directory.mkdir()
    (lower / "link").symlink_to("target")
    (lower / "long").symlink_to("t" * 3000)
    os.mkfifo(lower / "fifo")
    os.mknod(lower / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (lower / "moved" / "below").mkdir(parents=True)
    (lower / "removed" / "below").mkdir(parents=True)
    layers = f"redirect_dir=on,lowerdir={lower},upperdir={upper},workdir={work}"
    command = ["mount", "-t", "overlay", "overlay", "-o", layers, str(merged)]
    subprocess.run(command, check=True)
    try:
        for name in ("link", "long", "fifo", "device"):
            os.chown(merged / name, 12, 34, follow_symlinks=False)
            if name in ("link", "long"):
                os.setxattr(merged / name, "trusted.note", b"value", follow_symlinks=False)
                os.rename(merged / name, merged / "other name")
                os.rename(merged / "other name", merged / name)
                assert os.getxattr(upper / name, "trusted.note", follow_symlinks=False) == b"value"
                assert "trusted.overlay.origin" in os.listxattr(upper / name, follow_symlinks=False)
                continue
            with pytest.raises(PermissionError):
                os.setxattr(upper / name, "trusted.note", b"value", follow_symlinks=False)
            assert os.listxattr(upper / name, follow_symlinks=False) == []
        (merged / "moved").rename(merged / "new")
        subprocess.run(["rm", "-r", str(merged / "removed")], check=True)
        (merged / "removed").mkdir()
        subprocess.run(["umount", str(merged)], check=True)
        mount.remount()
        assert os.getxattr(upper / "new", "trusted.overlay.redirect") == b"moved"
        assert os.getxattr(upper / "removed", "trusted.overlay.opaque") == b"y"
        subprocess.run(command, check=True)
        for name in ("link", "long"):
            assert os.getxattr(merged / name, "trusted.note", follow_symlinks=False) == b"value"
        assert os.listdir(merged / "removed") == []
        assert os.listdir(merged / "new") == ["below"]
        assert {name: (merged / name).lstat().st_uid for name in ("link", "long", "fifo", "device")} == {
            "link": 12,
            "long": 12,
            "fifo": 12,
            "device": 12,
        }
        assert (os.readlink(merged / "link"), os.readlink(merged / "long")) == ("target", "t" * 3000)
    finally:
        subprocess.run(["umount", str(merged)], check=False)


INSIDE = """
set -e; cd "$1"; mkdir plain/upper plain/work mountpoint
"$2" -m cryptfs init --kdf-memory 64m --passfile passphrase vault > init.log 2>&1
"$2" -m cryptfs mount --engine "$3" --passfile passphrase vault mountpoint > mount.log 2>&1
mkdir mountpoint/upper mountpoint/work
for place in mountpoint plain; do
    mount -t overlay overlay -o "userxattr,lowerdir=lower,upperdir=$place/upper,workdir=$place/work" merged
    sh -c "$4" sh merged "$5" >&2
    ls -R merged; cat merged/appended; getfattr -d -m - "$place/upper/directory" 2> /dev/null | grep user
    umount merged
done
umount mountpoint
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_an_overlay_in_a_user_namespace(engine: str, tmp_path: Path) -> None:
    """As rootless containers have it: the vault is mounted in the namespace as well."""
    require_fuse(MountSpec(engine))
    for name in ("merged", "plain"):
        (tmp_path / name).mkdir()
    fill(tmp_path / "lower")
    (tmp_path / "passphrase").write_text("tests only\n")
    (tmp_path / "passphrase").chmod(0o600)
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", INSIDE),
            *("sh", str(tmp_path), sys.executable, engine, WORK.replace("chown 12:34 made", ":"), LONG),
        ],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    here, plain = done.stdout[: len(done.stdout) // 2], done.stdout[len(done.stdout) // 2 :]
    assert "second" in here and here == plain.replace("plain/upper", "mountpoint/upper")
