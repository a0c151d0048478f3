"""Each shell finds its completion below the prefix of an installation, and completes with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHARE = Path(__file__).parents[2] / "share"

# A terminal of its own, in which a person types and presses Tab.
_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1='ready> '; fpath=($1 \$fpath); autoload -Uz compinit; compinit -u -D; print 'I am 'loaded"
zpty -r -m shell seen '*I am loaded*'
zpty -w -n shell $'cryptfs umo\t'
zpty -r -m shell seen '*cryptfs umount*' && print completed
zpty -d shell
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home of its own, and the command `cryptfs` of this tree."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cryptfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m cryptfs "$@"\n')
    (programs / "cryptfs").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(SHARE.parent),
        "HOME": str(tmp_path),
        "XDG_DATA_DIRS": f"{SHARE}:/usr/share",
        "TERM": "xterm",
    }


def run(environment: dict[str, str], *words: str) -> str:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_bash(environment: dict[str, str]) -> None:
    file = SHARE / "bash-completion" / "completions" / "cryptfs"
    script = (
        f'source "{file}"; complete -p cryptfs; COMP_WORDS=(cryptfs umo); COMP_CWORD=1; '
        '_cryptfs_completion cryptfs umo cryptfs; echo "${COMPREPLY[@]}"'
    )
    registered, proposed = run(environment, "bash", "--norc", "-c", script).splitlines()
    assert registered.endswith("-F _cryptfs_completion cryptfs")
    assert proposed == "umount"


def test_fish(environment: dict[str, str]) -> None:
    found = run(environment, "fish", "-c", 'complete -C "cryptfs umo"')
    assert found.split("\t")[0] == "umount"


def test_zsh(environment: dict[str, str]) -> None:
    functions = SHARE / "zsh" / "site-functions"
    assert run(environment, "zsh", "-f", "-c", _ZSH, "zsh", str(functions)).splitlines()[-1:] == ["completed"]
