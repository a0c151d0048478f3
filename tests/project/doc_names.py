"""Which names of the code a document mentions, and whether they exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
_FILE_ENDINGS = (".py", ".md", ".json", ".toml", ".svg")
_DOTTED = re.compile(r"[A-Za-z_]\w*\.[A-Za-z_]\w*")
# A class, a constant, or a function with an underscore in it: what cannot be an ordinary word.
_NAME = re.compile(r"_?[A-Z][a-z]+[A-Z]\w*|_?[A-Z]+_[A-Z_]+|_?[a-z]+_[a-z_]+")


@dataclass
class CodeNames:
    """What a package defines. members: of classes and of modules, by the owner's name."""

    names: set[str] = field(default_factory=set)
    members: dict[str, set[str]] = field(default_factory=dict)
    bases: dict[str, list[str]] = field(default_factory=dict)

    def has_member(self, owner: str, name: str) -> bool:
        """Whether a class (or a base of it) or a module defines the name."""
        if name in self.members.get(owner, ()):
            return True
        return any(self.has_member(base, name) for base in self.bases.get(owner, ()))


def names_of(package_dir: Path) -> CodeNames:
    """Everything that the files below package_dir define."""
    found = CodeNames()
    for path in sorted(package_dir.rglob("*.py")):
        module = found.members.setdefault(path.stem, set())
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            module |= set(_defined(node))
            if isinstance(node, ast.ClassDef):
                found.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                members = found.members.setdefault(node.name, set())
                for child in node.body:
                    members |= set(_defined(child))
                for each in ast.walk(node):
                    members |= set(_attribute(each))
                found.names |= members
        found.names |= module
    exports = ast.walk(ast.parse((package_dir / "__init__.py").read_text(encoding="utf-8")))
    found.members[package_dir.name] = {
        alias.asname or alias.name
        for node in exports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return found


def _defined(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _attribute(node: ast.AST) -> Iterator[str]:
    """Attributes that methods set on self, also several in one statement."""
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    ):
        yield node.attr


def missing(text: str, code: CodeNames, root: Path, known: frozenset[str]) -> list[str]:
    """What the code spans of a text name that does not exist; `known` are words that are no code of ours."""
    found = []
    for span in _CODE.findall(_FENCE.sub("", text)):
        if span in known:
            continue
        if _PATH.fullmatch(span) and ("/" in span or span.endswith(_FILE_ENDINGS)):
            places = (root, root / "cryptfs", root / "docs")
            if not any((place / span).exists() for place in places):
                found.append(span)
        elif _DOTTED.fullmatch(span):
            owner, _, name = span.partition(".")
            if not code.has_member(owner, name):
                found.append(span)
        elif _NAME.fullmatch(span) and span not in code.names:
            found.append(span)
    return found


def broken_links(path: Path) -> list[str]:
    """Relative links of a Markdown file that lead nowhere."""
    targets = _LINK.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))
    return [each for each in targets if "://" not in each and not (path.parent / each).exists()]
