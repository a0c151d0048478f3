"""Processes beside this one: each has an interpreter and a core of its own, and does shares of a work.

They are forks, so they have what their parent had in its memory, keys included; nothing secret is sent. So
fork them before any thread runs. They end when their parent does, however it ends: the system sends a signal,
and nobody is left at the other end of their socket.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from cryptfs.signals import signal_soon
from cryptfs.storage.libc import end_with_parent
from cryptfs.transfer.waiting import WorkerDiedError

_LENGTH = struct.Struct("!I")
_EACH = 2  # shares that a worker has, so that the next one is there when one is done
_PATIENCE = 10.0  # seconds for the file that a worker has in hand
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

DoesShares = Callable[[Any], Any]
"""Does one share in a worker; takes and returns what pickle can carry."""


class _Stopped(BaseException):
    """In a worker: the parent wants no more."""


class _Worker:
    """One process. given: what to do with the result of each share that it has, the oldest first."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.channel = channel
        self.given: list[Callable[[Any], None]] = []


class Crew:
    """Some workers. Its methods belong to one thread.

    Args: count: of workers; fewer where the system gives no more processes.
          member: entered in each worker, around its `DoesShares`.
    """

    def __init__(self, count: int, member: Callable[[], AbstractContextManager[DoesShares]]) -> None:
        self._workers: list[_Worker] = []
        self._poll = select.poll()
        if threading.active_count() > 1:
            return  # a fork has no other threads, but their locks
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            for _ in range(count):
                worker = self._fork(member)
                self._workers.append(worker)
                self._poll.register(worker.channel, select.POLLIN)
        except OSError:
            pass  # the limit of processes: those that there are will do
        except BaseException:
            self.stop()
            raise

    def __bool__(self) -> bool:
        return bool(self._workers)

    def _fork(self, member: Callable[[], AbstractContextManager[DoesShares]]) -> _Worker:
        ours, its = socket.socketpair()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # none comes to a fork that is half ours
        try:
            pid = os.fork()
            if not pid:
                for each in (ours, *(worker.channel for worker in self._workers)):
                    each.close()
                _be_worker(its, member, before)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            its.close()
        return _Worker(pid, ours)

    # ---- shares

    def give(self, share: object, done: Callable[[Any], None]) -> None:
        """Have a share done. Waits while all workers have enough.

        Args:   done: called with the result, in this thread, by one of the calls here. It may give one more.
        Raises: WorkerDiedError.   Anything that `done` raises.
        """
        self._collect(0)
        while len((worker := min(self._workers, key=lambda each: len(each.given))).given) >= _EACH:
            self._collect(None)
        worker.given.append(done)
        try:
            _send(worker.channel, share)
        except OSError:
            raise self._died(worker) from None

    def finish(self) -> None:
        """Wait for all shares. Raises: as give."""
        while any(worker.given for worker in self._workers):
            self._collect(None)

    def _collect(self, timeout: float | None) -> None:
        """Take results. timeout: None waits for one."""
        while ready := self._poll.poll(timeout):
            timeout = 0
            worker = next(each for each in self._workers if each.channel.fileno() == ready[0][0])
            try:
                kind, result = _receive(worker.channel)
            except (OSError, EOFError):
                raise self._died(worker) from None
            if kind == "fault":
                raise WorkerDiedError(f"a worker process failed:\n{result}")
            # This may give one more share, and so take the result that another worker had a moment ago.
            worker.given.pop(0)(result)

    def _died(self, worker: _Worker) -> WorkerDiedError:
        self._workers.remove(worker)
        self._poll.unregister(worker.channel)
        worker.channel.close()
        _, status = os.waitpid(worker.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return WorkerDiedError(f"the worker process {worker.pid} {how}")

    # ---- the end

    def stop(self) -> None:
        """End all workers now; each clears away the file that it has in hand."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGTERM)
        self.close()

    def close(self) -> None:
        """End all workers when they have done their shares. Idempotent."""
        for worker in self._workers:
            with contextlib.suppress(OSError):
                worker.channel.shutdown(socket.SHUT_WR)
        while self._workers:
            worker = self._workers[-1]
            if not _has_ended(worker):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.channel.close()
            self._workers.pop()


def _has_ended(worker: _Worker) -> bool:
    """Wait until a worker closes its end; nobody wants its results. False: it does not within `_PATIENCE`."""
    poll = select.poll()
    poll.register(worker.channel, select.POLLIN)
    try:
        while poll.poll(_PATIENCE * 1000):
            _receive(worker.channel)
    except (OSError, EOFError):
        return True
    return False


def _send(channel: socket.socket, message: object) -> None:
    # Both ends may send at once: shares and results of `_EACH` fit the buffers of a socket.
    packed = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    channel.sendall(_LENGTH.pack(len(packed)) + packed)


def _receive(channel: socket.socket) -> Any:
    """Raises: EOFError: the other end is closed.   OSError."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    return pickle.loads(_exactly(channel, length))  # from a fork of this process


def _exactly(channel: socket.socket, size: int) -> bytes:
    got = channel.recv(size, socket.MSG_WAITALL)
    while len(got) < size:
        more = channel.recv(size - len(got), socket.MSG_WAITALL)
        if not more:
            raise EOFError
        got += more
    return got


def _be_worker(
    channel: socket.socket,
    member: Callable[[], AbstractContextManager[DoesShares]],
    mask: Set[int],
) -> NoReturn:
    """The whole life of a worker, in the fork."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends them to all: the parent decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _stop)
        sys.unraisablehook = _stop_again
        end_with_parent(signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()
        code = _work(channel, member)
    except _Stopped:
        code = 0
    finally:
        os._exit(code)


def _stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would come in the middle of cleaning up
    raise _Stopped


def _stop_again(what: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised in `__del__`; elsewhere it counts."""
    if not issubclass(what.exc_type, _Stopped):
        sys.__unraisablehook__(what)
        return
    signal.signal(signal.SIGTERM, _stop)
    signal_soon(signal.SIGTERM)


def _work(channel: socket.socket, member: Callable[[], AbstractContextManager[DoesShares]]) -> int:
    try:
        with member() as work:
            while True:
                try:
                    share = _receive(channel)
                except EOFError:
                    return 0
                _send(channel, ("done", work(share)))
    except (BrokenPipeError, ConnectionResetError):
        return 0  # the parent is gone
    except Exception:  # noqa: BLE001 - a fault in the program: the parent says so
        with contextlib.suppress(OSError):
            _send(channel, ("fault", traceback.format_exc()))
        return 1
