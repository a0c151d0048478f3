"""Who sets the fields of a FileState, constructors apart: one module each."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PARTS = {
    "vfs/content/filestate.py": ("FileState",),
    "vfs/content/parts.py": ("Descriptor", "WriteMarks"),
}
"""FileState and what it is made of."""


def fields_of(package_dir: Path) -> set[str]:
    """The fields that FileState and its bases have."""
    found = set()
    for part in PARTS:
        for node in _classes(package_dir, part):
            found |= {name for name, _, owner in _assigned(node) if owner == "self"}
    return found


def setters(package_dir: Path) -> dict[str, dict[str, list[int]]]:
    """For each field the modules that set it, with the lines."""
    fields = fields_of(package_dir)
    found: dict[str, dict[str, list[int]]] = {name: defaultdict(list) for name in fields}
    for place, name, line in _settings(package_dir):
        if name in fields:
            found[name][place].append(line)
    return found


def _settings(package_dir: Path) -> Iterator[tuple[str, str, int]]:
    """Module, name and line of each assignment to a field of something that is a FileState by its name."""
    for path in sorted(package_dir.rglob("*.py")):
        place = str(path.relative_to(package_dir))
        for name, line, owner in _assigned(ast.parse(path.read_text(encoding="utf-8"))):
            if owner.split(".")[-1] in ("state", "_state"):
                yield place, name, line
        for node in _classes(package_dir, place) if place in PARTS else ():
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name != "__init__":
                    yield from (
                        (place, name, line) for name, line, owner in _assigned(method) if owner == "self"
                    )


def _classes(package_dir: Path, part: str) -> list[ast.ClassDef]:
    tree = ast.parse((package_dir / part).read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name in PARTS[part]]


def _assigned(tree: ast.AST) -> list[tuple[str, int, str]]:
    """Attributes that are assigned to: their name, the line, and whose they are as the code says it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            found.append((node.attr, node.lineno, ast.unparse(node.value)))
    return found


def shared(package_dir: Path) -> list[str]:
    """One line for each field that several modules set."""
    return [
        f"{name}: {', '.join(f'{place}:{lines[0]}' for place, lines in sorted(places.items()))}"
        for name, places in sorted(setters(package_dir).items())
        if len(places) > 1
    ]
