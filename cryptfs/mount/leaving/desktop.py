"""What logind and the desktop say over D-Bus: the machine sleeps, the screen is locked, the user leaves.

    system bus    org.freedesktop.login1 (logind): PrepareForSleep, PrepareForShutdown, SessionRemoved; Lock,
                  Unlock and LockedHint of the session. A delay lock keeps the machine awake until the
                  vault is closed. A service is in no session: it follows one of its user, also a later one
    session bus   ActiveChanged of org.freedesktop.ScreenSaver and those of desktops; its end is a logout

Of the system bus only messages of logind itself count: anybody may send others. Source:
org.freedesktop.login1(5).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptfs.errors import MountError

if TYPE_CHECKING:
    from jeepney import Message
    from jeepney.io.blocking import DBusConnection

log = logging.getLogger("cryptfs.mount")

SLEEP, LOCK, LOGOUT = "sleep", "lock", "logout"
REASONS = (SLEEP, LOCK, LOGOUT)

_LOGIN = "org.freedesktop.login1"
_LOGIN_PATH = "/org/freedesktop/login1"
_MANAGER = f"{_LOGIN}.Manager"
_SESSION = f"{_LOGIN}.Session"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_SAVERS = ".ScreenSaver"  # of org.freedesktop, org.gnome, org.mate, org.cinnamon, org.xfce
_REPLY_SECONDS = 5.0
_LOOK = 30.0  # seconds between two looks whether the session is closing: logind sends no signal for that
_RECONNECT = 10.0
_CLOSING = "closing"
_ERROR = "org.freedesktop.DBus.Error"
_REFUSALS = (f"{_ERROR}.AccessDenied", f"{_ERROR}.InteractiveAuthorizationRequired")

Tell = Callable[[str, bool], None]
"""Called with a reason, and whether it begins or ends; from threads of the desktop."""


class BusError(Exception):
    """A bus answered with an error, or not at all."""


class RefusedError(BusError):
    """This user may not do that."""


class _Bus:
    """One connection. What comes while a reply is awaited is kept for `next`."""

    def __init__(self, kind: str) -> None:
        try:
            from jeepney import DBusErrorResponse
            from jeepney.io.blocking import open_dbus_connection
        except ImportError:
            raise MountError(
                "--unmount-on needs jeepney; install it: pip install 'cryptfs[desktop]'"
            ) from None
        try:
            self._connection: DBusConnection = open_dbus_connection(kind, enable_fds=kind == "SYSTEM")
        except (OSError, KeyError, ValueError, RuntimeError, EOFError, DBusErrorResponse) as error:
            raise BusError(getattr(error, "strerror", None) or str(error)) from None
        self._waiting: deque[Message] = deque()

    def call(self, name: str, path: str, interface: str, member: str, signature: str, *body: object) -> Any:
        """Call a method; the body of its reply. Raises: BusError."""
        from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call

        address = DBusAddress(path, bus_name=name, interface=interface)
        message = new_method_call(address, member, signature or None, body)
        serial = next(self._connection.outgoing_serial)
        deadline = time.monotonic() + _REPLY_SECONDS
        try:
            self._connection.send(message, serial=serial)
            while True:
                found = self._connection.receive(timeout=max(0.0, deadline - time.monotonic()))
                if found.header.fields.get(HeaderFields.reply_serial) == serial:
                    break
                self._waiting.append(found)
        except (OSError, EOFError, ValueError) as error:
            raise BusError(f"{member}: {error or type(error).__name__}") from None
        if found.header.message_type is MessageType.error:
            name = found.header.fields.get(HeaderFields.error_name)
            raise (RefusedError if name in _REFUSALS else BusError)(f"{member}: {name}")
        return found.body

    def bus(self, member: str, signature: str, *body: object) -> Any:
        """Call the bus itself."""
        name = "org.freedesktop.DBus"
        return self.call(name, "/org/freedesktop/DBus", name, member, signature, *body)

    def subscribe(self, **rule: str) -> None:
        """Have signals sent here."""
        self.bus(
            "AddMatch", "s", ",".join(f"{key}='{value}'" for key, value in rule.items()) + ",type='signal'"
        )

    def next(self, seconds: float | None) -> Message | None:
        """The next message; None if there is none in time. Raises: OSError, EOFError: the bus is gone."""
        if self._waiting:
            return self._waiting.popleft()
        try:
            return self._connection.receive(timeout=seconds)
        except TimeoutError:
            return None

    def hang_up(self) -> None:
        """Wake the thread that waits, and end the connection."""
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()


def _signal(message: Message) -> tuple[str, str, str, str]:
    """(sender, path, interface, member) of a signal; '' for what is missing, and for other messages."""
    from jeepney import HeaderFields, MessageType

    if message.header.message_type is not MessageType.signal:
        return "", "", "", ""
    fields = message.header.fields
    sender, path, interface, member = (
        str(fields.get(field, ""))
        for field in (HeaderFields.sender, HeaderFields.path, HeaderFields.interface, HeaderFields.member)
    )
    return sender, path, interface, member


class _Watch:
    """A bus, and the thread that listens to it."""

    def __init__(self, reasons: frozenset[str], tell: Tell) -> None:
        self.reasons = reasons
        self._tell = tell
        self.bus: _Bus | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"cryptfs-{self.kind.lower()}-bus", daemon=True
        )

    kind = ""

    def connect(self) -> None:
        """Raises: BusError: there is nobody to listen to."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def tell(self, reason: str, begins: bool) -> None:
        """Tell of a reason, if somebody wants to know."""
        if reason in self.reasons:
            self._tell(reason, begins)

    def close(self) -> None:
        """Listen no longer."""
        self.ended.set()
        if self.bus is not None:
            self.bus.hang_up()
            if self._thread.is_alive():
                self._thread.join(_REPLY_SECONDS)
            self.bus.close()

    def _run(self) -> None:
        while not self.ended.is_set():
            try:
                self._listen()
            except (BusError, OSError, EOFError, ValueError) as error:
                if self.ended.is_set():
                    return
                self.lost(str(error))
            while not self.ended.wait(_RECONNECT):
                with contextlib.suppress(BusError):
                    self.connect()
                    break

    def _listen(self) -> None:
        while self.bus is not None:
            message = self.bus.next(_LOOK if LOGOUT in self.reasons else None)
            if message is None:
                self.look()
            else:
                self.heard(message)

    def look(self) -> None:
        """Nothing was said for a while."""

    def heard(self, message: Message) -> None:
        """Act upon a message."""
        raise NotImplementedError

    def lost(self, why: str) -> None:
        """The bus is gone."""
        if self.bus is not None:
            self.bus.close()
        log.warning("lost the connection to the %s bus (%s); trying to connect again", self.kind.lower(), why)


class _Logind(_Watch):
    """logind, on the system bus. has_session: whether it knows the session in which somebody mounted."""

    kind = "SYSTEM"

    def __init__(self, reasons: frozenset[str], tell: Tell) -> None:
        super().__init__(reasons, tell)
        self._owner = ""
        self._session = ""
        self._session_id = ""
        self._is_own = False  # this process is in that session, and not in a service of the user
        self._inhibitor: Any = None
        self._lock = threading.Lock()  # of the inhibitor

    @property
    def has_session(self) -> bool:
        return bool(self._session)

    def connect(self) -> None:
        self.bus = bus = _Bus(self.kind)
        (self._owner,) = bus.bus("GetNameOwner", "s", _LOGIN)
        bus.subscribe(sender="org.freedesktop.DBus", member="NameOwnerChanged", arg0=_LOGIN)
        bus.subscribe(sender=_LOGIN)
        self._find_session()
        if SLEEP in self.reasons:
            self._inhibit()

    def _call(
        self, member: str, signature: str, *body: object, path: str = _LOGIN_PATH, interface: str = _MANAGER
    ) -> Any:
        assert self.bus is not None
        return self.bus.call(_LOGIN, path, interface, member, signature, *body)

    def _property(self, path: str, interface: str, name: str) -> Any:
        ((_, value),) = self._call("Get", "ss", interface, name, path=path, interface=_PROPERTIES)
        return value

    def _find_session(self) -> None:
        """That of this process; else the one of the environment; else the graphical one of the user."""
        ways: tuple[Callable[[], str], ...] = (
            lambda: str(self._call("GetSessionByPID", "u", os.getpid())[0]),
            lambda: str(self._call("GetSession", "s", os.environ.get("XDG_SESSION_ID", ""))[0]),
            lambda: str(
                self._property(self._call("GetUser", "u", os.getuid())[0], f"{_LOGIN}.User", "Display")[1]
            ),
        )
        self._session = self._session_id = ""
        for number, way in enumerate(ways):
            with contextlib.suppress(BusError, ValueError, TypeError, IndexError):
                found = way()
                self._session_id = str(self._property(found, _SESSION, "Id"))
                self._session = found
                self._is_own = number < len(ways) - 1
                return

    def _inhibit(self) -> None:
        """Ask logind to wait, before the machine sleeps, until we let go."""
        (descriptor,) = self._call(
            "Inhibit", "ssss", "sleep", "cryptfs", "unmounts a vault before the machine sleeps", "delay"
        )
        with self._lock:
            self._inhibitor, old = descriptor, self._inhibitor
        if old is not None:
            old.close()

    def let_sleep(self) -> None:
        """From any thread: the machine need not wait for us."""
        with self._lock:
            inhibitor, self._inhibitor = self._inhibitor, None
        if inhibitor is not None:
            inhibitor.close()

    def heard(self, message: Message) -> None:
        sender, path, interface, member = _signal(message)
        body = message.body
        if sender == "org.freedesktop.DBus" and member == "NameOwnerChanged" and body[0] == _LOGIN:
            self._owner = str(body[2])
            if self._owner and SLEEP in self.reasons:  # a new one
                self._inhibit()
            return
        if not sender or sender != self._owner:
            return
        if (interface, member) == (_MANAGER, "PrepareForSleep"):
            self.tell(SLEEP, bool(body[0]))
            if not body[0] and SLEEP in self.reasons:
                self._inhibit()
        elif (interface, member) == (_MANAGER, "PrepareForShutdown"):
            self.tell(LOGOUT, bool(body[0]))
        elif (interface, member) == (_MANAGER, "SessionNew"):
            if not (self._session and self._is_own):
                self._find_session()
        elif (interface, member) == (_MANAGER, "SessionRemoved"):
            if self._session and body[0] == self._session_id:
                self.tell(LOGOUT, True)
        elif path == self._session and interface == _SESSION and member in ("Lock", "Unlock"):
            self.tell(LOCK, member == "Lock")
        elif path == self._session and (interface, member) == (_PROPERTIES, "PropertiesChanged"):
            changed = body[1]
            if "LockedHint" in changed:
                self.tell(LOCK, bool(changed["LockedHint"][1]))
            self.look()

    def look(self) -> None:
        # A session in which a process is left, such as the daemon of a mount, is never removed.
        if LOGOUT not in self.reasons or not self._session:
            return
        try:
            closing = self._property(self._session, _SESSION, "State") == _CLOSING
        except BusError as error:
            closing = "NoSuch" in str(error) or "UnknownObject" in str(error)
        if closing:
            self.tell(LOGOUT, True)

    def close(self) -> None:
        super().close()
        self.let_sleep()


class _ScreenSavers(_Watch):
    """Those of the session bus, and the end of that bus."""

    kind = "SESSION"

    def connect(self) -> None:
        self.bus = bus = _Bus(self.kind)
        bus.subscribe(member="ActiveChanged")

    def heard(self, message: Message) -> None:
        _, _, interface, member = _signal(message)
        if member == "ActiveChanged" and interface.endswith(_SAVERS):
            self.tell(LOCK, bool(message.body[0]))

    def lost(self, why: str) -> None:
        if self.bus is not None:
            self.bus.close()
        self.tell(LOGOUT, True)


class Desktop:
    """Listens to logind and the desktop for some reasons to unmount.

    Args:   reasons: some of REASONS.   tell: called from threads of this object, after `start`.
    Raises: MountError: nothing here would give notice of one of the reasons.
    """

    def __init__(self, reasons: tuple[str, ...], tell: Tell) -> None:
        wanted = frozenset(reasons)
        self._watches: list[_Watch] = []
        self._logind = logind = _Logind(wanted, tell)
        problems = []
        try:
            for watch in (logind, _ScreenSavers(wanted - {SLEEP}, tell)):
                if not watch.reasons:
                    continue
                try:
                    watch.connect()
                except RefusedError as error:
                    watch.close()
                    raise MountError(
                        f"--unmount-on sleep: logind does not let this user delay the sleep ({error}). "
                        "It asks polkit about every user but root: install polkit (apt-get install "
                        "polkitd), or mount without sleep"
                    ) from None
                except BusError as error:
                    problems.append(f"{watch.kind.lower()} bus: {error}")
                    watch.close()
                else:
                    self._watches.append(watch)
            why = f" ({'; '.join(problems)})" if problems else ""
            if SLEEP in wanted and logind not in self._watches:
                raise MountError(f"--unmount-on sleep needs logind, which does not answer here{why}")
            if wanted - {SLEEP} and not (
                logind.has_session or len(self._watches) > (logind in self._watches)
            ):
                raise MountError(
                    f"--unmount-on {','.join(sorted(wanted - {SLEEP}))}: neither logind nor a session bus "
                    f"reports that here{why}. Mount the vault from a desktop session"
                )
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begin to listen; starts threads."""
        for watch in self._watches:
            watch.start()

    def tried(self, reason: str) -> None:
        """After an attempt to unmount, if something is still mounted: do not keep the machine awake."""
        if reason == SLEEP:
            self._logind.let_sleep()

    def close(self) -> None:
        """Listen no longer."""
        for watch in self._watches:
            watch.close()
        self._logind.let_sleep()
