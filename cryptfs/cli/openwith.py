"""`Open With` of file managers: cryptfs opens one directory with it, and does not become the program for all.

Thunar and others tell GIO which program a person used last. GIO puts it first among the user's programs, and
the first one opens every directory, unless the desktop or the user has named a default.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

ENTRY = "zz-cryptfs-directory.desktop"
_KIND = "inode/directory"
_ADDED = "[Added Associations]"
_MAX_SIZE = 1024 * 1024


def leave_directories() -> None:
    """Take the entry for directories out of the user's added programs; nothing happens if that fails.

    It stays in the menu, because its own MimeType puts it there. A default that the user chose also stays.
    With sudo the file may be another user's. It would become root's, and its user could not read it.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    config = base if base.startswith("/") else os.path.expanduser("~/.config")
    with contextlib.suppress(OSError):
        place = Path(os.path.realpath(Path(config, "mimeapps.list")))
        about = place.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > _MAX_SIZE or about.st_uid != os.geteuid():
            return
        before = place.read_bytes()
        after = without_entry(os.fsdecode(before))
        if os.fsencode(after) != before:
            _replace(place, os.fsencode(after), stat.S_IMODE(about.st_mode))


def without_entry(text: str) -> str:
    """The text of mimeapps.list without the entry among the added programs; all else is as it was."""
    kept, section = [], ""
    for line in text.split("\n"):
        if line.startswith("["):
            section = line.strip()
        kind, _, programs = line.partition("=")
        names = [each.strip() for each in programs.split(";")]
        if section == _ADDED and kind.strip() == _KIND and ENTRY in names:
            others = [each for each in names if each not in ("", ENTRY)]
            if others:
                kept.append(f"{_KIND}={';'.join(others)};")
        else:
            kept.append(line)
    return "\n".join(kept)


def _replace(place: Path, raw: bytes, mode: int) -> None:
    """Atomically. Raises: OSError."""
    beside = place.with_name(f"{place.name}.{os.urandom(4).hex()}.tmp")
    try:
        with beside.open("xb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
