"""Where the programs begin: the scripts, and `python -m cryptfs`."""

import signal
from typing import NoReturn


def run() -> NoReturn:
    """Entry point of the scripts `cryptfs` and `mount.fuse.cryptfs`."""
    _end_in_silence()
    from cryptfs.cli import main

    main.run()


def run_as_gocryptfs() -> NoReturn:
    """Entry point of the script `cryptfs-gocryptfs`."""
    _end_in_silence()
    from cryptfs.cli import gocryptfs

    gocryptfs.run()


def _end_in_silence() -> None:
    """Ctrl-C ends the process with no word, until a command heeds it: Python would print a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
