"""The numbers of a mount, and the socket by which `cryptfs status` reads them.

The engines increment plain numbers without a lock, with one line for each request: CPython hands its lock to
no other thread within `numbers[i] += 1`. On a Python without that lock, a count may miss one now and then.

`cryptfs status` connects to a socket of service/localsocket.py. The daemon answers only its own user and
root, and the command believes only the user who owns the mount. The answer holds numbers, and the findings of
damage (recent.py) by cipher path; it holds no plaintext name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import MountError
from cryptfs.interpreter import this_interpreter
from cryptfs.mount.mounts import Mount
from cryptfs.mount.opcodes import Op
from cryptfs.mount.recent import RecentFindings
from cryptfs.mount.service.localsocket import SEND_SECONDS, LocalServer, peer_of
from cryptfs.version import VERSION

log = logging.getLogger("cryptfs.mount")

_OPCODES = 64  # one more than the highest that an engine counts
_ADDRESS = "\0cryptfs-status/{device}"
_ANSWER_SECONDS = 5.0
_MAX_ANSWER = 1 << 20
_STATUS = Path("/proc/self/status")
_SOCKETS = Path("/proc/net/unix")
# The kernel's own, and those of programs that look at all filesystems: df, sync, `cryptfs info`, and desktops
# that watch the free space, ask each one for its size, and its root for attributes. None of that is use.
_NOT_OF_PROGRAMS = (
    *(Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT, Op.INIT, Op.DESTROY),
    *(Op.STATFS, Op.SYNCFS, Op.GETATTR, Op.STATX),
)

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=2**36)]


class _Finding(TypedDict):
    path: str | None
    chunk: _Count | None
    reason: str
    count: _Count
    last: _Seconds


class _Bytes(TypedDict):
    read: _Count
    written: _Count


class _Lookups(TypedDict):
    hits: _Count
    misses: _Count


class _Python(TypedDict):
    version: str
    pgo: bool


class _Unmounts(TypedDict):
    idle_seconds: _Seconds | None
    idle_left_seconds: _Seconds | None
    on: list[str]
    detach_busy: bool
    waiting: list[str]


class _Answer(TypedDict):
    """What a daemon says, as far as commands rely on it. If root asks, the daemon may be another user's."""

    mountpoint: str
    vault: str
    read_only: bool
    version: str
    python: NotRequired[_Python]
    engine: str
    uptime_seconds: _Seconds
    processor_seconds: _Seconds
    operations: dict[str, _Count]
    errors: dict[str, _Count]
    bytes: _Bytes
    open: dict[str, _Count]
    memory: dict[str, _Count]
    directory_cache: NotRequired[_Lookups]
    findings: NotRequired[list[_Finding]]
    findings_dropped: NotRequired[_Count]
    unmounts: NotRequired[_Unmounts]


class Statistics:
    """The numbers of one mount.

    Args: engine: its name.   names: of the opcodes that are counted.
          gauges: called for each snapshot; current counts, such as open files.
    """

    def __init__(
        self,
        engine: str,
        names: Mapping[int, str],
        gauges: Callable[[], dict[str, dict[str, int]]] = dict,
    ) -> None:
        self.engine = engine
        self.counts = [0] * _OPCODES  # requests, by opcode
        self.errors: dict[int, int] = {}  # by errno
        self.bytes_read = 0
        self.bytes_written = 0
        self._names = dict(names)
        self._gauges = gauges
        self._started = time.monotonic()

    def failed(self, code: int) -> None:
        """One request was answered with an errno."""
        self.errors[code] = self.errors.get(code, 0) + 1

    def of_programs(self) -> int:
        """How many requests there were that show a program at work on the files."""
        return sum(self.counts) - sum(self.counts[opcode] for opcode in _NOT_OF_PROGRAMS)

    def has_open(self) -> bool:
        """Whether a program has a file or directory open."""
        found = self._gauges().get("open", {})
        return bool(found.get("files") or found.get("directories"))

    def snapshot(self) -> dict[str, Any]:
        """Everything now, fit for JSON. Sizes are bytes; operations and errors are sorted, the most first."""
        counts = [(self._names.get(opcode, str(opcode)), count) for opcode, count in enumerate(self.counts)]
        errors = [(errno.errorcode.get(code, str(code)), count) for code, count in list(self.errors.items())]
        times = os.times()
        return {
            "engine": self.engine,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "operations": _most_first(counts),
            "errors": _most_first(errors),
            "bytes": {"read": self.bytes_read, "written": self.bytes_written},
            **self._gauges(),
            "memory": _memory(),
            "processor_seconds": round(times.user + times.system, 2),
        }


def _most_first(counts: list[tuple[str, int]]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts, key=lambda each: -each[1]) if count}


def _memory() -> dict[str, int]:
    """Resident bytes of this process, now and at its highest; {} if the system does not show them."""
    names = {"VmRSS": "resident", "VmHWM": "highest"}
    with contextlib.suppress(OSError):
        lines = [line.split() for line in _STATUS.read_text().splitlines()]
        return {names[key[:-1]]: int(rest[0]) * 1024 for key, *rest in lines if key[:-1] in names}
    return {}


# ---- over the socket


def _address(device: str) -> str:
    return _ADDRESS.format(device=device)


class StatusServer(LocalServer):
    """Serves the statistics of one mount to its user and root.

    Args:   mount: as the kernel lists it.   findings: of damage.
            vault: the vault directory; the mount's source may be any text.
            unmounts: called for each answer; when the mount goes by itself.
    Raises: OSError: as LocalServer.
    """

    def __init__(
        self,
        mount: Mount,
        statistics: Statistics,
        findings: RecentFindings | None = None,
        vault: str | None = None,
        unmounts: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self._mount = mount
        self._statistics = statistics
        self._findings = RecentFindings() if findings is None else findings
        self._vault = mount.source if vault is None else vault
        self._unmounts = unmounts
        super().__init__(_address(mount.device), "cryptfs-status", self._tell)

    def _tell(self, connection: socket.socket) -> None:
        connection.sendall(json.dumps(self._describe()).encode())

    def _describe(self) -> dict[str, Any]:
        mount = self._mount
        return {
            "mountpoint": mount.mountpoint,
            "vault": self._vault,
            "read_only": mount.read_only,
            "pid": os.getpid(),
            "version": VERSION,
            "python": asdict(this_interpreter()),
            **({} if self._unmounts is None else {"unmounts": self._unmounts()}),
            **self._statistics.snapshot(),
            **self._findings.snapshot(),
        }


def ask_status(mount: Mount) -> dict[str, Any]:
    """What the daemon of a mount says about itself; see Statistics.snapshot.

    Raises: MountError: it does not answer, or not to this user.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(_address(mount.device))
            pid, uid = peer_of(connection)
            if uid != mount.owner:
                raise MountError(
                    f"{shown(mount.mountpoint)}: a process of another user answers instead of its daemon"
                )
            raw = _receive(connection)
    except TimeoutError:
        raise MountError(f"{shown(mount.mountpoint)}: its daemon does not answer") from None
    except (OSError, AttributeError):
        raise MountError(
            f"{shown(mount.mountpoint)}: no daemon answers. It has died, is of an older cryptfs, "
            f"or runs in another container. If it died: cryptfs umount {shell_word(mount.mountpoint)}"
        ) from None
    if not raw:
        raise MountError(
            f"{shown(mount.mountpoint)}: its daemon answers only root and the user who mounted it"
        )
    try:
        found: dict[str, Any] = json.loads(raw)
        msgspec.convert(found, _Answer)
    except (ValueError, RecursionError):  # also of msgspec
        raise MountError(
            f"{shown(mount.mountpoint)}: its daemon, process {pid}, gave an invalid answer"
        ) from None
    found["pid"] = pid  # as this process sees it, which may be in another container
    return found


def device_served_by(pid: int) -> str | None:
    """The device number of the mount that a daemon serves; None if it has no status socket here.

    The kernel lists all such sockets of this network namespace, and the process behind each.
    """
    try:
        lines = _SOCKETS.read_bytes().splitlines()
    except OSError:
        return None
    prefix = _ADDRESS.format(device="").encode().replace(b"\0", b"@")
    names = {line.split()[-1] for line in lines if prefix in line}
    for name in sorted(names):
        device = os.fsdecode(name.removeprefix(prefix))
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SEND_SECONDS)
            connection.connect(_address(device))
            if peer_of(connection)[0] == pid:
                return device
    return None


def _receive(connection: socket.socket) -> bytes:
    """All of the answer. Raises: TimeoutError: it does not come in time as a whole."""
    raw = b""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while len(raw) < _MAX_ANSWER and (piece := connection.recv(65536)):
        raw += piece
        if time.monotonic() > deadline:
            raise TimeoutError
    return raw
