"""The person in front of a FIDO2 token, as unlock/ sees one: it knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the package is an extra
    from fido2.ctap import CtapDevice


class TokenAsker(Protocol):
    """Finds the tokens, and asks the person for what they need. `token` is a name for messages."""

    def devices(self) -> Sequence[CtapDevice]:
        """The tokens that are plugged in, opened; the caller closes them.

        Raises: TokenError: this user may not open them.
        """

    def ask_pin(self, token: str, tries_left: int) -> bytes:
        """The PIN that a person types, in UTF-8; the caller wipes it.

        Raises: TokenError: nobody can be asked.
        """

    def say_touch(self, token: str, reason: str) -> None:
        """Say that the token waits for a touch. reason: continues the sentence."""
