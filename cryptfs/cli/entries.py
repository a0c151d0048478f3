"""How one entry of a vault is shown: a line as of ls -l, and its fields in JSON."""

from __future__ import annotations

import functools
import grp
import json
import pwd
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cryptfs.cli.output import SCHEMA
from cryptfs.cli.params import shown
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.cli.inside import Problems
    from cryptfs.transfer.pathvault import PathVault
    from cryptfs.transfer.walking import Walked

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def target_of(opened: PathVault, seen: Walked, problems: Problems) -> bytes | None:
    """The target of a symlink; None for others, and for one that does not authenticate."""
    if seen.kind != stat.S_IFLNK:
        return None
    try:
        return opened.tree.symlinks.read(*seen.found)
    except (CryptfsError, OSError) as error:
        problems(seen.path, error)
        return None


def fields(seen: Walked, target: bytes | None) -> dict[str, Any]:
    """An entry in JSON."""
    st = seen.attributes.st
    found: dict[str, Any] = {
        "path": shown(seen.path),
        "type": TYPES.get(seen.kind, "unknown"),
        "size": seen.attributes.size if seen.kind in (stat.S_IFREG, stat.S_IFLNK) else None,
        "mode": f"{stat.S_IMODE(st.st_mode):04o}",
        "uid": st.st_uid,
        "gid": st.st_gid,
        "links": st.st_nlink,
        "mtime_ns": st.st_mtime_ns,
    }
    if target is not None:
        found["target"] = shown(target)
    return found


def long_line(seen: Walked, name: str, target: bytes | None) -> str:
    """A line as of ls -l, with the time as of --time-style=long-iso."""
    st = seen.attributes.st
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(st.st_mtime))
    size = seen.attributes.size if seen.kind in (stat.S_IFREG, stat.S_IFLNK) else 0
    arrow = "" if target is None else f" -> {shown(target)}"
    return (
        f"{stat.filemode(st.st_mode)} {st.st_nlink:>2} {_user(st.st_uid):<8} {_group(st.st_gid):<8} "
        f"{size:>10} {when} {name}{arrow}"
    )


@functools.cache
def _user(uid: int) -> str:
    try:
        return shown(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


@functools.cache
def _group(gid: int) -> str:
    try:
        return shown(grp.getgrgid(gid).gr_name)
    except KeyError:
        return str(gid)


class JsonList:
    """Writes a document of entries one by one: there may be more than memory holds."""

    def __init__(self) -> None:
        self._first = True

    def add(self, entry: dict[str, Any]) -> None:
        """One entry."""
        before = "\n    " if self._first else ",\n    "
        self._first = False
        sys.stdout.write(before + json.dumps(entry, ensure_ascii=False))


@contextmanager
def json_list(problems: Problems) -> Iterator[JsonList]:
    """A document with the fields schema, entries, and problems: path and reason of what cannot be read."""
    sys.stdout.write(f'{{\n  "schema": {SCHEMA},\n  "entries": [')
    yield JsonList()
    told = json.dumps(problems.told, ensure_ascii=False)
    sys.stdout.write(f'\n  ],\n  "problems": {told}\n}}\n')
