"""What a mount counts, who is told, and how a person reads it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from cryptfs.cli.status import bytes_text, duration_text, render
from cryptfs.errors import MountError
from cryptfs.interpreter import this_interpreter
from cryptfs.mount import statistics
from cryptfs.mount.fusepy.operations import CryptOperations
from cryptfs.mount.mounts import Mount
from cryptfs.mount.opcodes import Op
from cryptfs.mount.options import MountOptions
from cryptfs.mount.service import localsocket
from cryptfs.mount.statistics import Statistics, StatusServer, ask_status
from tests.mount.native_kernel import kernel_for
from tests.support import BareVault


def a_mount(owner: int | None = None) -> Mount:
    """A mount that is not there, with a device number that no kernel gives out."""
    owner = os.geteuid() if owner is None else owner
    device = f"0:{os.getpid()}-test"
    return Mount(device, "/private", ("rw", f"user_id={owner}"), "fuse.cryptfs", "/vault")


@pytest.fixture
def numbers() -> Statistics:
    found = Statistics(
        "native", {1: "lookup", 15: "read", 16: "write"}, lambda: {"open": {"files": 2, "directories": 0}}
    )
    found.counts[1] = 3
    found.counts[16] = 7000
    found.bytes_written = 5 << 20
    for code in (errno.ENOENT, errno.EIO, errno.ENOENT):
        found.failed(code)
    return found


@pytest.fixture
def served(numbers: Statistics) -> Iterator[Statistics]:
    server = StatusServer(a_mount(), numbers)
    yield numbers
    server.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "cryptfs-status"]


def test_the_daemon_says_which_python_it_runs_on(served: Statistics) -> None:
    assert ask_status(a_mount())["python"] == asdict(this_interpreter())


def test_a_snapshot_has_the_most_first_and_nothing_that_never_happened(numbers: Statistics) -> None:
    found = numbers.snapshot()
    assert list(found["operations"].items()) == [("write", 7000), ("lookup", 3)]
    assert list(found["errors"].items()) == [("ENOENT", 2), ("EIO", 1)]
    assert found["bytes"] == {"read": 0, "written": 5 << 20}
    assert found["open"] == {"files": 2, "directories": 0}
    assert 0 < found["memory"]["resident"] <= found["memory"]["highest"]
    assert found["uptime_seconds"] >= 0


def test_the_native_loop_counts_requests_errors_and_bytes(vault: BareVault) -> None:
    with kernel_for(vault) as kernel:
        counted = kernel.requests.statistics
        entry, fh = kernel.create(b"file")
        nodeid = entry.nodeid
        assert kernel.write(fh, nodeid, 0, b"x" * 5000) == 5000
        assert kernel.read(fh, nodeid, 1000, 100_000) == b"x" * 4000
        kernel.release(fh, nodeid)
        assert kernel.ask(Op.UNLINK, body=b"missing\0").code == errno.ENOENT
        found = counted.snapshot()
    assert found["operations"] == {"create": 1, "write": 1, "read": 1, "release": 1, "unlink": 1}
    assert found["errors"] == {"ENOENT": 1}
    assert found["bytes"] == {"read": 4000, "written": 5000}
    assert found["open"] == {"files": 0, "directories": 0, "nodes": 2}
    assert found["directory_cache"] == {"hits": 2, "misses": 0}


def test_an_opcode_that_nobody_knows_is_not_counted(vault: BareVault) -> None:
    with kernel_for(vault) as kernel:
        assert kernel.ask(4000).code == errno.ENOSYS
        assert sum(kernel.requests.statistics.counts) == 0


def test_the_daemon_answers_its_own_user(served: Statistics) -> None:
    for count in (1, 2):
        served.counts[15] = count
        found = ask_status(a_mount())
        assert found["operations"]["read"] == count
    assert (found["mountpoint"], found["vault"], found["pid"]) == ("/private", "/vault", os.getpid())


def test_a_server_answers_again_after_it_had_no_descriptor() -> None:
    """A blocked accept(2) has its descriptor already; before the next one, others may take all of them."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    address = f"\0cryptfs-test/{os.getpid()}"

    def answer(connection: socket.socket) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        connection.sendall(b"yes")

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5.0)
            connection.connect(address)
            said = connection.recv(3)
        server._thread.join(0.2)  # it tries to accept the next one
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return said

    server = localsocket.LocalServer(address, "cryptfs-test", answer)
    try:
        assert [ask(), ask()] == [b"yes", b"yes"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        server.close()
    assert not server._thread.is_alive()


def test_the_daemon_tells_others_nothing(served: Statistics, monkeypatch: pytest.MonkeyPatch) -> None:
    ask_status(a_mount())
    monkeypatch.setattr(localsocket, "peer_of", lambda _: (1, 4711))  # the server's; the command has its own
    with pytest.raises(MountError, match="only root and the user who mounted it"):
        ask_status(a_mount())


def test_an_impostor_is_not_believed(served: Statistics) -> None:
    """Somebody else may have bound the name first: whoever serves must be who mounted."""
    with pytest.raises(MountError, match="another user answers"):
        ask_status(a_mount(owner=os.geteuid() + 1))


def test_a_mount_without_a_daemon_is_said_so() -> None:
    with pytest.raises(MountError, match=r"no daemon answers.* If it died: cryptfs umount "):
        ask_status(a_mount())


def test_a_daemon_that_hangs_does_not_hang_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.bind(statistics._address(a_mount().device))
        deaf.listen(1)
        with pytest.raises(MountError, match="does not answer"):
            ask_status(a_mount())


def answering(answer: Callable[[socket.socket], object]) -> contextlib.ExitStack:
    """A server in place of the daemon, for one question."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(statistics._address(a_mount().device))
    listener.listen(1)

    def serve() -> None:
        with listener.accept()[0] as connection, contextlib.suppress(OSError):
            answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    stack = contextlib.ExitStack()
    stack.callback(thread.join)
    stack.enter_context(listener)
    return stack


@pytest.mark.parametrize(
    "change",
    [
        None, 3, "[" * 100_000, {"vault": None}, {"read_only": "no"}, {"bytes": {"read": 1}},
        {"operations": {"x": "y"}}, {"directory_cache": {"hits": 1}}, {"open": [1]},
        {"memory": {"resident": -1}}, {"uptime_seconds": 1e300}, {"errors": {"E": 10**400}},
        {"findings": [{"path": "p", "chunk": 0, "reason": "r", "count": 1}]}, {"python": "3.13"},
        {"unmounts": {"on": 3}}, {"unmounts": {"idle_seconds": "soon"}},
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense(numbers: Statistics, change: object) -> None:
    """root may ask a daemon of another user: an error of one line, and no internal one."""
    honest = StatusServer(a_mount(), numbers)
    answer = honest._describe()
    honest.close()
    raw = json.dumps(answer | change if isinstance(change, dict) else change).encode()
    if isinstance(change, str):
        raw = change.encode()
    with (
        answering(lambda connection: connection.sendall(raw)),
        pytest.raises(MountError, match="gave an invalid answer"),
    ):
        ask_status(a_mount())
    with answering(lambda connection: connection.sendall(json.dumps(answer).encode())):
        assert ask_status(a_mount())["vault"] == "/vault"


def test_an_answer_that_comes_in_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ANSWER_SECONDS", 0.3)

    def drip(connection: socket.socket) -> None:
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    with answering(drip), pytest.raises(MountError, match="does not answer"):
        ask_status(a_mount())


def test_a_second_server_of_one_mount_is_refused(served: Statistics) -> None:
    with pytest.raises(OSError, match="in use"):
        StatusServer(a_mount(), served)


def test_the_fallback_engine_counts_too(vault: BareVault) -> None:
    operations = CryptOperations(cast(Any, SimpleNamespace(tree=vault.tree)), MountOptions(), lambda *_: None)
    operations.mkdir("/d", 0o755)
    operations.getattr("/d", None)
    operations.chmod("/d", 0o700, None)
    with pytest.raises(OSError, match="Stale file handle"):
        operations.rmdir("/e")
    found = operations.statistics.snapshot()
    assert found["operations"] == {"getattr": 1, "mkdir": 1, "rmdir": 1, "setattr": 1}
    assert found["errors"] == {"ESTALE": 1}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.9, "0 s"), (59, "59 s"), (185, "3 min 5 s"), (600, "10 min"), (7800, "2 h 10 min"),
        (86_400, "1 d"), (349_200, "4 d 1 h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (4300, "4.2 KiB"), (1 << 40, "1.0 TiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert bytes_text(size) == text


def test_a_person_sees_totals_and_what_happens_now(numbers: Statistics) -> None:
    head: dict[str, Any] = {
        "mountpoint": "/private",
        "vault": "/vault",
        "read_only": True,
        "pid": 7,
        "version": "1",
    }
    before = head | numbers.snapshot()
    numbers.counts[16] += 500
    now = head | numbers.snapshot()
    before["uptime_seconds"], now["uptime_seconds"] = 10.0, 12.0
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render(now, before))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert "mounted on: /private (read-only)" in lines
    assert "write 7,500 250/s" in lines
    assert "bytes written 5.0 MiB 0 B/s" in lines
    assert "error ENOENT 2 0/s" in lines


@pytest.mark.parametrize(
    ("pgo", "line"), [(True, "Python: 3.14.2"), (False, "Python: 3.14.2, built without PGO: it is slower")]
)
def test_a_person_sees_that_the_python_is_slow(pgo: bool, line: str, numbers: Statistics) -> None:
    head: dict[str, Any] = {"mountpoint": "/m", "vault": "/v", "read_only": False, "pid": 7, "version": "1"}
    python = {"version": "3.14.2", "pgo": pgo, "new in a later version": 1}
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render(head | numbers.snapshot() | {"python": python}))
    assert line in [" ".join(each.split()) for each in captured.get().splitlines()]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"idle_seconds": 600.0, "idle_left_seconds": 312.5}, "after 10 min without use: in 5 min 12 s"),
        ({"idle_seconds": 600.0}, "after 10 min without use; something is open now"),
        ({"on": ["sleep", "lock"]}, "on sleep, lock"),
        ({"on": ["lock"], "detach_busy": True}, "on lock, even if programs use it"),
        (
            {"idle_seconds": 90.0, "idle_left_seconds": 90.0, "on": ["logout"]},
            "after 1 min 30 s without use: in 1 min 30 s; on logout",
        ),
        ({"on": ["lock"], "waiting": ["lock"]}, "on lock: as soon as no program uses it"),
    ],
)
def test_a_person_sees_when_it_goes_by_itself(said: dict[str, Any], line: str, numbers: Statistics) -> None:
    head: dict[str, Any] = {"mountpoint": "/m", "vault": "/v", "read_only": False, "pid": 7, "version": "1"}
    nothing: dict[str, Any] = {
        "idle_seconds": None, "idle_left_seconds": None, "on": [], "detach_busy": False, "waiting": []
    }  # fmt: skip
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render(head | numbers.snapshot() | {"unmounts": nothing | said}))
        console.print(render(head | numbers.snapshot() | {"unmounts": nothing}))
        console.print(render(head | numbers.snapshot()))
    lines = [" ".join(each.split()) for each in captured.get().splitlines()]
    assert [each for each in lines if each.startswith("unmounts:")] == [f"unmounts: {line}"]
