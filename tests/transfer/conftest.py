"""A vault that its tests share, opened as a program opens it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from tests.commands import Run, runner

PASSPHRASE = b"transfer"


@pytest.fixture(scope="session")
def made_vault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty vault, to be copied: making one costs a key derivation."""
    vault_dir = tmp_path_factory.mktemp("made") / "vault"
    cryptfs.Vault.create(vault_dir, PASSPHRASE, kdf_memory=64 << 20)
    return vault_dir


@pytest.fixture
def vault_dir(made_vault: Path, tmp_path: Path) -> Path:
    """A fresh vault."""
    target = tmp_path / "vault"
    target.mkdir(mode=0o700)
    for each in made_vault.iterdir():
        (target / each.name).write_bytes(each.read_bytes())
    return target


@pytest.fixture
def opened(vault_dir: Path) -> Iterator[cryptfs.Vault]:
    """The fresh vault, unlocked."""
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        yield vault


@pytest.fixture
def passfile(tmp_path: Path) -> Path:
    """A file with the passphrase."""
    found = tmp_path / "passfile"
    found.touch(mode=0o600)
    found.write_bytes(PASSPHRASE)
    return found


@pytest.fixture
def sigint() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where whoever runs the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], passfile: Path) -> Run:
    """The command line, with that file."""
    plain = runner(capsys)
    return lambda *args: plain(*args, "--passfile", passfile)
