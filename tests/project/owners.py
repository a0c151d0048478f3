"""Who sets the fields of a FileState: an assignment to another module's field is found."""

from __future__ import annotations

import ast
from pathlib import Path

PARTS = ("vfs/content/filestate.py", "vfs/content/parts.py")
"""FileState and what it is made of: where a field is set unless somebody else owns it."""

OWNERS = {
    "handles": "vfs/content/filetable.py",
    "writers": "vfs/content/filetable.py",
    "birth": "vfs/content/filetable.py",
    "may_have_capability": "vfs/tree/privileges.py",
}


def fields_of(package_dir: Path) -> set[str]:
    """The fields that FileState and its bases have."""
    found = set()
    for part in PARTS:
        for node in ast.walk(ast.parse((package_dir / part).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name in ("FileState", "Descriptor", "WriteMarks"):
                found |= {name for name, _, owner in _assigned(node) if owner == "self"}
    return found


def _assigned(tree: ast.AST) -> list[tuple[str, int, str]]:
    """Attributes that are assigned to: their name, the line, and whose they are as the code says it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            found.append((node.attr, node.lineno, ast.unparse(node.value)))
    return found


def strangers(package_dir: Path) -> list[str]:
    """One line for each assignment to a field of a FileState outside of the module that owns it."""
    fields, found = fields_of(package_dir), []
    for path in sorted(package_dir.rglob("*.py")):
        place = str(path.relative_to(package_dir))
        for name, line, owner in _assigned(ast.parse(path.read_text(encoding="utf-8"))):
            is_state = owner.split(".")[-1] in ("state", "_state")
            if is_state and name in fields and place != OWNERS.get(name):
                found.append(f"{place}:{line}: {owner}.{name}")
    return found
