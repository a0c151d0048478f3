"""The socket by which `cryptfs umount` has the daemon run the user's command before the unmount.

It is there only if the mount has such a command. The command runs as the user who mounted, also if root
unmounts.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

from cryptfs.mount.service.localsocket import LocalServer, peer_of

_ADDRESS = "\0cryptfs-control/{device}"
_MAX_ANSWER = 64 * 1024
_PLAINLY, _LAZILY = b"p", b"l"


class ControlServer(LocalServer):
    """Runs something for the user of a mount and root, on request.

    Args:   device: of the mount.
            prepare: called for each request, with whether the mount is to go even if it is busy;
                     returns what went wrong, or ''.
    Raises: OSError: as LocalServer.
    """

    def __init__(self, device: str, prepare: Callable[[bool], str]) -> None:
        self._prepare = prepare
        super().__init__(_ADDRESS.format(device=device), "cryptfs-control", self._run)

    def _run(self, connection: socket.socket) -> None:
        wanted = connection.recv(1)
        if wanted in (_PLAINLY, _LAZILY):
            connection.sendall(json.dumps({"problem": self._prepare(wanted == _LAZILY)}).encode())


def ask_to_prepare(device: str, owner: int, seconds: float, *, lazily: bool) -> str:
    """Have the daemon of a mount run what comes before its unmount; returns what went wrong, or ''.

    Args: device, owner: of the mount.   seconds: to wait for the answer.   lazily: also if the mount is busy.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        try:
            connection.connect(_ADDRESS.format(device=device))
            if peer_of(connection)[1] != owner:
                return "a process of another user answers instead of its daemon"
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
            return "its daemon gave an invalid answer"
        return str(problem)
