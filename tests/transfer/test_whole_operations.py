"""Ctrl-C at many moments of an operation, in a program that goes on with the vault: nothing is half done."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest

import cryptfs
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import RedoLog
from tests.commands import Run
from tests.support import pattern
from tests.transfer.conftest import PASSPHRASE

pytestmark = pytest.mark.usefixtures("sigint")

CHUNK = 16 * 1024
OLD, NEW = pattern(2 * CHUNK + 100), pattern(5 * CHUNK)[::-1]
STEPS: list[tuple[Any, str]] = [
    (FileState, "begin_change"),
    (FileState, "_put_header"),
    (FileState, "_note_header"),
    (FileState, "emptied"),
    (FileState, "cut_to"),
    (FileState, "grew_to"),
    (FileState, "end_change"),
    (RedoLog, "_count_overlay"),
    (OpenFile, "write"),
    (os, "ftruncate"),
    (os, "pwritev"),
]
"""Between any two of them, what is in memory may not fit what is on the disk."""


class Interrupted:
    """SIGINT comes at the first call of a function within a `with` statement, before or after it.

    happened: whether it was called.
    """

    def __init__(self, where: Any, name: str, *, after: bool) -> None:
        self._where, self._name, self._after = where, name, after
        self._function = getattr(where, name)
        self.happened = False

    def _once(self, after: bool) -> None:
        if after == self._after and not self.happened:
            self.happened = True
            signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> None:
        def called(*args: Any, **options: Any) -> Any:
            self._once(False)
            result = self._function(*args, **options)
            self._once(True)
            return result

        setattr(self._where, self._name, called)

    def __exit__(self, *_: object) -> None:
        setattr(self._where, self._name, self._function)


@dataclass
class Work:
    """What a program does with a file of some name that is there, with OLD in it, and open.

    outcomes: what may be in it afterwards.
    """

    do: Callable[[cryptfs.Vault, str, IO[bytes]], None]
    outcomes: tuple[bytes, ...]
    mode: str = "r+b"
    buffering: int = 0

    def opened(self, vault: cryptfs.Vault, name: str) -> IO[bytes]:
        with vault.open(name, "wb") as file:
            file.write(OLD)
        return vault.open(name, self.mode, self.buffering)


def put(offset: int, data: bytes) -> Work:
    def do(_: cryptfs.Vault, __: str, file: IO[bytes]) -> None:
        file.seek(offset)
        file.write(data)

    return Work(do, (OLD, OLD[:offset] + data + OLD[offset + len(data) :]))


def truncated(size: int) -> Work:
    return Work(lambda _, __, file: (file.truncate(size), None)[1], (OLD, OLD[:size]))


def emptied(vault: cryptfs.Vault, name: str, _: IO[bytes]) -> None:
    with vault.open(name, "wb") as file:
        file.write(NEW)


def appended(_: cryptfs.Vault, __: str, file: IO[bytes]) -> None:
    file.write(NEW)
    file.flush()


WORKS = {
    "new chunks": put(2 * CHUNK, NEW),
    "in a chunk": put(100, b"changed"),
    "whole chunks": put(0, NEW[: 2 * CHUNK]),
    "to zero": truncated(0),
    "shorter": truncated(CHUNK + 5),
    "again": Work(emptied, (OLD, b"", NEW)),
    "append": Work(appended, (OLD, OLD + NEW), "ab", -1),
}


def carried_out(work: Callable[[], object], interrupted: Interrupted) -> bool:
    """Whether the interrupt came out of it, or soon afterwards."""
    try:
        with interrupted:
            work()
        for _ in range(5000 if interrupted.happened else 0):
            time.sleep(0.001)
    except KeyboardInterrupt:
        return True
    return False


def locks_are_free(vault: cryptfs.Vault) -> bool:
    """Whether the thread that empties the journal gets on."""
    checkpointer = vault.workers.checkpointer
    assert checkpointer is not None
    thread = threading.Thread(target=checkpointer.checkpoint, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def content(vault: cryptfs.Vault, name: str) -> bytes:
    with vault.open(name, "rb") as file:
        found: bytes = file.read()
    return found


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", WORKS)
def test_a_file(kind: str, after: bool, vault_dir: Path, run: Run) -> None:
    work, left = WORKS[kind], {}
    vault = cryptfs.Vault.unlock(vault_dir, PASSPHRASE)  # if this fails, to close it may take for ever
    for where, name in STEPS:
        interrupted = Interrupted(where, name, after=after)
        file = work.opened(vault, name)
        came = carried_out(lambda: work.do(vault, name, file), interrupted)  # noqa: B023 - done at once
        assert came == interrupted.happened
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert locks_are_free(vault), name
        file.close()
        found = left[name] = content(vault, name)
        assert found in work.outcomes, name
        assert vault.stat(name).st_size == len(found)
    vault.close()
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        for name, there in left.items():
            assert content(vault, name) == there
    assert run("fsck", "--deep", vault_dir).code == 0


@pytest.mark.parametrize("after", [False, True])
def test_the_vault_is_closed_before_it_comes(after: bool, vault_dir: Path) -> None:
    vault = cryptfs.Vault.unlock(vault_dir, PASSPHRASE)
    file = vault.open("file", "w")
    file.write("text")
    assert carried_out(vault.close, Interrupted(FileState, "grew_to", after=after))
    assert file.closed
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert content(vault, "file") == b"text"


def test_a_vault_that_is_unlocked_is_not_lost(vault_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = cryptfs.Vault.start

    def interrupted(self: cryptfs.Vault) -> None:
        signal.raise_signal(signal.SIGINT)
        start(self)

    monkeypatch.setattr(cryptfs.Vault, "start", interrupted)

    def enter() -> None:
        with cryptfs.Vault.unlock(vault_dir, PASSPHRASE):
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        enter()
    monkeypatch.undo()
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert vault.listdir() == []
