"""Rules that stand in one place: finds the second copy of one in the source."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

Found = Iterator[tuple[int, str]]
"""Line and what is wrong there."""


def findings(package_dir: Path, rule: Callable[[ast.Module], Found], but: frozenset[str]) -> list[str]:
    """One line for each place that breaks the rule, outside of the files in `but`."""
    lines = []
    for path in sorted(package_dir.rglob("*.py")):
        below = path.relative_to(package_dir).as_posix()
        if below not in but:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            lines += [f"{below}:{line}: {wrong}" for line, wrong in rule(tree)]
    return lines


def made_errors(tree: ast.Module) -> Found:
    """Errors that are made from an errno by hand: os_error(code) does that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(_is_strerror(argument) for argument in node.args):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name.endswith("Error"):
                yield node.lineno, f"{name} from an errno"


def _is_strerror(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return getattr(function, "attr", getattr(function, "id", "")) == "strerror"


def unpacked_headers(tree: ast.Module) -> Found:
    """Headers that are unpacked by hand: FileContext.header_of reads and verifies one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if node.func.attr == "unpack_header" or (owner, node.func.attr) == ("FileHeader", "unpack"):
                yield node.lineno, f"{node.func.attr} of a header"


def closed_headers(tree: ast.Module) -> Found:
    """CLEAN headers that are put together by hand: FileHeader.closed_at does that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "flags":
            for inner in ast.walk(node.value):
                if isinstance(inner, ast.Attribute) and inner.attr == "CLEAN":
                    yield node.value.lineno, "a CLEAN header"


_SIZES = frozenset({"chunk_size", "record_size", "log2_chunk_size", "nonce_size", "overhead", "HEADER_SIZE"})
_ALWAYS = frozenset({"overhead", "HEADER_SIZE"})
"""What nothing is even added to: records and headers have their lengths from ChunkGeometry."""
_SCALING = (ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.LShift, ast.RShift, ast.BitAnd)


def chunk_arithmetic(tree: ast.Module) -> Found:
    """Offsets and sizes of chunks that are computed by hand: ChunkGeometry has a method for each."""
    for node in ast.walk(tree):
        operands: tuple[ast.expr, ...]
        if isinstance(node, ast.BinOp):
            operands, scales = (node.left, node.right), isinstance(node.op, _SCALING)
        elif isinstance(node, ast.AugAssign):
            operands, scales = (node.target, node.value), isinstance(node.op, _SCALING)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "divmod":
            operands, scales = tuple(node.args), True
        else:
            continue
        for operand in operands:
            name = _last_name(operand)
            if name in _SIZES and (scales or name in _ALWAYS):
                yield node.lineno, f"arithmetic with {name}"


def _last_name(node: ast.expr) -> str:
    """The name that an operand ends with, a sign apart."""
    if isinstance(node, ast.UnaryOp):
        return _last_name(node.operand)
    return str(getattr(node, "attr", getattr(node, "id", "")))
