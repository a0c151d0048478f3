"""What the files of the Syncthing soak hold, and how two copies of a vault are compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

UNDER_WAY = ".syncthing."
"""How the names of Syncthing's temporary files begin; it keeps them for a day."""
HOST_FILES = ("cryptfs.host.", "cryptfs.lock", "cryptfs.tmp")


def stamped(node: int, origin: str, sequence: int, size: int) -> bytes:
    """A content that says what it is."""
    line = f"{node} {origin} {sequence} {size}\n".encode()
    return line + hashlib.shake_128(line).digest(size)


def stamp_of(content: bytes) -> tuple[str, int] | None:
    """Origin and sequence number; None: it is not whole, or a mixture."""
    try:
        line, _, body = content.partition(b"\n")
        node, origin, sequence, size = line.decode().split(" ")
    except ValueError:
        return None
    whole = content == stamped(int(node), origin, int(sequence), int(size)) and len(body) == int(size)
    return (origin, int(sequence)) if whole else None


def is_on_its_way(content: bytes, versions: Iterable[bytes]) -> bool:
    """Whether a copy was taken while its file was written, as happens without encryption.

    Each byte is one that a version has at that offset, or a zero: the kernel sends what a program wrote
    page by page, and the file's length before that. At the end of a run no such copy may be left.
    """
    rest = {(at, byte) for at, byte in enumerate(content) if byte}
    for version in versions:
        if not rest:
            break
        rest = {(at, byte) for at, byte in rest if at >= len(version) or version[at] != byte}
    return not rest


def tree_of(vault: Path) -> dict[str, str]:
    """Paths and digests of the ciphertext, without what belongs to one machine or to Syncthing."""
    tree = {}
    for directory, names, files in os.walk(vault):
        base = os.path.relpath(directory, vault)
        if base == ".":
            names[:] = [name for name in names if name not in (".stfolder", ".stversions")]
        for name in names:
            tree[os.path.join(base, name)] = "directory"
        for name in files:
            if name.startswith(UNDER_WAY) or (base == "." and name.startswith(HOST_FILES)):
                continue
            try:
                digest = hashlib.sha256(Path(directory, name).read_bytes()).hexdigest()
            except OSError:
                digest = "gone"
            tree[os.path.join(base, name)] = digest
    return tree
