"""What a daemon's process takes from the system, and from the shell that started it."""

from __future__ import annotations

import os
import resource
import sys

# A limit of the shell that mounts is about its own programs, but the daemon works for all: it would end in
# the middle of a write, or refuse a file.
_UNLIMITED = (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)


def claim_resources() -> None:
    """Raise the limits of open descriptors, of the size of a file and of processor time, as far as that goes.

    The usual soft limit of 1024 descriptors is for programs that use select(2). Every file and directory that
    is open on the mount takes a descriptor here.
    """
    _raise(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    for limit in _UNLIMITED:
        if not _raise(limit, resource.RLIM_INFINITY):
            _raise(limit, resource.getrlimit(limit)[1])


def _raise(limit: int, wanted: int) -> bool:
    """Set both the soft and the hard limit; False if that is not allowed."""
    if resource.getrlimit(limit) == (wanted, wanted):
        return True
    try:
        resource.setrlimit(limit, (wanted, wanted))
    except (OSError, ValueError):
        return False
    return True


def remaining_limits() -> dict[str, int]:
    """Claim the resources, and say which limits stay: ulimit's '-f' in bytes, and '-t' in seconds."""
    claim_resources()
    found = {
        "-f": resource.getrlimit(resource.RLIMIT_FSIZE)[0],
        "-t": resource.getrlimit(resource.RLIMIT_CPU)[0],
    }
    return {name: value for name, value in found.items() if value != resource.RLIM_INFINITY}


def open_standard_streams() -> None:
    """Open /dev/null in place of stdin, stdout and stderr, if the caller has closed them.

    Else the next file that is opened gets the number, and what is printed goes into it. Python has None in
    place of a closed stream.
    """
    opened = os.open(os.devnull, os.O_RDWR)
    while opened <= 2:
        os.set_inheritable(opened, True)
        opened = os.open(os.devnull, os.O_RDWR)
    os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
