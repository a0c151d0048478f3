"""What cryptfs remembers of a vault outside of the vault: small files in the user's state directory.

`<vault_id>.json` holds what helps to open it, and `pins/` what it was (pins.py).

It only helps: a file that is missing, damaged, hostile or cannot be written is as if nothing was ever
remembered, and never an error. It holds no secret. A new field is
one more line in `Memory` and in `_checked`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_SIZE = 64 * 1024
_MAX_SLOT_ID = 2**32


@dataclass(frozen=True, slots=True)
class Memory:
    """What this user's machine knows of a vault. slot: id of the key slot that opened it last."""

    slot: int | None = None


def recall(vault_id: str) -> Memory:
    """The memory of a vault. vault_id: in hex, as in a config that was decoded."""
    return Memory(**_checked(read_fields(_name(vault_id))))


def remember(vault_id: str, **fields: int) -> None:
    """Write fields of Memory, if they are new; others stay, also those of a later version."""
    write_fields(_name(vault_id), fields)


def state_directory() -> Path | None:
    """Where it is; None if there is no such place.

    Root with the environment of a user (sudo) has none: it would leave root's files in the user's home.
    """
    base = os.environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        home = os.path.expanduser("~")  # Path.home raises where there is none
        if not home.startswith("/"):
            return None
        base = f"{home}/.local/state"
    place = Path(base) / "cryptfs"
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            nearest = next(each for each in (place, *place.parents) if each.exists())
            if nearest.stat().st_uid != 0:
                return None
    return place


def _name(vault_id: str) -> str:
    if not all(letter in "0123456789abcdef" for letter in vault_id):
        raise ValueError("a vault_id is in lower-case hex")
    return f"{vault_id}.json"


def read_fields(name: str) -> dict[str, Any]:
    """The JSON object in a file of the state directory; empty if there is none. Nothing in it is checked."""
    directory = state_directory()
    if directory is None:
        return {}
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(directory / name, flags)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return {}
            raw = os.read(fd, _MAX_SIZE + 1)
        finally:
            os.close(fd)
        found = json.loads(raw) if len(raw) <= _MAX_SIZE else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_fields(name: str, fields: Mapping[str, object]) -> None:
    """Give a file of the state directory these fields, if they are new; others stay. No error if it fails."""
    directory = state_directory()
    found = read_fields(name)
    if directory is None or found | dict(fields) == found:
        return
    raw = json.dumps(found | dict(fields), indent=2).encode() + b"\n"
    with contextlib.suppress(OSError):
        place = directory / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        _replace(place, raw)


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The fields that this version knows, if they can be true."""
    slot = found.get("slot")
    is_id = isinstance(slot, int) and not isinstance(slot, bool) and 0 <= slot < _MAX_SLOT_ID
    checked = {"slot": slot if is_id else None}
    assert checked.keys() == {each.name for each in dataclasses.fields(Memory)}
    return checked


def _replace(place: Path, raw: bytes) -> None:
    """Atomically. Raises: OSError."""
    beside = place.with_name(f"{place.name}.{os.urandom(4).hex()}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(place)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
