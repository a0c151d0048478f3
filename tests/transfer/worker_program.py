"""The command line with as many workers as a test wants.

Arguments: how many, seconds that each file takes in one, after how many files its disk is full (0: never),
the command.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def _main() -> int:
    import cryptfs.cli.transfer as command
    from cryptfs.cli.main import main
    from cryptfs.transfer import waiting
    from cryptfs.transfer.entrycopy import EntryCopy

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may do so under nohup
    workers, slow, full = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    waiting.crew_size = lambda cores: workers
    command._ENOUGH = 1
    parent, copied = os.getpid(), [0]
    copy = EntryCopy.copy

    def worked(self: Any, item: Any, *, fresh: bool) -> None:
        if os.getpid() != parent:
            copied[0] += 1
            if full and copied[0] > full:
                raise OSError(28, "No space left on device", "cipher name")
            time.sleep(slow)
        copy(self, item, fresh=fresh)

    EntryCopy.copy = worked  # type: ignore[method-assign]
    return main(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(_main())
