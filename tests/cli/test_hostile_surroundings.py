"""Names that write to the terminal, and Python modules that lie where somebody starts a program."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cryptfs.cli.exit_codes import CommandError
from cryptfs.cli.output import answer_json, console
from cryptfs.cli.status import finding_lines, render
from cryptfs.core.printable import fit_for_terminal
from cryptfs.mount.daemon import LogTarget, configure_logging
from cryptfs.storage.vaultdir import LOCK_NAME
from tests.cli.test_cli_commands import CHEAP, write_passfile
from tests.commands import Run, runner

pytestmark = pytest.mark.waits

ROOT = Path(__file__).parents[2]
ESCAPE = "\x1b]0;title\x07\x1b[31m\x9b1m\u202e"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def assert_harmless(text: str) -> None:
    assert text and fit_for_terminal(text) == text


def test_each_line_stays_a_line() -> None:
    assert fit_for_terminal("one\ntwo\x1b[1m\n\ttab") == "one\ntwo\\x1b[1m\n\\ttab"
    assert fit_for_terminal("gr\u00fc\u00dfe 漢") == "gr\u00fc\u00dfe 漢"


def _gone() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_path_with_escapes(tmp_path: Path, run: Run) -> None:
    """Every command, with a vault that is missing, is none, is one, or is in use by a mount elsewhere."""
    passfile = write_passfile(tmp_path / f"pass{ESCAPE}", "correct horse")
    passfile.chmod(0o644)
    vault = tmp_path / f"vault{ESCAPE}"
    said = [run("init", vault, "--passfile", passfile, *CHEAP)]
    for place in (vault, tmp_path / f"missing{ESCAPE}", tmp_path, passfile):
        for command in ("init", "info", "fsck", "passwd", "upgrade", "umount", "status", "snapshot"):
            more = () if command in ("info", "umount", "status") else ("--passfile", tmp_path / f"no{ESCAPE}")
            said.append(run(command, place, *more))
        said.append(run("mount", place, place, "-o", f"x{ESCAPE}"))
        said.append(run("mount", place, place, "--log-file", tmp_path / ESCAPE / "log"))
        said.append(run("verify", place, tmp_path / f"no{ESCAPE}"))
    for name in (LOCK_NAME, *(each for each in os.listdir(vault) if each.endswith(".lock"))):
        # Of a process that is gone: others are waited for, if nothing is mounted any more (test_closing).
        (vault / name).write_text(json.dumps({"pid": _gone(), "mountpoint": f"/m{ESCAPE}; rm -rf ~"}))
    with (vault / LOCK_NAME).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        said.append(run("info", vault))
        said.append(run("fsck", "--repair", vault, "--passfile", passfile))
        assert "is in use" in said[-1].err or "still has it open" in said[-1].err
        assert "umount '/m" not in said[-1].err  # nothing to paste from the lock file
    for each in said:
        assert_harmless(each.out + each.err)


def test_a_daemon_that_says_anything(capsys: pytest.CaptureFixture[str]) -> None:
    """root may ask the daemon of another user, which is any program that mounts as `fuse.cryptfs`."""
    word = f"{ESCAPE}[bold]x[/bold]"
    finding = {"path": word, "chunk": None, "reason": word, "count": 2, "last": 1.0}
    found = {
        "mountpoint": f"/m{word}", "vault": f"/v{ESCAPE}[red]", "read_only": False, "pid": 1,
        "engine": word, "version": word, "uptime_seconds": 1.0, "processor_seconds": 1.0, "memory": {},
        "open": {word: 1}, "bytes": {"read": 0, "written": 0}, "operations": {word: 1}, "errors": {word: 1},
        "findings": [finding], "findings_dropped": 0, "python": {"version": word, "pgo": False},
    }  # fmt: skip
    console().print(render(found))
    print(*finding_lines(found), sep="\n")
    text = capsys.readouterr().out
    assert_harmless(text)
    assert text.count("[bold]x[/bold]") == 9 and "[red]" in text
    answer_json(found)
    text = capsys.readouterr().out
    assert_harmless(text)
    assert json.loads(text) == {"schema": 1, **found}, "escaped, and nothing is lost"


def test_a_traceback_and_a_log(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have the texts of errors, and those what other programs print."""

    def fail(*_: object) -> None:
        raise CommandError(f"a program said {ESCAPE}")

    monkeypatch.setattr("cryptfs.cli.info.describe", fail)
    said = run("--debug", "info", tmp_path).err
    assert "Traceback" in said
    assert_harmless(said)
    for logger in (logging.root, logging.getLogger("cryptfs")):
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "level", logger.level)
    configure_logging(LogTarget(tmp_path / "log"), daemon=True)
    try:
        raise OSError(f"a disk said {ESCAPE}")
    except OSError as error:
        logging.getLogger("cryptfs").error("cannot unmount %s", f"/m{ESCAPE}\nforged", exc_info=error)
    (handler,) = logging.root.handlers
    handler.close()
    assert_harmless((tmp_path / "log").read_text())


@pytest.mark.parametrize("name", ["cryptfs", "click", "pip", "venv", "encodings"])
def test_a_module_in_the_current_directory(tmp_path: Path, name: str) -> None:
    """`scripts/run` there does not import it; an environment that is complete stands in for a new one."""
    vault, venv, here = tmp_path / "vault", tmp_path / "venv", tmp_path / "here"
    (here / name).mkdir(parents=True)
    (here / name / "__init__.py").write_text("raise SystemExit('imported from here')")
    (here / name / "__main__.py").write_text("raise SystemExit('imported from here')")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (venv / "bin" / "python").chmod(0o755)
    with (ROOT / "pyproject.toml").open() as file:
        checksum = subprocess.run(["cksum"], stdin=file, capture_output=True, text=True, check=True).stdout
    (venv / ".cryptfs-installed").write_text(f"{ROOT} plain {checksum}")
    words = [
        str(each)
        for each in (ROOT / "scripts/run", vault, tmp_path / "mountpoint", "--passfile", tmp_path / "none")
    ]
    done = subprocess.run(
        words,
        cwd=here,
        env={**os.environ, "CRYPTFS_VENV": str(venv)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9, done.stderr
    assert "cannot read the passphrase file" in done.stderr


def test_a_mount_helper_starts_over_without_pythonpath(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "msgspec.py").write_text("raise SystemExit('imported by way of PYTHONPATH')")
    helper = tmp_path / "mount.fuse.cryptfs"
    helper.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from cryptfs.cli.main import run\nrun()\n"
    )
    helper.chmod(0o755)
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "cryptfs.json").write_text("{}")
    (tmp_path / "m").mkdir()
    done = subprocess.run(
        [helper, tmp_path / "v", tmp_path / "m"],
        env={**os.environ, "PYTHONPATH": str(shadow)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 8, done.stderr
