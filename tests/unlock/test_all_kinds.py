"""One vault with every kind of key at once: each opens it alone, and none after its removal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.core.slots.agekeys import identities_of
from cryptfs.errors import NoKeyError, TokenError, VaultError, WrongPassphraseError
from cryptfs.unlock.hybrid import new_hybrid
from cryptfs.unlock.keyfile import generate_key_file, new_key_file, new_passphrase_key_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import SlotTable, changing_slots
from cryptfs.unlock.token import enrol_fido2
from cryptfs.vfs.vault import Vault, which_opens
from tests.age_keys import SPECIFICATION, identity_file
from tests.softtoken import Person, SoftToken
from tests.support import MIB
from tests.unlock import vaults
from tests.unlock.vaults import (
    PASSPHRASE,
    content,
    make_vault,
    new_shares,
    new_words,
    shares_offer,
    words_offer,
)

FIRST, SECOND = PASSPHRASE, b"of a second person"
PHOTO = b"any file beside a passphrase will do" * 9
KEY_FILE = generate_key_file(bytes(range(32)))
COST = (64 * MIB, 3)
TOKENS = {"a token": SoftToken("Blue"), "another token": SoftToken("Red")}
WORDS, SHARES = new_words(), new_shares(2, 3)

OFFERS: dict[str, Callable[[], Offer]] = {
    "a passphrase": lambda: Offer(passphrase=bytes(bytearray(FIRST))),
    "another passphrase": lambda: Offer(passphrase=bytes(bytearray(SECOND))),
    "a key file": lambda: Offer(key_file=KEY_FILE),
    "a passphrase and a file": lambda: Offer(passphrase=b"beside", key_file=PHOTO),
    "a token": lambda: Offer(tokens=Person([TOKENS["a token"]])),
    "another token": lambda: Offer(tokens=Person([TOKENS["another token"]])),
    "an age identity": lambda: Offer(identities=identities_of(identity_file(SPECIFICATION["identity"]))),
    "recovery words": lambda: words_offer(WORDS),
    "two of three shares": lambda: shares_offer(SHARES),
}
REFUSALS = (WrongPassphraseError, NoKeyError, TokenError, VaultError)


def fill(table: SlotTable) -> dict[str, int]:
    """One slot of each kind, two of some; returns their ids."""
    made: dict[str, int] = {}
    made["another passphrase"] = table.add(new_passphrase(SECOND, *COST)).id
    made["a key file"] = table.add(new_key_file(KEY_FILE)).id
    both = new_passphrase_key_file(Offer(passphrase=b"beside", key_file=PHOTO), *COST)
    made["a passphrase and a file"] = table.add(both).id
    for name, token in TOKENS.items():
        made[name] = table.add(enrol_fido2(Person([token]), uv=False)).id
    public = new_hybrid(SPECIFICATION["recipient"], table.vault_id, table.next_id)
    made["an age identity"] = table.add(public).id
    table.save()
    return made


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    """The vault, and the ids of its slots."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir)
    vaults.add(vault_dir, WORDS, SHARES)
    with changing_slots(vault_dir, FIRST) as table:
        return vault_dir, {"a passphrase": 0} | fill(table)


def opens(vault_dir: Path, name: str) -> bool:
    """Whether this key alone opens the vault, with what is in it."""
    try:
        return content(vault_dir, OFFERS[name]()) == vaults.CONTENT
    except REFUSALS:
        return False


def test_each_opens_alone_and_none_after_its_removal(made: tuple[Path, dict[str, int]]) -> None:
    vault_dir, slots = made
    assert [name for name in OFFERS if not opens(vault_dir, name)] == []
    for name, slot_id in slots.items():
        opened = which_opens(vault_dir, OFFERS[name]())
        assert opened.slot is not None
        assert opened.slot.id == slot_id
    gone: list[str] = []
    last = "a key file"
    for name in (*(name for name in slots if name != last), "recovery words", "two of three shares"):
        if name in slots:
            with changing_slots(vault_dir, OFFERS[last]()) as table:
                table.remove(slots[name])
                table.save()
        else:
            vaults.remove(vault_dir, WORDS if name == "recovery words" else SHARES, OFFERS[last]())
        gone.append(name)
        assert [each for each in OFFERS if opens(vault_dir, each)] == [
            each for each in OFFERS if each not in gone
        ]
    with changing_slots(vault_dir, OFFERS[last]()) as table, pytest.raises(VaultError, match="last one"):
        table.remove(slots[last])
    with Vault.unlock(vault_dir, OFFERS[last]()) as vault:
        assert [slot.id for slot in vault.config.slots] == [slots[last]]
        assert vault.config.recovery == []
