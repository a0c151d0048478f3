"""Getting a mount: /dev/fuse and mount(2) as root, fusermount3 for everybody else."""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
from pathlib import Path

from cryptfs.errors import MountError
from cryptfs.mount.mounts import FUSE_DEVICE, FUSE_TYPE
from cryptfs.mount.options import UNKNOWN_TO_LIBFUSE, MountOptions, escape_value
from cryptfs.storage.libc import mount

_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "nosymfollow": 256,
    "noatime": 1024, "nodiratime": 2048,
}  # fmt: skip
_CLEARS = {"suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync", "symfollow": "nosymfollow"}
_DEFAULTS = ("nosuid", "nodev")


def wanted_flags(options: MountOptions) -> set[str]:
    """Names of the mount(2) flags: nosuid and nodev unless root says otherwise, and the requested ones."""
    wanted = set(_DEFAULTS)
    for name in options.extra:
        if name in _CLEARS:
            wanted.discard(_CLEARS[name])
        elif name in _FLAGS:
            wanted.add(name)
    if options.read_only:
        wanted.add("ro")
    return wanted


def open_mount(source: str, mountpoint: Path, options: MountOptions) -> int:
    """Mount and return the descriptor to serve.

    Args:   source: shown in mountinfo.   mountpoint: absolute.
    Raises: MountError: says what is missing or refused, and what to do.
    """
    if os.geteuid() == 0:
        return _mount_directly(source, mountpoint, options)
    return _mount_with_helper(source, mountpoint, options)


def _mount_directly(source: str, mountpoint: Path, options: MountOptions) -> int:
    try:
        rootmode = stat.S_IFMT(mountpoint.stat().st_mode)
    except OSError as error:
        raise MountError(f"{mountpoint}: {error.strerror}") from None
    if rootmode != stat.S_IFDIR:
        raise MountError(f"{mountpoint}: {os.strerror(errno.ENOTDIR)}")
    try:
        fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:  # just now it could be opened; see load_engine
        raise MountError(f"{FUSE_DEVICE} cannot be opened: {error.strerror}") from None
    data = f"fd={fd},rootmode={rootmode:o},user_id=0,group_id=0"
    if options.allow_other:
        data += ",allow_other"
    if options.kernel_checks_permissions:
        data += ",default_permissions"
    flags = sum(_FLAGS[name] for name in wanted_flags(options))
    try:
        mount(source, mountpoint, FUSE_TYPE, flags, data)
    except OSError as error:
        os.close(fd)
        raise MountError(f"{mountpoint}: the kernel refused to mount: {error.strerror}") from None
    return fd


def _mount_with_helper(source: str, mountpoint: Path, options: MountOptions) -> int:
    """fusermount3 mounts and passes the descriptor back over a socket."""
    import shutil
    import subprocess

    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise MountError("mounting as an ordinary user needs fusermount3; install it: apt-get install fuse3")
    flags = wanted_flags(options) - UNKNOWN_TO_LIBFUSE
    wanted = [*sorted(flags), f"fsname={escape_value(source)}", "subtype=cryptfs"]
    if options.allow_other:
        wanted.append("allow_other")
    if options.kernel_checks_permissions:
        wanted.append("default_permissions")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        environment = os.environ | {"_FUSE_COMMFD": str(theirs.fileno())}
        command = [helper, "-o", ",".join(wanted), "--", os.fspath(mountpoint)]
        done = subprocess.run(
            command, env=environment, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, check=False
        )
        theirs.close()
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise MountError(f"{mountpoint}: {said or 'fusermount refused to mount'}")
        return _receive(ours)


def _receive(connection: socket.socket) -> int:
    room = array.array("i", [0])
    _, messages, _, _ = connection.recvmsg(1, socket.CMSG_LEN(room.itemsize))
    for level, kind, data in messages:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            room = array.array("i", data[: room.itemsize])
            os.set_inheritable(room[0], False)
            return room[0]
    raise MountError("fusermount passed no descriptor")
