"""The functions that a name, a read and a write go through: traced, as docs/ARCHITECTURE.md draws them.

`python -m tests.project.call_paths` prints the whole trees.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import cryptfs
from cryptfs.vfs.content.redo import Durability
from tests.support import KIB, BareVault

PACKAGE = os.path.dirname(cryptfs.__file__)
CHUNK = 16 * KIB


@dataclass
class Call:
    """One call, and those that it makes."""

    name: str
    calls: list[Call] = field(default_factory=list)

    def lines(self, depth: int = 0) -> list[str]:
        """The tree as text, a line for each call."""
        return ["  " * depth + self.name, *(line for each in self.calls for line in each.lines(depth + 1))]

    def names(self) -> set[str]:
        """Every function in the tree."""
        return {self.name}.union(*(each.names() for each in self.calls))


def traced(work: Callable[[], object]) -> Call:
    """The first function of cryptfs that `work` calls, and all below it."""
    root = Call("")
    stack = [root]

    def note(frame: FrameType, event: str, _: object) -> None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            name = frame.f_code.co_qualname
            if "<locals>" in name:  # part of the function that it stands in
                stack.append(stack[-1])
                return
            call = Call(name)
            stack[-1].calls.append(call)
            stack.append(call)
        elif event == "return":
            stack.pop()

    gc.collect()
    gc.disable()  # it calls __del__ of what earlier work left, and that belongs to no tree
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return root.calls[0]


def real_trees(scratch: Path) -> dict[str, Call]:
    """The calls of two looks at a name, and of a read, a write of new chunks and an overwrite of 4 KiB."""
    vault = BareVault(scratch / "vault", chunk_size=CHUNK, durability=Durability.POWER)
    vault.put(b"old", bytes(4 * CHUNK))
    vault.reopen()
    trees: dict[str, Call] = {}
    with vault.opened(b"new", os.O_RDWR | os.O_CREAT) as file:
        file.write(0, bytes(CHUNK))
        trees["new chunks"] = traced(lambda: file.write(CHUNK, bytes(4 * CHUNK)))
    with vault.opened(b"old", os.O_RDWR) as file:
        file.write(0, b"first")
        trees["overwrite"] = traced(lambda: file.write(20_000, bytes(4 * KIB)))
    vault.tree.make_directory(vault.tree.root, b"directory", 0o755)
    vault.tree.root.forget_names()
    trees["stat"] = traced(lambda: vault.tree.stat(vault.tree.root, b"old"))
    trees["directory"] = traced(lambda: vault.tree.directory(vault.tree.root, b"directory"))
    with vault.opened(b"new", os.O_RDONLY) as file:
        out = memoryview(bytearray(50_000))
        file.read_into(0, out)
        trees["read"] = traced(lambda: file.read_into(5_000, out))
    vault.close()
    return trees


_BLOCK = re.compile(r"^```calls ([a-z ]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINE = re.compile(r"( *)([\w.<>]+)(?:  .*)?")


def drawn_trees(text: str) -> dict[str, Call]:
    """The trees that a document draws, by their titles; what follows two blanks on a line is a remark."""
    trees = {}
    for title, block in _BLOCK.findall(text):
        stack: list[Call] = []
        for line in block.splitlines():
            found = _LINE.fullmatch(line)
            assert found is not None, line
            depth, call = len(found[1]) // 2, Call(found[2])
            del stack[depth:]
            if stack:
                stack[-1].calls.append(call)
            else:
                trees[title] = call
            stack.append(call)
    return trees


def unlike(drawn: Call, real: Call, path: str = "") -> list[str]:
    """The calls that are drawn and not made: by this caller, in this order. Others may be left out."""
    where = f"{path}/{drawn.name}"
    if drawn.name != real.name:
        return [where]
    found, rest = [], iter(real.calls)
    for call in drawn.calls:
        met = next((each for each in rest if each.name == call.name), None)
        found += [f"{where}/{call.name}"] if met is None else unlike(call, met, where)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        for title, tree in real_trees(Path(directory)).items():
            print(f"{title}: {len(tree.names())} functions", *tree.lines(), sep="\n")
