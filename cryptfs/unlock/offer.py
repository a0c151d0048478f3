"""What a person offers to open a vault with. Secrets are bytes, which are wiped after their use."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass, field

from cryptfs.core.slots.spellings import other_spellings
from cryptfs.storage.libc import wipe
from cryptfs.storage.pins import Pin
from cryptfs.unlock.carriers.asker import TokenAsker


@dataclass(frozen=True, slots=True)
class Offer:
    """Only slots of kinds for which something is here are tried.

    Args: passphrase: as it was read.
          key_file: the bytes of a file.
          tokens: finds FIDO2 tokens, and asks for PIN and touch.
          words: recovery words, as a person wrote them.
          shares: as many shares as it takes, each as a person wrote it.
          identities: of age, 32 bytes each.
          slot_id: try this slot alone.
          first: try this slot before the others; the one that opened last.
          pin: which vault it must be; None takes any.
    """

    passphrase: bytes | None = field(default=None, repr=False)
    key_file: bytes | None = field(default=None, repr=False)
    tokens: TokenAsker | None = field(default=None, repr=False)
    words: bytes | None = field(default=None, repr=False)
    shares: tuple[bytes, ...] = field(default=(), repr=False)
    identities: tuple[bytes, ...] = field(default=(), repr=False)
    slot_id: int | None = None
    first: int | None = None
    pin: Pin | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, secret: bytes | Offer) -> Offer:
        """A passphrase alone may stand for the offer of it."""
        if isinstance(secret, Offer):
            return secret
        if not isinstance(secret, bytes):
            raise TypeError(
                f"a passphrase is bytes, not {type(secret).__name__}; encode text: passphrase.encode()"
            )
        return cls(passphrase=secret)

    @property
    def parts(self) -> list[str]:
        """Names of its secrets, for messages."""
        found = [
            ("passphrase", self.passphrase is not None),
            ("key file", self.key_file is not None),
            ("age identity", bool(self.identities)),
            ("FIDO2 token", self.tokens is not None),
        ]
        return [word for word, is_there in found if is_there]

    def spellings(self) -> Generator[tuple[Offer, str], None, None]:
        """This offer as it was read, then with the other spellings of its passphrase, each with a few words.

        Only the first has tokens: nobody touches one twice for an unlock, or sends its PIN twice. At the end
        it wipes the spellings that it made.
        """
        yield self, ""
        if self.passphrase is None:
            return
        others = other_spellings(self.passphrase)
        try:
            for spelling, words in others:
                yield dataclasses.replace(self, passphrase=spelling, tokens=None), words
        finally:
            for spelling, _ in others:
                wipe(spelling)

    @property
    def takes_record(self) -> bool:
        """Whether it has something that opens a vault by its recovery record."""
        return self.words is not None or bool(self.shares)

    @property
    def takes_slot(self) -> bool:
        """Whether it has something that opens a key slot."""
        alone = (self.passphrase, self.key_file, self.tokens)
        return bool(self.identities) or any(each is not None for each in alone)

    def wipe(self) -> None:
        """Overwrite every secret."""
        for secret in (self.passphrase, self.key_file, self.words, *self.shares, *self.identities):
            if secret is not None:
                wipe(secret)
