"""The command line in a process of its own, with as many workers as a test wants."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.commands import Outcome
from tests.support import child_environment


class Command:
    """A command at work. workers: 0 for one process.   slow: seconds that each file takes in a worker."""

    def __init__(
        self, workers: int, passfile: Path, *words: object, slow: float = 0.0, full: int = 0
    ) -> None:
        key = ("--passfile", str(passfile))
        numbers = (str(workers), str(slow), str(full))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.transfer.worker_program", *numbers, *map(str, words), *key],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )

    def workers(self, count: int) -> list[int]:
        """Their process ids, once so many are there."""
        pid = self.process.pid
        until = time.monotonic() + 30
        while time.monotonic() < until:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            if len(found) == count:
                return [int(each) for each in found]
            time.sleep(0.005)
        raise AssertionError(f"not {count} workers")

    def end(self) -> Outcome:
        """Wait for it."""
        out, err = self.process.communicate(timeout=60)
        return Outcome(self.process.returncode, out, err)


def outcome(workers: int, passfile: Path, *words: object, full: int = 0) -> Outcome:
    """Run a command to its end."""
    return Command(workers, passfile, *words, full=full).end()
