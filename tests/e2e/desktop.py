"""A stand-in for logind and a screen saver, which sends the real signals on real buses.

It runs under dbus-run-session, which gives it a session bus, and starts a second bus as the system's. It
prints the addresses, and a line for each thing that a client does: `inhibited`, `released`. Each line of
stdin is one thing that happens: see `happen`. `dbus-run-session -- python -m tests.e2e.desktop`
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor
from jeepney.io.blocking import DBusConnection, open_dbus_connection

LOGIN = "org.freedesktop.login1"
ROOT = "/org/freedesktop/login1"
SESSION = f"{ROOT}/session/_37"
USER = f"{ROOT}/user/_0"
MANAGER = f"{LOGIN}.Manager"
SESSION_ID = "7"


def say(*words: object) -> None:
    print(*words, flush=True)


@contextlib.contextmanager
def a_bus() -> Iterator[str]:
    """A message bus, as dbus-run-session makes one; its address."""
    command = ["dbus-daemon", "--session", "--nofork", "--print-address=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        try:
            yield daemon.stdout.readline().strip()
        finally:
            daemon.terminate()


class Logind:
    """Answers what clients of logind ask."""

    def __init__(self, connection: DBusConnection) -> None:
        self.connection = connection
        self.state = "active"
        self.is_service = False  # the client, which then is in no session
        self.is_user_here = False  # so that a service has a session of its user to follow
        self.has_polkit = True  # which says that ordinary users may delay the sleep

    def serve(self) -> None:
        """Until the bus is gone."""
        with contextlib.suppress(OSError, EOFError):
            while True:
                message = self.connection.receive()
                if message.header.message_type is MessageType.method_call:
                    self.connection.send(self._answer(message))

    def _answer(self, message: Message) -> Message:
        fields, body = message.header.fields, message.body
        member = fields[HeaderFields.member]
        if member in ("GetSessionByPID", "GetSession") and not self.is_service:
            return new_method_return(message, "o", (SESSION,))
        if member == "GetUser":
            return new_method_return(message, "o", (USER,))
        if member == "Get" and fields[HeaderFields.path] == USER:
            shown = (SESSION_ID, SESSION) if self.is_user_here else ("", "/")
            return new_method_return(message, "v", (("(so)", shown),))
        if member == "Get" and fields[HeaderFields.path] == SESSION:
            return new_method_return(message, "v", (("s", {"State": self.state, "Id": SESSION_ID}[body[1]]),))
        if member == "Inhibit" and not self.has_polkit:
            return new_error(message, "org.freedesktop.DBus.Error.AccessDenied")
        if member == "Inhibit":
            assert (body[0], body[3]) == ("sleep", "delay"), body
            reader, writer = os.pipe()
            threading.Thread(target=self._wait, args=(reader,), daemon=True).start()
            say("inhibited")
            return new_method_return(message, "h", (FileDescriptor(writer),))
        return new_error(message, "org.freedesktop.DBus.Error.UnknownMethod")

    def _wait(self, reader: int) -> None:
        """Until the client has closed its end: as logind does."""
        select.select([reader], [], [])
        os.close(reader)
        say("released")

    def emit(self, path: str, interface: str, member: str, signature: str | None = None, *body: Any) -> None:
        self.connection.send(new_signal(DBusAddress(path, interface=interface), member, signature, body))

    def happen(self, what: str) -> None:
        """Send what logind sends when this happens."""
        manager: dict[str, tuple[Any, ...]] = {
            "sleep": ("PrepareForSleep", "b", True),
            "wake": ("PrepareForSleep", "b", False),
            "shutdown": ("PrepareForShutdown", "b", True),
            "removed": ("SessionRemoved", "so", SESSION_ID, SESSION),
            "removed other": ("SessionRemoved", "so", "8", f"{ROOT}/session/_38"),
        }
        if what in ("no session", "no polkit"):
            self.is_service = what == "no session"
            self.has_polkit = what != "no polkit"
            say(what)
        elif what == "login":
            self.is_user_here = True
            self.emit(ROOT, MANAGER, "SessionNew", "so", SESSION_ID, SESSION)
        elif what in manager:
            self.emit(ROOT, MANAGER, *manager[what])
        elif what in ("Lock", "Unlock"):
            self.emit(SESSION, f"{LOGIN}.Session", what)
        elif what == "lock other":
            self.emit(f"{ROOT}/session/_38", f"{LOGIN}.Session", "Lock")
        elif what == "closing quietly":
            self.state = "closing"
        elif what in ("closing", "hint"):
            self.state = "closing" if what == "closing" else self.state
            changed = {"Active": ("b", False)} if what == "closing" else {"LockedHint": ("b", True)}
            body: tuple[Any, ...] = (f"{LOGIN}.Session", changed, [])
            self.emit(SESSION, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as", *body)


def main() -> None:
    """Until stdin ends."""
    with a_bus() as system:
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = system
        on_system = open_dbus_connection("SYSTEM", enable_fds=True)
        on_system.send_and_get_reply(message_bus.RequestName(LOGIN))
        logind = Logind(on_system)
        threading.Thread(target=logind.serve, daemon=True).start()
        stranger = open_dbus_connection("SYSTEM")
        on_session = open_dbus_connection("SESSION")
        say(json.dumps({"system": system, "session": os.environ["DBUS_SESSION_BUS_ADDRESS"]}))
        for line in sys.stdin:
            what = line.strip()
            if what.startswith("saver"):
                _, interface, active = what.split()
                path = DBusAddress(f"/{interface.replace('.', '/')}", interface=interface)
                on_session.send(new_signal(path, "ActiveChanged", "b", (active == "on",)))
            elif what.startswith("stranger to"):
                # Straight to a client, past what it subscribed to: any program may.
                client = what.split()[-1]
                for path, member in ((ROOT, "PrepareForSleep"), (SESSION, "Lock")):
                    interface = MANAGER if path == ROOT else f"{LOGIN}.Session"
                    signal = new_signal(
                        DBusAddress(path, interface=interface),
                        member,
                        "b" if path == ROOT else None,
                        (True,) if path == ROOT else (),
                    )
                    signal.header.fields[HeaderFields.destination] = client
                    stranger.send(signal)
            else:
                logind.happen(what)


if __name__ == "__main__":
    main()
