"""A vault of a person, and stand-ins for the programs of a desktop, for tests of several commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cryptfs.vfs.vault import Vault


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """A vault with the name letters and the passphrase `right`."""
    made = tmp_path / "letters"
    Vault.create(made, b"right", kdf_memory=64 << 20)
    return made


@pytest.fixture
def desktop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A display, and a directory for programs that is alone in PATH."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("DISPLAY", ":none")
    monkeypatch.setenv("PATH", str(place))
    return place


def program(directory: Path, name: str, body: str) -> None:
    """A program in Python that notes its words, and does something; `words` are they."""
    directory.mkdir(exist_ok=True)
    file = directory / name
    log = directory / "log"
    file.write_text(
        f"#!{sys.executable} -I\nimport json, sys\nwords = sys.argv[1:]\n"
        f"print(json.dumps([{name!r}, *words]), file=open({str(log)!r}, 'a'), flush=True)\n{body}\n"
    )
    file.chmod(0o755)


def said_to(directory: Path) -> list[list[str]]:
    """The command lines of these programs."""
    return [json.loads(line) for line in (directory / "log").read_text().splitlines()]
