"""The guard of tests/unit: it sees what touches the disk, and lets the tools of the tests work."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.purity import watching

ROOT = Path(__file__).parents[2]
TOUCHES = {
    "open": lambda: Path(__file__).read_bytes(),
    "os.open": lambda: os.close(os.open(ROOT, os.O_RDONLY)),
    "os.listdir": lambda: os.listdir(ROOT),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_it_sees(touch: Callable[[], object]) -> None:
    with watching() as seen:
        touch()
    assert seen


def test_it_sees_nothing_afterwards_and_no_imports() -> None:
    sys.modules.pop("this_is_no_module", None)
    with watching() as seen:
        with pytest.raises(ImportError):
            importlib.import_module("this_is_no_module")
        bytearray(10_000)
    Path(__file__).read_bytes()
    assert seen == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def test_it(tmp_path): pass", "tmp_path, tmp_path_factory: a test that needs"),
        ("def test_it(): open('/etc/hostname').close()", "touches the disk: open('/etc/hostname'"),
        ("def test_it(): pass", ""),
    ],
)
def test_a_test_that_touches_the_disk_fails(body: str, said: str, tmp_path: Path) -> None:
    """The room's own conftest, with a test that is bad beside it."""
    room = tmp_path / "tests" / "unit"
    room.mkdir(parents=True)
    (tmp_path / "tests" / "__init__.py").touch()
    (room / "__init__.py").touch()
    for name in ("conftest.py", "purity.py"):
        (room / name).write_bytes((ROOT / "tests" / "unit" / name).read_bytes())
    (room / "test_bad.py").write_text(textwrap.dedent(body) + "\n", encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-vv",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, str(room)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == bool(said), done.stdout + done.stderr
    assert said in done.stdout
