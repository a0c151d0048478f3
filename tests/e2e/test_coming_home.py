"""What a program has overwritten and closed is soon in its backing file: sync clients copy it."""

from __future__ import annotations

import os
import time

import pytest

from soaklib.sealed import Sealer
from tests.e2e.mounting import PASSPHRASE, Mounted

pytestmark = pytest.mark.serial

SOON_SECONDS = 3.0  # on an idle machine it takes 0.6 to 1.6: not in the second of the change
OLD = b"old " * 20_000
NEW = b"new " * 2_000


def test_a_closed_file_is_soon_whole_in_the_vault(own_mount: Mounted) -> None:
    path = own_mount.mountpoint / "doc"
    path.write_bytes(OLD)
    own_mount.remount()
    with path.open("r+b") as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())
    closed = time.monotonic()
    sealer = Sealer(own_mount.vault_dir, PASSPHRASE.encode())
    try:
        backing = sealer.entry("doc")
        while True:
            raw = backing.read_bytes()
            if sealer.settled(raw) and sealer.content(raw) == NEW + OLD[len(NEW) :]:
                break
            assert time.monotonic() - closed < SOON_SECONDS, "half of it is still in the journal"
            time.sleep(0.02)
    finally:
        sealer.close()
