"""Mounts of the vault of a desk, made by the program as a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptfs.mount.mounts import Mount, mount_at
from tests.e2e.desk import Desk
from tests.schema import check_answer

ENDS = 20.0
"""Seconds, for what takes one or two."""


@dataclass(frozen=True)
class Mounts:
    """Mounts of the vault of a desk by one engine."""

    desk: Desk
    engine: str

    @property
    def point(self) -> Path:
        return self.desk.base / "mountpoint"

    @property
    def log_file(self) -> Path:
        return self.desk.base / "log"

    def mount(self, *options: object, code: int = 0) -> str:
        """Returns what it says."""
        words = ("mount", self.desk.vault, self.point, "--engine", self.engine, "--log-file", self.log_file)
        return self.desk(*words, *options, code=code).err

    def umount(self, *options: object, code: int = 0) -> str:
        return self.desk("umount", self.point, *options, code=code).err

    @property
    def line(self) -> Mount:
        """Of the kernel's list."""
        found = mount_at(self.point)
        assert found is not None
        return found

    def status(self) -> dict[str, Any]:
        return check_answer("status", self.desk("status", "--json", self.point).out)

    def backing(self, path: str) -> Path:
        return self.desk.vault / self.desk("path", self.desk.vault, path).out.strip()
