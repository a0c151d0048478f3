"""Sees what a test does to the disk: Python reports each such call to its audit hooks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType

DISK_FIXTURES = frozenset({"tmp_path", "tmp_path_factory", "tmpdir", "tmpdir_factory"})
"""Fixtures that make a directory, used or not."""
_EVENTS = frozenset(
    {
        *("open", "os.listdir", "os.scandir", "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link"),
        *("os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.walk", "os.chdir"),
        *("os.getxattr", "os.setxattr", "os.listxattr", "os.removexattr"),
        *("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"),
        *("tempfile.mkstemp", "tempfile.mkdtemp", "socket.bind", "socket.connect"),
    }
)
"""A program that is started counts: its files are on the disk."""
_OURS = ("cryptfs", "tests")
_TOOLS = ("importlib", "hypothesis", "_pytest", "pluggy", "linecache")
"""They read sources and keep examples, whatever a test does."""

_watchers: list[list[str]] = []


def _is_ours() -> bool:
    """Whether our code makes the present call, and no tool on its way to it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package in _OURS and frame.f_code.co_filename != __file__:
            return True
        if package in _TOOLS:
            return False
        frame = frame.f_back
    return False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watchers and event in _EVENTS and _is_ours():
        for seen in _watchers:
            seen.append(f"{event}({', '.join(repr(each) for each in arguments[:2])})")


sys.addaudithook(_hook)


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """Collects the calls to the disk that our code makes meanwhile, in all threads."""
    seen: list[str] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)
