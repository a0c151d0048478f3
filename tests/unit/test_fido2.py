"""Key slots of FIDO2 tokens, with tokens in software: what opens, what it costs a person, what is said."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import NoKeyError, TokenError
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.token import new_fido2
from cryptfs.unlock.unlocking import Unlocked, open_vault
from tests.softtoken import Behaviour, Person, SoftToken
from tests.unit.token_slots import (
    GIB,
    MASTERKEY,
    PIN,
    changed,
    config_of,
    enrol,
    refusal,
    reset_counts,
    unlock,
)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("uv", [True, False])
@pytest.mark.parametrize("protocols", [(1,), (2,), (2, 1)])
def test_it_opens(protocols: tuple[int, ...], uv: bool, modern: bool) -> None:
    token = SoftToken(behaviour=Behaviour(protocols, pin=PIN, modern=modern))
    config = config_of(enrol(token, uv=uv))
    assert config.slots[0].params["uv"] == int(uv)
    reset_counts(token)
    person = Person([token], [PIN] * uv)
    opened = unlock(config, person)
    assert opened.masterkey == MASTERKEY
    assert (token.touches, token.silent, token.pins_sent, token.closed) == (1, 1, int(uv), 1)
    assert person.touched == ["the FIDO2 token 'Soft Key' to open the vault"]
    assert person.shown == [("the FIDO2 token 'Soft Key'", 8)] * uv


@pytest.mark.parametrize("uv", [True, False])
def test_another_protocol_makes_the_same_secret(uv: bool) -> None:
    token = SoftToken(behaviour=Behaviour((1,), pin=PIN))
    config = config_of(enrol(token, uv=uv))
    token.behaviour.protocols = (2,)
    assert unlock(config, Person([token], [PIN])).masterkey == MASTERKEY


@pytest.mark.parametrize("uv", [True, False])
def test_user_verification_is_in_the_slot_since_the_secret_differs(uv: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = changed(config_of(enrol(token, uv=uv)), uv=int(not uv))
    assert "does not open key slot 0" in refusal(config, Person([token], [PIN]))


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("uv", [True, False])
def test_a_person_who_gives_up_ends_the_wait(uv: bool, modern: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN, modern=modern))
    config = config_of(enrol(token, uv=uv))
    reset_counts(token)
    token.behaviour.touch = "awaited"
    person = Person([token], [PIN] * uv, gives_up=True)
    assert "was interrupted" in refusal(config, person)
    assert (token.touches, token.closed, person.is_asked) == (0, 1, False)
    with pytest.raises(TokenError, match="was interrupted"):
        new_fido2(token, Person([token], [PIN], gives_up=True), uv=uv)


def test_nobody_is_asked_any_longer_once_it_has_answered() -> None:
    token = SoftToken()
    person = Person([token])
    config = config_of(new_fido2(token, person, uv=False))
    assert (len(person.touched), person.is_asked) == (3, False)
    token.behaviour.touch = "refused"
    assert "was not allowed to answer" in refusal(config, person)
    assert (len(person.touched), person.is_asked) == (4, False)


def slot_of(unlocked: Unlocked) -> KeySlot:
    assert unlocked.slot is not None
    return unlocked.slot


def test_one_of_two_is_plugged_in() -> None:
    blue, red = SoftToken("Blue"), SoftToken("Red")
    config = config_of(enrol(blue), enrol(red))
    for number, token in enumerate((blue, red)):
        reset_counts(blue, red)
        assert slot_of(unlock(config, Person([token]))).id == number
        assert token.touches == blue.touches + red.touches == 1


def test_both_are_plugged_in_with_a_stranger() -> None:
    tokens = [SoftToken("Stranger"), SoftToken("Blue"), SoftToken("Red")]
    config = config_of(*(enrol(token) for token in tokens[1:]))
    reset_counts(*tokens)
    person = Person(tokens)
    assert slot_of(unlock(config, person)).label == "a"
    assert [token.touches for token in tokens] == [0, 1, 0]
    assert person.touched == ["the FIDO2 token 'Blue' to open the vault"]
    assert all(token.closed for token in tokens)
    reset_counts(*tokens)
    offer = Offer(tokens=person, first=1)
    assert slot_of(open_vault(config, offer, GIB)).id == 1
    assert [token.touches for token in tokens] == [0, 0, 1]


def test_of_two_slots_of_one_token_that_without_a_pin_goes_first() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=True), enrol(token, uv=False))
    assert slot_of(unlock(config, Person([token]))).id == 1
    assert slot_of(unlock(config, Person([token], [PIN]), slot_id=0)).id == 0
    assert slot_of(open_vault(config, Offer(tokens=Person([token], [PIN]), first=0), GIB)).id == 0


def test_the_pin_is_wrong_once() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=True))
    reset_counts(token)
    person = Person([token], [b"wrong", PIN])
    said = refusal(config, person)
    assert said == ("the PIN is wrong; the FIDO2 token 'Soft Key' has 7 tries left, then it blocks itself")
    assert (token.pins_sent, token.touches, person.touched) == (1, 0, [])
    assert unlock(config, person).masterkey == MASTERKEY
    assert [tries for _, tries in person.shown] == [8, 7]
    assert (token.pins_sent, token.touches) == (2, 1)
    assert all(set(pin) == {0} for pin in person.handed)


def test_three_wrong_pins() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=True))
    person = Person([token], [b"wrong"] * 3 + [PIN])
    said = [refusal(config, person) for _ in range(4)]
    assert "7 tries left" in said[0] and "6 tries left" in said[1]
    assert "Unplug it, plug it in again" in said[2]
    assert said[3] == said[2]
    assert len(person.shown) == 3  # nobody typed the fourth
    token.plug_in_again()
    assert unlock(config, person).masterkey == MASTERKEY


def test_the_last_wrong_pin_blocks_it() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=True))
    token.pin_tries = 2
    person = Person([token], [b"wrong", b"wrong", PIN])
    assert "has 1 try left" in refusal(config, person)
    assert "is blocked after too many wrong PINs" in refusal(config, person)
    assert "is blocked after too many wrong PINs" in refusal(config, person)
    assert [tries for _, tries in person.shown] == [2, 1]


@pytest.mark.parametrize("typed", [b"", b"123", "äöü".encode(), b"x" * 64])
def test_what_cannot_be_a_pin_is_not_sent(typed: bytes) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=True))
    reset_counts(token)
    assert "was not sent" in refusal(config, Person([token], [typed]))
    assert (token.pins_sent, token.pin_tries) == (0, 8)


def test_a_pin_in_another_unicode_form() -> None:
    token = SoftToken(behaviour=Behaviour(pin=unicodedata.normalize("NFC", "pâté").encode()))
    config = config_of(enrol(token, uv=True))
    person = Person([token], [unicodedata.normalize("NFD", "pâté").encode()])
    assert unlock(config, person).masterkey == MASTERKEY
    assert set(person.handed[0]) == {0}


def test_no_token_belongs_to_the_vault() -> None:
    blue, red, stranger = SoftToken("Blue"), SoftToken("Red"), SoftToken("Stranger\x1b[2J")
    config = config_of(enrol(blue), enrol(red))
    wanted = "Plug in the token of key slot 0 (a), or of key slot 1 (b)"
    assert refusal(config, Person()) == f"no FIDO2 token is plugged in. {wanted}"
    assert refusal(config, Person(), 1) == (
        "no FIDO2 token is plugged in. Plug in the token of key slot 1 (b)"
    )
    assert refusal(config, Person([stranger])) == (
        f"the FIDO2 token 'Stranger?[2J' does not belong to this vault. {wanted}"
    )
    assert (stranger.touches, stranger.silent) == (0, 2)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [(Behaviour(capabilities=8), "only U2F"), (Behaviour(extensions=["credProtect"]), "hmac-secret")],
)
def test_a_token_that_cannot_serve(behaviour: Behaviour, said: str) -> None:
    token, poor = SoftToken(), SoftToken("Poor", behaviour)
    with pytest.raises(TokenError, match=said):
        enrol(poor)
    config = config_of(enrol(token))
    assert said in refusal(config, Person([poor]))
    assert unlock(config, Person([poor, token])).masterkey == MASTERKEY
    assert (poor.touches, poor.closed) == (0, 2)


@pytest.mark.parametrize(("touch", "said"), [("late", "not touched in time"), ("refused", "not allowed")])
@pytest.mark.parametrize("uv", [True, False])
def test_nobody_touches_it(touch: str, said: str, uv: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=uv))
    token.behaviour.touch = touch
    assert said in refusal(config, Person([token], [PIN]))
    with pytest.raises(TokenError, match=said):
        enrol(token, uv=uv)


def test_a_token_that_always_verifies() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token))
    token.behaviour.always_uv = True
    reset_counts(token)
    assert "now verifies its user each time" in refusal(config, Person([token], [PIN]))
    assert (token.touches, token.pins_sent) == (0, 0)
    again = config_of(enrol(token, uv=False))
    assert again.slots[0].params["uv"] == 1
    assert unlock(again, Person([token], [PIN])).masterkey == MASTERKEY


@pytest.mark.parametrize(("uv", "said"), [(True, "did not verify its user"), (False, "verified its user")])
def test_a_token_that_verifies_otherwise_than_it_was_asked(uv: bool, said: str) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=uv))
    token.behaviour.verifies = not uv
    assert f"{said}, so its secret is not the one" in refusal(config, Person([token], [PIN]))
    with pytest.raises(TokenError, match=said):
        enrol(token, uv=uv)


def test_a_token_without_a_pin_cannot_verify() -> None:
    with pytest.raises(TokenError, match="it has no PIN"):
        enrol(SoftToken(), uv=True)


def test_enrolment() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    person = Person([token], [PIN])
    new = new_fido2(token, person, uv=True, account=f"cryptfs {'ü' * 40}")
    assert (new.kind, sorted(new.params)) == ("fido2", ["credential", "salt", "uv"])
    assert (token.touches, token.pins_sent, len(person.shown)) == (3, 3, 1)
    assert [words.partition("(")[2] for words in person.touched] == ["1 of 3)", "2 of 3)", "3 of 3)"]
    assert set(person.handed[0]) == {0}
    account = token.accounts[0]
    assert account["name"].startswith("cryptfs ü") and len(account["name"].encode()) <= 64
    other = enrol(token)
    assert other.params["salt"] != new.params["salt"]
    assert token.accounts[1]["id"] != account["id"]
    assert str(new.slot_key) not in repr(new)


@pytest.mark.parametrize("modern", [True, False])
def test_a_token_that_wants_its_pin_for_the_credential_alone(modern: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN, make_without_uv=False, modern=modern))
    config = config_of(enrol(token, uv=False))
    assert token.pins_sent == 1
    assert unlock(config, Person([token])).masterkey == MASTERKEY
    assert token.pins_sent == 1


def test_a_wrong_pin_ends_the_enrolment() -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    with pytest.raises(TokenError, match="7 tries left"):
        new_fido2(token, Person([token], [b"wrong", PIN]), uv=True)
    assert (token.pins_sent, token.touches) == (1, 0)


def test_a_secret_that_drifts_is_not_taken() -> None:
    with pytest.raises(TokenError, match="another secret each time"):
        enrol(SoftToken(behaviour=Behaviour(drifts=True)))


@pytest.mark.parametrize("modern", [True, False])
def test_a_fingerprint(modern: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN, fingerprint=True, modern=modern))
    config = config_of(new_fido2(token, Person([token]), uv=True))
    assert unlock(config, Person([token])).masterkey == MASTERKEY
    token.behaviour.fingerprint = False
    assert "did not recognize its user" in refusal(config, Person([token]))
    assert token.pins_sent == 0
    token.fingerprint_tries = 0
    if modern:
        assert unlock(config, Person([token], [PIN])).masterkey == MASTERKEY
    else:
        assert "too many wrong ones" in refusal(config, Person([token], [PIN]))


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(enrol(SoftToken()))
    monkeypatch.delitem(sys.modules, "cryptfs.unlock.carriers.ctap")
    for name in [name for name in sys.modules if name.partition(".")[0] == "fido2"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert refusal(config, Person()).endswith("install it with: pip install 'cryptfs[fido2]'")


def test_without_an_offer_of_tokens_no_slot_is_tried() -> None:
    with pytest.raises(NoKeyError, match="a FIDO2 token"):
        open_vault(config_of(enrol(SoftToken())), Offer(passphrase=b"x"), GIB)
