"""Log lines for the journal of systemd, with fields, by its native protocol: one datagram for each line.

The fields of a line, beside MESSAGE and PRIORITY: CRYPTFS_VAULT and CRYPTFS_MOUNTPOINT of the mount; and if
the line is about damage CRYPTFS_PATH (in the vault directory), CRYPTFS_CHUNK and CRYPTFS_REASON.

Source: systemd.io/JOURNAL_NATIVE_PROTOCOL.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path

from cryptfs.core.printable import fit_for_terminal
from cryptfs.errors import IntegrityError

SOCKET = Path("/run/systemd/journal/socket")
STREAM_VARIABLE = "JOURNAL_STREAM"
MOST_TEXT = 32 * 1024  # characters of a field; a datagram has to fit into the buffer of a socket
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def journal_listens(place: Path = SOCKET) -> bool:
    """Whether a journal takes datagrams; one that has ended may leave its socket behind."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tried:
            tried.connect(str(place))
    except OSError:
        return False
    return True


def stderr_is_journal() -> bool:
    """Whether stderr leads to the journal: then lines with fields are better than text."""
    try:
        st = os.fstat(2)
    except OSError:
        return False
    return os.environ.get(STREAM_VARIABLE) == f"{st.st_dev}:{st.st_ino}"


def packed(fields: Mapping[str, str]) -> bytes:
    """A datagram. A value of several lines is preceded by its length: NAME, newline, u64, value."""
    parts = []
    for name, value in fields.items():
        raw = value[:MOST_TEXT].encode(errors="backslashreplace")
        if b"\n" in raw:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(raw)) + raw + b"\n")
        else:
            parts.append(name.encode() + b"=" + raw + b"\n")
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Writes to the journal.

    Args:   fields: of every line.   place: the socket.
    Raises: OSError: no journal listens.
    """

    def __init__(self, fields: Mapping[str, str], place: Path = SOCKET) -> None:
        self._fields = {"SYSLOG_IDENTIFIER": "cryptfs", **fields}
        self._place = str(place)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(self._place)
        except OSError:
            self._socket.close()
            raise
        super().__init__()  # last: what is known to logging is closed when the process ends

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line. Called with the lock held; an error loses the line and nothing else."""
        try:
            datagram = packed(self._fields | self._of(record))
            try:
                self._socket.send(datagram)
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.ENOTCONN, errno.ECONNRESET):
                    raise
                self._socket.connect(self._place)  # the journal was restarted
                self._socket.send(datagram)
        except Exception:  # noqa: BLE001 - as the handlers of Python
            self.handleError(record)

    def _of(self, record: logging.LogRecord) -> dict[str, str]:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), _DEBUG)
        found = {
            "MESSAGE": fit_for_terminal(self.format(record)),
            "PRIORITY": str(priority),
            "LOGGER": record.name,
        }
        about = record.args[0] if isinstance(record.args, tuple) and record.args else None
        if isinstance(about, IntegrityError):
            found |= {"CRYPTFS_PATH": about.cipher_path, "CRYPTFS_REASON": about.reason}
            if about.chunk_index is not None:
                found["CRYPTFS_CHUNK"] = str(about.chunk_index)
        return {name: fit_for_terminal(value) for name, value in found.items()}

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()
