"""The vectors of whole backing files against the vfs, which is what really reads them.

vector_runner.read_file follows FORMAT.md with core alone; here the same files go through OpenFile.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cryptfs import errors
from cryptfs.core.format.header import HeaderFlag
from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.config import decode_config, replace_fields
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from tests.vectors import generate

FILES = sorted((generate.VECTORS_DIR / "files").glob("*.json"))
CONFIG = json.loads((generate.VECTORS_DIR / "config" / "ok-aegis-256.json").read_text("utf-8"))["inputs"][
    "text"
]
all_files = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and expectation."""
    vector = json.loads(path.read_text("utf-8"))
    return vector["inputs"], vector["expect"]


READABLE = [path for path in FILES if load(path)[1]["outcome"] == "ok"]


def read_backing(
    backing: Path, inputs: dict[str, Any], *, read_only: bool, then_append: bytes = b""
) -> tuple[bytes, FileState]:
    """All the plaintext of a backing file, and the state after it was closed."""
    config = replace_fields(
        decode_config(CONFIG.encode()), cipher=inputs["cipher"], chunk_size=inputs["chunk_size"]
    )
    keys = Subkeys.from_masterkey(bytes.fromhex(inputs["masterkey"]))
    context = FileContext(keys, config, read_only=read_only)
    fd = os.open(backing, os.O_RDONLY if read_only else os.O_RDWR)
    try:
        state = FileState(context, (0, 0), fd, writable=not read_only, path="backing")
        plain = OpenFile(state, writable=not read_only).read(0, 1 << 16)
        assert len(plain) == state.size
        if then_append:
            OpenFile(state, writable=True).append(then_append)
            state.write_clean()
        return plain, state
    finally:
        os.close(fd)


@all_files
def test_read_only(path: Path, tmp_path: Path) -> None:
    inputs, expect = load(path)
    backing = tmp_path / "backing"
    backing.write_bytes(bytes.fromhex(inputs["raw"]))
    if expect["outcome"] == "ok":
        assert read_backing(backing, inputs, read_only=True)[0].hex() == expect["plain"]
    else:
        with pytest.raises(getattr(errors, expect["outcome"]), match=expect["why"]):
            read_backing(backing, inputs, read_only=True)
    assert backing.read_bytes().hex() == inputs["raw"]


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.stem)
def test_reading_leaves_it_and_a_writer_settles_it(path: Path, tmp_path: Path) -> None:
    inputs, expect = load(path)
    backing = tmp_path / "backing"
    backing.write_bytes(bytes.fromhex(inputs["raw"]))
    assert read_backing(backing, inputs, read_only=False)[0].hex() == expect["plain"]
    assert backing.read_bytes().hex() == inputs["raw"]
    plain, state = read_backing(backing, inputs, read_only=False, then_append=b"more")
    assert plain.hex() == expect["plain"]
    assert backing.stat().st_size == state.context.geometry.cipher_size(len(plain) + 4)
    assert state.header is not None
    assert state.header.flags & ~HeaderFlag.SPARSE == HeaderFlag.CLEAN
    assert read_backing(backing, inputs, read_only=True)[0] == plain + b"more"
