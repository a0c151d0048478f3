"""The tests give salts of their own to new slots; a person's are random."""

from __future__ import annotations

from cryptfs.core.keys import ARGON2_SALT_SIZE
from cryptfs.unlock.passphrase import new_cost
from tests.derived import real_salt


def test_salts_are_random() -> None:
    made = {real_salt() for _ in range(100)}
    assert len(made) == 100
    assert {len(salt) for salt in made} == {ARGON2_SALT_SIZE}


def test_each_cost_has_a_salt_of_its_own() -> None:
    assert len({new_cost().salt for _ in range(100)}) == 100
