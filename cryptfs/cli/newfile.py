"""Writes a file whole or not at all: an error, a full disk or Ctrl-C leave the former file as it was."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptfs.cli.exit_codes import CommandError, UsageProblem
from cryptfs.cli.params import shell_word, shown


@contextlib.contextmanager
def writing(place: Path) -> Iterator[Callable[[bytes], object]]:
    """Yields a function that writes; at the end the file gets its place, in one step, and is on disk.

    A device or a pipe in the file's place is written directly, and a symlink keeps leading to the file.

    Raises: CommandError: it cannot be written.
    """
    target = Path(os.path.realpath(place))
    if target.exists() and not target.is_file():
        with _opened(target, os.O_WRONLY, place) as fd:
            yield lambda data: _write(fd, data, place)
        return
    beside = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}.tmp")
    try:
        with _opened(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, place) as fd:
            yield lambda data: _write(fd, data, place)
            with _explaining(place):
                os.fsync(fd)
        with _explaining(place):
            beside.replace(target)
        with _opened(target.parent, os.O_RDONLY | os.O_DIRECTORY, place) as fd, _explaining(place):
            os.fsync(fd)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def refuse_no_file(place: Path, *, is_directory: bool = False) -> None:
    """Say that no file can be made there, before a person waits or types a passphrase for nothing.

    Args:   is_directory: it is to be a directory with files.
    Raises: UsageProblem.
    """
    if place.is_dir() and not is_directory:
        raise UsageProblem(f"{shown(place)} is a directory. Give the name of a file")
    parent = place.absolute().parent
    if not parent.is_dir():
        raise UsageProblem(
            f"{shown(place)}: the directory {shown(parent)} does not exist. To make it: "
            f"mkdir -p {shell_word(parent)}"
        )


def write_secret(place: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; on return it is on disk.

    Raises: CommandError: it exists, or cannot be written; then this leaves no file, nor does Ctrl-C.
    """
    try:
        with _opened(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, place, 0o600) as fd:
            try:
                _write(fd, content, place)
                with _explaining(place):
                    os.fsync(fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    place.unlink()
                raise
        with _opened(place.absolute().parent, os.O_RDONLY | os.O_DIRECTORY, place) as fd, _explaining(place):
            os.fsync(fd)
    except FileExistsError:
        raise CommandError(f"{shown(place)} exists, and is not replaced; choose another name") from None


@contextlib.contextmanager
def _opened(path: Path, flags: int, place: Path, mode: int = 0o666) -> Iterator[int]:
    with _explaining(place):
        fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, place: Path) -> None:
    with _explaining(place), memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


@contextlib.contextmanager
def _explaining(place: Path) -> Iterator[None]:
    """A call by descriptor knows no path, and a person does not know the file beside."""
    try:
        yield
    except (BrokenPipeError, FileExistsError):
        raise
    except OSError as error:
        former = "; the old file is unchanged" if place.is_file() else ""
        raise CommandError(f"{shown(place)}: cannot be written: {error.strerror}{former}") from None
