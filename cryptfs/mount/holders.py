"""Which processes use a directory: a cheap lsof, for messages.

Reads only links and texts under /proc, never the mount itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a mount busy. uses: 'current directory', 'open file', 'mapped file' ..."""

    pid: int
    command: str
    uses: str


def _inside(target: str, mountpoint: str) -> bool:
    return target == mountpoint or target.startswith(mountpoint.rstrip("/") + "/")


def _link_inside(link: Path, mountpoint: str) -> bool:
    try:
        return _inside(str(link.readlink()), mountpoint)
    except OSError:
        return False


def _open_file(process: Path, mountpoint: str) -> bool:
    try:
        with os.scandir(process / "fd") as entries:
            return any(_link_inside(Path(entry.path), mountpoint) for entry in entries)
    except OSError:
        return False


def _mapped_file(process: Path, mountpoint: str) -> bool:
    try:
        raw = (process / "maps").read_bytes()
    except OSError:
        return False
    # The kernel writes a newline in a path as \012 here.
    wanted = os.fsencode(mountpoint.rstrip("/") + "/").replace(b"\n", b"\\012")
    return any(line.split(maxsplit=5)[-1].startswith(wanted) for line in raw.splitlines() if wanted in line)


def _use(process: Path, mountpoint: str) -> str | None:
    for link, words in (("cwd", "current directory"), ("root", "root directory"), ("exe", "running program")):
        if _link_inside(process / link, mountpoint):
            return words
    if _open_file(process, mountpoint):
        return "open file"
    if _mapped_file(process, mountpoint):
        return "mapped file"
    return None


def find_holders(mountpoint: str, proc: Path = Path("/proc")) -> list[Holder]:
    """The processes that this user may look into and that use the mount, by pid."""
    holders = []
    try:
        pids = sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    except OSError:
        return []
    for pid in pids:
        process = proc / str(pid)
        uses = _use(process, mountpoint)
        if uses is None:
            continue
        try:
            command = os.fsdecode((process / "comm").read_bytes()).strip()
        except OSError:
            command = "?"
        holders.append(Holder(pid, command, uses))
    return holders


def describe_holders(holders: list[Holder], *, commands: bool = True) -> str:
    """' by bash (pid 12, current directory), vim (...)', or that nothing could be seen.

    Args: commands: whether to name the programs. Not in a log: one that runs from the mount has its name
                    from there.
    """
    if not holders:
        return " (by a process of another user, or another mount below it)"
    names = [
        f"{holder.command} (pid {holder.pid}, {holder.uses})"
        if commands
        else f"pid {holder.pid} ({holder.uses})"
        for holder in holders[:_SHOWN]
    ]
    more = len(holders) - _SHOWN
    if more > 0:
        names.append(f"and {more} more")
    return " by " + ", ".join(names)
