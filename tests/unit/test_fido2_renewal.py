"""Slots of FIDO2 tokens for another masterkey: those whose token is here stay; others hinder nothing."""

from __future__ import annotations

import pytest

from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import AbsentTokenError, TokenError
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.renewal import renewal_with
from tests.softtoken import Behaviour, Person, SoftToken
from tests.unit.token_slots import GIB, config_of, enrol


def kept(config: VaultConfig, offer: Offer) -> list[int]:
    """The ids of the slots that the offer renews."""
    return [slot.id for slot in config.slots if renewal_with(config, slot, [offer], GIB) is not None]


@pytest.mark.parametrize("passphrase", [None, "pât\u00e9".encode()])
def test_a_token_that_is_elsewhere_hinders_nothing(passphrase: bytes | None) -> None:
    blue, red, strange = SoftToken("Blue"), SoftToken("Red"), SoftToken("Strange")
    config = config_of(enrol(blue), enrol(red))
    for plugged, ids in (
        ([blue], [0]),
        ([red, strange], [1]),
        ([red, blue], [0, 1]),
        ([strange], []),
        ([], []),
    ):
        assert kept(config, Offer(passphrase=passphrase, tokens=Person(plugged))) == ids


def test_a_token_that_is_here_and_not_touched_is_an_error() -> None:
    token = SoftToken("Blue")
    config = config_of(enrol(token))
    token.behaviour.touch = "late"
    with pytest.raises(TokenError, match="not touched in time") as caught:
        kept(config, Offer(tokens=Person([token])))
    assert not isinstance(caught.value, AbsentTokenError)


def test_a_token_that_cannot_be_asked_is_an_error() -> None:
    """It may be the one of the slot: nobody should lose the slot by that."""
    token, old = SoftToken("Blue"), SoftToken("Old", Behaviour(capabilities=0))
    config = config_of(enrol(token))
    with pytest.raises(TokenError, match="too old") as caught:
        kept(config, Offer(tokens=Person([old])))
    assert not isinstance(caught.value, AbsentTokenError)
