"""The last close of a changed file: it seals the length, and the kernel's engine hears of the new header."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.tree.identity import Known
from tests.support import BareVault


def test_it_is_told_when_somebody_opens_the_file_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is the last close no more, but the file has another header, and no change."""
    vault = BareVault(tmp_path)
    opened: list[OpenFile] = []
    left: list[FileState] = []
    write_clean = FileState.write_clean

    def seal(state: FileState) -> None:
        opened.append(vault.tree.open(vault.root, b"file", os.O_RDONLY))
        write_clean(state)

    file = vault.tree.create(vault.root, b"file", os.O_RDWR, 0o600)
    file.write(0, b"content")
    monkeypatch.setattr(vault.tree.files, "on_left", left.append)
    monkeypatch.setattr(FileState, "write_clean", seal)
    vault.tree.release(file)
    monkeypatch.undo()
    state = file.state
    assert opened[0].state is state
    assert not state.changes
    assert left == [state]


def test_a_file_that_was_changed_here_can_be_opened_before_that(tmp_path: Path) -> None:
    """Known to the kernel is the size from before the writing; it has written, so it knows better."""
    vault = BareVault(tmp_path)
    file = vault.tree.create(vault.root, b"file", os.O_RDWR, 0o600)
    known = Known()
    known.saw(vault.tree.stat_open(file))
    file.write(0, b"content")
    file.state.write_clean()
    st = os.fstat(file.state.fd)
    assert not file.state.changes
    vault.tree.identity.require_told(known, file.state, st)
    vault.tree.release(file)
