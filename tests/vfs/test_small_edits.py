"""A small edit leaves nearly all of a file's ciphertext as it is: so rsync and backups send little."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.programs import require, run
from tests.support import KIB, MIB, BareVault, pattern

HEADER_SIZE = 256
EDIT = 4 * KIB
SIZE = 8 * MIB
FREE = 96 * KIB
"""rsync compares blocks, of 2.9 KB in a file of 8 MiB and of 32 KiB in one of 1 GiB."""


@pytest.fixture(params=[4 * KIB, 16 * KIB], ids=["4k", "16k"])
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> BareVault:
    """A vault with one file."""
    made = BareVault(tmp_path / "vault", chunk_size=request.param)
    made.put(b"file", pattern(SIZE))
    made.reopen()
    return made


def changed_places(old: bytes, new: bytes, step: int = 64) -> list[int]:
    """Where two files of one length differ, in pieces of some bytes."""
    assert len(old) == len(new)
    return [at for at in range(0, len(old), step) if old[at : at + step] != new[at : at + step]]


@pytest.mark.parametrize("offset", [0, SIZE // 2, SIZE // 2 + 2 * KIB, SIZE - EDIT])
def test_an_edit_changes_the_header_and_the_chunks_that_it_touches(vault: BareVault, offset: int) -> None:
    before = vault.backing(b"file").read_bytes()
    with vault.opened(b"file") as file:
        file.write(offset, pattern(EDIT, seed=1))
    vault.close()
    after = vault.backing(b"file").read_bytes()
    record = vault.geometry.cipher_size(vault.config.chunk_size) - HEADER_SIZE
    first, last = offset // vault.config.chunk_size, (offset + EDIT - 1) // vault.config.chunk_size
    begin, end = HEADER_SIZE + first * record, HEADER_SIZE + (last + 1) * record
    places = changed_places(before, after)
    assert any(begin <= at < end for at in places)
    assert [at for at in places if not (at < HEADER_SIZE or begin - 64 < at < end)] == []


def test_a_longer_file_keeps_its_beginning(vault: BareVault) -> None:
    before = vault.backing(b"file").read_bytes()
    with vault.opened(b"file") as file:
        file.write(SIZE, pattern(EDIT, seed=1))
    vault.close()
    after = vault.backing(b"file").read_bytes()
    assert len(after) > len(before)
    assert after[HEADER_SIZE : len(before)] == before[HEADER_SIZE:]


def test_other_files_stay_as_they_are(vault: BareVault) -> None:
    vault.put(b"other", pattern(EDIT))
    vault.reopen()
    before = vault.backing(b"other").read_bytes()
    with vault.opened(b"file") as file:
        file.write(0, pattern(EDIT, seed=1))
    vault.tree.rename(vault.root, b"file", vault.root, b"renamed")
    vault.close()
    assert vault.backing(b"other").read_bytes() == before


@pytest.mark.parametrize("options", [(), ("--inplace",)], ids=["whole", "inplace"])
def test_rsync_sends_little_after_an_edit(vault: BareVault, tmp_path: Path, options: tuple[str, ...]) -> None:
    require("rsync")
    copy = tmp_path / "copy"
    rsync = ("rsync", "-aI", "--no-whole-file", "--stats", *options, f"{vault.vault_dir}/", f"{copy}/")
    run(*rsync)
    with vault.opened(b"file") as file:
        file.write(SIZE // 2, pattern(EDIT, seed=1))
    vault.close()
    said = run(*rsync)
    (literal,) = re.findall(r"^Literal data: ([\d,]+) bytes", said, re.MULTILINE)
    assert EDIT <= int(literal.replace(",", "")) <= FREE
    backing = vault.backing(b"file")
    assert (copy / backing.name).read_bytes() == backing.read_bytes()
