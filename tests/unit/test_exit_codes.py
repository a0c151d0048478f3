"""Every error has an exit code, and the numbers that scripts rely on never move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cryptfs import errors
from cryptfs.cli.exit_codes import EXIT_CODES, MEANINGS, CommandError, ExitCode, exit_code_of


def tree(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    """A kind of error and those below it; not those of other tests."""
    if kind.__module__.startswith("cryptfs."):
        yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("kind", [*tree(errors.CryptfsError), *tree(CommandError)])
def test_every_error_is_in_the_table(kind: type[BaseException]) -> None:
    assert kind in EXIT_CODES


def test_every_code_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)


def test_the_numbers_of_gocryptfs() -> None:
    """internal/exitcodes/exitcodes.go, for the things that both have."""
    assert {code.name: int(code) for code in ExitCode if 1 <= code < 40} == {
        "USAGE": 1,
        "VAULT_DIR": 6,
        "INIT": 7,
        "CONFIG_INVALID": 8,
        "PASSPHRASE_UNREADABLE": 9,
        "MOUNTPOINT": 10,
        "OTHER": 11,
        "WRONG_PASSPHRASE": 12,
        "EMPTY_PASSPHRASE": 22,
        "CONFIG_UNREADABLE": 23,
        "CONFIG_UNWRITABLE": 24,
        "DAMAGE": 26,
        "UNSUPPORTED_FORMAT": 27,
        "TOKEN": 31,
    }


def test_the_nearest_class_decides() -> None:
    assert exit_code_of(PermissionError(13, "no")) is ExitCode.OTHER
    assert exit_code_of(errors.WrongPassphraseError()) is ExitCode.WRONG_PASSPHRASE
    assert exit_code_of(KeyError("bug")) is None
