"""The recovery record: what opens it, and that every byte of it counts."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.slots.config import MAX_RECOVERY_SECRETS
from cryptfs.core.slots.recovery import (
    MAX_RECORD_SIZE,
    RecoveryBody,
    RecoveryKind,
    RecoveryRecord,
    RecoverySecret,
    nonces_size,
    seal_record,
)
from cryptfs.errors import RecoveryRecordError, UnsupportedFormatError, VaultError

MASTERKEY, OLD = bytes(range(32)), bytes(range(1, 33))
VAULT_ID = b"sixteen bytes!!!"
WORDS = RecoverySecret(b"id of the words!", RecoveryKind.WORDS)
SHARES = RecoverySecret(b"id of the shares", RecoveryKind.SHARES, 2, 3)
SECRETS = [(WORDS, b"w" * 32), (SHARES, b"s" * 32)]
BODY = RecoveryBody(MASTERKEY, None, 1, 14, 2, ("bound-dirs", "machine-state", "slots"), 7)


def sealed(
    secrets: list[tuple[RecoverySecret, bytes]] = SECRETS, body: RecoveryBody = BODY, seed: int = 1
) -> bytes:
    nonces = bytes((seed + number) % 256 for number in range(nonces_size(len(secrets))))
    return seal_record(VAULT_ID, secrets, body, bytes((seed,)) * 32, nonces)


RAW = sealed()


def test_each_secret_and_the_masterkey_open_it() -> None:
    record = RecoveryRecord.unpack(RAW)
    assert record.vault_id == VAULT_ID
    assert record.secrets == (WORDS, SHARES)
    assert record.ids == [about.recovery_id.hex() for about, _ in SECRETS]
    for about, secret in SECRETS:
        assert record.secret_of(secret) == about
        assert record.open(secret) == BODY
    assert record.opened_by(MASTERKEY) == (SECRETS, BODY)
    assert record.secret_of(b"x" * 32) is None
    with pytest.raises(RecoveryRecordError, match="another masterkey"):
        record.opened_by(OLD)


def all_refuse(raw: bytes) -> bool:
    """Whether nothing opens it: neither the masterkey nor, where the whole is authentic by it, a secret."""
    try:
        RecoveryRecord.unpack(raw).opened_by(MASTERKEY)
    except (RecoveryRecordError, UnsupportedFormatError):
        return True
    return False


def test_every_byte_counts() -> None:
    for place in range(len(RAW)):
        assert all_refuse(RAW[:place] + bytes((RAW[place] ^ 1,)) + RAW[place + 1 :]), place


def test_of_a_changed_record_no_secret_gives_another_body() -> None:
    for place in range(len(RAW)):
        changed = RAW[:place] + bytes((RAW[place] ^ 0x80,)) + RAW[place + 1 :]
        for _, secret in SECRETS:
            try:
                record = RecoveryRecord.unpack(changed)
                if record.secret_of(secret) is not None:
                    record.open(secret)
            except (RecoveryRecordError, UnsupportedFormatError):
                continue
            # Only a commitment that the secret does not fit to leaves it without an error.
            assert record.secret_of(secret) is None, place


@given(place=st.integers(0, len(RAW) - 1), value=st.integers(0, 255), cut=st.integers(0, len(RAW)))
def test_any_byte_replaced_or_any_cut(place: int, value: int, cut: int) -> None:
    changed = RAW[:place] + bytes((value,)) + RAW[place + 1 :]
    assert all_refuse(changed) == (changed != RAW)
    assert all_refuse(RAW[:cut]) == (cut != len(RAW))
    assert all_refuse(RAW + RAW[:cut]) == (cut != 0)


@given(st.binary(max_size=MAX_RECORD_SIZE + 1))
def test_no_bytes_are_more_than_an_error(raw: bytes) -> None:
    for candidate in (raw, RAW[:32] + raw, RAW[:232] + raw):
        with pytest.raises(VaultError):
            RecoveryRecord.unpack(candidate).opened_by(MASTERKEY)


@given(st.binary(max_size=300))
def test_a_body_is_read_strictly(tail: bytes) -> None:
    raw = BODY.pack()[:80] + tail
    try:
        body = RecoveryBody.unpack(raw)
    except RecoveryRecordError:
        return
    assert body.pack() == raw


def test_entries_of_one_record_fit_into_no_other() -> None:
    other = sealed(seed=90)
    for start in (32, 232):
        mixed = RAW[:start] + other[start : start + 200] + RAW[start + 200 :]
        assert all_refuse(mixed)
        record = RecoveryRecord.unpack(mixed)
        with pytest.raises(RecoveryRecordError):
            record.open(SECRETS[(start - 32) // 200][1])


def test_a_secret_that_left_does_not_open_what_is_sealed_later() -> None:
    fewer = RecoveryRecord.unpack(sealed(SECRETS[:1], seed=50))
    assert fewer.secret_of(SECRETS[1][1]) is None
    with pytest.raises(ValueError, match="no secret"):
        fewer.open(SECRETS[1][1])


def test_an_old_masterkey_is_kept_while_there_is_one() -> None:
    body = dataclasses.replace(BODY, old_masterkey=OLD)
    record = RecoveryRecord.unpack(sealed(body=body))
    assert record.open(SECRETS[0][1]).old_masterkey == OLD
    assert record.opened_by(MASTERKEY)[1] == body


def test_limits() -> None:
    def numbered(count: int) -> list[tuple[RecoverySecret, bytes]]:
        kind = RecoveryKind.WORDS
        return [(RecoverySecret(bytes((n,)) * 16, kind), bytes((n + 1,)) * 32) for n in range(count)]

    assert len(RecoveryRecord.unpack(sealed(numbered(8))).secrets) == MAX_RECOVERY_SECRETS
    for secrets in ([], numbered(9), [*numbered(1), *numbered(1)]):
        with pytest.raises(ValueError, match="1 to 8 secrets"):
            sealed(secrets)
    most = tuple(sorted(f"{n:032}" for n in range(121)))
    assert len(sealed(body=dataclasses.replace(BODY, features=most))) <= MAX_RECORD_SIZE
    for features in ((*most, "x" * 32, "y" * 32, "z" * 32), ("Slots",), ("",)):
        with pytest.raises(ValueError, match="features"):
            sealed(body=dataclasses.replace(BODY, features=features))
    for kind, needed, shares in ((1, 2, 3), (2, 0, 0), (2, 1, 3), (2, 4, 3), (2, 2, 17)):
        with pytest.raises(ValueError, match="impossible"):
            RecoverySecret(bytes(16), RecoveryKind(kind), needed, shares)


def test_randomness_has_the_right_size() -> None:
    with pytest.raises(ValueError, match="nonces"):
        seal_record(VAULT_ID, SECRETS, BODY, bytes(32), bytes(24))
    with pytest.raises(ValueError, match="record key"):
        seal_record(VAULT_ID, SECRETS, BODY, bytes(31), bytes(nonces_size(2)))


def test_nothing_secret_is_shown() -> None:
    record = RecoveryRecord.unpack(RAW)
    for shown in (repr(record), repr(BODY), repr(record.open(SECRETS[0][1]))):
        assert "\\x" not in shown.replace(repr(VAULT_ID), "")
    assert WORDS.name == "recovery words 6964206f"
    assert SHARES.name == "shares 6964206f (2 of 3)"
