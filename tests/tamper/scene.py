"""What the cases have in common: a victim, and what must hold whatever was done to it."""

from __future__ import annotations

import os

import pytest

from cryptfs.errors import IntegrityError
from tests.support import KIB, BareVault, assert_detected, pattern

VICTIM = b"victim"
BYSTANDER = b"bystander"
CHUNK = 4 * KIB
SIZE = 3 * CHUNK + 1000  # three whole chunks and a short one


class Scene:
    """A vault, and the victim's backing file as bytes."""

    def __init__(self, vault: BareVault) -> None:
        self.vault = vault
        self.backing = vault.backing(VICTIM)
        self.path = vault.entry(VICTIM)
        self.original = self.backing.read_bytes()

    def record(self, index: int) -> slice:
        """Where a chunk's record stands in the backing file."""
        start = self.vault.geometry.record_offset(index)
        return slice(start, min(start + self.vault.geometry.record_size, len(self.original)))

    def read(self) -> bytes:
        return self.vault.get(VICTIM)

    def read_chunk(self, index: int) -> bytes:
        with self.vault.opened(VICTIM, os.O_RDONLY) as file:
            return file.read(index * CHUNK, CHUNK)

    def plant(self, content: bytes) -> None:
        """Replace the victim's backing bytes, behind the vault's back."""
        self.backing.write_bytes(content)

    def assert_chunk_detected(self, caplog: pytest.LogCaptureFixture, index: int) -> None:
        """Reading it is EIO and one log line; every other chunk reads as it was written."""
        assert_detected(self.read, caplog, self.path, index)
        assert_detected(lambda: self.read_chunk(index), caplog, self.path, index)
        content = pattern(SIZE, 1)
        for other in range(self.vault.geometry.chunk_count(SIZE)):
            if other == index:
                continue
            try:
                got = self.read_chunk(other)
            except IntegrityError as error:
                assert error.chunk_index == other  # damaged as well: said of itself, not of a neighbour
                assert self.backing.read_bytes()[self.record(other)] != self.original[self.record(other)]
            else:
                assert got == content[other * CHUNK : (other + 1) * CHUNK]

    def assert_file_detected(self, caplog: pytest.LogCaptureFixture) -> None:
        """Neither reading nor writing is possible."""
        evidence = self.backing.read_bytes()
        assert_detected(self.read, caplog, self.path)
        with self.vault.opened(VICTIM, os.O_WRONLY) as file:
            assert_detected(lambda: file.write(0, b"x"), caplog, self.path)
            assert_detected(lambda: file.truncate(1), caplog, self.path)
        assert self.backing.read_bytes() == evidence

    def assert_contained(self) -> None:
        """The bystander is untouched; the victim can be emptied and used again, and removed."""
        vault = self.vault
        assert vault.get(BYSTANDER) == pattern(SIZE, 2)
        with vault.opened(VICTIM, os.O_RDWR | os.O_TRUNC) as file:
            assert file.read(0, 10) == b""
            file.write(0, b"new life")
        assert vault.get(VICTIM) == b"new life"
        vault.tree.unlink(vault.root, VICTIM)
        assert vault.names() == [BYSTANDER]
