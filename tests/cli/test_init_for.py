"""`cryptfs init --for PURPOSE`: what it chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.vfs.vault import read_config
from tests.commands import runner


def test_for_databases_chunks_are_as_large_as_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, passfile = runner(capsys), tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("right\n")
    given = ("--passfile", passfile, "--kdf-memory", "64m")
    made = run("init", tmp_path / "pages", "--for", "databases", *given)
    assert made.code == 0
    assert "chunks of 4 KiB" in made.err
    config = read_config(tmp_path / "pages")
    assert (config.chunk_size, config.has_delta_journal) == (4096, False)
    assert run("init", tmp_path / "usual", *given).code == 0
    assert read_config(tmp_path / "usual").chunk_size == 16384
    wrong = run("init", tmp_path / "none", "--for", "films", *given)
    assert (wrong.code, wrong.out) == (1, "")
    assert "'films' is not 'databases'" in wrong.err
    assert not (tmp_path / "none").exists()
