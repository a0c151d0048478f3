"""A vault opens with the passphrase as it was read, and only if that fails with another spelling of it."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import pytest

from cryptfs.core.keys import passphrase_key
from cryptfs.core.slots import kdf
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.errors import WrongPassphraseError
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault, change_passphrase
from tests.support import make_old_vault

NFC = "pâté".encode()
NFD = unicodedata.normalize("NFD", "pâté").encode()
MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Path]:
    """Vaults by the bytes of their passphrase, as version 0.1 stored them: as they were read."""
    place = tmp_path_factory.mktemp("made")
    passphrases = (NFC, NFD, MARK + b"word", b"word", b"word\nnote")
    for number, passphrase in enumerate(passphrases):
        make_old_vault(place / str(number), passphrase, kdf_memory=MIN_KDF_MEMORY)
    return {passphrase: place / str(number) for number, passphrase in enumerate(passphrases)}


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The passphrases that keys were derived from; not the objects, which are overwritten."""
    derived: list[bytes] = []
    original = passphrase_key

    def note(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
        derived.append(bytes(bytearray(passphrase)))
        return original(passphrase, salt, memory, passes)

    monkeypatch.setattr(kdf, "passphrase_key", note)
    return derived


@pytest.mark.parametrize(
    ("stored", "given", "tries"),
    [
        (NFC, NFC, 1),
        (NFC, NFD, 2),
        (NFC, MARK + NFD + b"\nuser: me", 2),
        (NFD, NFD, 1),
        (NFD, NFC, 2),
        (NFD, MARK + NFC + b"\r\nuser: me", 3),
        (MARK + b"word", MARK + b"word", 1),
        (b"word", MARK + b"word", 2),
        (b"word\nnote", b"word\nnote", 1),
        (b"word", b"word\nnote", 2),
    ],
)
def test_another_spelling_opens_it(
    stored: bytes, given: bytes, tries: int, made: dict[bytes, Path], derivations: list[bytes]
) -> None:
    with Vault.unlock(made[stored], bytes(bytearray(given)), read_only=True) as vault:
        assert bool(vault.spelling) is (given != stored)
    assert derivations[0] == given
    assert derivations[-1] == stored
    assert len(derivations) == len(set(derivations)) == tries


@pytest.mark.parametrize(
    ("given", "tries"),
    [
        (b"wrong", 1),
        ("fàlsch".encode(), 2),
        (MARK + "fàlsch".encode() + b"\nx", 3),
        (MARK + "漢字".encode(), 2),
    ],
)
def test_a_wrong_one_costs_no_more_than_it_must(
    given: bytes, tries: int, made: dict[bytes, Path], derivations: list[bytes]
) -> None:
    with pytest.raises(WrongPassphraseError):
        Vault.unlock(made[b"word"], given, read_only=True)
    assert len(derivations) == tries


def test_passwd_and_upgrade_take_them_as_well(made: dict[bytes, Path], tmp_path: Path) -> None:
    vault_dir = Path(shutil.copytree(made[NFC], tmp_path / "vault"))
    assert upgrade(vault_dir, [NFD]).added
    change_passphrase(vault_dir, NFD, b"new", kdf_memory=MIN_KDF_MEMORY)
    Vault.unlock(vault_dir, b"new").close()
