"""Commands of the user's that run after a mount and before an unmount.

No shell reads them. The vault, the mountpoint and the event are in their environment, so a name is never a
part of a command.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from dataclasses import dataclass

from cryptfs.core.printable import shown

_SHELL = "/bin/sh"
_WITH_UMASK = 'umask "$0" && exec "$@"'  # the umask of a daemon is 0
_LAST_PAUSE = 0.05
_AFTER_TERM = 1.0  # seconds from SIGTERM to SIGKILL


def split_command(text: str) -> list[str]:
    """The words of a command, as a shell would split them.

    Raises: ValueError: it is empty, or a quote is open.
    """
    words = shlex.split(text)
    if not words:
        raise ValueError("the command is empty")
    return words


@dataclass(frozen=True, slots=True)
class Hook:
    """A command, and its surroundings.

    Args: words: the program and its arguments.   vault, mountpoint: absolute.   umask: of the command.
    """

    words: tuple[str, ...]
    vault: str
    mountpoint: str
    umask: int

    def run(self, event: str, seconds: float | None) -> str:
        """Run the command and wait for it; returns what went wrong, or ''.

        Args: event: the mount, or the reason of the unmount, for the command.
              seconds: after which the command and its children are ended; None is never.
        """
        environment = os.environ | {
            "CRYPTFS_VAULT": self.vault,
            "CRYPTFS_MOUNTPOINT": self.mountpoint,
            "CRYPTFS_EVENT": event,
        }
        name = shown(self.words[0])
        try:
            # The threads of a daemon block signals; a process from `subprocess` would keep that.
            pid = os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _WITH_UMASK, f"{self.umask:04o}", *self.words],
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, 2, 1),
                ],
                setpgroup=0,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
            )
        except OSError as error:
            return f"{name} cannot be run: {error.strerror}"
        try:
            status = _wait(pid, seconds)
        except BaseException:  # Ctrl-C; the command is in a group of its own
            _end(pid)
            raise
        if status is None:
            _end(pid)
            return f"{name} did not end within {seconds:.0f} s"
        if status == 0:
            return ""
        return f"{name} failed with " + (f"exit code {status}" if status > 0 else f"signal {-status}")


def _wait(pid: int, seconds: float | None) -> int | None:
    """The exit code of a child, negative for a signal; None if it did not end in time."""
    if seconds is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE)


def _end(pid: int) -> None:
    """End a child and its group, also those in it that outlive the child."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        if _is_gone(pid, _AFTER_TERM):
            return


def _is_gone(group: int, seconds: float) -> bool:
    """Wait for a child and all of its group. False: some are there yet, or nobody takes note of their end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):  # its end was noted before
            os.waitpid(group, os.WNOHANG)
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(_LAST_PAUSE / 10)
    return False
