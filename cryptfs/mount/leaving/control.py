"""The socket by which `cryptfs umount` has the daemon run the user's command before the unmount.

It is in the abstract namespace, like that of `cryptfs status`, and only if the mount has such a command. Both
sides ask the kernel for the other's user. So the command runs as the user who mounted, also if root unmounts.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Callable

_ADDRESS = "\0cryptfs-control/{device}"
_CREDENTIALS = struct.Struct("=iII")  # pid uid gid: struct ucred of unix(7)
_MAX_ANSWER = 64 * 1024
_SEND_SECONDS = 1.0
_PLAINLY, _LAZILY = b"p", b"l"


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a unix socket, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class ControlServer:
    """Runs something for the user of a mount and root, on request, from a separate thread.

    Args:   device: of the mount.
            prepare: called for each request, with whether the mount is to go even if it is busy;
                     returns what went wrong, or ''.
    Raises: OSError: there is such a socket already, or the system has none of this kind.
    """

    def __init__(self, device: str, prepare: Callable[[bool], str]) -> None:
        self._prepare = prepare
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(_ADDRESS.format(device=device))
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="cryptfs-control", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if peer_of(connection)[1] not in (0, os.geteuid()):
            return
        connection.settimeout(_SEND_SECONDS)
        wanted = connection.recv(1)
        if wanted in (_PLAINLY, _LAZILY):
            connection.sendall(json.dumps({"problem": self._prepare(wanted == _LAZILY)}).encode())

    def close(self) -> None:
        """Answer no more requests."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()


def ask_to_prepare(device: str, owner: int, seconds: float, *, lazily: bool) -> str:
    """Have the daemon of a mount run what comes before its unmount; returns what went wrong, or ''.

    Args: device, owner: of the mount.   seconds: to wait for the answer.   lazily: also if the mount is busy.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(_ADDRESS.format(device=device))
            if peer_of(connection)[1] != owner:
                return "somebody else answers in place of its daemon"
        except OSError:
            return ""  # it has nothing to run
        try:
            connection.sendall(_LAZILY if lazily else _PLAINLY)
            raw = b""
            while len(raw) < _MAX_ANSWER and (piece := connection.recv(65536)):
                raw += piece
            problem = json.loads(raw)["problem"]
        except TimeoutError:
            return "its daemon does not answer"
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return "its daemon gives no answer that makes sense"
        return str(problem)
