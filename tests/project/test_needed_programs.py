"""The programs that tests ask for are installed by scripts/test: on a new machine nothing is skipped."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.e2e.programs import PACKAGES
from tests.e2e.test_recipes import SCENES

ROOT = Path(__file__).parents[2]
ALWAYS_THERE = {"bash"}  # scripts/test itself runs in it


def _asked_for() -> dict[str, str]:
    """Each program in a call of `require`, and where it stands."""
    found = {program: "test_recipes" for programs, _ in SCENES.values() for program in programs}
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):  # else it is one of SCENES
                        found[str(argument.value)] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def _installed_by_the_script() -> set[str]:
    script = (ROOT / "scripts" / "test").read_text().replace("\\\n", " ")
    return {word for line in re.findall(r"^need_packages (.*)$", script, re.M) for word in line.split()}


def test_each_program_is_installed() -> None:
    installed, asked_for = _installed_by_the_script(), _asked_for()
    assert {"vim", "git", "fio"} <= set(asked_for)
    missing = {
        program: where
        for program, where in asked_for.items()
        if program not in ALWAYS_THERE and not set(PACKAGES.get(program, program).split()) <= installed
    }
    assert not missing, f"scripts/test does not install: {missing}"
