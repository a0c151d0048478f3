"""What programs do on the mount, each judged by the model at once."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from soaklib.model import DIRECTORY, GRACE, Content, Track, files_of

PAGE = 4096
_CHILD_SECONDS = 30
_CONFLICT_MAP = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as pages:
    sys.stdout.buffer.write(pages[:])
"""


class Finding(Exception):
    """The mount broke a rule."""


@dataclass
class Held:
    """A handle that stays open. opened: when.   paths: where its object may have been since."""

    fd: int
    opened: float
    paths: set[str]


def describe(content: Content) -> str:
    """Short, for a finding."""
    if content is None:
        return "nothing"
    if content == DIRECTORY:
        return "a directory"
    return f"{len(content)} bytes {content[:28]!r}...{content[-16:]!r}"


class Programs:
    """Operations by names that may be stale.

    Args: content: makes a new content for a path.   engine: of the mount; where it has limits they are named.
    """

    def __init__(
        self,
        mountpoint: Path,
        tracks: dict[str, Track],
        dice: random.Random,
        content: Callable[[str], bytes],
        engine: str,
    ) -> None:
        self.engine = engine
        self.mountpoint = mountpoint
        self.tracks = tracks
        self.dice = dice
        self.content = content
        self.held: list[Held] = []
        self.left: dict[
            str, float
        ] = {}  # paths that a file which is open was moved away from outside, and when
        self.marks: dict[str, str] = {}  # value of an attribute: the path that it was set on

    def at(self, path: str) -> Path:
        """On the mount."""
        return self.mountpoint / path

    # ---- looking

    def judge(self, path: str, began: float, seen: Content, how: str) -> None:
        """Content that came without an error."""
        track = self.tracks[path]
        allowed = track.allowed(began)
        if seen not in allowed:
            wanted = " or ".join(describe(content) for content in list(allowed)[:3]) or "an error"
            raise Finding(f"{how} {path}: {describe(seen)}; right is {wanted}{self._whose(path, seen)}")

    def _whose(self, path: str, seen: Content) -> str:
        if seen is None:
            return ""
        for other in self.tracks.values():
            for state in other.states:
                if seen in state.contents:
                    age = time.monotonic() - state.ended
                    return f" (it is what {other.path} held until {age:.1f} s ago)"
        return " (no path ever held that)"

    def failed(self, path: str, began: float, error: OSError, how: str) -> None:
        """An error that must be explained."""
        track = self.tracks[path]
        if self.engine == "fusepy" and error.errno == errno.ENODEV and how == "write (map)":
            return  # ENGINES, section 3: no shared mapping while an older file is open under the name
        if error.errno == errno.EIO and self.was_another_kind(path):
            return
        if isinstance(error, FileNotFoundError) and None in track.allowed(began):
            return
        if isinstance(error, IsADirectoryError) and DIRECTORY in track.allowed(began):
            return
        if isinstance(error, FileNotFoundError | NotADirectoryError | OSError) and track.may_fail(began):
            return
        raise Finding(f"{how} {path}: {error.strerror} ({error.errno}), which nothing explains")

    def look(self, path: str) -> Content:
        """What a name holds: its content, None or DIRECTORY. Raises: OSError."""
        try:
            return self.at(path).read_bytes()
        except FileNotFoundError:
            return None
        except IsADirectoryError:
            return DIRECTORY

    def read(self, path: str) -> str:
        """Read a file in one of several ways; settle what is ripe."""
        track, began = self.tracks[path], time.monotonic()
        way = self.dice.choice(
            (self.look, self.look, self._read_pieces, self._read_map, self._copied, self._run)
        )
        how = way.__name__.strip("_")
        if way == self._run and not all(
            (content or b"").startswith(b"#!") for content in track.allowed(began)
        ):
            return "nothing: no script"
        try:
            seen = way(path)
        except OSError as error:
            self.failed(path, began, error, how)
            return how
        if way == self._run:
            shown = {line_of(content) for content in track.allowed(began)}
            if seen not in shown:
                raise Finding(f"run {path}: says {seen!r}; right is one of {shown}")
            return how
        self.judge(path, began, seen, how)
        return how

    def _read_pieces(self, path: str) -> Content:
        fd = os.open(self.at(path), os.O_RDONLY)
        try:
            return read_all(fd, self.dice.choice((1000, PAGE, 100_000)))
        finally:
            os.close(fd)

    def _read_map(self, path: str) -> Content:
        if self.at(path).stat().st_size == 0:
            return self.look(path)
        words = [sys.executable, "-I", "-S", "-c", _CONFLICT_MAP, str(self.at(path))]
        done = subprocess.run(words, capture_output=True, timeout=_CHILD_SECONDS, check=False)
        if done.returncode:
            return self.look(path)  # SIGBUS or an error: reading says which
        return done.stdout

    def _copied(self, path: str) -> Content:
        target = self.mountpoint / "copy"
        source = os.open(self.at(path), os.O_RDONLY)
        try:
            if self.engine == "fusepy":
                os.fstat(source)  # as cp(1) does: else a handle on an older version may have cut the size
            copy = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                while os.copy_file_range(source, copy, 1 << 20):
                    pass
                return read_all(copy, 1 << 20)
            finally:
                os.close(copy)
        finally:
            os.close(source)

    def _run(self, path: str) -> Content:
        done = subprocess.run([self.at(path)], capture_output=True, timeout=_CHILD_SECONDS, check=False)
        if done.returncode:
            raise OSError(5, f"the script ended with {done.returncode}")
        return done.stdout

    def stat(self, path: str) -> str:
        """The size is one that a version had, where nothing is damaged."""
        track, began = self.tracks[path], time.monotonic()
        try:
            size = self.at(path).stat().st_size
        except OSError as error:
            self.failed(path, began, error, "stat")
            return "stat"
        allowed = track.allowed(began)
        if DIRECTORY in allowed or any(state.damaged for state in track.window(began)):
            return "stat"
        sizes = {len(content) for content in allowed if content is not None}
        if size not in sizes and size not in self._sizes_of_older(path):
            raise Finding(f"stat {path}: {size} bytes; right is one of {sorted(sizes)}")
        return "stat"

    def mark(self, path: str) -> str:
        """Set an attribute, or look whose it is."""
        track, began = self.tracks[path], time.monotonic()
        try:
            if track.exists and self.dice.random() < 0.5:
                value = f"{path} {self.dice.randrange(10**12)}"
                os.setxattr(self.at(path), "user.mark", value.encode())
                self.marks[value] = path
                track.placed = track.placed or None  # an empty file gets a header: an attribute needs its id
                return "setxattr"
            value = os.getxattr(self.at(path), "user.mark").decode()
        except OSError as error:
            if error.errno != 61:  # ENODATA
                self.failed(path, began, error, "xattr")
            return "getxattr"
        if self.marks.get(value) not in track.origins:
            raise Finding(f"getxattr {path}: the value was set on {self.marks.get(value)}")
        return "getxattr"

    def hold(self, path: str) -> str:
        """Open a handle that stays, or read through one that did."""
        if len(self.held) < 6 and self.dice.random() < 0.5:
            began = time.monotonic()
            try:
                fd = os.open(self.at(path), os.O_RDONLY)
            except OSError as error:
                self.failed(path, began, error, "open")
                return "open"
            self.held.append(Held(fd, began, {path}))
            return "open and hold"
        if not self.held:
            return "nothing"
        chosen = self.dice.choice(self.held)
        self.read_held(chosen)
        if self.dice.random() < 0.3:
            self.held.remove(chosen)
            with contextlib.suppress(OSError):
                os.close(chosen.fd)
        return f"read held {sorted(chosen.paths)[0]}"

    def read_held(self, chosen: Held) -> None:
        """A handle gives a whole version that its object or its path had since it was opened, or an error."""
        try:
            seen = read_all(chosen.fd, 1 << 17)
        except OSError:
            return
        known = [self.tracks[path].ever(chosen.opened) for path in chosen.paths]
        if not any(seen in contents for contents in known) and not self._ends_early(chosen, known, seen):
            paths = sorted(chosen.paths)
            raise Finding(f"a handle on {paths} gives {describe(seen)}{self._whose(paths[0], seen)}")

    # With fusepy a path is one inode: while a handle is open on an older file of it, the kernel takes the end
    # of either for the end of both, until it asks again. See docs/ENGINES.md, section 3.

    def _sizes_of_older(self, path: str) -> set[int]:
        """Lengths of the files that handles of this path may have, with fusepy."""
        if self.engine != "fusepy":
            return set()
        contents = [self.tracks[path].ever(held.opened) for held in self.held if path in held.paths]
        return {len(content) for each in contents for content in each if content is not None}

    def was_another_kind(self, path: str) -> bool:
        """Whether the path was a directory while a handle of it was open. With fusepy its inode is bad."""
        return self.engine == "fusepy" and any(
            path in held.paths and DIRECTORY in self.tracks[path].ever(held.opened) for held in self.held
        )

    def _ends_early(self, held: Held, known: list[frozenset[Content]], seen: bytes) -> bool:
        """Whether a handle gave the begin of what is right, shortly after an outside change, with fusepy."""
        moment = time.monotonic() - GRACE
        changed = any(state.outside and state.since > moment
                      for path in held.paths for state in self.tracks[path].states)  # fmt: skip
        begins = any(content is not None and content.startswith(seen) for each in known for content in each)
        return self.engine == "fusepy" and changed and begins

    # ---- changing

    def write(self, path: str) -> str:
        """Write by a name in one of several ways."""
        track = self.tracks[path]
        if track.busy or track.certain == DIRECTORY:
            return "nothing: busy"
        ways = (
            ["whole"] if track.last.damaged or not track.exists else ["whole", "append", "page", "cut", "map"]
        )
        way = self.dice.choice(ways)
        data = self.content(path)
        page = data[:PAGE].ljust(PAGE, b"#")
        effect = {
            "whole": lambda base: data,
            "append": lambda base: base + data[:3000],
            "page": lambda base: base[:PAGE] + page + base[2 * PAGE :],
            "map": lambda base: page + base[PAGE:],
            "cut": lambda base: (base + bytes(777))[:777],
        }[way]
        if way in ("page", "map") and any(
            len(base) < 2 * PAGE for base in track.allowed(time.monotonic()) if base is not None
        ):
            way, effect = "whole", lambda base: data
        began = time.monotonic()
        try:
            self._write(self.at(path), way, data)
        except OSError as error:
            self.failed(path, began, error, f"write ({way})")
            self.unsure(track, began, effect)
            return f"write ({way}) failed: {error.strerror}"
        self.wrote(track, began, effect, creates=way == "whole")
        return f"write ({way})"

    def _write(self, path: Path, way: str, data: bytes) -> None:
        if way == "cut":
            os.truncate(path, 777)
            return
        flags = {
            "whole": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
            "append": os.O_WRONLY | os.O_APPEND,
            "page": os.O_RDWR,
            "map": os.O_RDWR,
        }[way]
        fd = os.open(path, flags, 0o755)
        try:
            if way == "map":
                with mmap.mmap(fd, PAGE) as pages:
                    pages[:] = data[:PAGE].ljust(PAGE, b"#")
                    pages.flush()
            elif way == "page":
                os.pwrite(fd, data[:PAGE].ljust(PAGE, b"#"), PAGE)
            else:
                os.write(fd, data if way == "whole" else data[:3000])
            if self.dice.random() < 0.2:
                os.fsync(fd)
        finally:
            os.close(fd)

    def wrote(
        self, track: Track, began: float, effect: Callable[[bytes], bytes], *, creates: bool = False
    ) -> None:
        """A write that ended without an error, and what must be in the vault now."""
        window = track.window(began)
        bases = files_of(track.allowed(began))
        results = {effect(base) for base in bases} | ({effect(b"")} if creates else set())
        current = files_of(track.last.contents)
        if len(window) == 1 and not track.last.damaged:
            track.change(*results, outside=False)
            return
        track.change(*results, *track.last.contents, outside=True)
        track.claims.append(frozenset(results))
        if current:
            track.claims.append(frozenset(current | {effect(base) for base in current}))

    def unsure(self, track: Track, began: float, effect: Callable[[bytes], bytes]) -> None:
        """A write that failed on the way: what was outside is there still, or what the write made of it."""
        results = {effect(base) for base in files_of(track.allowed(began))}
        track.change(*track.last.contents, *results, b"", outside=True, damaged=track.last.damaged)

    def unlink(self, path: str) -> str:
        """Remove a name."""
        track, began = self.tracks[path], time.monotonic()
        if track.busy or track.certain == DIRECTORY:
            return "nothing: busy"
        try:
            self.at(path).unlink()
        except OSError as error:
            self.failed(path, began, error, "unlink")
            return f"unlink failed: {error.strerror}"
        if track.last.contents != {None}:
            track.change(None, outside=False)
        return "unlink"

    def rename(self, path: str) -> str:
        """Rename over another name."""
        source = self.tracks[path]
        target = self.tracks[self.dice.choice(sorted(self.tracks))]
        began = time.monotonic()
        if source is target or source.busy or target.busy or not source.exists or self.is_left(target.path):
            return "nothing: busy"
        if target.certain == DIRECTORY or len(target.window(began)) > 1 or len(source.window(began)) > 1:
            return "nothing: unsettled"
        try:
            self.at(path).rename(self.at(target.path))
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.failed(path, began, error, "rename")
            elif self.at(target.path).parent.is_dir():
                raise Finding(f"rename {path} to {target.path}: {error.strerror}") from None
            return f"rename failed: {error.strerror}"
        content = source.certain
        source.change(None, outside=False)
        target.change(content, outside=False)
        target.origins |= source.origins
        self.moved(path, target.path, outside=False)
        return f"rename to {target.path}"

    def moved(self, path: str, target: str, *, outside: bool = True) -> None:
        """A file has another name: a handle on it goes with it."""
        for held in self.held:
            if path in held.paths:
                held.paths.add(target)
                if outside:
                    self.left[path] = time.monotonic()

    def is_left(self, path: str) -> bool:
        """Whether the name may still mean a file that is elsewhere.

        Of a file that is open the kernel has one inode, wherever it is: until it asks for the old name again,
        after a second, what is done by that is done to the file, as if it had come before the move.
        """
        return time.monotonic() - self.left.get(path, -math.inf) < GRACE

    def close(self) -> None:
        """Close every handle, after one look through each."""
        for held in self.held:
            self.read_held(held)
            with contextlib.suppress(OSError):
                os.close(held.fd)
        self.held.clear()


def line_of(content: Content) -> bytes:
    """What a content says when it is run."""
    lines = content.split(b"\n", 2) if content is not None else []
    return lines[1].removeprefix(b"echo ") + b"\n" if lines[1:] and lines[1].startswith(b"echo ") else b""


def read_all(fd: int, step: int) -> bytes:
    """All of a file through a handle."""
    pieces, at = [], 0
    while piece := os.pread(fd, step, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)
