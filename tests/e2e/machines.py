"""Two machines with a copy of one vault each, and between them a sync client that knows no cryptfs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, scratch_directory
from tests.support import child_environment, everything_below

_RUN = """
import importlib, json, sys
for module, name, value in json.loads(sys.argv[1]):
    setattr(importlib.import_module(module), name, value)
from cryptfs.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def on_machine(spec: MountSpec, place: Path, letter: str) -> MountSpec:
    """The spec of a mount on a machine with an id of its own: 32 times a hex digit."""
    name = place / f"machine-id-{letter}"
    name.write_text(letter * 32 + "\n")
    return replace(spec, constants=(("cryptfs.storage.hosts", "MACHINE_ID_FILES", [str(name)]),))


def command(mount: Mounted, *args: str | Path, error: bool = True) -> tuple[int, str]:
    """A command of cryptfs on that mount's machine: exit code, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(mount.spec.constants), *map(str, args)],
        input=PASSPHRASE + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if error else subprocess.DEVNULL,
        text=True,
        env=child_environment(),
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout


def findings(mount: Mounted, *options: str) -> tuple[int, list[dict[str, str]]]:
    """What fsck finds: exit code and findings."""
    code, text = command(mount, "fsck", "--json", *options, mount.vault_dir, error=False)
    found: list[dict[str, str]] = json.loads(text)["findings"]
    return code, found


@contextlib.contextmanager
def second_machine(first: Mounted) -> Iterator[Mounted]:
    """Another machine with a copy of the first one's vault as it is now; not mounted yet."""
    scratch = scratch_directory(tmpfs=first.spec.tmpfs)
    second = Mounted(on_machine(first.spec, scratch, "b"), scratch)
    try:
        subprocess.run(["cp", "-a", first.vault_dir, second.vault_dir], check=True)
        second.mountpoint.mkdir()
        second.log_path.touch()
        second.allowed = list(first.allowed)
        yield second
    finally:
        second.abandon()


class SyncClient:
    """Keeps two directories equal, file by file, whatever is in them: the newer of two versions wins."""

    def __init__(self, one: Path, other: Path) -> None:
        self._sides = (one, other)
        self._seen: tuple[dict[str, tuple[int, int, int]], ...] = ({}, {})
        for side, seen in zip(self._sides, self._seen, strict=True):
            seen |= self._look(side)

    @staticmethod
    def _look(side: Path) -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in everything_below(side):
            with contextlib.suppress(FileNotFoundError):
                st = path.lstat()
                if path.is_file() and not path.is_symlink():
                    found[str(path.relative_to(side))] = (st.st_mtime_ns, st.st_ctime_ns, st.st_size)
        return found

    def sync(self) -> None:
        """One round, in both directions."""
        now = tuple(map(self._look, self._sides))
        for name in sorted(set(now[0]) | set(now[1])):
            changed = [now[side].get(name) != self._seen[side].get(name) for side in (0, 1)]
            if not any(changed):
                continue
            source = int(changed[1])
            if all(changed):
                source = int(now[1].get(name, (0, 0, 0)) > now[0].get(name, (0, 0, 0)))
            with contextlib.suppress(FileNotFoundError):
                self._carry(name, source)
        for side, seen in zip(self._sides, self._seen, strict=True):
            seen.clear()
            seen |= self._look(side)

    def _carry(self, name: str, source: int) -> None:
        from_path, to_path = self._sides[source] / name, self._sides[1 - source] / name
        if not from_path.exists():
            to_path.unlink()
            return
        if to_path.exists() and to_path.read_bytes() == from_path.read_bytes():
            return
        to_path.parent.mkdir(exist_ok=True)
        temporary = to_path.with_name(f".sync-{os.getpid()}")
        shutil.copy2(from_path, temporary)
        temporary.rename(to_path)
