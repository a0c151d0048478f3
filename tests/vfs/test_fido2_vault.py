"""A vault on disk with tokens among its key slots: each opens it alone, and none after its removal."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.core.slots.config import decode_config
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.errors import NoKeyError, TokenError, UnsupportedFormatError, WrongPassphraseError
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.table import changing_slots
from cryptfs.unlock.token import enrol_fido2
from cryptfs.vfs.vault import Vault
from tests.softtoken import Behaviour, Person, SoftToken
from tests.support import make_old_vault

PASSPHRASE = "pâté".encode()
PIN = b"123456"


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    Vault.create(tmp_path / "vault", PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)
    return tmp_path / "vault"


def add(vault_dir: Path, token: SoftToken, *, uv: bool) -> int:
    with changing_slots(vault_dir, PASSPHRASE) as table:
        new = enrol_fido2(Person([token], [PIN]), uv=uv, account="cryptfs vault")
        slot_id = table.add(new, token.product_name).id
        table.save()
    return slot_id


def opens(vault_dir: Path, offer: Offer | bytes) -> None:
    Vault.unlock(vault_dir, offer, read_only=True).close()


def test_each_opens_alone_and_not_after_its_removal(vault_dir: Path) -> None:
    blue = SoftToken("Blue", Behaviour((1,)))
    red = SoftToken("Red", Behaviour((2,), pin=PIN))
    for token, uv in ((blue, False), (red, True)):
        add(vault_dir, token, uv=uv)
    config = decode_config((vault_dir / "cryptfs.json").read_bytes())
    assert [slot.kind for slot in config.slots] == ["passphrase", "fido2", "fido2"]
    for secret in (PASSPHRASE, Offer(tokens=Person([blue])), Offer(tokens=Person([red], [PIN]))):
        opens(vault_dir, secret)
    with changing_slots(vault_dir, Offer(tokens=Person([red], [PIN]))) as table:
        table.remove(1)
        table.save()
    with pytest.raises(TokenError, match=r"'Blue' does not belong to this vault\. .* key slot 2 \(Red\)"):
        opens(vault_dir, Offer(tokens=Person([blue])))
    opens(vault_dir, Offer(tokens=Person([blue, red], [PIN])))
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.remove(2)
        table.save()
    with pytest.raises(NoKeyError):
        opens(vault_dir, Offer(tokens=Person([red], [PIN])))


def test_beside_a_passphrase_in_several_spellings_the_token_is_asked_once(vault_dir: Path) -> None:
    token, stranger = SoftToken(behaviour=Behaviour(pin=PIN)), SoftToken("Stranger")
    add(vault_dir, token, uv=True)
    with pytest.raises(
        TokenError, match=r"passphrase and FIDO2 token open no key slot.*'Stranger' does not belong"
    ):
        opens(vault_dir, Offer("fàlsch\nnote".encode(), tokens=Person([stranger])))
    assert stranger.silent == 1
    pins = token.pins_sent
    with pytest.raises(TokenError, match="the PIN is wrong"):
        opens(vault_dir, Offer("fàlsch\nnote".encode(), tokens=Person([token], [b"wrong", PIN])))
    assert token.pins_sent == pins + 1


def test_a_token_that_fails_first_leaves_the_passphrase(vault_dir: Path) -> None:
    slot_id = add(vault_dir, SoftToken(), uv=False)
    person = Person([])
    opens(vault_dir, Offer(PASSPHRASE, tokens=person, first=slot_id))
    with pytest.raises(TokenError, match="no FIDO2 token is plugged in"):
        opens(vault_dir, Offer(b"wrong", tokens=person, first=slot_id))
    with pytest.raises(WrongPassphraseError):
        opens(vault_dir, b"wrong")


def test_one_token_is_enrolled_at_a_time(vault_dir: Path) -> None:
    before = (vault_dir / "cryptfs.json").read_bytes()
    poor = SoftToken("Poor", Behaviour(capabilities=0))
    for plugged, said in (
        ([], "no FIDO2 token is plugged in"),
        ([SoftToken("A"), SoftToken("B")], "several"),
        ([SoftToken("A"), poor], "several"),
        ([poor], "'Poor' is too old"),
    ):
        with (
            pytest.raises(TokenError, match=said),
            changing_slots(vault_dir, PASSPHRASE) as table,
        ):
            table.add(enrol_fido2(Person(plugged), uv=False))
        assert all((token.touches, token.closed) == (0, 1) or token is poor for token in plugged)
    assert (vault_dir / "cryptfs.json").read_bytes() == before


def test_a_vault_of_an_earlier_version_takes_none_before_its_upgrade(tmp_path: Path) -> None:
    make_old_vault(tmp_path / "old", PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)
    with pytest.raises(UnsupportedFormatError, match="cryptfs upgrade"):
        add(tmp_path / "old", SoftToken(), uv=False)
