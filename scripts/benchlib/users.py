"""Measuring as an ordinary user, though root starts the bench: what is measured never runs as root then.

the process of root -- fork -- becomes the user: vaults, daemons, peers and workloads are its own
  |  does what needs root: empties caches, reads what a daemon has written
  |  at the end: tables and files
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchlib import machine

_WORD = 64  # bytes of a question and of its answer
FUSE_DEVICE = Path("/dev/fuse")
_LOOK = 0.2  # seconds between two looks whether the user's process has ended
_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "PYTHONPATH", "PYTHONSAFEPATH", "COLUMNS")
"""What the user's process keeps of root's environment."""


class Rights:
    """What needs rights over the machine, by the process that asks; root may do all of it."""

    def drop_caches(self) -> bool:
        """See machine.drop_caches."""
        return machine.drop_caches()

    def bytes_written(self, pid: int) -> int | None:
        """See machine.bytes_written."""
        return machine.bytes_written(pid)


class RightsOfRoot(Rights):
    """The same by way of root's process, at the other end of a channel."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def _ask(self, *question: object) -> object:
        self._channel.send(json.dumps(question).encode())
        return json.loads(self._channel.recv(_WORD) or b"null")  # nothing: root's process has ended

    def drop_caches(self) -> bool:
        return bool(self._ask("drop"))

    def bytes_written(self, pid: int) -> int | None:
        found = self._ask("written", pid)
        return found if isinstance(found, int) else None


@dataclass(frozen=True)
class User:
    """Somebody on the system."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(name: str) -> User:
    """By the name or number. Raises: ValueError: there is none, or only root can become that user."""
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        raise ValueError(f"there is no user {name!r}") from None
    if found.pw_uid != os.geteuid() and os.geteuid() != 0:
        raise ValueError(f"only root can become {found.pw_name}")
    groups = [each.gr_gid for each in grp.getgrall() if found.pw_name in each.gr_mem]
    return User(found.pw_name, found.pw_uid, found.pw_gid, tuple({found.pw_gid, *groups}))


def this_user() -> str:
    """The name of the one who runs this."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def as_user(user: User, work: Callable[[Rights], bytes]) -> bytes:
    """What `work` returns in a process of the user, with a home of its own that is empty.

    Raises: SystemExit: it ended otherwise; what there was to say has been said.
    """
    home = tempfile.mkdtemp(prefix="cryptfs-bench-home-")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        os.chown(home, user.uid, user.gid)
        with tempfile.TemporaryFile() as answer, ours:
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                ours.close()
                _work_and_exit(user, home, lambda: answer.write(work(RightsOfRoot(theirs))), answer.flush)
            theirs.close()
            code = _serve(pid, ours)
            if code:
                raise SystemExit(code)
            answer.seek(0)
            return answer.read()
    finally:
        shutil.rmtree(home, ignore_errors=True)


# ---- the process of root


def _serve(pid: int, channel: socket.socket) -> int:
    """Answer until the user's process has ended; its exit code."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    try:
        while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
            if poll.poll(_LOOK * 1000):
                question = channel.recv(_WORD)
                if not question:  # the user's process is at its end
                    ended = os.waitpid(pid, 0)
                    break
                channel.send(json.dumps(_answer(*json.loads(question))).encode())
    except BaseException as error:
        channel.close()
        if not isinstance(error, KeyboardInterrupt):  # Ctrl-C reaches both
            os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)  # it takes its mounts away
        raise
    return os.waitstatus_to_exitcode(ended[1])


def _answer(what: str, *arguments: int) -> object:
    return machine.drop_caches() if what == "drop" else machine.bytes_written(*arguments)


# ---- the process of the user


def _work_and_exit(user: User, home: str, *steps: Callable[[], object]) -> NoReturn:
    code = 1
    try:
        _become(user, home)
        for step in steps:
            step()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - shown here, since nobody is above
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _become(user: User, home: str) -> None:
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME=home, USER=user.name, LOGNAME=user.name)
    os.chdir(home)


def require_usable(name: str, directories: list[Path], *, mounts: bool) -> None:
    """For the user's process. Raises: SystemExit: it cannot run cryptfs, write in a directory, or mount.

    mounts: whether it has to.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import cryptfs.cli.main"], capture_output=True, check=False
        )
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] if done.returncode else ""
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise SystemExit(
            f"bench: {name} cannot run {sys.executable} with cryptfs ({reason}): keep this repository where "
            "all users can read it, with an environment of /usr/bin/python3 (CRYPTFS_PYTHON, CRYPTFS_VENV)"
        )
    for directory in directories:
        if not os.access(directory, os.W_OK | os.X_OK):
            raise SystemExit(f"bench: {name} may not write in {directory}")
    if mounts:
        try:
            os.close(os.open(FUSE_DEVICE, os.O_RDWR))
        except OSError as error:
            raise SystemExit(
                f"bench: {name} cannot open {FUSE_DEVICE} ({error.strerror}), and so not mount: as root, "
                f"chmod 666 {FUSE_DEVICE}"
            ) from None
