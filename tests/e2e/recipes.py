"""The recipes of docs/recipes, and a terminal that runs their commands as they are."""

from __future__ import annotations

import os
import pty
import re
import select
import sys
import time
from pathlib import Path

from tests import derived

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes"
PASSPHRASE = "correct horse battery staple"
OLD_FILES = {"letter.txt": b"Dear Ana\n", "photos/2025/sea.raw": bytes(range(256)) * 30}
"""What somebody who moves has in the old vault, beside a symlink `link` to the letter."""
SECONDS = 120
"""Longer than any recipe takes on a busy machine."""

# What a program asks, at the end of what it has printed so far, and what a person types.
ANSWERS = (
    (re.compile(r"type word (?P<word>\d+): $"), ""),
    (re.compile(r"\[y/N\]:? ?$|\[yN\]: ?$|\(y/n\)[^\n]*$", re.IGNORECASE), "y"),
    (re.compile(r"(?:passphrase|password)[^\n]*: ?$|once more: $", re.IGNORECASE), PASSPHRASE),
)
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAM = """\
#!{python}
import sys
from cryptfs.core.slots import kdf
from tests import derived
kdf.passphrase_key = derived.quick_passphrase_key
from cryptfs.cli.main import run
run()
"""


def script_of(page: Path) -> str:
    """All commands of a page, in their order."""
    return "".join(_BLOCK.findall(page.read_text(encoding="utf-8")))


def put_old_files(directory: Path) -> None:
    """Put OLD_FILES and the link into a directory."""
    for name, content in OLD_FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (directory / "link").symlink_to("letter.txt")


def at_home(home: Path) -> dict[str, str]:
    """The environment of a person with this home directory, for whom cryptfs is installed.

    Argon2id is derived once for each passphrase and salt: see tests/derived.py.
    """
    program = home / ".local" / "bin" / "cryptfs"
    program.parent.mkdir(parents=True)
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    kept = {name: os.environ[name] for name in ("LANG", derived.DIRECTORY) if name in os.environ}
    path = f"{program.parent}:{os.environ.get('PATH', os.defpath)}"
    own = {"HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    return kept | own


def typed_at_a_terminal(script: str, environment: dict[str, str]) -> str:
    """Run a script with bash on a terminal, in the home directory; what it printed.

    It ends at the first command that fails. A failure shows all commands with their output.
    """
    home = environment["HOME"]
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe("bash", ["bash", "-euxo", "pipefail", "-c", script], environment)
    seen, answered, ends = b"", 0, time.monotonic() + SECONDS
    try:
        while time.monotonic() < ends:
            if not select.select([fd], [], [], 1)[0]:
                continue
            try:
                piece = os.read(fd, 4096)
            except OSError:  # the end, on Linux
                break
            if not piece:
                break
            seen += piece
            answer = _answer_to(seen.decode(errors="replace")) if len(seen) > answered else None
            if answer is not None:
                answered = len(seen)
                os.write(fd, answer.encode() + b"\n")
    finally:
        os.close(fd)  # a program that waits gets a hangup
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = seen.decode(errors="replace").replace("\r\n", "\n")
    assert code == 0, f"exit code {code}:\n{text[-6000:]}"
    return text


def _answer_to(text: str) -> str | None:
    """What a person types after a text on the terminal; None: nothing."""
    for question, answer in ANSWERS:
        if asked := question.search(text):
            if "word" not in asked.groupdict():
                return answer
            # The last list of words that was shown.
            words: dict[str, str] = dict(re.findall(r"(\d+)\. ([a-z]+)", text))
            return words[asked["word"]]
    return None
