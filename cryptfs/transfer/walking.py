"""The entries below a place in the vault, damaged ones reported and passed over, and wildcards."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from cryptfs.errors import CryptfsError, NameError_
from cryptfs.storage.dirs import open_for_listing, scan
from cryptfs.transfer.places import Found, Places, names_of
from cryptfs.vfs.tree.attributes import Attributes
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.leftout import LeftOut
from cryptfs.vfs.tree.tree import Entry, VaultTree

OnProblem = Callable[[bytes, Exception], None]
"""Gets each entry that something is wrong with: its path, or its directory's, and why."""

_MAGIC = re.compile(r"[*?\[\\]")


class Walked(NamedTuple):
    """One entry of a walk. path: as the caller spells its top, from there on by plain names."""

    path: bytes
    found: Found
    attributes: Attributes
    depth: int

    @property
    def kind(self) -> int:
        """The file type bits of st_mode."""
        return stat.S_IFMT(self.attributes.st.st_mode)


class ReportedNames(LeftOut):
    """Reports names that do not authenticate, in place of the log. path: for all of them."""

    __slots__ = ("_path", "_report")

    def __init__(self, path: bytes, report: OnProblem) -> None:
        super().__init__("")
        self._path = path
        self._report = report

    def add(self, path: str, reason: str) -> None:
        self._report(self._path, NameError_(reason, cipher_path=path))


def entries(tree: VaultTree, directory: Directory, path: bytes, report: OnProblem) -> list[Entry]:
    """The entries of a directory, by name. path: of the directory, for reports. Raises: OSError."""
    left_out = ReportedNames(path, report)
    listing_fd = open_for_listing(directory.fd, keep_atime=True)
    try:
        return sorted(
            Entry(name, inode, kind)
            for entry_name, inode, kind in scan(listing_fd)
            if (name := tree.listed_name(directory, entry_name, left_out)) is not None
        )
    finally:
        os.close(listing_fd)


def joined(path: bytes, name: bytes) -> bytes:
    """A name below a path; b'' is the root of the vault."""
    return os.path.join(path, name) if path else name


def walk(
    tree: VaultTree,
    top: Found,
    path: bytes,
    report: OnProblem,
    *,
    enters: Callable[[Walked], bool] = lambda _: True,
) -> Iterator[Walked]:
    """The entry itself, and everything below it; a directory comes before what is in it.

    Args:   path: of the top, for `Walked.path`.   enters: whether to look into a directory.
    Raises: OSError, IntegrityError: the top cannot be looked at.
    """
    first = Walked(path, top, tree.stat(*top), 0)
    yield first
    waiting: list[Iterator[Walked]] = [_below(tree, first, report)] if _is_entered(first, enters) else []
    while waiting:
        seen = next(waiting[-1], None)
        if seen is None:
            waiting.pop()
            continue
        yield seen
        if _is_entered(seen, enters):
            waiting.append(_below(tree, seen, report))


def _is_entered(seen: Walked, enters: Callable[[Walked], bool]) -> bool:
    return seen.kind == stat.S_IFDIR and enters(seen)


def _below(tree: VaultTree, seen: Walked, report: OnProblem) -> Iterator[Walked]:
    try:
        directory = tree.directory(*seen.found)
        found = entries(tree, directory, seen.path, report)
    except (CryptfsError, OSError) as error:
        report(seen.path, error)
        return
    for entry in found:
        path = joined(seen.path, entry.name)
        try:
            attributes = tree.stat(directory, entry.name)
        except FileNotFoundError:
            continue  # somebody removed it meanwhile
        except (CryptfsError, OSError) as error:
            report(path, error)
            continue
        yield Walked(path, Found(directory, entry.name), attributes, seen.depth + 1)


# ---- wildcards


def is_pattern(path: bytes) -> bool:
    """Whether a path has wildcards, or a backslash that takes one its meaning."""
    return _MAGIC.search(os.fsdecode(path)) is not None


def matcher(pattern: str, *, ignore_case: bool = False) -> Callable[[bytes], bool]:
    r"""Whether a name fits: *, ?, [a-z], [!a-z]; a backslash takes the next letter as it is."""
    text = re.sub(r"\\(.)", lambda match: f"[{match[1]}]", pattern, flags=re.DOTALL)
    text = re.sub(r"\[\^", "[!", text)
    compiled = re.compile(fnmatch.translate(text), re.IGNORECASE if ignore_case else 0)
    return lambda name: compiled.match(os.fsdecode(name)) is not None


def expanded(tree: VaultTree, places: Places, pattern: bytes, report: OnProblem) -> list[bytes]:
    """The paths that a pattern fits, sorted, as a shell with globstar expands it.

    A name that begins with a dot needs a dot in the pattern. `**` is any number of directories, and follows
    no symlink. A path without wildcards, and a pattern that fits nothing, stay as they are.
    """
    if not is_pattern(pattern):
        return [pattern]
    begins = b"/" if pattern.startswith(b"/") else b""
    found = [begins]
    parts = names_of(pattern)
    for number, part in enumerate(parts, 1):
        leads_on = number < len(parts) or pattern.endswith(b"/")
        found = [
            path for top in found for path in _fitting(tree, places, top, part, report, directories=leads_on)
        ]
    return sorted({*found} - {b"", b"/"}) or [pattern]


def _fitting(
    tree: VaultTree, places: Places, top: bytes, part: bytes, report: OnProblem, *, directories: bool
) -> Iterator[bytes]:
    if not is_pattern(part):
        path = joined(top, part)
        if _exists(tree, places, path, directories=directories):
            yield path
        return
    try:
        here = places.directory(top)
        if part == b"**":
            yield top
            for seen in walk(tree, places.find(top), top, report, enters=lambda seen: not _is_hidden(seen)):
                if seen.depth and not _is_hidden(seen) and not (directories and seen.kind != stat.S_IFDIR):
                    yield seen.path
            return
        fits, dotted = matcher(os.fsdecode(part)), part.startswith((b".", b"\\."))
        for entry in entries(tree, here, top, report):
            if fits(entry.name) and (dotted or not entry.name.startswith(b".")):
                path = joined(top, entry.name)
                if not directories or _exists(tree, places, path, directories=True):
                    yield path
    except (CryptfsError, OSError) as error:
        report(top, error)


def _is_hidden(seen: Walked) -> bool:
    return bool(seen.depth) and seen.found.name.startswith(b".")


def _exists(tree: VaultTree, places: Places, path: bytes, *, directories: bool) -> bool:
    try:
        mode = tree.stat(*places.find(path, follow=directories)).st.st_mode
    except OSError:
        return False
    return not directories or stat.S_ISDIR(mode)
