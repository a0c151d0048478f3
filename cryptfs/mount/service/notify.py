"""Telling the service manager that a mount is ready, by the protocol of sd_notify(3).

A manager such as systemd names a socket in NOTIFY_SOCKET; without it nothing is sent. Nothing here fails a
mount: a manager that does not listen times out by itself.
"""

from __future__ import annotations

import contextlib
import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(*assignments: str) -> bool:
    """Send a datagram of assignments, such as "READY=1"; whether it was sent."""
    address = os.environ.get(VARIABLE, "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # a name that is in no directory
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        sending.connect(address)
        sending.sendall("\n".join(each.replace("\n", " ") for each in assignments).encode())
        return True
    return False


def notify_ready(status: str) -> None:
    """The mount can be used; the daemon that says so is the main process of the service."""
    notify("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")


def notify_stopping() -> None:
    """The mount ends."""
    notify("STOPPING=1")
