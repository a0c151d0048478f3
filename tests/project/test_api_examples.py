"""Every example in docs/API.md runs, and each value that it shows after `# ->` is the real one."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.fsspec.filesystem import CryptfsFileSystem

PAGE = Path(__file__).parents[2] / "docs" / "API.md"
BLOCK = re.compile(r"^```python( fuse)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = re.compile(r"# -> (.*)$")


class Shown(ast.NodeTransformer):
    """Turns an expression with `# -> value` behind it into a call that compares."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.count = 0

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        found = SHOWN.search(self.lines[(node.end_lineno or 0) - 1])
        if found is None:
            return node
        self.count += 1
        call = ast.Call(ast.Name("_shown", ast.Load()), [node.value, ast.Constant(found[1])], [])
        return ast.copy_location(ast.Expr(call), node)


def run(source: str, names: dict[str, Any]) -> int:
    """Run an example; how many values it shows. Raises: AssertionError: one of them is another."""

    def shown(value: object, text: str) -> None:
        assert repr(value) == text

    transformer = Shown(source.splitlines())
    tree = ast.fix_missing_locations(transformer.visit(ast.parse(source)))
    names["_shown"] = shown
    exec(compile(tree, str(PAGE), "exec"), names)
    return transformer.count


def examples() -> list[tuple[bool, str]]:
    """All blocks: whether it mounts, and its source."""
    return [(bool(fuse), source) for fuse, source in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]


def test_every_example_without_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CRYPTFS_PASSFILE", raising=False)
    monkeypatch.delenv("CRYPTFS_KEYFILE", raising=False)
    names: dict[str, Any] = {}
    try:
        shown = sum(run(source, names) for fuse, source in examples() if not fuse)
    finally:
        for each in list(CryptfsFileSystem._cache.values()):
            each.close()
    assert shown == sum(source.count("# -> ") for _, source in examples())


@pytest.mark.waits
@pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")
def test_the_example_with_a_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cryptfs.Vault.create("vault", b"correct horse battery staple", kdf_memory=64 << 20)
    with cryptfs.Vault.unlock("vault", b"correct horse battery staple") as vault:
        vault.makedirs("letters/2026")
        with vault.open("letters/2026/ana.txt", "w") as file:
            file.write("Dear Ana")
    (source,) = (source for fuse, source in examples() if fuse)
    run(source, {"cryptfs": cryptfs})
    assert capsys.readouterr().out == "Dear Ana\n"


def test_another_value_is_found() -> None:
    run("1 + 1  # -> 2", {})
    with pytest.raises(AssertionError):
        run("1 + 1  # -> 3", {})
