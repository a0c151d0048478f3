"""A vault, the manifest of it, and what verifying says."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from cryptfs.core.slots.config import authenticate
from cryptfs.vfs.vault import Vault
from cryptfs.witness.verification import Change, Difference, Totals, Verification, snapshot
from tests.support import BareVault


class Look:
    """What a Verification needs of a Vault, over the same directory: nothing of the other's memory."""

    def __init__(self, vault: BareVault) -> None:
        self.context = vault.context
        self.config = authenticate(vault.config, vault.keys)
        self.vault_dir = vault.vault_dir
        self.has_lock = True  # nobody else has the vault
        self.descriptor = os.open(vault.vault_dir, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.descriptor)


class Witnessed:
    """A BareVault and its manifests."""

    def __init__(self, vault: BareVault) -> None:
        self.vault = vault
        self.manifest = b""
        self.copies = 0

    @contextlib.contextmanager
    def look(self) -> Iterator[Vault]:
        with contextlib.closing(Look(self.vault)) as look:
            yield cast(Vault, look)

    def snapshot(self) -> Totals:
        out = io.BytesIO()
        with self.look() as look:
            totals = snapshot(look, out.write, lambda _: None)
        self.manifest = out.getvalue()
        return totals

    def run(self, manifest: bytes | None = None) -> tuple[list[Difference], Counter[Change], Totals]:
        file = io.BytesIO(self.manifest if manifest is None else manifest)
        with self.look() as look:
            verification = Verification(look, file, lambda _: None)
            with contextlib.closing(verification):
                verification.look(lambda _: None)
                findings = list(verification.run())
        return findings, +verification.counts, verification.totals

    def findings(self) -> dict[tuple[str, bytes | None], str]:
        """(change, path) of each, and its detail; none twice."""
        found = [(each.change.value, each.path) for each in self.run()[0]]
        assert len(found) == len(set(found))
        return {(each.change.value, each.path): each.detail for each in self.run()[0]}

    def changes(self) -> set[tuple[str, bytes | None]]:
        return set(self.findings())

    # ---- what an attacker has

    def copy(self) -> Path:
        """All of the vault's files as they are now, taken aside."""
        self.copies += 1
        target = self.vault.vault_dir.parent / f"copy-{self.copies}"
        shutil.copytree(self.vault.vault_dir, target, symlinks=True)
        return target

    def restore(self, copy: Path, entry: str = "") -> None:
        """Put one entry of the copy, or all of it, back in place."""
        here, there = self.vault.vault_dir / entry, copy / entry
        if there.is_dir():
            for path in here.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            shutil.copytree(there, here, symlinks=True, dirs_exist_ok=True)
        else:
            here.unlink(missing_ok=True)
            shutil.copy2(there, here)

    def rewrite(self, name: bytes, content: bytes) -> None:
        """Change a file in place and close it: a session of its own."""
        with self.vault.opened(name, os.O_RDWR) as file:
            file.write(0, content)
