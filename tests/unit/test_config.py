"""The vault config: what it accepts, what it refuses before any key, and that nothing makes it crash."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots import kdf
from cryptfs.core.slots.config import (
    MAX_CONFIG_SIZE,
    MAX_SLOTS,
    VaultConfig,
    authenticate,
    config_mac,
    decode_config,
    verify_config,
)
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY, MIN_KDF_PASSES, PassphraseCost
from cryptfs.core.slots.rekeying import Rekey
from cryptfs.core.slots.slot import KeySlot, open_slot
from cryptfs.errors import UnsupportedFormatError, VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import sealed
from cryptfs.unlock.unlocking import open_vault
from tests.vectors.scenarios_config import make_config

MASTERKEY = b"a masterkey of exactly 32 bytes!"
KEYS = Subkeys.from_masterkey(MASTERKEY)
GOOD: dict[str, Any] = make_config("aegis-256")
NEWER: dict[str, Any] = make_config("aegis-256", features=["slots"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


class DerivedTooEarly(Exception):
    """A key was derived although the config should have been refused first."""


@pytest.fixture
def no_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every derivation of a key from a passphrase fail the test."""

    def derive(*_: object) -> bytes:
        raise DerivedTooEarly

    monkeypatch.setattr(kdf, "passphrase_key", derive)


def encoded(config: object) -> bytes:
    """As a file."""
    return json.dumps(config, ensure_ascii=False).encode()


def new_key(passphrase: bytes = b"horse") -> NewKey:
    """A passphrase at the lowest cost."""
    return new_passphrase(passphrase, MIN_KDF_MEMORY, MIN_KDF_PASSES)


def with_slot(config: VaultConfig, slot_id: int, new: NewKey, label: str = "") -> VaultConfig:
    """A config with one slot of MASTERKEY, authenticated."""
    return authenticate(
        msgspec.structs.replace(config, slots=[sealed(config, slot_id, label, new, MASTERKEY)]), KEYS
    )


def opens(config: VaultConfig, slot: KeySlot, passphrase: bytes) -> bytes | None:
    """The masterkey in one slot, under another config perhaps."""
    key = PassphraseCost.from_params(slot.params, slot.name).derive(passphrase)
    return open_slot(config.slot_context, slot, key)


@pytest.mark.parametrize("good", [GOOD, NEWER], ids=["version 1", "version 2"])
def test_make_write_read_unlock(good: dict[str, Any]) -> None:
    config = with_slot(decode_config(encoded(good)), 3, new_key(), 'a "label" \\ ø')
    again = decode_config(config.encode())
    assert again == config
    opened = open_vault(again, b"horse", MIN_KDF_MEMORY)
    assert (opened.masterkey, opened.slot) == (MASTERKEY, config.slots[0])
    assert opens(again, again.slots[0], b"horses") is None
    with pytest.raises(WrongPassphraseError):
        open_vault(again, b"horses", MIN_KDF_MEMORY)
    changed = msgspec.structs.replace(again, generation=again.generation + 1)
    with pytest.raises(VaultConfigError, match="was changed by"):
        open_vault(changed, b"horse", MIN_KDF_MEMORY)


@pytest.mark.parametrize("good", [GOOD, NEWER], ids=["version 1", "version 2"])
def test_a_slot_is_bound_to_its_config_and_id(good: dict[str, Any]) -> None:
    config = with_slot(decode_config(encoded(good)), 3, new_key())
    slot = config.slots[0]
    assert opens(config, slot, b"horse") == MASTERKEY
    for other, moved in [
        (msgspec.structs.replace(config, vault_id="00" * 16), slot),
        (msgspec.structs.replace(config, cipher="xchacha20-poly1305"), slot),
        (msgspec.structs.replace(config, chunk_size=4096), slot),
        (config, msgspec.structs.replace(slot, id=4)),
    ]:
        with pytest.raises(VaultConfigError, match="passphrase is right"):
            opens(other, moved, b"horse")


def test_a_slot_of_version_2_outlives_a_change_of_the_features() -> None:
    """In version 1 it does not: nobody could upgrade a vault without the secret of every slot."""
    newer = with_slot(decode_config(encoded(NEWER)), 3, new_key())
    assert opens(msgspec.structs.replace(newer, features=["other"]), newer.slots[0], b"horse") == MASTERKEY
    older = with_slot(decode_config(encoded(GOOD)), 3, new_key())
    with pytest.raises(VaultConfigError, match="passphrase is right"):
        opens(msgspec.structs.replace(older, features=["other"]), older.slots[0], b"horse")


@pytest.mark.parametrize("name", [name for name in VaultConfig.__struct_fields__ if name != "mac"])
def test_the_mac_covers_every_field(name: str) -> None:
    config = decode_config(encoded(NEWER))
    other: dict[str, Any] = {
        "chunk_size": 4096,
        "cipher": "xchacha20-poly1305",
        "features": ["f"],
        "format": "other",
        "generation": 2,
        "recovery": ["00" * 16],
        "rekey": Rekey("A" * 16, "00" * 72),
        "slots": [],
        "vault_id": "00" * 16,
        "version": 3,
    }
    changed = msgspec.structs.replace(config, **{name: other[name]})
    assert config_mac(changed, KEYS) != config_mac(config, KEYS)
    with pytest.raises(VaultConfigError, match="was changed by"):
        verify_config(msgspec.structs.replace(changed, mac=config_mac(config, KEYS).hex()), KEYS)


def test_the_largest_file_and_one_byte_more() -> None:
    for good, limit in ((GOOD, 65536), (NEWER, MAX_CONFIG_SIZE)):
        padding = limit - len(encoded(good))
        assert decode_config(encoded(good) + b" " * padding) == decode_config(encoded(good))
        with pytest.raises(VaultConfigError, match=f"larger than {limit}"):
            decode_config(encoded(good) + b" " * (padding + 1))


def test_most_slots_and_one_more() -> None:
    slots = [GOOD["slots"][0] | {"id": slot_id} for slot_id in range(MAX_SLOTS + 1)]
    assert len(decode_config(encoded(GOOD | {"slots": slots[:-1]})).slots) == MAX_SLOTS
    with pytest.raises(VaultConfigError, match="33 key slots"):
        decode_config(encoded(GOOD | {"slots": slots}))


@pytest.mark.parametrize(
    ("field", "value", "is_good"),
    [
        *[("memory", 64 << 20, True), ("memory", 4 << 30, True), ("memory", (4 << 30) + 1024, False)],
        *[("memory", 0, False), ("memory", 2**53, False), ("memory", 2**54, False), ("memory", -1, False)],
        *[("passes", 3, True), ("passes", 64, True), ("passes", 65, False), ("passes", 0, False)],
        *[
            ("salt", "00" * 16, True),
            ("salt", "00" * 15, False),
            ("salt", "00" * 17, False),
            ("salt", "", False),
        ],
    ],
)
def test_limits_of_the_kdf(field: str, value: int | str, is_good: bool) -> None:
    slot = GOOD["slots"][0]
    raw = encoded(GOOD | {"slots": [slot | {"kdf": slot["kdf"] | {field: value}}]})
    if is_good:
        assert decode_config(raw).slots[0].params[field] == value
    else:
        with pytest.raises(VaultConfigError):
            decode_config(raw)


@pytest.mark.parametrize(
    "label", ["", "office", "ø" * 32, "a\u00a0b", "👩\u200d💻", "\U0001fae9 new in Unicode 16"]
)
def test_good_labels(label: str) -> None:
    slot = GOOD["slots"][0] | {"label": label}
    assert decode_config(encoded(GOOD | {"slots": [slot]})).slots[0].label == label


@pytest.mark.parametrize(
    "label", ["ø" * 32 + "x", "a\nb", "\x1b[31m", "\x7f", "\x9b", "a\u202eb", "\u2028", "\u2066"]
)
def test_bad_labels(label: str) -> None:
    slot = GOOD["slots"][0] | {"label": label}
    with pytest.raises(VaultConfigError, match="impossible label"):
        decode_config(encoded(GOOD | {"slots": [slot]}))


@pytest.mark.usefixtures("no_derivation")
@pytest.mark.parametrize("memory", [MIN_KDF_MEMORY - 1024, MIN_KDF_MEMORY + 1, 2**40])
def test_the_cost_of_a_new_slot_is_judged_before_its_key_is_derived(memory: int) -> None:
    with pytest.raises(ValueError, match="new key slot"):
        new_passphrase(b"horse", memory)


@pytest.mark.parametrize("label", ["a\nb", "x" * 65])
def test_the_label_of_a_new_slot_is_judged(label: str) -> None:
    with pytest.raises(ValueError, match="new key slot"):
        sealed(decode_config(encoded(GOOD)), 0, label, NewKey("passphrase", {}, bytes(32)), MASTERKEY)


@pytest.mark.usefixtures("no_derivation")
def test_too_much_memory_is_refused_before_a_key_is_derived() -> None:
    config = decode_config(encoded(GOOD))
    with pytest.raises(VaultConfigError, match="asks for 64 MiB"):
        open_vault(config, b"horse", MIN_KDF_MEMORY - 1)
    with pytest.raises(DerivedTooEarly):
        open_vault(config, b"horse", MIN_KDF_MEMORY)


def test_hostile_text_does_not_reach_the_terminal() -> None:
    escape, long = "\x1b]0;owned\x07", "y" * 5000
    for changes in (
        {"features": [escape, long]},
        {"cipher": escape + long},
        {escape + long: 1},
        {"slots": [escape]},
    ):
        with pytest.raises(VaultError) as caught:
            decode_config(encoded(GOOD | changes))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes(raw: bytes) -> None:
    with pytest.raises(VaultError):
        decode_config(raw)


@settings(deadline=None)
@given(json_values)
def test_arbitrary_json(value: object) -> None:
    with pytest.raises(VaultError):
        decode_config(encoded(value).replace(b"\xed", b"?"))


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(GOOD)), json_values)
def test_arbitrary_values_in_a_good_config(name: str, value: object) -> None:
    assert_decodes_or_refuses(GOOD | {name: value})
    assert_decodes_or_refuses(NEWER | {name: value})


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(GOOD["slots"][0])), st.sampled_from(sorted(GOOD["slots"][0]["kdf"])), json_values
)
def test_arbitrary_values_in_a_good_slot(name: str, kdf_name: str, value: object) -> None:
    slot = GOOD["slots"][0]
    assert_decodes_or_refuses(GOOD | {"slots": [slot | {name: value}]})
    assert_decodes_or_refuses(GOOD | {"slots": [slot | {"kdf": slot["kdf"] | {kdf_name: value}}]})
    slot = NEWER["slots"][0]
    assert_decodes_or_refuses(NEWER | {"slots": [slot | {name: value}]})
    assert_decodes_or_refuses(NEWER | {"slots": [slot | {"params": slot["params"] | {kdf_name: value}}]})


def assert_decodes_or_refuses(config: dict[str, Any]) -> None:
    """No other exception than those for people; what decodes is within every limit that a reader needs."""
    try:
        decoded = decode_config(json.dumps(config).encode())
    except VaultError:
        return
    assert decoded.geometry.chunk_size == decoded.chunk_size
    assert all(len(bytes.fromhex(slot.wrapped)) == 72 for slot in decoded.slots)
    assert decode_config(decoded.encode()) == decoded


@pytest.mark.parametrize("depth", [500, 5000, 30000])
def test_deep_nesting(depth: int) -> None:
    for raw in (b"[" * depth, b'{"a":' * (depth // 3)):
        with pytest.raises(VaultConfigError):
            decode_config(raw)


def test_a_lone_surrogate_is_refused() -> None:
    slot = GOOD["slots"][0] | {"label": "\ud800"}
    with pytest.raises(VaultConfigError, match="damaged"):
        decode_config(json.dumps(GOOD | {"slots": [slot]}).encode())


def test_feature_names_are_shown() -> None:
    with pytest.raises(UnsupportedFormatError, match="alpha, beta"):
        decode_config(encoded(GOOD | {"features": ["beta", "alpha"]}))


def test_no_secret_in_the_repr_of_a_config() -> None:
    config = with_slot(decode_config(encoded(GOOD)), 0, new_key(b"correct horse"))
    assert "correct" not in repr(config)
    assert MASTERKEY.hex() not in repr(config)


def test_of_a_repeated_field_the_last_counts() -> None:
    text = encoded(GOOD).decode()
    first_wrong = text.replace('"chunk_size":', '"chunk_size": 4096, "chunk_size":', 1)
    assert first_wrong != text
    assert decode_config(first_wrong.encode()) == decode_config(text.encode())
    last_wrong = text[:-1] + ', "version": 3}'
    with pytest.raises(UnsupportedFormatError, match="version 3"):
        decode_config(last_wrong.encode())
