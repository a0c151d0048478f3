"""Worker processes alone: results, faults, deaths; the order of reports; and a fork of an open vault."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.errors import ChunkError
from cryptfs.transfer.crew import Crew
from cryptfs.transfer.shares import Turns
from cryptfs.transfer.waiting import WorkerDiedError, crew_size
from cryptfs.vfs.beside import beside, prepare
from cryptfs.vfs.vault import lock_holder
from tests.support import crash_in
from tests.transfer.conftest import PASSPHRASE


def member_of(work: Callable[[Any], Any], left: Path | None = None) -> Callable[[], Any]:
    """A member that does this, and says in a file that it left in good order."""

    @contextlib.contextmanager
    def member() -> Iterator[Callable[[Any], Any]]:
        try:
            yield work
        finally:
            if left is not None:
                with left.open("a") as file:
                    file.write("x")

    return member


def in_a_fork(work: Callable[[], object]) -> None:
    """Where no thread of the tests is."""
    crash_in(work)


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 4), (6, 6), (64, 8)])
def test_its_size(cores: int, workers: int) -> None:
    assert crew_size(cores) == workers


@pytest.mark.serial
def test_each_share_is_done_once(tmp_path: Path) -> None:
    def double(share: int) -> tuple[int, int]:
        time.sleep(0.002)  # else the first worker may be free again each time
        return os.getpid(), share * 2

    def work() -> None:
        got: list[tuple[int, int]] = []
        crew = Crew(3, member_of(double, tmp_path / "left"))
        for number in range(200):
            crew.give(number, got.append)
        crew.finish()
        crew.close()
        crew.close()
        assert sorted(result for _, result in got) == [2 * number for number in range(200)]
        assert len({pid for pid, _ in got}) == 3
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    in_a_fork(work)
    assert (tmp_path / "left").read_text() == "xxx"


@pytest.mark.serial
def test_a_fault_is_told_with_its_place() -> None:
    def failing(share: int) -> int:
        if share == 5:
            raise KeyError("no such thing")
        return share

    def work() -> None:
        crew = Crew(2, member_of(failing))
        with pytest.raises(WorkerDiedError, match=r"(?s)a worker process failed.*in failing.*no such thing"):
            for number in range(50):
                crew.give(number, lambda _: None)
            crew.finish()
        crew.stop()

    in_a_fork(work)


@pytest.mark.serial
def test_a_death_is_told_with_its_signal(tmp_path: Path) -> None:
    def dying(share: int) -> int:
        if share == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return share

    def work() -> None:
        crew = Crew(2, member_of(dying, tmp_path / "left"))
        with pytest.raises(WorkerDiedError, match=r"the worker process \d+ was killed by signal 9"):
            for number in range(50):
                crew.give(number, lambda _: None)
            crew.finish()
        crew.stop()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    in_a_fork(work)
    assert (tmp_path / "left").read_text() == "x"  # the other one


@pytest.mark.serial
def test_one_more_share_while_another_worker_has_a_result() -> None:
    """As `--verify` of a large file: its comparison is given when its last span is done."""

    def work() -> None:
        signal.alarm(30)  # it would wait for ever
        gate, opens = os.pipe()
        crew = Crew(2, member_of(lambda share: share if share == "more" else (share, os.read(gate, 1))[0]))
        got: list[str] = []

        def more(result: str) -> None:
            got.append(result)
            crew.give("more", got.append)

        crew.give("first", more)
        crew.give("second", got.append)
        os.write(opens, b"xx")
        while len(crew._poll.poll(0)) < 2:  # both have a result
            time.sleep(0.01)
        crew.finish()
        crew.close()
        assert sorted(got) == ["first", "more", "second"]

    in_a_fork(work)


@pytest.mark.serial
def test_errors_come_whole() -> None:
    def work() -> None:
        crew = Crew(
            1,
            member_of(lambda _: [ChunkError("why", cipher_path="a/b", chunk_index=7), OSError(2, "no", "f")]),
        )
        got: list[Any] = []
        crew.give(0, got.extend)
        crew.finish()
        crew.close()
        assert str(got[0]) == "a/b, chunk 7: why"
        assert isinstance(got[0], ChunkError)
        assert (type(got[1]), got[1].filename) == (FileNotFoundError, "f")

    in_a_fork(work)


@pytest.mark.serial
def test_a_fork_of_a_vault_leaves_lock_and_journal_alone(vault_dir: Path) -> None:
    """It makes files; at its end its keys are zeros, the parent's are not, and the vault stays locked."""

    def work() -> None:
        with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, start=False) as vault:
            assert prepare(vault)
            journals = [each.read_bytes() for each in sorted(vault_dir.glob("*journal*"))]
            assert journals

            def child() -> None:
                with beside(vault):
                    with vault.open("new", "w") as file:
                        file.write("by the fork")
                        file.flush()
                        file.seek(0)
                        file.write("BY")
                    key = vault.context.keys.content_key
                    assert any(key)
                assert not any(key)

            crash_in(child)
            assert any(vault.context.keys.content_key)
            assert [each.read_bytes() for each in sorted(vault_dir.glob("*journal*"))] == journals
            with pytest.raises(cryptfs.VaultLockedError):
                cryptfs.Vault.unlock(vault_dir, PASSPHRASE)
            with vault.open("new") as file:
                assert file.read() == "BY the fork"

    in_a_fork(work)
    assert lock_holder(vault_dir) is None


def test_problems_wait_for_earlier_ones() -> None:
    told: list[bytes] = []
    turns = Turns(lambda path, _: told.append(path))
    error = OSError()
    first = turns.next()
    turns.begin()
    turns.next()
    turns.tell(b"2", error)
    third = turns.next()
    turns.begin()
    turns.tell(b"3", error)
    turns.next()
    turns.tell(b"4", error)
    assert told == []
    turns.tell_at(first, b"1", error)
    assert told == [b"1"]
    turns.end(first)
    assert told == [b"1", b"2", b"3"]
    with turns.at(third):
        turns.tell(b"3 again", error)
    turns.tell_all()
    assert told == [b"1", b"2", b"3", b"3 again", b"4"]
