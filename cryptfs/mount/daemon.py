"""Become a daemon, report to the parent, and keep keys out of core dumps and debuggers.

    parent --- fork --- fork --- daemon
      |                            | body(ready)
      | waits on a pipe            | ready(): setsid
      |  <-------- one line -------+ or the exception

No thread may run before the fork; everything that needs threads belongs into the body.

Until it is ready, the daemon is in the process group of its parent: while an automount waits for a mount,
only the group of the automounter reaches the mountpoint, and systemd starts mount(8) in its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import cryptfs.errors
from cryptfs.core.printable import fit_for_terminal
from cryptfs.errors import CryptfsError, MountError
from cryptfs.mount.recent import RecentFindings
from cryptfs.mount.repeats import RepeatFilter
from cryptfs.mount.resources import claim_resources
from cryptfs.mount.service.journal import JournalHandler, journal_listens, stderr_is_journal
from cryptfs.mount.service.logfile import LogFile
from cryptfs.mount.service.notify import VARIABLE as NOTIFY_SOCKET
from cryptfs.storage.libc import forbid_dumps

log = logging.getLogger("cryptfs.mount")

_SYSLOG_SOCKET = Path("/dev/log")
_MAX_CAPTURED = 4096
MOST_LOG = 10 * 1024 * 1024
"""Bytes of a log file by default."""

Ready = Callable[[], None]


@dataclass(frozen=True, slots=True)
class LogTarget:
    """Where a mount's log lines go.

    Args: file: appended to, made for its owner alone; None is the journal or syslog for a daemon, where there
              is one, and stderr in the foreground.
          debug: everything, not only what a person should know.
          most: bytes of the file, before it becomes an older one; 0 is no bound.
          fields: of each line in the journal.
          findings: keeps the last findings of damage, for `cryptfs status`.
    """

    file: Path | None = None
    debug: bool = False
    most: int = MOST_LOG
    fields: Mapping[str, str] = field(default_factory=dict)
    findings: RecentFindings = field(default_factory=RecentFindings, compare=False)

    def is_nowhere(self) -> bool:
        """Whether the log lines of a daemon would be lost: no file was named, and nothing listens."""
        return self.file is None and not journal_listens() and not _syslog_answers()


def harden_process() -> None:
    """No core dump, and no debugger of the same user: keys stay in this process's memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # systems without prctl(2)
        forbid_dumps()


class _Formatter(logging.Formatter):
    """Lines in which nothing acts on a terminal, tracebacks as well."""

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        return fit_for_terminal(super().format(record))


def configure_logging(target: LogTarget, *, daemon: bool) -> None:
    """Attach the one handler that writes the log of this process, and the one that keeps findings.

    Raises: OSError: the log file cannot be opened.
    """
    handler: logging.Handler
    if target.file is not None:
        handler = LogFile(target.file, target.most)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    elif journal_listens() if daemon else stderr_is_journal():
        handler = JournalHandler(target.fields)
    elif not daemon:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("cryptfs: %(message)s"))
    else:
        handler = _syslog_handler()
    if not target.debug:
        handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("cryptfs").addHandler(target.findings)
    # Libraries stay at warnings even then: mfusepy's debug lines hold plaintext names.
    root.setLevel(logging.WARNING)
    logging.getLogger("cryptfs").setLevel(logging.DEBUG if target.debug else logging.INFO)


def _syslog_answers() -> bool:
    """Whether a syslog listens; a syslog that has ended may leave its socket behind."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        with socket.socket(socket.AF_UNIX, kind) as tried, contextlib.suppress(OSError):
            tried.settimeout(1.0)
            tried.connect(str(_SYSLOG_SOCKET))
            return True
    return False


def _syslog_handler() -> logging.Handler:
    if not _SYSLOG_SOCKET.exists():
        return logging.NullHandler()
    from logging.handlers import SysLogHandler

    try:
        handler = SysLogHandler(str(_SYSLOG_SOCKET), facility=SysLogHandler.LOG_DAEMON)
    except OSError:
        return logging.NullHandler()
    handler.ident = f"cryptfs[{os.getpid()}]: "
    handler.setFormatter(_Formatter("%(message)s"))
    return handler


def start_daemon(body: Callable[[Ready], None], target: LogTarget) -> int:
    """Run `body` in a daemon; returns the daemon's pid once the body has called its argument.

    Raises: the body's CryptfsError or OSError if it failed before that; MountError if it ended
            in another way.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _detach_and_run(body, target, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        try:
            raw = pipe.read()
        except KeyboardInterrupt:  # the daemon gets it as well: wait until it has taken its mount away
            pipe.read()
            raise
    os.waitpid(child, 0)
    return _read_report(raw)


def _read_report(raw: bytes) -> int:
    if not raw:
        raise MountError(
            "the daemon ended before the mount was usable, and gave no reason. "
            "To see why, run it with --foreground --debug"
        )
    report = json.loads(raw)
    if "pid" in report:
        return int(report["pid"])
    if report["errno"] is not None:
        raise OSError(report["errno"], report["message"], report["filename"])
    kind = getattr(cryptfs.errors, report["kind"], MountError)
    if not issubclass(kind, CryptfsError) or issubclass(kind, cryptfs.errors.IntegrityError):
        kind = MountError
    raise kind(report["message"])


def _failure_report(error: BaseException, captured: str) -> dict[str, object]:
    filename = getattr(error, "filename", None)
    if isinstance(error, OSError) and error.errno is not None:
        message, number = error.strerror or "", error.errno
    elif isinstance(error, CryptfsError):
        message, number = str(error), None
    else:
        message, number = f"internal error: {type(error).__name__}: {error}", None
    if captured and captured not in message:
        message += f"\n{captured}"
    return {
        "kind": type(error).__name__,
        "message": message,
        "errno": number,
        "filename": None if filename is None else os.fsdecode(filename),
    }


def _detach_and_run(body: Callable[[Ready], None], target: LogTarget, writer: int) -> NoReturn:
    """The forked side: a second fork, then the body. Leaves by _exit alone."""
    status = 1
    try:
        if os.fork() != 0:
            os._exit(0)
        _run_body(body, target, writer)
        status = 0
    finally:
        with contextlib.suppress(OSError, ValueError):
            logging.shutdown()
        os._exit(status)


def _run_body(body: Callable[[Ready], None], target: LogTarget, writer: int) -> None:
    captured = _redirect_stdio()
    reported = False

    def send(report: dict[str, object]) -> None:
        nonlocal reported
        if not reported:
            reported = True
            with contextlib.suppress(BrokenPipeError):
                os.write(writer, json.dumps(report).encode())

    def ready() -> None:
        if reported:
            return
        os.setsid()
        _silence_stderr(target)
        send({"pid": os.getpid()})
        os.close(writer)  # after a failure the end of the process does it, and with it the vault is free

    try:
        os.environ.pop(NOTIFY_SOCKET, None)  # a daemon is not the service that started it
        os.chdir("/")
        os.umask(0)
        harden_process()
        claim_resources()
        configure_logging(target, daemon=True)
        body(ready)
        if not reported:
            raise MountError("the daemon ended before the mount was usable")
    except BaseException as error:
        if not isinstance(error, CryptfsError | OSError) and target.debug:
            traceback.print_exc()
        if reported:
            log.exception("the mount ended with an error")
        send(_failure_report(error, _captured_text(captured)))
        raise


def _redirect_stdio() -> int:
    """stdin and stdout to /dev/null, stderr into memory until the start has succeeded or failed."""
    null = os.open(os.devnull, os.O_RDWR)
    captured = os.memfd_create("cryptfs-stderr") if hasattr(os, "memfd_create") else os.dup(null)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(captured, 2)
    os.close(null)
    return captured


def _captured_text(captured: int) -> str:
    """What libraries and fusermount wrote to stderr, as one line of text."""
    with contextlib.suppress(OSError):
        sys.stderr.flush()
        raw = os.pread(captured, _MAX_CAPTURED, 0)
        return os.fsdecode(raw).strip()
    return ""


def _silence_stderr(target: LogTarget) -> None:
    place = os.devnull if target.file is None else target.file
    with contextlib.suppress(OSError):
        descriptor = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        os.dup2(descriptor, 2)
        os.close(descriptor)
