"""Argon2id is derived once for each passphrase and salt: the tests unlock vaults many thousand times.

The keys are the real ones. New slots get salts from a list that starts again with each test, so most tests
need a key that an earlier one has derived. Daemons that the tests start share the keys, by files in a
directory that the environment names. Programs that a test runs as a person would derive for themselves.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from cryptfs.core.keys import ARGON2_SALT_SIZE, KEY_SIZE, passphrase_key
from cryptfs.core.slots import kdf
from cryptfs.unlock import passphrase as slots_of_passphrases

DIRECTORY = "CRYPTFS_TESTS_DERIVED"
"""The environment variable that names the directory."""

real_salt = slots_of_passphrases.fresh_salt
_known: dict[str, bytes] = {}  # keys; the passphrases are not kept
_given = 0
_shares = True


def quick_passphrase_key(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
    """As passphrase_key. A fresh object each time, since the caller wipes it."""
    asked = hashlib.blake2b(repr((passphrase, salt, memory, passes)).encode(), digest_size=16).hexdigest()
    if asked not in _known:
        found = _read(asked) if _shares else None
        _known[asked] = found or passphrase_key(passphrase, salt, memory, passes)
        if _shares and found is None:
            _write(asked, _known[asked])
    return bytes(bytearray(_known[asked]))


def _read(asked: str) -> bytes | None:
    with contextlib.suppress(OSError, KeyError):
        found = Path(os.environ[DIRECTORY], asked).read_bytes()
        return found if len(found) == KEY_SIZE else None  # another process is writing it
    return None


def _write(asked: str, key: bytes) -> None:
    with contextlib.suppress(OSError, KeyError):  # perhaps a daemon of another user
        Path(os.environ[DIRECTORY], asked).write_bytes(key)


def first_salt(*, touches_disk: bool) -> None:
    """A test begins. touches_disk: it may; otherwise it shares no keys."""
    global _given, _shares
    _given, _shares = 0, touches_disk


def next_salt() -> bytes:
    """Another one each time, until the next test."""
    global _given
    _given += 1
    return hashlib.blake2b(b"%d" % _given, digest_size=ARGON2_SALT_SIZE).digest()


def begin() -> None:
    """From here on, in this process."""
    setattr(kdf, "passphrase_key", quick_passphrase_key)  # noqa: B010 - mypy takes neither name for a variable
    setattr(slots_of_passphrases, "fresh_salt", next_salt)  # noqa: B010
