"""Deriving a key takes no time here: each passphrase is derived once for each salt."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from cryptfs.core.keys import passphrase_key


@functools.cache
def _derived(*arguments: bytes | int) -> tuple[int, ...]:
    return tuple(passphrase_key(*arguments))  # type: ignore[arg-type]


def quick_passphrase_key(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
    """A fresh object each time, since whoever gets it wipes it."""
    return bytes(bytearray(_derived(bytes(bytearray(passphrase)), salt, memory, passes)))


@pytest.fixture(autouse=True)
def _deriving_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    monkeypatch.setattr("cryptfs.core.slots.kdf.passphrase_key", quick_passphrase_key)
    return quick_passphrase_key
