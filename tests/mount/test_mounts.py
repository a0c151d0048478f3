"""Reading /proc/self/mountinfo, and who keeps a mount busy."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.errors import MountError
from cryptfs.mount import mounts
from cryptfs.mount.holders import Holder, describe_holders, find_holders
from cryptfs.mount.mounts import Mount, mount_at, mounts_of, parse_mountinfo, unmount, wait_until

SAMPLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard
90 27 0:55 / /home/a\040b\134c rw,nosuid,nodev - fuse.cryptfs /vaults/tab\011new\012line ro,user_id=0
91 27 0:56 / /mnt/x rw - fuse.sshfs host:/ rw
"""


def use_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raw: bytes) -> None:
    sample = tmp_path / "mountinfo"
    sample.write_bytes(raw)
    monkeypatch.setattr(mounts, "MOUNTINFO", sample)


def test_fields_and_escapes() -> None:
    parsed = parse_mountinfo(SAMPLE)
    assert [mount.fs_type for mount in parsed] == ["proc", "ext4", "fuse.cryptfs", "fuse.sshfs"]
    assert parsed[1] == Mount("254:0", "/", ("rw", "relatime", "rw", "discard"), "ext4", "/dev/vda")
    ours = parsed[2]
    assert (ours.mountpoint, ours.source) == ("/home/a b\\c", "/vaults/tab\tnew\nline")
    assert ours.is_cryptfs
    assert ours.read_only
    assert ours.device == "0:55"


@pytest.mark.parametrize(
    "raw",
    [b"", b"\n", b"22 27 0:21 / /proc", b"1 2 3 4 5 6 7 8 9 10", b"1 2 3 4 5 6 - ", b"- - - - - - -"],
)
def test_broken_lines_are_left_out(raw: bytes) -> None:
    assert parse_mountinfo(raw) == []


@given(st.binary())
def test_no_text_breaks_the_parser(raw: bytes) -> None:
    parse_mountinfo(raw)


def kernel_escaped(raw: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes((byte,)) for byte in raw)


@given(
    st.binary(min_size=1).filter(lambda raw: b"\0" not in raw),
    st.binary(min_size=1).filter(lambda raw: b"\0" not in raw),
)
def test_any_path_survives(mountpoint: bytes, source: bytes) -> None:
    line = b"1 2 0:9 / /%b rw - fuse.cryptfs /%b rw" % (kernel_escaped(mountpoint), kernel_escaped(source))
    (mount,) = parse_mountinfo(line)
    assert os.fsencode(mount.mountpoint) == b"/" + mountpoint
    assert os.fsencode(mount.source) == b"/" + source


def test_finding_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    line = f"5 1 0:5 / {tmp_path}/m rw - fuse.cryptfs {tmp_path}/v rw\n".encode()
    upper = f"6 5 0:6 / {tmp_path}/m rw - fuse.sshfs other rw\n".encode()
    use_sample(monkeypatch, tmp_path, line)
    (tmp_path / "link").symlink_to(tmp_path / "m")
    found = mount_at(tmp_path / "link")
    assert found is not None
    assert found.mountpoint == f"{tmp_path}/m"
    assert mounts_of(tmp_path / "v") == [found]
    assert mount_at(tmp_path) is None
    use_sample(monkeypatch, tmp_path, line + upper)
    topmost = mount_at(tmp_path / "m")
    assert topmost is not None
    assert topmost.fs_type == "fuse.sshfs"


def test_a_system_without_mountinfo_has_no_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mounts, "MOUNTINFO", tmp_path / "missing")
    assert mount_at(tmp_path) is None


def test_unmount_refuses_what_is_not_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_sample(monkeypatch, tmp_path, f"6 5 0:6 / {tmp_path}/m rw - fuse.sshfs other rw\n".encode())
    with pytest.raises(MountError, match=r"type fuse\.sshfs"):
        unmount(tmp_path / "m")
    with pytest.raises(MountError, match="nothing is mounted there"):
        unmount(tmp_path)


def test_a_busy_mount_names_its_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_sample(monkeypatch, tmp_path, f"6 5 0:6 / {tmp_path} rw - fuse.cryptfs v rw\n".encode())

    def busy(_mountpoint: str, *, lazy: bool) -> None:
        raise OSError(16, "busy")

    monkeypatch.setattr(mounts, "detach", busy)
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as sleeper:
        try:
            with pytest.raises(
                MountError, match=rf"sleep \(pid {sleeper.pid}, current directory\)"
            ) as caught:
                unmount(tmp_path)
        finally:
            sleeper.kill()
    assert "--lazy" in str(caught.value)


def test_an_open_file_and_a_mapping_hold_a_mount(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(4096))
    with file.open("rb"):
        assert Holder(os.getpid(), find_own_name(), "open file") in find_holders(str(tmp_path))
    assert os.getpid() not in {holder.pid for holder in find_holders(str(tmp_path))}


def find_own_name() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_a_mapping_is_found_in_maps(tmp_path: Path) -> None:
    process = tmp_path / "proc" / "77"
    process.mkdir(parents=True)
    (process / "comm").write_text("mapper\n")
    (process / "maps").write_text("7f00-7f01 r--p 00000000 00:37 12                 /mnt/with space/file\n")
    assert find_holders("/mnt/with space", tmp_path / "proc") == [Holder(77, "mapper", "mapped file")]
    assert find_holders("/mnt/with", tmp_path / "proc") == []


def test_descriptions_stay_short() -> None:
    assert "another user" in describe_holders([])
    many = [Holder(pid, "cat", "open file") for pid in range(20)]
    assert describe_holders(many).endswith("and 12 more")


def test_waiting() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 5)
    assert not wait_until(lambda: False, 0.02)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOENT, "is missing. Load the kernel module, as root: modprobe fuse. In a container"),
        (errno.ENODEV, "modprobe fuse"),
        (errno.EPERM, "Operation not permitted. In a container, pass the device in: docker run --device"),
        (errno.EMFILE, "cannot be opened: Too many open files"),
    ],
)
def test_why_the_device_cannot_be_opened(code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a user may not is tried with a real one, in tests/e2e/test_cli_surroundings.py."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MountError, match=re.escape(says)):
        mounts.require_fuse_device()
