"""Somebody who changes a vault that is mounted: what the tests of that need."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptfs.errors import IntegrityError
from cryptfs.vfs.vault import Vault
from soaklib.sealed import Sealer
from tests.e2e.mounting import PASSPHRASE, Mounted

FRESH = 1.3  # seconds, after which what changed outside must show
REST = 10.0
STEP = 5_000  # bytes of a read: no multiple of a page


def text(word: str, size: int) -> bytes:
    """Content whose every piece says which it is and where it belongs."""
    lines = (f"{word} {number:07}\n".encode() for number in range(size // 8 + 1))
    return b"".join(lines)[:size]


OLD, NEW, SAME = text("old", 300_000), text("newer", 400_000), text("same", 300_000)
SHORT = text("short", 9_000)
KEPT = "somebody else deleted or replaced it while a program was writing to it; kept as"


class Outside:
    """Somebody who changes a mounted vault, and looks into it, by plaintext paths."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.place = ""
        self.shown = mount.mountpoint
        self._vault = Vault.unlock(mount.vault_dir, PASSPHRASE.encode(), read_only=True, lock=False)

    def enter(self, place: str) -> None:
        """Go on in a directory of its own."""
        self.place, self.shown = f"{place}/", self.mount.mountpoint / place
        self.shown.mkdir()

    def close(self) -> None:
        """Forget the keys."""
        self._vault.close()

    def backing(self, path: str) -> Path:
        """The backing file or directory of a path."""
        directory, names = self._vault.tree.root, (self.place + path).encode().split(b"/")
        for name in names[:-1]:
            directory = self._vault.tree.directory(directory, name)
        return self.mount.vault_dir / directory.path_of(directory.entry_name(names[-1]))

    def was_moved(self, path: str) -> None:
        """A directory gets the record of its new place, as from the machine that moved it."""
        sealer = Sealer(self.mount.vault_dir, PASSPHRASE.encode())
        try:
            sealer.was_moved(self.backing(path))
        finally:
            sealer.close()

    def sealed(self, path: str) -> bytes:
        """The ciphertext of a file, once it is at rest."""
        context, deadline = self._vault.tree.context, time.monotonic() + REST
        while True:
            raw = self.backing(path).read_bytes()
            try:
                if context.unpack_header(raw[:256]).is_clean:
                    return raw
            except IntegrityError:
                pass  # it is being written
            assert time.monotonic() < deadline, f"{path} does not come to rest"
            time.sleep(0.02)

    def make(self, path: str, content: bytes) -> bytes:
        """Write a file through the mount; returns its ciphertext, at rest."""
        (self.shown / path).write_bytes(content)
        return self.sealed(path) if content else b""

    def replace(self, path: str, raw: bytes) -> None:
        """Another file under the name, as sync clients do it."""
        target = self.backing(path)
        temporary = target.with_name(".incoming")
        temporary.write_bytes(raw)
        temporary.rename(target)

    def rewrite(self, path: str, raw: bytes) -> None:
        """Other content in place, as `rsync --inplace --times` does it where the times are the same."""
        target = self.backing(path)
        st = target.stat()
        with target.open("r+b") as file:
            file.write(raw)
            file.truncate()
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
