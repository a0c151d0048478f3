"""One request of the kernel, as a handler sees it, and the ways to answer it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Payload = bytes | memoryview | int | None
"""The answer of a handler: the body of the reply, an errno, or None for no reply now.

A handler may also raise an OSError; a returned errno costs less.
"""

Work = Callable[[], bytes]
"""Returns the body of a reply, or raises as a handler does."""

Notify = Callable[[int, bytes], None]
"""Sends the kernel a message without a request: code and payload. Raises: OSError: as the kernel answers."""

LARGE = 256 * 1024  # bytes of a read or write that is worth a second thread beside it


class Channel(Protocol):
    """The side that serves the requests: the connection."""

    def notify(self, code: int, payload: bytes) -> None:
        """See Notify."""

    def defer(self, unique: int, work: Work, *, in_turn: bool) -> None:
        """See Request.defer. unique: the number of the request."""


class Request:
    """One request after another of one thread, as the handlers see it.

    unique:   the kernel's number of the request.   pid: of the thread that asks; 0: nobody that we see.
    body:     the bytes after the header.   room: for a large reply.
    make_way: a handler calls it before it reads LARGE bytes or more. If the request itself is so large, the
              connection has done so.
    """

    __slots__ = ("_channel", "body", "gid", "make_way", "nodeid", "notify", "pid", "room", "uid", "unique")

    def __init__(self, room: memoryview, make_way: Callable[[], None], channel: Channel) -> None:
        self.unique = self.nodeid = self.uid = self.gid = self.pid = 0
        self.body = room[:0]
        self.room = room
        self.make_way = make_way
        self.notify: Notify = channel.notify
        self._channel = channel

    def defer(self, work: Work, *, in_turn: bool = False) -> None:
        """Let another thread answer: the answer waits for other requests. The handler returns None.

        Args: work: must not use this request, because its memory serves the next one.
              in_turn: one thread does such work in turn; else each has a thread of its own.
        """
        self._channel.defer(self.unique, work, in_turn=in_turn)


Handler = Callable[[Request], Payload]
Table = dict[int, Handler]
"""Which handler answers which opcode."""
