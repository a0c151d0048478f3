"""What the config's vectors say beyond their outcome: the canonical form, and what a refusal costs."""

from __future__ import annotations

import json

import pytest

from cryptfs.core.slots import kdf
from cryptfs.core.slots.agekeys import identities_of
from cryptfs.core.slots.checks import canonical
from cryptfs.core.slots.config import decode_config
from cryptfs.errors import VaultConfigError, VaultError
from cryptfs.unlock import hybrid
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.unlocking import open_vault
from tests.vectors import generate

GOOD = json.loads((generate.VECTORS_DIR / "config" / "ok-aegis-256.json").read_text("utf-8"))


def test_canonical_json_is_that_of_the_document() -> None:
    config = json.loads(GOOD["inputs"]["text"])
    fields = {name: value for name, value in config.items() if name != "mac"}
    assert canonical(fields).decode() == GOOD["expect"]["canonical"]


def test_config_vectors_that_must_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a vector refuses for another reason than passphrase, slot or mac is refused unasked."""

    def derive(*_: object) -> bytes:
        pytest.fail("a key was derived although the config should have been refused first")

    monkeypatch.setattr(kdf, "passphrase_key", derive)
    needs_key = ("wrong", "is right", "was changed by", "open no key slot", "opens no key slot")
    refused = 0
    rooms = ("config", "slots")
    for path in sorted(path for room in rooms for path in (generate.VECTORS_DIR / room).iterdir()):
        vector = json.loads(path.read_text("utf-8"))
        inputs, expect = vector["inputs"], vector["expect"]
        if (
            expect["outcome"] == "ok"
            or expect["why"] in needs_key
            or {"key_file", "identity_file", "token"} & inputs.keys()
        ):
            continue
        with pytest.raises(VaultError):
            open_vault(decode_config(inputs["text"].encode()), b"horse", inputs["max_memory"])
        refused += 1
    assert refused >= 45


def test_params_of_a_public_key_that_must_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that cannot be used is refused before a key is expanded or opened."""

    def expand(*_: object) -> None:
        pytest.fail("HPKE began although the slot should have been refused first")

    monkeypatch.setattr(hybrid, "_private_key", expand)
    refused = 0
    for path in sorted((generate.VECTORS_DIR / "slots").glob("hpke*.json")):
        vector = json.loads(path.read_text("utf-8"))
        inputs, expect = vector["inputs"], vector["expect"]
        if expect["outcome"] == "ok" or expect["why"] in ("opens no key slot", "is right"):
            continue
        offer = Offer(identities=identities_of(inputs["identity_file"].encode()))
        with pytest.raises(VaultConfigError):
            open_vault(decode_config(inputs["text"].encode()), offer, inputs["max_memory"])
        refused += 1
    assert refused >= 9


def test_the_info_of_the_document_is_that_of_the_code() -> None:
    inputs = json.loads((generate.VECTORS_DIR / "slots" / "hpke.json").read_text("utf-8"))["inputs"]
    vault_id = bytes.fromhex(json.loads(inputs["text"])["vault_id"])
    assert hybrid.info_of(vault_id, 1).hex() == inputs["hpke"]["info"]
