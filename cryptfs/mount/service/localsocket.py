"""A socket by which commands ask the daemon of a mount.

It is in the abstract namespace, and its name holds the mount's device number. So there is no file to place,
to protect or to leave behind. Both sides ask the kernel for the other's user.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

SEND_SECONDS = 1.0
_CREDENTIALS = struct.Struct("=iII")  # pid uid gid: struct ucred of unix(7)
_TOO_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_FULL_SECONDS = 0.1


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Process and user at the other end of a unix socket, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class LocalServer:
    """Answers the user of this process and root, one after the other, from a thread of its own.

    Args:   address: of the socket.   name: of the thread.
            answer: called with each connection of these users; an OSError in it ends that connection.
    Raises: OSError: there is such a socket already, or the system has none of this kind.
    """

    def __init__(self, address: str, name: str, answer: Callable[[socket.socket], None]) -> None:
        if not hasattr(socket, "SO_PEERCRED"):
            raise OSError(errno.ENOSYS, "this system does not show which user connects to a socket")
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.bind(address)
            self._socket.listen(4)
        except OSError:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if error.errno not in _TOO_FULL:
                    return  # closed
                time.sleep(_FULL_SECONDS)  # programs may have all descriptors; later some are free again
                continue
            with connection, contextlib.suppress(OSError):
                if peer_of(connection)[1] in (0, os.geteuid()):
                    connection.settimeout(SEND_SECONDS)
                    self._answer(connection)

    def close(self) -> None:
        """Stop answering."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()
        self._thread.join(SEND_SECONDS)
