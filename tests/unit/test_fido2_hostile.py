"""FIDO2 tokens that go, lie or talk nonsense, and configs that would misuse an honest one."""

from __future__ import annotations

import contextlib
import itertools
from random import Random

import pytest

from cryptfs.core.slots.slot import KeySlot
from cryptfs.errors import TokenError, VaultConfigError
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.unlocking import open_vault
from tests.softtoken import GONE, Behaviour, Credential, Person, SoftToken
from tests.unit.token_slots import (
    GIB,
    MASTERKEY,
    PIN,
    calls_of,
    changed,
    config_of,
    enrol,
    refusal,
    reset_counts,
    unlock,
)


@pytest.mark.parametrize("uv", [True, False])
def test_it_is_removed_in_the_middle(uv: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN, make_without_uv=False))
    config = config_of(enrol(token, uv=uv))
    for number in range(calls_of(lambda: unlock(config, Person([token], [PIN])), token)):
        token.fail_at(number, GONE)
        person = Person([token], [PIN])
        reset_counts(token)
        assert "was unplugged while it was asked" in refusal(config, person)
        assert token.closed == 1
        assert all(set(pin) == {0} for pin in person.handed)
        token.fail_at(-1, GONE)
    for number in range(calls_of(lambda: enrol(token, uv=uv), token)):
        token.fail_at(number, GONE)
        with pytest.raises(TokenError, match="was unplugged"):
            enrol(token, uv=uv)


def test_another_one_is_removed_meanwhile() -> None:
    token, other = SoftToken(), SoftToken("Other")
    config = config_of(enrol(token))
    for number in (0, 1):
        other.fail_at(number, GONE)
        assert unlock(config, Person([other, token])).masterkey == MASTERKEY


@pytest.mark.parametrize("uv", [True, False])
def test_ctrl_c(uv: bool) -> None:
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=uv))
    for number in range(calls_of(lambda: unlock(config, Person([token], [PIN])), token)):
        token.fail_at(number, KeyboardInterrupt())
        person = Person([token], [PIN])
        token.closed = 0
        with pytest.raises(KeyboardInterrupt):
            unlock(config, person)
        assert token.closed == 1
        assert all(set(pin) == {0} for pin in person.handed)


def test_a_credential_of_another_program_is_not_found() -> None:
    token = SoftToken()
    token.plant(b"of ssh", bytes(32), bytes(32), rp_id="ssh:")
    config = changed(config_of(enrol(token)), credential=b"of ssh".hex())
    reset_counts(token)
    assert "does not belong to this vault" in refusal(config, Person([token]))
    assert (token.touches, token.silent) == (0, 1)


def test_an_answer_for_another_program() -> None:
    token = SoftToken()
    config = config_of(enrol(token))
    token.behaviour.answers_for = "ssh:"
    assert "answered for another program" in refusal(config, Person([token]))


@pytest.mark.parametrize(
    "answer", [b"\0", b"\0\xa1", b"\0\xff", b"\0\xa1\x02\x41\x00", b"\0\xa1\x02\x01", b""]
)
def test_answers_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    token = SoftToken()
    config = config_of(enrol(token))
    honest = token.call

    def call(cmd: int, data: bytes = b"", *more: object) -> bytes:
        is_silent = data[0] == 2 and data.endswith(b"\xa1\x62up\xf4")
        return answer if data[0] == 2 and not is_silent else honest(cmd, data)

    monkeypatch.setattr(token, "call", call)
    assert "invalid answer" in refusal(config, Person([token]))


def garbage(number: int, honest: bytes) -> bytes:
    """An answer that is cut, changed in one byte, or has nothing of the honest one."""
    random = Random(number)
    way = number % 4
    if way == 0:
        return honest[: random.randrange(len(honest) + 1)]
    if way == 1:
        place = random.randrange(len(honest))
        return honest[:place] + bytes((random.randrange(256),)) + honest[place + 1 :]
    if way == 2:
        return b"\0" + random.randbytes(random.randrange(200))
    return b"\0" + bytes((random.choice((0x81, 0xA1, 0x9B, 0x5B, 0xBB)),)) * random.randrange(1, 7000)


@pytest.mark.parametrize("uv", [True, False])
def test_whatever_a_token_answers(monkeypatch: pytest.MonkeyPatch, uv: bool) -> None:
    """It opens nothing by luck, and nothing but a message comes of it."""
    token = SoftToken(behaviour=Behaviour(pin=PIN))
    config = config_of(enrol(token, uv=uv))
    honest, asked, seed = token.call, 0, 0
    calls = calls_of(lambda: unlock(config, Person([token], [PIN])), token)

    def call(cmd: int, data: bytes = b"", *_: object) -> bytes:
        nonlocal asked
        asked += 1
        answer = honest(cmd, data)
        return garbage(seed, answer) if asked == spoilt else answer

    monkeypatch.setattr(token, "call", call)
    for spoilt, seed in itertools.product(range(1, calls + 1), range(60)):  # noqa: B007 - call() takes them
        asked, token.closed, token.pin_tries = 0, 0, 8
        token.plug_in_again()
        with contextlib.suppress(TokenError):
            assert unlock(config, Person([token], [PIN])).masterkey == MASTERKEY
        assert token.closed == 1


class Liar(SoftToken):
    """It claims every credential."""

    def has_made(self, credential_id: bytes, rp_id_hash: bytes) -> bool:
        self.credentials.setdefault(credential_id, Credential(rp_id_hash, bytes(32), bytes(32)))
        return True


def test_a_device_that_claims_every_credential() -> None:
    token, liar = SoftToken(), Liar("Liar")
    config = config_of(enrol(token))
    assert "'Liar' answered, but its secret does not open" in refusal(config, Person([liar, token]))
    assert (token.touches, liar.touches) == (3, 1)


@pytest.mark.parametrize(
    "params",
    [
        {"credential": ""},
        {"credential": "0"},
        {"credential": "AA"},
        {"credential": "00" * 1025},
        {"credential": 5},
        {"salt": "00" * 31},
        {"salt": "00" * 33},
        {"salt": "0G" * 32},
        {"salt": 0},
        {"uv": 2},
        {"uv": "1"},
        {"rp": "cryptfs"},
    ],
)
def test_params_are_checked_before_a_device_is_touched(params: dict[str, int | str]) -> None:
    class Nobody(Person):
        def devices(self) -> list[SoftToken]:
            pytest.fail("a device was asked for")

    config = changed(config_of(enrol(SoftToken())), **params)
    with pytest.raises(VaultConfigError, match="key slot 0"):
        open_vault(config, Offer(tokens=Nobody()), GIB)


def test_the_longest_credential_passes() -> None:
    token = SoftToken()
    token.plant(longest := b"x" * 1024, bytes(32), bytes(32))
    config = changed(config_of(enrol(token)), credential=longest.hex())
    assert "does not belong to this vault" in refusal(config, Person([token]))  # longer than it can ask


@pytest.mark.parametrize("field", ["credential", "salt"])
def test_tampered_params_do_not_open(field: str) -> None:
    token = SoftToken()
    config = config_of(enrol(token))
    token.plant(b"another", bytes(32), bytes(32))
    value = b"another".hex() if field == "credential" else "00" * 32
    reset_counts(token)
    assert "does not open key slot 0" in refusal(changed(config, **{field: value}), Person([token]))
    assert token.touches == 1


@pytest.mark.parametrize("known", [[], [31], list(range(32))])
def test_a_hostile_config_costs_32_silent_questions_and_one_touch(known: list[int]) -> None:
    token = SoftToken()
    slot = config_of(enrol(token)).slots[0]
    slots = []
    for number in range(32):
        credential_id = bytes((number,)) * 40
        if number in known:
            token.plant(credential_id, bytes(32), bytes(32))
        fields = {name: getattr(slot, name) for name in slot.__struct_fields__} | {"id": number}
        slots.append(KeySlot(**fields | {"params": slot.params | {"credential": credential_id.hex()}}))
    reset_counts(token)
    refusal(config_of(*slots), Person([token]))
    assert token.touches == bool(known)
    assert token.silent == (known[0] + 1 if known else 32)
