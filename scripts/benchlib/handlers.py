"""Processor time of each handler of the native engine, without a kernel: this end of a socket plays it.

Requests come in batches, so that the engine does not sleep between two. It counts the processor time of the
engine's process: reading a request, the handler, the reply, and the threads beside it.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchlib.material import ROOT
from benchlib.quantities import KIB
from cryptfs.mount.native import structs
from cryptfs.mount.opcodes import Op

COUNT = 300  # requests of a kind in a round
SMALL = 2 * KIB
PIECE = 4 * KIB
LARGE = 128 * KIB  # a message that every user's sockets can hold
LARGE_FILE = 8 << 20
_BATCH = 16
_BUFFER = LARGE + 8 * KIB
_SOCKET_BUFFER = 416 * KIB
_SECONDS = 60.0  # that an answer may take
_UNKNOWN = 4000  # an opcode that no engine answers
_ENTRY = structs.ENTRY_OUT.size + structs.ATTR.size

Ask = tuple[int, int, bytes]  # opcode, nodeid, body


class EngineServer:
    """The engine of a tree, in a process of its own.

    Raises: RuntimeError: it does not start, or answers with an error that was not expected.
    """

    def __init__(self, tree: Path, vault_dir: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        ours.settimeout(_SECONDS)
        path = os.pathsep.join((str(tree), str(ROOT / "scripts")))
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "benchlib.handlers_server",
                    str(theirs.fileno()),
                    str(vault_dir),
                ],
                env={**os.environ, "PYTHONPATH": path, "XDG_STATE_HOME": str(vault_dir.parent)},
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                cwd="/",
            )
        self._socket = ours
        self._unique = 0
        # The clock of another process: clock_getcpuclockid(3).
        self._clock = (~self._process.pid << 3) | 2
        try:
            self._begin(tree)
        except BaseException:
            self.close()
            raise

    def _begin(self, tree: Path) -> None:
        assert self._process.stdout is not None
        found = self._process.stdout.readline().decode().strip()
        if found != str(tree / "cryptfs"):
            raise RuntimeError(
                f"the engine of {tree} does not start" + (f": {found} was imported" if found else "")
            )
        flags = 2**64 - 1 & ~(structs.Cap.EXPORT_SUPPORT | structs.Cap.SETXATTR_EXT)  # not in every tree
        body = struct.pack("=IIIII", 7, 45, LARGE, flags & 0xFFFFFFFF, flags >> 32) + bytes(44)
        self.ask([(Op.INIT, 0, body)])

    def close(self) -> None:
        """End it."""
        self._socket.close()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def ask(self, requests: Sequence[Ask], *, batch: int = _BATCH, refused: bool = False) -> list[bytes]:
        """The payloads of the replies, in order. refused: an error is the answer that is wanted."""
        payloads: list[bytes] = []
        for start in range(0, len(requests), batch):
            group = requests[start : start + batch]
            first = self._unique
            for opcode, nodeid, body in group:
                self._unique += 2
                size = structs.IN_HEADER.size + len(body)
                header = structs.IN_HEADER.pack(
                    size, opcode, self._unique, nodeid, os.getuid(), os.getgid(), os.getpid(), 0, 0
                )
                self._socket.sendall(header + body)
            replies: dict[int, bytes] = {}
            while len(replies) < len(group):
                self._take(replies, refused)
            payloads += [replies[first + 2 * (number + 1)] for number in range(len(group))]
        return payloads

    def _take(self, replies: dict[int, bytes], refused: bool) -> None:
        raw = self._socket.recv(_BUFFER)
        if not raw:
            raise RuntimeError("the engine has ended")
        _, code, unique = structs.OUT_HEADER.unpack_from(raw)
        if not unique:
            return  # a message of the engine's own
        if bool(code) is not refused:
            raise RuntimeError(f"a request was answered with {os.strerror(-code) if code else 'no error'}")
        replies[unique] = raw[structs.OUT_HEADER.size :]

    def cpu_ns(self) -> int:
        """Processor time so far."""
        return time.clock_gettime_ns(self._clock)


class Round:
    """One time all kinds of requests; `costs` has microseconds for one of each."""

    def __init__(self, server: EngineServer, number: int, count: int = COUNT) -> None:
        self._server = server
        self._count = count
        self._names = [b"a file of round %d, number %d\0" % (number, each) for each in range(count)]
        self._fresh = [b"new: " + name for name in self._names]
        self.costs: dict[str, float] = {}
        self._directory = self._made([(Op.MKDIR, structs.ROOT_ID, _mkdir(b"round %d\0" % number))])[0]
        self._inside = self._made([(Op.MKDIR, self._directory, _mkdir(b"files\0"))])[0]

    def _made(self, requests: Sequence[Ask]) -> list[int]:
        return [_nodeid(payload) for payload in self._server.ask(requests)]

    def _time(
        self, title: str, requests: Sequence[Ask], *, batch: int = _BATCH, refused: bool = False
    ) -> list[bytes]:
        begun = self._server.cpu_ns()
        payloads = self._server.ask(requests, batch=batch, refused=refused)
        self.costs[title] = (self._server.cpu_ns() - begun) / len(requests) / 1000
        return payloads

    def _each(self, op: int, nodeids: Sequence[int], body: bytes) -> list[Ask]:
        return [(op, nodeid, body) for nodeid in nodeids]

    def _in(self, op: int, bodies: Sequence[bytes]) -> list[Ask]:
        return [(op, self._inside, body) for body in bodies]

    def run(self) -> dict[str, float]:
        """Everything; nothing of it stays."""
        self._time(
            "a request that is not served", [(_UNKNOWN, structs.ROOT_ID, b"")] * self._count, refused=True
        )
        nodeids = self._files()
        self._names_of_files(nodeids)
        self._attributes(nodeids)
        self._large_file()
        self._directories()
        return self.costs

    def _files(self) -> list[int]:
        self._time("lookup of a name that is not there", self._in(Op.LOOKUP, self._names))
        made = self._time("create", self._in(Op.CREATE, [_create(name) for name in self._names]))
        nodeids, handles = [_nodeid(each) for each in made], [_handle(each, _ENTRY) for each in made]
        content = os.urandom(SMALL)
        pairs = list(zip(nodeids, handles, strict=True))
        self._time(
            "write, 2 KiB of a new file", [(Op.WRITE, node, _write(fh, 0, content)) for node, fh in pairs]
        )
        self._time("release, after a write", [(Op.RELEASE, node, _release(fh)) for node, fh in pairs])
        opened = self._time("open", self._each(Op.OPEN, nodeids, structs.OPEN_IN.pack(os.O_RDONLY, 0)))
        pairs = [(node, _handle(each)) for node, each in zip(nodeids, opened, strict=True)]
        found = self._time("read, 2 KiB", [(Op.READ, node, _read(fh, 0, PIECE)) for node, fh in pairs])
        if any(each != content for each in found):
            raise RuntimeError("what is read is not what was written")
        self._time("release, after a read", [(Op.RELEASE, node, _release(fh)) for node, fh in pairs])
        return nodeids

    def _names_of_files(self, nodeids: Sequence[int]) -> None:
        self._time("lookup", self._in(Op.LOOKUP, self._names))
        self._time("getattr", self._each(Op.GETATTR, nodeids, structs.GETATTR_IN.pack(0, 0, 0)))
        self._list()

    def _list(self) -> None:
        for title, op in (("readdirplus", Op.READDIRPLUS), ("readdir", Op.READDIR)):
            (opened,) = self._server.ask([(Op.OPENDIR, self._inside, structs.OPEN_IN.pack(0, 0))])
            handle, place, entries = _handle(opened), 0, 0
            for _ in range(2):  # attributes go to a program that looks at files
                list_first = (Op.READDIRPLUS, self._inside, _read(handle, 0, 4 * KIB))
                self._server.ask([list_first, (Op.LOOKUP, self._inside, self._names[0])])
            begun = self._server.cpu_ns()
            while True:
                (payload,) = self._server.ask([(op, self._inside, _read(handle, place, 32 * KIB))])
                found = list(_offsets(payload, plus=op == Op.READDIRPLUS))
                if not found:
                    break
                entries, place = entries + len(found), found[-1]
            self.costs[f"{title}, an entry"] = (self._server.cpu_ns() - begun) / entries / 1000
            self._server.ask([(Op.RELEASEDIR, self._inside, _release(handle))])

    def _attributes(self, nodeids: Sequence[int]) -> None:
        times = structs.SETATTR_IN.pack(1 << 5, 0, 0, 0, 0, 0, 10**9, 0, 0, 5, 0, 0, 0, 0, 0, 0)
        self._time("setattr, a time", self._each(Op.SETATTR, nodeids, times))
        name, value = b"user.name\0", b"a value"
        body = structs.SETXATTR_IN.pack(len(value), 0) + name + value
        self._time("setxattr", self._each(Op.SETXATTR, nodeids, body))
        asked = structs.GETXATTR_IN.pack(256, 0)
        self._time("getxattr", self._each(Op.GETXATTR, nodeids, asked + name))
        self._time("listxattr", self._each(Op.LISTXATTR, nodeids, asked))
        pairs = [old + new for old, new in zip(self._names, self._fresh, strict=True)]
        head = structs.RENAME2_IN.pack(self._inside, 0, 0)
        self._time("rename", self._in(Op.RENAME2, [head + pair for pair in pairs]))
        self._time("unlink", self._in(Op.UNLINK, self._fresh))

    def _large_file(self) -> None:
        (made,) = self._server.ask([(Op.CREATE, self._inside, _create(b"large\0"))])
        node, fh = _nodeid(made), _handle(made, _ENTRY)
        large, piece = os.urandom(LARGE), os.urandom(PIECE)
        starts = range(0, LARGE_FILE, LARGE)
        rng = random.Random(1)
        places = [rng.randrange(LARGE_FILE // PIECE) * PIECE for _ in range(self._count)]
        self._time(
            "write, 128 KiB behind the end",
            [(Op.WRITE, node, _write(fh, at, large)) for at in starts],
            batch=1,
        )
        self._time(
            "write, 4 KiB over old content", [(Op.WRITE, node, _write(fh, at, piece)) for at in places]
        )
        self._time("read, 128 KiB", [(Op.READ, node, _read(fh, at, LARGE)) for at in starts], batch=1)
        self._time("read, 4 KiB", [(Op.READ, node, _read(fh, at, PIECE)) for at in places])
        self._time("fsync", [(Op.FSYNC, node, structs.FSYNC_IN.pack(fh, 0, 0))] * 10)
        self._server.ask([(Op.RELEASE, node, _release(fh)), (Op.UNLINK, self._inside, b"large\0")], batch=1)

    def _directories(self) -> None:
        self._time("symlink", self._in(Op.SYMLINK, [name + b"target\0" for name in self._names]))
        links = self._made(self._in(Op.LOOKUP, self._names))
        self._time("readlink", self._each(Op.READLINK, links, b""))
        self._server.ask(self._in(Op.UNLINK, self._names))
        few = self._names[: max(1, self._count // 4)]
        self._time("mkdir", self._in(Op.MKDIR, [_mkdir(name) for name in few]))
        self._time("rmdir", self._in(Op.RMDIR, few))
        self._server.ask([(Op.RMDIR, self._directory, b"files\0")])


def _nodeid(payload: bytes) -> int:
    return int(structs.ENTRY_OUT.unpack_from(payload)[0])


def _handle(payload: bytes, at: int = 0) -> int:
    return int(structs.OPEN_OUT.unpack_from(payload, at)[0])


def _mkdir(name: bytes) -> bytes:
    return structs.MKDIR_IN.pack(0o755, 0) + name


def _create(name: bytes) -> bytes:
    return structs.CREATE_IN.pack(os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o100644, 0, 0) + name


def _write(fh: int, offset: int, content: bytes) -> bytes:
    return structs.WRITE_IN.pack(fh, offset, len(content), 0, 0, 0, 0) + content


def _read(fh: int, offset: int, size: int) -> bytes:
    return structs.READ_IN.pack(fh, offset, size, 0, 0, 0, 0)


def _release(fh: int) -> bytes:
    return structs.RELEASE_IN.pack(fh, 0, 0, 0)


def _offsets(payload: bytes, *, plus: bool) -> Iterator[int]:
    """Where to go on after each entry of a listing."""
    at = 0
    while at < len(payload):
        at += _ENTRY if plus else 0
        _, offset, size, _ = structs.DIRENT.unpack_from(payload, at)
        at += structs.DIRENT.size + (size + 7) // 8 * 8
        yield offset


@contextmanager
def _servers(trees: Sequence[Path], directory: Path) -> Iterator[list[EngineServer]]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cryptfs-bench-", dir=directory)))
        servers = []
        for number, tree in enumerate(trees):
            home = place / str(number)
            home.mkdir()
            servers.append(EngineServer(tree, home / "vault"))
            stack.callback(servers[-1].close)
        yield servers


def measure(
    trees: Sequence[Path],
    directory: Path,
    rounds: int,
    count: int = COUNT,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Microseconds for one request: title -> for each tree, one figure a round. The trees take turns.

    Args: directory: where the vaults are made.   count: requests of a kind in a round.
          advance: called after each turn.   A round before the first is not counted.
    """
    found: dict[str, list[list[float]]] = {}
    with _servers(trees, directory) as servers:
        for number in range(rounds + 1):
            order = list(enumerate(servers))
            for index, server in order if number % 2 else reversed(order):
                costs = Round(server, number, count).run()
                advance()
                for title, cost in costs.items() if number else ():
                    found.setdefault(title, [[] for _ in trees])[index].append(cost)
    return found
