"""Finds imports that point the wrong way between the layers of cryptfs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

# Each may import those before it, and itself. `version` is a constant.
ORDER = ("version", "errors", "core", "storage", "vfs", "mount", "cli")
# The roots that wire everything; they may import whatever they want, and nobody may import them.
ROOTS = ("__init__", "__main__")
IMPURE = frozenset(
    {
        *("os", "posix", "io", "fcntl", "mmap", "shutil", "tempfile", "glob", "pathlib", "sys"),
        *("threading", "_thread", "concurrent", "multiprocessing", "asyncio", "queue", "signal"),
        *("time", "datetime", "random", "secrets", "logging", "warnings", "socket", "subprocess", "ctypes"),
    }
)
CIPHERS = ("cryptfs.core.aead", "cryptfs.core.sodium", "cryptfs.core.header", "cryptfs.core.keys")


def violations(package_dir: Path) -> list[str]:
    """One line for each import below package_dir (which stands for `cryptfs`) that breaks a rule."""
    found = []
    for path in sorted(package_dir.rglob("*.py")):
        parts = path.relative_to(package_dir).with_suffix("").parts
        for module, line in _imports(path, parts):
            broken = _broken_rule(parts[0], module)
            if broken:
                found.append(f"{path.relative_to(package_dir)}:{line}: {module}: {broken}")
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


def _broken_rule(layer: str, module: str) -> str:
    """What is wrong with importing `module` in `layer`; '' where nothing is."""
    names = module.split(".")
    if layer in ROOTS:
        return ""
    if layer not in ORDER:
        return "the file belongs to no layer"
    if layer in ("version", "errors", "core") and names[0] in IMPURE:
        return f"{layer} is pure"
    if names[0] == "mfusepy" and layer != "mount":
        return "only mount knows FUSE"
    if names[0] == "nacl" and layer in ("storage", "vfs", "mount"):
        return "libsodium is behind core"
    if names[0] != "cryptfs":
        return ""
    target = names[1] if len(names) > 1 else "__init__"
    if target not in ORDER:
        return "" if target == "__version__" else "the package's root is above every layer"
    if ORDER.index(target) > ORDER.index(layer):
        return f"{target} is above {layer}"
    if layer == "storage" and any(module == name or module.startswith(f"{name}.") for name in CIPHERS):
        return "storage sees only ciphertext"
    return ""
