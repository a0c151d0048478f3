"""The person in front of a FIDO2 token, as unlock/ sees one: it knows no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from threading import Event
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

    def waiting(self, token: str, reason: str, cancel: Event) -> contextlib.AbstractContextManager[None]:
        """Says that the token waits for a touch, for as long as the context lasts.

        Args: reason: continues the sentence.   cancel: set when the person gives up, and the token ends.
        """
