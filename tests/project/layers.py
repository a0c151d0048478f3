"""The rooms of cryptfs and their imports: finds what points upward, and circles.

`python -m tests.project.layers` prints the rooms, how many files each has, and what each imports;
`python -m tests.project.layers vfs/tree` prints the files of a room, each with its docstring's first line.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cryptfs

# From the bottom up. A room may import those on lower lines, and itself.
ORDER = (
    ("version", "interpreter", "signals"),
    ("errors",),
    ("errnos",),
    ("core",),
    ("core.names",),
    ("core.format", "core.slots"),
    ("storage",),
    ("unlock.carriers",),
    ("unlock",),
    ("vfs.content",),
    ("vfs.tree",),
    ("vfs.scan",),
    ("vfs.recovery",),
    ("vfs",),
    ("mount.service",),
    ("mount.leaving",),
    ("fsck", "witness", "rekey", "transfer", "mount"),
    ("mount.native", "mount.fusepy"),
    ("cli",),
    ("fsspec",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
# The roots that wire everything; they may import whatever they want, and nobody may import them.
ROOTS = ("__init__", "__main__")
MOST_FILES = 15
UNCOUNTED = ("cli",)
"""Rooms with a file for each command."""

IMPURE = frozenset(
    {
        *("os", "posix", "io", "fcntl", "mmap", "shutil", "tempfile", "glob", "pathlib", "sys"),
        *("threading", "_thread", "concurrent", "multiprocessing", "asyncio", "queue", "signal"),
        *("time", "datetime", "random", "secrets", "logging", "warnings", "socket", "subprocess", "ctypes"),
    }
)
CTYPES = ("storage/libc.py", "mount/fusepy/engine.py", "mount/fusepy/libfuse.py")
"""The files that may import ctypes: the calls of the C library, and mfusepy, whose buffers are C pointers."""
OWN_RANDOMNESS = {
    "fido2": ("unlock/carriers/ctap.py", "unlock/carriers/asker.py", "unlock/token.py", "cli/tokens.py"),
    "cryptography": ("unlock/hybrid.py",),
    "mnemonic": ("unlock/carriers/words.py",),
    "shamir_mnemonic": ("unlock/carriers/shares.py",),
}
"""Packages that draw randomness, or could, and who may import them; all but the first file for types."""
CIPHERS = ("cryptfs.core.aead", "cryptfs.core.sodium", "cryptfs.core.format.header", "cryptfs.core.keys")


@dataclass(frozen=True)
class Import:
    """One name that a file imports.

    path: below the package.   module: in full; it may have the name of a class at its end.
    """

    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.module}"


def imports(package_dir: Path) -> list[Import]:
    """Every import below package_dir, which stands for `cryptfs`; those for type checking too."""
    found = []
    for path in sorted(package_dir.rglob("*.py")):
        below = path.relative_to(package_dir)
        found += [Import(below, line, module) for module, line in _imports(path, below.with_suffix("").parts)]
    return found


def _imports(path: Path, parts: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Every module that a file names, wherever it does; a name that is imported may be a module too."""
    package = ("cryptfs", *parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, node.module) if node.module else base)
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and _called(node) in ("__import__", "import_module"):
            argument = node.args[0] if node.args else None
            named = argument.value if isinstance(argument, ast.Constant) else "?"
            yield str(named), node.lineno


def _called(node: ast.Call) -> str:
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def room_of(path: Path) -> str:
    """The room of a file; of one in no folder, its own name."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1]) or parts[0]


def violations(package_dir: Path) -> list[str]:
    """One line for each import that breaks a rule."""
    found = imports(package_dir)
    return [f"{each}: {broken}" for each in found if (broken := _broken_rule(each, package_dir))]


def _broken_rule(found: Import, package_dir: Path) -> str:
    """What is wrong with an import; '' where nothing is."""
    room, names = room_of(found.path), found.module.split(".")
    layer = room.split(".")[0]
    if room in ROOTS:
        return ""
    if room not in RANK:
        return "the file belongs to no room"
    if layer in ("version", "errors", "core") and names[0] in IMPURE:
        return f"{layer} is pure"
    if names[0] == "mfusepy" and layer != "mount":
        return "only mount knows FUSE"
    if names[0] == "nacl" and layer not in ("core", "cli"):
        return "libsodium is behind core"
    if names[0] == "ctypes" and found.path.as_posix() not in CTYPES:
        return "the C library is behind storage.libc"
    if found.path.as_posix() not in OWN_RANDOMNESS.get(names[0], (found.path.as_posix(),)):
        return f"{names[0]} draws its own randomness: only {OWN_RANDOMNESS[names[0]][0]} may use it"
    if names[0] != "cryptfs":
        return ""
    target = _room_named(names[1:])
    if target not in RANK:
        return "" if target == "__version__" else "the package's root is above every room"
    if target != room and RANK[target] >= RANK[room]:
        return f"{target} is {'above' if RANK[target] > RANK[room] else 'beside'} {room}"
    if layer == "storage" and any(
        found.module == name or found.module.startswith(f"{name}.") for name in CIPHERS
    ):
        return "storage sees only ciphertext"
    return ""


def _room_named(names: list[str]) -> str:
    """The room of a module, or the room itself: the longest that begins the name."""
    for length in range(len(names), 0, -1):
        room = ".".join(names[:length])
        if room in RANK:
            return room
    return names[0] if names else "__init__"


def circles(package_dir: Path) -> list[list[str]]:
    """The groups of files that reach each other by imports, also by those for type checking."""
    modules = {_module_of(path.relative_to(package_dir)) for path in package_dir.rglob("*.py")}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for each in imports(package_dir):
        names = each.module.split(".")
        for length in range(len(names), 0, -1):
            target = ".".join(names[:length])
            if target in modules:
                graph[_module_of(each.path)].add(target)
                break
    reached = {module: _reachable(module, graph) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other])) for module in graph
    }
    return sorted(list(group) for group in groups if group)


def _module_of(path: Path) -> str:
    return ".".join(("cryptfs", *path.with_suffix("").parts)).removesuffix(".__init__")


def _reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in graph[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def rooms(package_dir: Path) -> dict[str, list[str]]:
    """The files of each room, __init__ apart."""
    found: dict[str, list[str]] = {}
    for path in sorted(package_dir.rglob("*.py")):
        below = path.relative_to(package_dir)
        if len(below.parts) > 1 and below.stem != "__init__":
            found.setdefault(room_of(below), []).append(below.stem)
    return found


def drawn(package_dir: Path) -> str:
    """The rooms from the bottom up, the number of their files, and the rooms that each imports."""
    files = rooms(package_dir)
    below: dict[str, set[str]] = {}
    for each in imports(package_dir):
        names = each.module.split(".")
        if names[0] == "cryptfs" and (target := _room_named(names[1:])) != room_of(each.path):
            below.setdefault(room_of(each.path), set()).add(target)
    lines = []
    for room in sorted(files, key=lambda room: (RANK[room], room)):
        targets = sorted(below.get(room, set()) & RANK.keys(), key=lambda target: (RANK[target], target))
        lines.append(f"{room:14} {len(files[room]):2} files  imports {', '.join(targets)}")
    return "\n".join(lines)


def first_lines(package_dir: Path, room: str) -> list[str]:
    """The files of a room, as in 'vfs/tree', each with the first line of its docstring."""
    paths = sorted(path for path in (package_dir / room).glob("*.py") if path.stem != "__init__")
    return [f"{path.name:18} {_docstring(path).partition(chr(10))[0]}" for path in paths]


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


if __name__ == "__main__":
    where = Path(cryptfs.__file__).parent
    for each in sys.argv[1:]:
        print(*first_lines(where, each), sep="\n")
    if sys.argv[1:]:
        sys.exit()
    print(drawn(where))
    for group in circles(where):
        print("circle:", *group)
    for line in violations(where):
        print(line)
