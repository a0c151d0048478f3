"""The session in the README is what a person sees: every command runs here, and prints the same."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import detach, mount_at

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")

ROOT = Path(__file__).parents[2]
HOME_OF_README = "/home/ana"
PROMPTS = ("New passphrase: ", "New passphrase, once more: ", "Passphrase: ")
# Random in each vault: cipher names, the ids of machines, recovery words and their id.
RANDOM = re.compile(
    r"^[\w-]{43}$|(?<=cryptfs\.host\.)[\w-]{16}|(?<=\d\. )[a-z]{3,8} *|(?<=type word )\d+: [a-z]+"
    r"|(?<=Recovery words )[0-9a-f]{8}",
    re.MULTILINE,
)
ASKED_BACK = re.compile(r"type word (\d+): $")
NO_SYSLOG = re.compile(r"^cryptfs: warning: this system has no syslog.*\n", re.MULTILINE)


def session() -> list[tuple[str, str]]:
    """The commands of the README's session, each with its output."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## A session")[2]
    block = text.split("```")[1].strip("\n") + "\n"
    steps = [step.partition("\n") for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, _, output in steps]


def on_terminal(command: str, environment: dict[str, str]) -> str:
    """What a command prints on a terminal; each prompt gets the passphrase."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-c", command], environment)
    seen = b""
    answered = 0
    while select.select([fd], [], [], 60)[0]:
        try:
            piece = os.read(fd, 4096)
        except OSError:  # the end, on Linux
            break
        if not piece:
            break
        seen += piece
        text = seen.decode()
        asked = ASKED_BACK.search(text)
        if len(seen) > answered and (asked or any(text.endswith(prompt) for prompt in PROMPTS)):
            answered = len(seen)
            words = dict(re.findall(r"(\d+)\. ([a-z]+)", text))
            os.write(fd, words[asked[1]].encode() + b"\n" if asked else b"correct horse battery staple\n")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    text = seen.decode().replace("\r\n", "\n")
    assert code == 0, text
    return text


def known(output: str, command: str) -> list[str]:
    """The lines of an output without what is random; a listing sorts by random names."""
    lines = [line.rstrip() for line in RANDOM.sub("*", NO_SYSLOG.sub("", output)).splitlines()]
    return sorted(lines) if command.startswith("ls ") else lines


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    if mount_at(tmp_path / "private") is not None:
        detach(str(tmp_path / "private"), lazy=True)
    if ownmountpoint.is_own(tmp_path / "private"):
        ownmountpoint.restore(tmp_path / "private")


def test_the_session_of_the_readme(home: Path) -> None:
    steps = session()
    assert sum(command.startswith("cryptfs ") for command, _ in steps) == 4
    program = home / "bin" / "cryptfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cryptfs "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    for command, expected in steps:
        shown = on_terminal(command, environment).replace(str(home), HOME_OF_README)
        assert known(shown, command) == known(expected, command), command
