"""A mount, the ciphertext behind it, and what an outside actor and the tests do to both."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptfs.errors import IntegrityError
from soaklib.sealed import Sealer, replace
from tests.e2e.mounting import PASSPHRASE, Mounted

GRACE = 2.5
"""Seconds in which what changed outside must show."""

CONFLICT = re.compile("conflict")
"""How the name of a version that lost its place is known."""

# What the log may say of changes from outside: a module that makes them has these, by name, in its ALLOWED.
SETTLED = (
    r"WARNING .*: writing to it was interrupted",
    r"WARNING .* bytes after its end do not belong to it",
    r"WARNING .* removed \d+ bytes at its end \(",
)
KEPT = (r"WARNING .*: somebody else deleted or replaced it while a program was writing to it; kept as",)
IN_PLACE = (
    r"ERROR .*: somebody else has changed the file in place while it was open",
    r"ERROR .*: data that was only in the journal is lost",
)
CUT = (
    r"ERROR cryptfs\.mount\.errno_map: .*: the file was cut",
    r"ERROR cryptfs\.mount\.errno_map: .*: the file header has \d+ bytes instead of",
)
FORGED = (r"ERROR cryptfs\.mount\.errno_map: .*: the record does not authenticate",)
LEFT_OUT = (r"WARNING .* do(es)? not verify and (is|are) left out of the listing",)


def script(name: str, size: int = 40_000) -> bytes:
    """Content that says which it is, runs as a script, and has no period that a chunk could share."""
    head = f"#!/bin/sh\necho {name}\nexit 0\n".encode()
    lines = (f"# {name} {number:06}\n".encode() for number in range(size // 10))
    return (head + b"".join(lines))[:size]


def until(condition: Callable[[], bool], seconds: float = GRACE) -> bool:
    """Whether a condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@dataclass(frozen=True)
class Look:
    """All that may not change on a backing file that nobody meant."""

    raw: bytes
    mode: int
    owner: tuple[int, int]
    links: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...]

    @classmethod
    def at(cls, path: Path) -> Look:
        """As it is now."""
        st = path.lstat()
        xattrs = tuple((name, os.getxattr(path, name)) for name in sorted(os.listxattr(path)))
        return cls(path.read_bytes(), st.st_mode, (st.st_uid, st.st_gid), st.st_nlink, st.st_mtime_ns, xattrs)


class Place:
    """One directory, seen from both sides. shown: on the mount.   backing: in the vault."""

    def __init__(self, stage: Stage, path: str) -> None:
        self.stage = stage
        self.path = path
        self.shown = stage.mount.mountpoint / path
        self.sealer = stage.sealer

    @property
    def backing(self) -> Path:
        """The ciphertext of the directory."""
        return self.sealer.entry(self.path)

    def cipher(self, name: str) -> Path:
        """The backing path of a name."""
        return self.sealer.entry_in(self.backing, name)

    def plant(self, name: str, content: bytes, mode: int = 0o755) -> Path:
        """Another machine's new file comes in; returns its backing path."""
        target = self.cipher(name)
        replace(target, self.sealer.seal(content))
        target.chmod(mode)
        return target

    def write(self, name: str, content: bytes, mode: int = 0o755) -> Path:
        """A file made through the mount, closed and at rest; returns its backing path."""
        (self.shown / name).write_bytes(content)
        (self.shown / name).chmod(mode)
        assert until(lambda: self.content(name) == content), f"{name} did not come to rest"
        return self.cipher(name)

    def newer(self, name: str, content: bytes, *, new_epoch: bool = True) -> bytes:
        """Ciphertext of another version of a file that is there: the same file_id."""
        return self.sealer.seal(content, like=self.cipher(name).read_bytes(), new_epoch=new_epoch)

    def content(self, name: str) -> bytes | None:
        """What the backing file of a name holds, whole and at rest; None: it does not."""
        return self.content_of(self.cipher(name))

    def content_of(self, path: Path) -> bytes | None:
        """As `content`, of a backing path."""
        try:
            raw = path.read_bytes()
            return self.sealer.content(raw) if self.sealer.settled(raw) else None
        except (OSError, IntegrityError):
            return None

    def names(self) -> set[str]:
        """What is in the vault under this directory, by plaintext names."""
        return set(self.sealer.listing(self.backing))

    def looks(self, but: Iterable[str] = ()) -> dict[str, Look]:
        """Every file of the directory as it is now, but for these."""
        skipped = set(but)
        return {
            name: Look.at(path)
            for name, path in self.sealer.listing(self.backing).items()
            if name not in skipped and path.is_file()
        }

    def keeps(self, wanted: bytes, names: Iterable[str]) -> bool:
        """Whether content is under one of these names, or under one that says conflict."""
        found = self.sealer.listing(self.backing)
        candidates = [found[name] for name in names if name in found]
        candidates += [path for name, path in found.items() if CONFLICT.search(name)]
        return any(self.content_of(path) == wanted for path in candidates)


class Stage:
    """A mount for several tests, each with a directory of its own."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        self._count = 0

    @property
    def engine(self) -> str:
        """Which engine serves it."""
        return self.mount.spec.engine

    @property
    def read_only(self) -> bool:
        """Whether the mount is."""
        return "ro" in self.mount.spec.options.split(",")

    def place(self) -> Place:
        """A fresh directory. Another machine made it: a read-only mount shows it as well."""
        self._count += 1
        path = f"place{self._count:04}"
        self.sealer.new_directory(self.sealer.entry(path))
        place = Place(self, path)
        assert until(lambda: place.shown.is_dir()), "a new directory does not show"
        return place

    def close(self) -> None:
        """Forget the keys; the mount is its owner's."""
        self.sealer.close()
