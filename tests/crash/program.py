"""Random programs on one directory: the same seed gives the same operations, whoever carries them out.

The one who does and the one who checks afterwards run the same Program; so that nothing but the number of
the last operation has to be noted while it runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import Enum

from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE
from tests.crash.history import FileHistory, Folder, Link, NameHistory, Thing

KIB = 1024
PUNCH = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
NAMES = (b"a", b"b", b"c", b"d", b"e", b"long " + b"l" * 240, b"f" * 161)
LINKS = (b"link", b"moved link", b"long link " + b"l" * 200)
FOLDERS = (b"folder", b"folder " + b"m" * 180)
LONGEST_WITHOUT_SYNC = 12


class Promise(Enum):
    """What makes the changes of a file certain."""

    DONE = "each call that returned"  # a process is killed; no writeback cache
    FLUSHED = "fsync, and closing"  # a process is killed; the kernel keeps writes
    SYNCED = "fsync"  # the power goes


@dataclass(frozen=True)
class Operation:
    """One call. kind says which; the rest is what it needs."""

    kind: str
    name: bytes = b""
    other: bytes = b""
    offset: int = 0
    length: int = 0
    mode: int = 0
    seed: int = 0

    @property
    def content(self) -> bytes:
        """What a write writes: no two operations write the same."""
        return random.Random(self.seed).randbytes(self.length)

    def __str__(self) -> str:
        parts = [self.kind, repr(self.name[:20])]
        parts += [f"to {self.other[:20]!r}"] if self.other else []
        parts += [f"{self.length} at {self.offset}"] if self.kind in ("write", "allocate") else []
        parts += [f"mode {self.mode}"] if self.kind == "allocate" else []
        parts += [f"{self.length}"] if self.kind == "truncate" else []
        return " ".join(parts)


@dataclass
class Program:
    """Gives operations, and knows what they lead to.

    Args: seed: of everything.   promise: what is certain when.   file_size: about how large files get, bytes.
    """

    seed: int
    promise: Promise
    file_size: int = 120 * KIB
    names: NameHistory = field(default_factory=NameHistory)
    done: int = 0
    """Operations that have returned."""

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    # ---- choosing

    def next(self) -> Operation:
        """The next operation. It counts as asked for from now on, as done with `returned`."""
        operation = self._choose()
        self._ask(operation)
        return operation

    def _files(self) -> list[bytes]:
        return sorted(n for n, thing in self.names.now().items() if isinstance(thing, FileHistory))

    def file(self, name: bytes) -> FileHistory:
        """The file that a name stands for now."""
        thing = self.names.now()[name]
        assert isinstance(thing, FileHistory)
        return thing

    def _choose(self) -> Operation:
        dice, files = self._dice, self._files()
        for name in files:
            if len(self.file(name).states) > LONGEST_WITHOUT_SYNC:
                return Operation("fsync", name)
        if max(map(len, self.names.bindings.values()), default=0) > LONGEST_WITHOUT_SYNC:
            return Operation("sync directory")
        if len(files) < 2 or dice.random() < 0.03:
            free = [name for name in NAMES if name not in self.names.now()]
            if free:
                return Operation("create", dice.choice(free))
        kind = dice.choices(
            ("write", "truncate", "allocate", "fsync", "fdatasync", "reopen", "names", "sync directory"),
            (60, 12, 8, 6, 6, 4, 10, 2),
        )[0]
        name = dice.choice(files)
        if kind == "write":
            return self._choose_write(name)
        if kind == "truncate":
            return Operation("truncate", name, length=self._length(len(self.file(name).now)))
        if kind == "allocate":
            return self._choose_allocation(name)
        if kind == "names":
            return self._choose_names(files)
        return Operation(kind, name if kind != "sync directory" else b"")

    def _choose_write(self, name: bytes) -> Operation:
        dice, size = self._dice, len(self.file(name).now)
        large = self.file_size // 2
        length = dice.choice((dice.randint(1, 200), dice.randint(1, 5000), dice.randint(1, large), large))
        place = dice.random()
        if place < 0.6 and size:
            offset = dice.randrange(size)
            if dice.random() < 0.7:
                length = min(length, size - offset)
        elif place < 0.95 and size < self.file_size:
            offset = size
        elif size < self.file_size:
            offset = size + dice.choice((1, 100, dice.randint(1, 40 * KIB)))
        else:
            offset = 0
        return Operation("write", name, offset=offset, length=length, seed=dice.getrandbits(48))

    def _length(self, size: int) -> int:
        dice = self._dice
        kind = dice.random()
        if kind < 0.15:
            return 0
        if kind < 0.7 and size:
            return dice.choice((dice.randrange(size), size - 1, size // (4 * KIB) * (4 * KIB)))
        return size + dice.choice((0, 1, dice.randint(1, 20 * KIB)))

    def _choose_allocation(self, name: bytes) -> Operation:
        dice, size = self._dice, len(self.file(name).now)
        mode = dice.choice((PUNCH, PUNCH, FALLOC_ZERO_RANGE, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE, 0))
        length = dice.choice((dice.randint(1, 300), dice.randint(1, 40 * KIB)))
        return Operation("allocate", name, offset=dice.randrange(size + 1), length=length, mode=mode)

    def _choose_names(self, files: list[bytes]) -> Operation:
        dice, now = self._dice, self.names.now()
        links = [name for name in LINKS if name in now]
        folders = [name for name in FOLDERS if name in now]
        kind = dice.choice(("rename", "rename", "unlink", "link", "symlink", "move symlink", "folder"))
        if kind == "rename":
            return Operation("rename", dice.choice(files), dice.choice(NAMES))
        if kind == "unlink" and len(files) > 2:
            return Operation("unlink", dice.choice(files))
        if kind == "link":
            free = [name for name in NAMES if name not in now]
            if free:
                return Operation("link", dice.choice(files), dice.choice(free))
        if kind == "move symlink" and links:
            return Operation("rename", dice.choice(links), dice.choice(LINKS))
        if kind == "folder":
            if folders:
                return Operation("rmdir", dice.choice(folders))
            return Operation("mkdir", dice.choice(FOLDERS))
        free = [name for name in LINKS if name not in now]
        if free:
            target = b"t" * dice.choice((1, 30, 400))
            return Operation("symlink", dice.choice(free), target)
        return Operation("unlink", dice.choice(links))

    # ---- what it leads to

    def _ask(self, operation: Operation) -> None:
        name, now = operation.name, self.names.now()
        match operation.kind:
            case "create":
                self.names.bind({name: FileHistory()})
            case "symlink":
                self.names.bind({name: Link(operation.other)})
            case "mkdir":
                self.names.bind({name: Folder()})
            case "unlink" | "rmdir":
                self.names.bind({name: None})
            case "link":
                self.names.bind({operation.other: now[name]})
            case "rename":
                thing: Thing = now[name]
                if thing is not now.get(operation.other):
                    self.names.bind({name: None, operation.other: thing})
            case "write" | "truncate" | "allocate":
                self._ask_file(operation, self.file(name))

    @staticmethod
    def _ask_file(operation: Operation, file: FileHistory) -> None:
        old, end = file.now, operation.offset + operation.length
        if operation.kind == "truncate":
            file.change(old[: operation.length].ljust(operation.length, b"\0"), cut=True)
            return
        if operation.kind == "write":
            new = bytearray(old.ljust(end, b"\0"))
            new[operation.offset : end] = operation.content
            file.change(bytes(new))
            return
        grown = old if operation.mode & FALLOC_KEEP_SIZE else old.ljust(end, b"\0")
        if operation.mode:
            end = min(end, len(grown))
            length = max(end - operation.offset, 0)
            grown = grown[: operation.offset] + bytes(length) + grown[operation.offset + length :]
        file.change(grown)

    def returned(self, operation: Operation) -> None:
        """The operation has been done, and the one who asked knows it."""
        self.done += 1
        kind, promise = operation.kind, self.promise
        if promise is not Promise.SYNCED or kind == "sync directory":
            self.names.keep()
        certain = {"fsync", "fdatasync"}
        certain |= {"reopen"} if promise is Promise.FLUSHED else set()
        certain |= {"write", "truncate", "allocate"} if promise is Promise.DONE else set()
        if kind in certain:
            self.file(operation.name).keep()


def replayed(program: Program, done: int, *, one_more: bool) -> list[Operation]:
    """Run a fresh program up to where another came; returns the operations, for a report.

    Args: done: operations that returned.   one_more: whether another had been asked for.
    """
    operations = []
    for _ in range(done):
        operation = program.next()
        operations.append(operation)
        program.returned(operation)
    if one_more:
        operations.append(program.next())
    return operations
