"""A derivation of a key takes its time once for each salt."""

from __future__ import annotations

import functools

import pytest

from cryptfs.core.keys import passphrase_key


@pytest.fixture(autouse=True)
def _deriving_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of slots come from a cache that no wiping reaches: each caller gets bytes of its own."""
    cached = functools.cache(passphrase_key)

    def derive(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
        return bytes(bytearray(cached(bytes(bytearray(passphrase)), salt, memory, passes)))

    monkeypatch.setattr("cryptfs.core.slots.kdf.passphrase_key", derive)
