"""Does with cryptfs what a vector of the recovery record asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cryptfs.core.aead import open_small
from cryptfs.core.keys import derive
from cryptfs.core.slots.recovery import RecoveryRecord, seal_record
from cryptfs.unlock.carriers.shares import combine
from cryptfs.unlock.carriers.words import secret_of_words, words_of
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recoverykey import OpenedRecord, opened_record

Inputs = dict[str, Any]
_HEAD, _ENTRY = 32, 200


def _hex(inputs: Inputs, name: str) -> bytes:
    return bytes.fromhex(inputs[name])


def open_recovery(inputs: Inputs) -> Inputs:
    """Open the record by words or shares, then by the masterkey; seal it again with the same randomness."""
    offer = Offer(
        words=inputs["words"].encode() if "words" in inputs else None,
        shares=tuple(share.encode() for share in inputs.get("shares", ())),
    )
    opened = opened_record(offer, [_hex(inputs, "raw")], _hex(inputs, "vault_id"))
    body = opened.body
    _seal_again(opened)
    return {
        "recovery_id": opened.secret.recovery_id.hex(),
        "masterkey": body.masterkey.hex(),
        "old_masterkey": body.old_masterkey and body.old_masterkey.hex(),
        "cipher_id": body.cipher_id,
        "log2_chunk_size": body.log2_chunk_size,
        "config_version": body.config_version,
        "features": list(body.features),
        "generation": body.generation,
    }


def _seal_again(opened: OpenedRecord) -> None:
    raw = opened.raw
    secrets, body = opened.record.opened_by(opened.body.masterkey)
    assert body == opened.body
    assert [about for about, _ in secrets] == list(opened.record.secrets)
    places = [_HEAD + number * _ENTRY for number in range(len(secrets))]
    nonces = b"".join(raw[at + start : at + start + 24] for at in places for start in (56, 128))
    nonces += raw[_HEAD + len(secrets) * _ENTRY :][:24]
    entry = raw[_HEAD : _HEAD + _ENTRY]
    aad = b"\x0e\x01\x00" + raw[:_HEAD] + entry[:56]
    record_key = open_small(derive(secrets[0][1], b"recwrap"), entry[128:], aad)
    assert record_key is not None
    assert seal_record(opened.record.vault_id, secrets, body, record_key, nonces) == raw


def open_recovery_by_masterkey(inputs: Inputs) -> Inputs:
    """All secrets of the record."""
    record = RecoveryRecord.unpack(_hex(inputs, "raw"))
    secrets, _ = record.opened_by(_hex(inputs, "masterkey"))
    return {"secrets": [secret.hex() for _, secret in secrets]}


def read_words(inputs: Inputs) -> Inputs:
    """The secret in words, and that these words are the ones that it is written in."""
    secret = secret_of_words(inputs["words"].encode())
    assert secret_of_words(words_of(secret).encode()) == secret
    return {"secret": secret.hex()}


def read_shares(inputs: Inputs) -> Inputs:
    """The secret in shares."""
    return {"secret": combine([share.encode() for share in inputs["shares"]]).hex()}


OPERATIONS: dict[str, Callable[[Inputs], Inputs]] = {
    "open_recovery": open_recovery,
    "open_recovery_by_masterkey": open_recovery_by_masterkey,
    "read_words": read_words,
    "read_shares": read_shares,
}
