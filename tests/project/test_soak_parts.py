"""scripts/soak itself: what its parts name is there, and Ctrl-C lets a part clean up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soaklib import __main__ as soak
from soaklib.parts import PARTS, Part

ROOT = Path(__file__).parents[2]
SECONDS = 30.0

PROGRAM = """
import sys
from soaklib import __main__ as soak
from soaklib.parts import Part
soak.PARTS = (Part("first", "", ("-c", sys.argv[1])), Part("second", "", ("-c", "print('it ran')")))
sys.exit(soak.main([]))
"""
IGNORING = ("/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh")
TIDY = """
import pathlib, time
litter = pathlib.Path({litter!r})
litter.mkdir()
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    litter.rmdir()
    print("it is tidy")
    raise SystemExit(2)
"""
"""Stands for a part: what it made takes it a second to remove."""


def until_there(path: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_a_part_names_is_there(part: Part) -> None:
    files = [word for word in part.command if word.startswith(("tests/", "scripts/"))]
    modules = [word for word in part.command if word.startswith("soaklib")]
    assert files or modules
    for word in files:
        assert (ROOT / word).exists()
    for word in modules:
        path = ROOT / "scripts" / word.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_somebody_reads_each_size(part: Part) -> None:
    """A size that nobody reads would make a part small, and nobody would see it."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in part.settings.keys() - {"PYTHONPATH"}:
        assert re.search(rf"[\"']{name}[\"']", text), name


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_quick_is_as_small_as_in_the_suite(part: Part) -> None:
    chosen = soak.parse(["--quick"])
    assert soak.settings_of(part, chosen, 1).keys() <= {"PYTHONPATH", "CRYPTFS_CRASH_SEED"}
    assert "{" not in " ".join(soak.command_of(part, chosen))


def test_each_engine_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--list"]) == 0
    listed = capsys.readouterr().out
    for part in PARTS:
        assert part.name in listed
        command = soak.command_of(part, soak.parse([]))
        assert ("both" in command) == ("--engine" in command)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("background", [False, True])
def test_ctrl_c_waits_until_a_part_has_cleaned_up(
    tmp_path: Path, number: signal.Signals, *, background: bool
) -> None:
    """The table shows it, the parts behind it are not run, and the log is kept.

    Args: background: as a shell starts it, with SIGINT ignored.
    """
    litter = tmp_path / "litter"
    process = subprocess.Popen(
        [*(IGNORING if background else ()), sys.executable, "-c", PROGRAM, TIDY.format(litter=str(litter))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/scripts:{ROOT}", "TMPDIR": str(tmp_path), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until_there(litter)
        process.send_signal(number)
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == soak.INTERRUPTED, said
    assert not litter.exists()
    assert "interrupted" in said and "it is tidy" in said and "second" not in said
    assert len(list(tmp_path.glob("cryptfs-soak-*/first-*.log"))) == 1


@pytest.mark.parametrize("code", [0, 1])
def test_logs_are_kept_where_something_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(soak, "PARTS", (Part("first", "", ("-c", f"print('the last line'); exit({code})")),))
    assert soak.main([]) == code
    assert "the last line" in capsys.readouterr().out
    assert bool(list(tmp_path.iterdir())) == bool(code)
