"""Daemons for the end-to-end tests, forked by a process that has loaded cryptfs already.

Hundreds of mounts would else spend more time on loading modules than on what is tested. The commands
themselves, started as people start them, are in the tests of the commands.

test -- order, stdout, stderr, a socket -->  forker -- fork --> daemon
test <-- by that socket: the process id, and at its end the exit code -- forker
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_PROJECT = Path(__file__).parents[2]
_LARGEST_ORDER = 128 * 1024  # bytes, the environment included
_NUMBER = 16  # bytes of a process id or exit code, as text
_STOP_SECONDS = 10.0
_LOADED = ("cryptfs.mount.native.engine", "cryptfs.mount.fusepy.engine", "tests.e2e.daemon")


class Daemon:
    """A process that somebody else has forked; for tests as a Popen is.

    Args: stdout: the reading end of a pipe.   told: where its process id and its exit code arrive.
    """

    def __init__(self, stdout: IO[bytes], told: socket.socket) -> None:
        self.stdout = stdout
        self.returncode: int | None = None
        self._told = told
        self.pid = int(told.recv(_NUMBER))
        self._pidfd = os.pidfd_open(self.pid)

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or the negative number of a signal. Raises: subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"daemon {self.pid}", timeout or 0.0)
            said = self._told.recv(_NUMBER)
            assert said, "the forker has ended before its daemon"
            self.returncode = int(said)
            self._told.close()
            os.close(self._pidfd)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens to one that has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class _Forker:
    """The process that forks: started with the first daemon, one for each process of tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def start(self, order: Mapping[str, Any], stderr: int, environment: Mapping[str, str]) -> Daemon:
        """As start_daemon."""
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        message = json.dumps({"order": order, "environment": dict(environment)}).encode()
        try:
            with there, self._lock:
                socket.send_fds(self._connection(), [message], [writing, stderr, there.fileno()])
        finally:
            os.close(writing)
        return Daemon(os.fdopen(reading, "rb"), here)

    def _connection(self) -> socket.socket:
        if self._orders is None or self._owner != os.getpid():  # a fork of the tests needs its own
            self._orders, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._owner = os.getpid()
            with there:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.e2e.forking", str(there.fileno())],
                    pass_fds=[there.fileno()],
                    stdin=subprocess.DEVNULL,
                    cwd=_PROJECT,
                    env=os.environ | {"PYTHONPATH": str(_PROJECT)},
                    start_new_session=True,  # Ctrl-C is for the tests, which end their mounts themselves
                )
            atexit.register(self._stop, self._owner)
        return self._orders

    def _stop(self, owner: int) -> None:
        if owner == os.getpid() and self._orders is not None and self._process is not None:
            self._orders.close()
            self._process.wait(_STOP_SECONDS)


_forker = _Forker()


def start_daemon(order: Mapping[str, Any], stderr: int, environment: Mapping[str, str]) -> Daemon:
    """A daemon in a process of its own, as `python -m tests.e2e.daemon ORDER` would be.

    Args: order: of tests.e2e.daemon.   stderr: a descriptor for its log.
    """
    return _forker.start(order, stderr, environment)


@dataclass(frozen=True)
class _Request:
    """What a daemon begins with: its order and environment, and its descriptors."""

    message: bytes
    stdout: int
    stderr: int


class _Server:
    """In the forker: a daemon for each order, and word of its end."""

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._living: dict[int, socket.socket] = {}
        self._woken, self._waking = socket.socketpair()
        for each in (self._woken, self._waking):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)

    def serve(self) -> _Request | None:
        """None when the tests are gone; in a forked process, what it has to do."""
        while True:
            ready, _, _ = select.select([self._orders, self._woken], [], [])
            if self._woken in ready:
                self._reap()
            if self._orders in ready:
                message, descriptors, _, _ = socket.recv_fds(self._orders, _LARGEST_ORDER, 3)
                if not message:
                    return None
                stdout, stderr, told = descriptors
                pid = os.fork()
                if not pid:
                    os.close(told)
                    self._forget()
                    return _Request(message, stdout, stderr)
                os.close(stdout)
                os.close(stderr)
                self._living[pid] = socket.socket(fileno=told)
                self._living[pid].send(str(pid).encode())

    def _forget(self) -> None:
        """In the forked process: nothing of the forker stays."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._orders, self._woken, self._waking, *self._living.values()):
            each.close()

    def _reap(self) -> None:
        self._woken.recv(4096)
        while self._living:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            with self._living.pop(pid) as told, contextlib.suppress(OSError):  # nobody may ask any more
                told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _main(orders: int) -> None:
    for module in _LOADED:
        importlib.import_module(module)
    request = _Server(socket.socket(fileno=orders)).serve()
    if request is None:
        return
    for descriptor, place in ((request.stdout, 1), (request.stderr, 2)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    what = json.loads(request.message)
    os.environ.clear()
    os.environ.update(what["environment"])
    importlib.import_module("tests.e2e.daemon").main(json.dumps(what["order"]))


if __name__ == "__main__":
    _main(int(sys.argv[1]))
