"""A vault with a small tree, and the program as a process on a copy of it: for one option after another."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cryptfs
from tests.cli.test_cli_processes import CRYPTFS, Terminal
from tests.commands import Outcome
from tests.schema import check_answer
from tests.support import child_environment, pattern

PASSPHRASE = "Qx7 the first of these"
CHEAP = ("--kdf-memory", "64m")
LARGE = pattern(30_000)


@dataclass(frozen=True)
class Desk:
    """A directory with a vault, a file with its passphrase, and a home directory of its own."""

    base: Path

    @property
    def vault(self) -> Path:
        return self.base / "vault"

    @property
    def passfile(self) -> Path:
        return self.base / "passfile"

    def file(self, name: str, content: str | bytes) -> Path:
        """A file beside the vault, which only its owner can read."""
        place = self.base / name
        place.touch(mode=0o600)
        place.write_bytes(content if isinstance(content, bytes) else os.fsencode(content))
        return place

    def environment(self, *, opens: bool = True) -> dict[str, str]:
        """For the program. opens: the variable CRYPTFS_PASSFILE names the passphrase."""
        found = {**child_environment(), "HOME": str(self.base), "XDG_STATE_HOME": str(self.base / "state")}
        return found | ({"CRYPTFS_PASSFILE": str(self.passfile)} if opens else {})

    def __call__(
        self,
        *words: object,
        code: int = 0,
        text: str = "",
        opens: bool = True,
        program: Sequence[str] = CRYPTFS,
        pass_fds: Sequence[int] = (),
    ) -> Outcome:
        """Run a command without a terminal, and insist on its exit code.

        Args: text: what stdin has.   opens: the passphrase is there without an option.
        """
        done = subprocess.run(
            [*program, *map(str, words)],
            input=os.fsencode(text),
            capture_output=True,
            env=self.environment(opens=opens),
            timeout=120,
            check=False,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        said = Outcome(done.returncode, os.fsdecode(done.stdout), os.fsdecode(done.stderr))
        assert said.code == code, (words, said)
        assert "internal error" not in said.err
        assert "--debug" in words or "Traceback" not in said.err
        return said

    def terminal(self, *words: object) -> Terminal:
        """The same at a terminal, where a person types; nothing but that person opens the vault."""
        kept = self.environment(opens=False)
        return Terminal(
            [str(word) for word in words], {"HOME": kept["HOME"], "XDG_STATE_HOME": kept["XDG_STATE_HOME"]}
        )

    @property
    def python(self) -> tuple[str, ...]:
        """The interpreter of the tests, for other modules than cryptfs."""
        return CRYPTFS[:1]

    def info(self, vault: Path | None = None) -> dict[str, Any]:
        """`cryptfs info --json`."""
        return check_answer("info", self("info", "--json", vault or self.vault).out)

    def slots(self) -> dict[int, dict[str, Any]]:
        """The key slots by their ids."""
        found = check_answer("key list", self("key", "list", "--json", self.vault).out)
        return {each["id"]: each for each in found["slots"]}

    def cost(self, slot: int = 0, vault: Path | None = None) -> tuple[int, int]:
        """MiB and passes of a key slot."""
        (kdf,) = (each["kdf"] for each in self.info(vault)["slots"] if each["id"] == slot)
        return kdf["memory"] >> 20, kdf["passes"]

    def opens(self, *words: object, code: int = 0) -> dict[str, Any]:
        """`cryptfs key test --json` with options that offer a key; what it answers, {} if nothing opens."""
        said = self("key", "test", "--json", self.vault, *words, code=code, opens=False)
        return {} if code else check_answer("key test", said.out)

    def damage(self, at: int = 20_000) -> str:
        """One byte of the largest file, in its header or in a chunk; returns its cipher path."""
        found = max(
            (each for each in self.vault.rglob("*") if each.is_file()), key=lambda each: each.stat().st_size
        )
        with found.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)
            file.seek(at)
            file.write(bytes([byte[0] ^ 1]))
        return str(found.relative_to(self.vault))


def furnish(base: Path) -> None:
    """The vault, which all desks have a copy of."""
    cryptfs.Vault.create(base / "vault", PASSPHRASE.encode(), kdf_memory=64 << 20)
    with cryptfs.Vault.unlock(base / "vault", PASSPHRASE.encode()) as vault:
        vault.makedirs("a/b/c")
        for path, content in (
            ("a/one.txt", b"0123456789"),
            ("a/b/large.TXT", LARGE),
            ("a/b/c/deep", b"deep"),
            (".hidden", b"hidden"),
            ("new\nline", b""),
        ):
            with vault.open(path, "wb") as file:
                file.write(content)
        vault.symlink("a/one.txt", "link")


def desk_at(base: Path, furnished: Path) -> Desk:
    """A desk in a fresh directory, with a copy of the vault."""
    made = Desk(base)
    shutil.copytree(furnished / "vault", made.vault, symlinks=True)
    made.file("passfile", f"{PASSPHRASE}\n")
    return made


def as_json(said: Outcome) -> dict[str, Any]:
    """The document on stdout."""
    found: dict[str, Any] = json.loads(said.out)
    return found
