"""Slots for hybrid public keys: what opens them, what does not, and what it takes on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.agekeys import MAX_IDENTITIES, identities_of, recipient_bytes
from cryptfs.core.slots.config import MAX_SLOTS, VaultConfig, authenticate, decode_config
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.core.slots.slot import KeySlot, open_slot
from cryptfs.errors import NoKeyError, VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.unlock import hybrid
from cryptfs.unlock.hybrid import HPKE, HybridKind, HybridParams, info_of, new_hybrid
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import sealed
from cryptfs.unlock.unlocking import open_vault
from tests.age_keys import NPM, SPECIFICATION, TESTKIT, bech32, identity_file, of_base64

MASTERKEY = bytes(range(32))
VAULT_ID = bytes(range(16))
FIRST, SECOND, THIRD = (keys["recipient"] for keys in NPM)
EMPTY = VaultConfig(
    chunk_size=16384,
    cipher="aegis-256",
    features=["slots"],
    format="cryptfs",
    generation=1,
    mac="",
    recovery=[],
    slots=[],
    vault_id=VAULT_ID.hex(),
    version=2,
)


def seeds(*numbers: int) -> tuple[bytes, ...]:
    """Identities of the npm keys, as new objects each time: an offer wipes its own."""
    return tuple(identities_of(identity_file(NPM[number]["identity"]))[0] for number in numbers)


def with_slots(*recipients: str, passphrase: bytes | None = None) -> VaultConfig:
    """An authentic config with a slot for each recipient, from id 3 on; slot 0 for a passphrase."""
    slots = []
    if passphrase is not None:
        slots.append(sealed(EMPTY, 0, "", new_passphrase(passphrase, MIN_KDF_MEMORY), MASTERKEY))
    for slot_id, recipient in enumerate(recipients, 3):
        slots.append(sealed(EMPTY, slot_id, "", new_hybrid(recipient, VAULT_ID, slot_id), MASTERKEY))
    return authenticate(
        msgspec.structs.replace(EMPTY, slots=slots), Subkeys.from_masterkey(bytes(bytearray(MASTERKEY)))
    )


def opened_by(config: VaultConfig, offer: bytes | Offer) -> KeySlot:
    """The slot that an offer opens; what comes out is the masterkey."""
    unlocked = open_vault(config, offer, MIN_KDF_MEMORY)
    assert unlocked.masterkey == MASTERKEY and unlocked.spelling == ""
    assert unlocked.slot is not None
    return unlocked.slot


def opened(config: VaultConfig, *numbers: int, slot_id: int | None = None, first: int | None = None) -> int:
    """The id of the slot that identities open."""
    return opened_by(config, Offer(identities=seeds(*numbers), slot_id=slot_id, first=first)).id


def slot_keys(slots: Sequence[KeySlot], vault_id: bytes = VAULT_ID) -> list[tuple[int, bytes]]:
    """What the first identity makes of slots."""
    found = HybridKind().slot_keys(slots, Offer(identities=seeds(0)), vault_id)
    return [(slot.id, slot_key) for slot, slot_key in found]


@pytest.mark.parametrize("keys", [SPECIFICATION, *NPM], ids=["specification", *map(str, range(len(NPM)))])
def test_an_identity_opens_what_was_sealed_for_its_recipient(keys: dict[str, str]) -> None:
    """So our expansion of an identity gives the public key that age derives from it."""
    config = decode_config(with_slots(keys["recipient"]).encode())
    offer = Offer(identities=identities_of(identity_file(keys["identity"])))
    slot = opened_by(config, offer)
    assert (slot.id, slot.params["recipient"]) == (3, keys["recipient"])


@pytest.mark.parametrize("vector", TESTKIT, ids=lambda vector: vector["name"])
def test_stanzas_of_the_testkit(vector: dict[str, str]) -> None:
    """age's own stanzas, by the same calls with age's info; a slot key is longer than a file key."""
    params = HybridParams("", of_base64(vector["enc"]), of_base64(vector["body"]))
    (identity,) = identities_of(vector["identity"].encode())
    found = hybrid._opened(params, hybrid._private_key(identity), b"age-encryption.org/mlkem768x25519")
    assert (found is not None) == (vector["expect"] == "success")
    assert found is None or found.hex() == vector["file_key"]


@pytest.mark.parametrize("keys", NPM, ids=map(str, range(len(NPM))))
def test_stanzas_of_the_npm_package(keys: dict[str, str]) -> None:
    params = HybridParams("", of_base64(keys["enc"]), of_base64(keys["body"]))
    key = hybrid._private_key(identities_of(keys["identity"].encode())[0])
    found = hybrid._opened(params, key, b"age-encryption.org/mlkem768x25519")
    assert found is not None and found.hex() == keys["file_key"]


def test_each_slot_opens_by_its_own_identity_alone() -> None:
    config = with_slots(FIRST, SECOND)
    assert opened(config, 0) == 3
    assert opened(config, 1) == 4
    assert opened(config, 2, 1) == 4
    assert opened(config, 0, 1) == 3
    assert opened(config, 0, 1, first=4) == 4
    assert opened(config, 0, 1, slot_id=4) == 4
    for offered in ((2,), (2, 2)):
        with pytest.raises(WrongPassphraseError, match="the age identity opens no key slot of this vault"):
            opened(config, *offered)
    with pytest.raises(WrongPassphraseError, match="age identity opens no key slot"):
        opened(config, 1, slot_id=3)


def test_beside_a_passphrase_either_opens() -> None:
    config = with_slots(FIRST, passphrase=b"horse")
    both = Offer(passphrase=b"wrong", identities=seeds(0))
    assert opened_by(config, both).id == 3
    both = Offer(passphrase=b"horse", identities=seeds(2))
    assert opened_by(config, both).id == 0
    neither = Offer(passphrase=b"wrong", identities=seeds(2))
    with pytest.raises(WrongPassphraseError, match="passphrase and age identity open no key slot"):
        open_vault(config, neither, MIN_KDF_MEMORY)
    with pytest.raises(NoKeyError, match="it takes an age identity"):
        open_vault(with_slots(FIRST), b"horse", MIN_KDF_MEMORY)


def test_every_identity_is_tried_once_on_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile config has 32 slots that no identity opens; each identity is expanded once."""
    slot = with_slots(SECOND).slots[0]
    slots = [msgspec.structs.replace(slot, id=number) for number in range(MAX_SLOTS)]
    expand, open_ = hybrid._private_key, hybrid._opened
    calls: list[str] = []

    def expanded(identity: bytes) -> object:
        calls.append("expand")
        return expand(identity)

    def opened_once(*arguments: Any) -> bytes | None:
        calls.append("open")
        return open_(*arguments)

    monkeypatch.setattr(hybrid, "_private_key", expanded)
    monkeypatch.setattr(hybrid, "_opened", opened_once)
    offer = Offer(identities=seeds(0) * MAX_IDENTITIES)
    assert list(HybridKind().slot_keys(slots, offer, VAULT_ID)) == []
    assert (calls.count("expand"), calls.count("open")) == (MAX_IDENTITIES, MAX_IDENTITIES * MAX_SLOTS)


def test_a_slot_key_comes_out_in_one_place_alone() -> None:
    slot = with_slots(FIRST).slots[0]
    [(slot_id, slot_key)] = slot_keys([slot])
    assert slot_id == 3 and len(slot_key) == 32
    assert slot_keys([msgspec.structs.replace(slot, id=4)]) == []
    assert slot_keys([slot], bytes(16)) == []


def test_info_has_no_two_meanings() -> None:
    assert info_of(VAULT_ID, 0x01020304) == b"cryptfs slot" + VAULT_ID + b"\4\3\2\1"


def test_two_slots_for_one_recipient_share_nothing() -> None:
    config = with_slots(FIRST, FIRST)
    keys = dict(slot_keys(config.slots))
    assert sorted(keys) == [3, 4] and keys[3] != keys[4]
    first, second = (slot.params for slot in config.slots)
    assert first["enc"] != second["enc"] and first["ciphertext"] != second["ciphertext"]


@pytest.mark.parametrize(("vault_id", "slot_id"), [(VAULT_ID, 4), (bytes(16), 3)])
def test_a_key_for_another_place_never_becomes_a_slot(vault_id: bytes, slot_id: int) -> None:
    """Nobody could open it."""
    with pytest.raises(ValueError, match="for another vault, or for a slot with another id"):
        sealed(EMPTY, 3, "", new_hybrid(FIRST, vault_id, slot_id), MASTERKEY)


def test_a_recipient_that_is_no_key_is_refused() -> None:
    """ML-KEM has coefficients below 3329, and refuses others."""
    assert len(recipient_bytes(FIRST)) == 1216
    with pytest.raises(ValueError, match="not a public key"):
        new_hybrid(bech32("age1pq", b"\xff" * 1216), VAULT_ID, 3)
    with pytest.raises(ValueError, match="checksum"):
        new_hybrid(FIRST[:100] + FIRST[101] + FIRST[100] + FIRST[102:], VAULT_ID, 3)


def test_renewal_keeps_recipient_and_place() -> None:
    old = with_slots(FIRST).slots[0]
    new = HybridKind().renew(old, VAULT_ID)
    assert new is not None
    assert (new.kind, new.params["recipient"], new.place) == (HPKE, FIRST, (VAULT_ID, 3))
    [(_, old_key)] = slot_keys([old])
    assert new.slot_key != old_key
    fresh = sealed(EMPTY, 3, old.label, new, bytes(32))
    [(_, fresh_key)] = slot_keys([fresh])
    assert open_slot(EMPTY.slot_context, fresh, fresh_key) == bytes(32)
    assert HybridKind().renew(msgspec.structs.replace(old, params={}), VAULT_ID) is None


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({}, "cannot derive its key"),
        ({"enc": ""}, "cannot derive its key"),
        ({"recipient": FIRST, "enc": "AA", "ciphertext": "AA"}, "enc is not 1120 bytes"),
        ({"recipient": "", "enc": "AA", "ciphertext": "AA"}, "1959 lower-case letters"),
        ({"recipient": FIRST, "enc": "A" * 8000, "ciphertext": "AA"}, "enc is not 1120 bytes"),
        ({"recipient": 7, "enc": 8, "ciphertext": 9}, "cannot derive its key"),
    ],
)
def test_odd_params_make_one_slot_unusable(params: dict[str, int | str], why: str) -> None:
    slot = msgspec.structs.replace(with_slots(FIRST).slots[0], id=9, params=params)
    with pytest.raises(VaultConfigError, match=f"key slot 9 .*{why}"):
        HybridKind().check(slot, 0)
    good = with_slots(FIRST, passphrase=b"horse")
    config = authenticate(
        msgspec.structs.replace(good, slots=[slot, *good.slots]), Subkeys.from_masterkey(MASTERKEY)
    )
    assert opened(config, 0) == 3
    assert opened_by(config, b"horse").id == 0
    with pytest.raises(VaultConfigError, match=why):
        opened(config, 0, slot_id=9)
    with pytest.raises(WrongPassphraseError, match=f"opens no key slot of this vault. Not tried: .*{why}"):
        opened(config, 2)


@pytest.mark.parametrize(
    ("module", "whole"),
    [
        ("cryptography.hazmat.primitives.asymmetric.mlkem", True),  # cryptography 46 and older
        ("cryptography.hazmat.primitives.hpke", True),
        ("cryptography.hazmat.primitives.hpke", False),  # HPKE, without this KEM
        ("cryptography", True),
    ],
)
def test_without_the_package(monkeypatch: pytest.MonkeyPatch, module: str, whole: bool) -> None:
    config = with_slots(FIRST, passphrase=b"horse")
    if whole:
        for name in [each for each in sys.modules if each == module or each.startswith(f"{module}.")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, module, None)
    else:
        monkeypatch.delattr(sys.modules[module], "MLKEM768X25519PrivateKey")
    words = (
        r"needs the package cryptography, version 50 or newer; install it with: pip install 'cryptfs\[hpke\]'"
    )
    with pytest.raises(VaultConfigError, match=words):
        opened(config, 0)
    with pytest.raises(VaultError, match=words):
        new_hybrid(FIRST, VAULT_ID, 3)
    with pytest.raises(VaultError, match=words):
        HybridKind().renew(config.slots[1], VAULT_ID)
    both = Offer(passphrase=b"horse", identities=seeds(0))
    assert opened_by(config, both).id == 0


def test_a_package_that_was_built_without_ml_kem(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import mlkem

    class Unsupported:
        @staticmethod
        def from_seed_bytes(_: bytes) -> None:
            raise UnsupportedAlgorithm("ML-KEM-768 is not supported")

    config = with_slots(FIRST)
    monkeypatch.setattr(mlkem, "MLKEM768PrivateKey", Unsupported)
    with pytest.raises(VaultConfigError, match="built here without ML-KEM"):
        opened(config, 0)


def test_secrets_are_wiped_and_shown_nowhere() -> None:
    offer = Offer(identities=seeds(0, 1))
    kept = offer.identities
    new = new_hybrid(FIRST, VAULT_ID, 3)
    slot_key = new.slot_key
    assert slot_key.hex() not in repr(new) and repr(slot_key) not in repr(new)
    assert all(repr(identity) not in repr(offer) for identity in kept)
    sealed(EMPTY, 3, "", new, MASTERKEY)
    offer.wipe()
    assert slot_key == bytes(32)
    assert kept == (bytes(32), bytes(32))


def test_the_keys_of_an_identity_are_wiped_from_our_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[bytes] = []

    def note(secret: bytes) -> None:
        wiped.append(bytes(bytearray(secret)))

    monkeypatch.setattr(hybrid, "wipe", note)
    slot_keys(with_slots(FIRST).slots)
    assert [len(secret) for secret in wiped] == [96]


def test_a_new_key_is_not_a_slot_without_its_place() -> None:
    assert NewKey("passphrase", {}, bytes(32)).place is None
    assert new_hybrid(FIRST, VAULT_ID, 3).place == (VAULT_ID, 3)
