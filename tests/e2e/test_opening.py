"""Opening files that somebody else is closing: no program hears of it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

SIZE = 8 << 20  # sealing it takes the close a moment
ROUNDS = 200


def test_a_file_is_opened_while_its_writer_closes_it(on_mount: Path) -> None:
    """The close(2) of the writer returns before the daemon has sealed the file; a reader keeps it open.

    The kernel may be told ESTALE once, and looks the name up again; at the second one open(2) fails.
    """
    content = os.urandom(SIZE)
    path = on_mount / "file"
    for number in range(ROUNDS):
        path.write_bytes(content)
        with path.open("rb") as held:
            for pause in (0.0, 0.003):
                time.sleep(pause)
                try:
                    os.close(os.open(path, os.O_RDONLY))
                except OSError as error:
                    pytest.fail(f"round {number}: {error}")
            assert os.pread(held.fileno(), 10, SIZE - 10) == content[-10:]
        path.unlink()
