"""Key slots for public keys come into vaults on disk, keep their place, and fit into the largest config."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryptfs.core.slots.agekeys import identities_of
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.config import MAX_CONFIG_SIZE, MAX_SLOTS, decode_config
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.core.slots.slot import MAX_PARAMS_SIZE
from cryptfs.errors import UnsupportedFormatError, VaultError
from cryptfs.unlock.hybrid import new_hybrid
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.upgrade import upgrade
from cryptfs.vfs.vault import Vault
from tests.age_keys import NPM
from tests.support import make_old_vault

SERVER, COLLEAGUE = NPM[0], NPM[1]


def offer(keys: dict[str, str]) -> Offer:
    return Offer(identities=identities_of(keys["identity"].encode()))


def add(vault_dir: Path, secret: bytes | Offer, *recipients: str) -> None:
    with changing_slots(vault_dir, secret) as table:
        for recipient in recipients:
            slot_id = table.next_id
            assert table.add(new_hybrid(recipient, table.vault_id, slot_id), "server").id == slot_id
        table.save()


def opens(vault_dir: Path, secret: bytes | Offer) -> bool:
    Vault.unlock(vault_dir, secret).close()
    return True


@pytest.fixture
def vault_dir(tmp_path: Path) -> Path:
    Vault.create(tmp_path / "vault", b"horse", kdf_memory=MIN_KDF_MEMORY)
    return tmp_path / "vault"


def test_who_was_let_in_lets_others_in(vault_dir: Path) -> None:
    """The identity of one opens, and the public key of the other is enough to add them."""
    add(vault_dir, b"horse", SERVER["recipient"])
    add(vault_dir, offer(SERVER), COLLEAGUE["recipient"])
    assert (
        opens(vault_dir, offer(SERVER)) and opens(vault_dir, offer(COLLEAGUE)) and opens(vault_dir, b"horse")
    )


def test_another_label_and_another_key_in_place(vault_dir: Path) -> None:
    add(vault_dir, b"horse", SERVER["recipient"])
    with changing_slots(vault_dir, offer(SERVER)) as table:
        opened = table.opened.slot
        assert opened is not None
        table.relabel(opened.id, "another")
        table.save()
    assert opens(vault_dir, offer(SERVER))
    with changing_slots(vault_dir, offer(SERVER)) as table:
        table.replace(1, new_hybrid(COLLEAGUE["recipient"], table.vault_id, 1))
        table.save()
    assert opens(vault_dir, offer(COLLEAGUE))
    with pytest.raises(VaultError):
        opens(vault_dir, offer(SERVER))


def test_a_key_that_was_made_for_another_slot_is_refused(vault_dir: Path) -> None:
    """Two keys are made at once, and only then added: the second one has the id of the first."""
    before = (vault_dir / CONFIG_NAME).read_bytes()
    with changing_slots(vault_dir, b"horse") as table:
        first, second = (new_hybrid(SERVER["recipient"], table.vault_id, table.next_id) for _ in range(2))
        table.add(first)
        with pytest.raises(ValueError, match="for a slot with another id"):
            table.add(second)
        with pytest.raises(ValueError, match="for a slot with another id"):
            table.replace(0, second)
    assert (vault_dir / CONFIG_NAME).read_bytes() == before


def test_as_many_as_can_be(vault_dir: Path) -> None:
    """The largest config that public keys can make is well below the limit."""
    add(vault_dir, b"horse", *[SERVER["recipient"]] * (MAX_SLOTS - 2), COLLEAGUE["recipient"])
    raw = (vault_dir / CONFIG_NAME).read_bytes()
    assert len(raw) < MAX_CONFIG_SIZE // 2
    slots = decode_config(raw).slots
    assert len(slots) == MAX_SLOTS
    assert (
        sum(len(value) for value in slots[1].params.values() if isinstance(value, str)) < MAX_PARAMS_SIZE // 2
    )
    assert opens(vault_dir, offer(COLLEAGUE))
    with pytest.raises(VaultError, match="can have no more"):
        add(vault_dir, b"horse", SERVER["recipient"])


def test_a_vault_of_version_0_1_has_to_be_upgraded_first(tmp_path: Path) -> None:
    make_old_vault(tmp_path / "vault", b"horse", kdf_memory=MIN_KDF_MEMORY)
    with pytest.raises(UnsupportedFormatError, match="cryptfs upgrade"):
        add(tmp_path / "vault", b"horse", SERVER["recipient"])
    upgrade(tmp_path / "vault", [b"horse"])
    add(tmp_path / "vault", b"horse", SERVER["recipient"])
    assert opens(tmp_path / "vault", offer(SERVER))


def test_a_passphrase_in_its_place(vault_dir: Path) -> None:
    add(vault_dir, b"horse", SERVER["recipient"])
    with changing_slots(vault_dir, offer(SERVER)) as table:
        table.replace(1, new_passphrase(b"staple", MIN_KDF_MEMORY))
        table.save()
    assert opens(vault_dir, b"staple")
