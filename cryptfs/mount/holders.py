"""Which processes use a directory or a filesystem: a cheap lsof, for messages.

Reads only links and texts under /proc, and the device number behind a link, which the kernel knows. It never
asks the mount itself, which may hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptfs.core.printable import shown
from cryptfs.storage.libc import statx_device

_SHOWN = 8
_PROC = Path("/proc")
_LINKS = (("cwd", "current directory"), ("root", "root directory"), ("exe", "running program"))


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that keeps a mount busy. uses: 'current directory', 'open file', 'mapped file' ..."""

    pid: int
    command: str
    uses: str


# ---- what a process uses

Test = Callable[[Path], bool]  # whether a link of a process leads there


def _use(process: Path, leads_there: Test, is_mapped: Callable[[bytes], bool]) -> str | None:
    for link, words in _LINKS:
        if leads_there(process / link):
            return words
    try:
        with os.scandir(process / "fd") as entries:
            if any(leads_there(Path(entry.path)) for entry in entries):
                return "open file"
    except OSError:
        pass
    try:
        mapped = (process / "maps").read_bytes()
    except OSError:
        return None
    return "mapped file" if any(is_mapped(line) for line in mapped.splitlines()) else None


def process_ids(proc: Path = _PROC) -> list[int]:
    """All processes, the oldest first, as far as numbers tell."""
    try:
        return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())
    except OSError:
        return []


def command_of(process: Path) -> str:
    """The name of a process (the process chose it); '?' if it is gone."""
    try:
        return os.fsdecode((process / "comm").read_bytes().removesuffix(b"\n"))
    except OSError:
        return "?"


def _find(leads_there: Test, is_mapped: Callable[[bytes], bool], proc: Path) -> Iterator[Holder]:
    for pid in process_ids(proc):
        uses = _use(proc / str(pid), leads_there, is_mapped)
        if uses is not None:
            yield Holder(pid, command_of(proc / str(pid)), uses)


# ---- by path: who keeps one mount busy


def _inside(target: str, mountpoint: str) -> bool:
    return target == mountpoint or target.startswith(mountpoint.rstrip("/") + "/")


def find_holders(mountpoint: str, proc: Path = _PROC) -> list[Holder]:
    """The processes that use the mount, by pid; only those that this user may inspect."""
    # The kernel writes a newline in a path as \012 here.
    wanted = os.fsencode(mountpoint.rstrip("/") + "/").replace(b"\n", b"\\012")

    def leads_there(link: Path) -> bool:
        try:
            return _inside(str(link.readlink()), mountpoint)
        except OSError:
            return False

    def is_mapped(line: bytes) -> bool:
        return wanted in line and line.split(maxsplit=5)[-1].startswith(wanted)

    return list(_find(leads_there, is_mapped, proc))


# ---- by device: who keeps a filesystem alive, whatever path leads to it, or none


def device_behind(link: Path) -> str | None:
    """'major:minor' of a link's target, without asking its filesystem; None if the system does not say."""
    try:
        major, minor = statx_device(link)
    except OSError:
        return None
    return f"{major}:{minor}"


def find_users(device: str, proc: Path = _PROC) -> list[Holder]:
    """The processes that use anything on a device, by pid; only those that this user may inspect."""
    major, _, minor = device.partition(":")
    wanted = b"%02x:%02x" % (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else b"none"

    def leads_there(link: Path) -> bool:
        return device_behind(link) == device

    def is_mapped(line: bytes) -> bool:
        fields = line.split(maxsplit=5)
        return len(fields) > 3 and fields[3] == wanted

    return list(_find(leads_there, is_mapped, proc))


def describe_holders(holders: list[Holder], *, commands: bool = True) -> str:
    """' by bash (pid 12, current directory), vim (...)', or ' by a process of another user'.

    Args: commands: whether to name the programs. Not in a log: one that runs from the mount has its name
                    from there.
    """
    if not holders:
        return " by a process of another user"
    names = [
        f"{shown(holder.command)} (pid {holder.pid}, {holder.uses})"
        if commands
        else f"pid {holder.pid} ({holder.uses})"
        for holder in holders[:_SHOWN]
    ]
    more = len(holders) - _SHOWN
    if more > 0:
        names.append(f"and {more} more")
    return " by " + ", ".join(names)
