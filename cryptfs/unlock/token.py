"""Slots of kind `fido2`: the secret that a FIDO2 token computes with its extension hmac-secret.

A vault may have slots for several tokens. Each token is first asked silently which credentials it has, so one
touch is enough, and a config with many slots costs no more than that. A token computes another secret
after it has verified its user, so the slot says whether it has to. Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptfs.core.keys import derive
from cryptfs.core.slots.checks import from_hex
from cryptfs.core.slots.slot import KeySlot, Params
from cryptfs.errors import AbsentTokenError, TokenError, VaultConfigError
from cryptfs.storage.libc import wipe
from cryptfs.unlock.carriers.asker import TokenAsker
from cryptfs.unlock.kind import NewKey
from cryptfs.unlock.offer import Offer

if TYPE_CHECKING:
    from fido2.ctap import CtapDevice

    from cryptfs.unlock.carriers.ctap import Plugged, Token

FIDO2 = "fido2"
MAX_CREDENTIAL_SIZE = 1024
SALT_SIZE = 32
_PURPOSE = b"fido2"
_FIELDS = {"credential", "salt", "uv"}


@dataclass(frozen=True, slots=True)
class TokenParams:
    """The params of a slot.

    Args: credential_id: 1 to 1024 bytes, from the token.   salt: 32 bytes.
          uv: whether the token verifies its user.
    """

    credential_id: bytes
    salt: bytes
    uv: bool

    @classmethod
    def of(cls, slot: KeySlot) -> TokenParams:
        """Raises: VaultConfigError: a field too many or too few, or beyond a limit."""
        credential, salt, uv = (slot.params.get(field) for field in ("credential", "salt", "uv"))
        if (
            set(slot.params) != _FIELDS
            or not (isinstance(credential, str) and isinstance(salt, str))
            or uv not in (0, 1)
        ):
            raise VaultConfigError(f"{slot.name} is of a newer cryptfs: this version cannot derive its key")
        size = len(credential) // 2
        if not 1 <= size <= MAX_CREDENTIAL_SIZE:
            raise VaultConfigError(f"{slot.name} has a credential of {size} bytes")
        return cls(
            from_hex(credential, size, f"{slot.name}, credential"),
            from_hex(salt, SALT_SIZE, f"{slot.name}, salt"),
            uv == 1,
        )

    def params(self) -> Params:
        """As they are in a slot."""
        return {"credential": self.credential_id.hex(), "salt": self.salt.hex(), "uv": int(self.uv)}


class TokenKind:
    """A FIDO2 token, and a touch or a PIN."""

    name = FIDO2
    about = "a FIDO2 token"

    def is_offered(self, offer: Offer) -> bool:
        """Whether somebody can be asked for a token."""
        return offer.tokens is not None

    def check(self, slot: KeySlot, max_memory: int) -> None:
        """See SlotKind."""
        TokenParams.of(slot)

    def slot_keys(
        self, slots: Sequence[KeySlot], offer: Offer, vault_id: bytes
    ) -> Iterator[tuple[KeySlot, bytes]]:
        """See SlotKind. It yields at most one key, since each costs a person a touch.

        A token with several of the slots is asked for the one that opened last, else for one without a PIN.

        Raises: TokenError: no token could be asked, or its secret is another one.
        """
        assert offer.tokens is not None
        slots = sorted(slots, key=lambda slot: (slot.id != offer.first, TokenParams.of(slot).uv))
        with _plugged_in(offer.tokens) as plugged:
            slot, token = _owner(slots, plugged)
            name = token.name
            slot_key = _slot_key(token, TokenParams.of(slot), offer.tokens)
        yield slot, slot_key
        raise TokenError(
            f"{name} answered, but its secret does not open key slot {slot.id}: somebody changed the slot, "
            "or the token computes another secret now"
        )


def _plugged_in(asker: TokenAsker) -> contextlib.AbstractContextManager[Plugged]:
    with _needing_the_package():
        from cryptfs.unlock.carriers.ctap import plugged_in
    return plugged_in(asker)


@contextlib.contextmanager
def _needing_the_package() -> Iterator[None]:
    """Raises: TokenError: the extra is not installed."""
    try:
        yield
    except ImportError as error:
        raise TokenError(
            f"FIDO2 tokens need a package that is missing ({error.name}); install it with: "
            "pip install 'cryptfs[fido2]'"
        ) from None


def _owner(slots: Sequence[KeySlot], plugged: Plugged) -> tuple[KeySlot, Token]:
    """The first of the slots whose credential a token has. Asks silently.

    Raises: AbsentTokenError: none has any of them.   TokenError: a token that may have one gives no answer.
    """
    tokens = list(plugged.tokens)
    silent = list(plugged.unusable)
    for slot in slots:
        for token in tokens.copy():
            try:
                if token.has(TokenParams.of(slot).credential_id):
                    return slot, token
            except TokenError as error:  # another token may have one
                silent.append(str(error))
                tokens.remove(token)
    strangers = [f"{token.name} does not belong to this vault" for token in tokens]
    found = "; ".join([*strangers, *silent]) or "no FIDO2 token is plugged in"
    wanted = ", or of ".join(f"key slot {slot.id}{f' ({slot.label})' * bool(slot.label)}" for slot in slots)
    raise (TokenError if silent else AbsentTokenError)(f"{found}. Plug in the token of {wanted}")


def _slot_key(token: Token, params: TokenParams, asker: TokenAsker) -> bytes:
    """Costs a touch, and a PIN where the token has to verify its user."""
    token.check_use(uv=params.uv)
    pin = token.enter_pin(asker) if token.takes_pin(uv=params.uv) else None
    waiting = functools.partial(asker.waiting, token.name, "to open the vault")
    try:
        secret = token.secret(params.credential_id, params.salt, pin, waiting, uv=params.uv)
    finally:
        _wipe(pin)
    slot_key = derive(secret, _PURPOSE)
    wipe(secret)
    return slot_key


def enrol_fido2(asker: TokenAsker, *, uv: bool, account: str = "cryptfs") -> NewKey:
    """A key from the one token that is plugged in.

    Raises: TokenError: there is none, or several; or as new_fido2.
    """
    with _plugged_in(asker) as plugged:
        names = [token.name for token in plugged.tokens]
        if len(names) + len(plugged.unusable) > 1:
            raise TokenError(
                "several FIDO2 tokens are plugged in; leave the one that you want to add, and unplug the rest"
            )
        if not names:
            raise TokenError(plugged.unusable[0] if plugged.unusable else "no FIDO2 token is plugged in")
        return _new_key(plugged.tokens[0], asker, uv=uv, account=account)


def new_fido2(device: CtapDevice, asker: TokenAsker, *, uv: bool, account: str = "cryptfs") -> NewKey:
    """A key from a token, which a person touches three times.

    A token that always verifies its user does so for this slot as well. The person types the PIN once. It is
    sent again only after the token has accepted it, since a token may forget after each touch.

    Args:   uv: whether it has to verify its user, at each unlock as well.
            account: a name that the token may show.
    Raises: TokenError: it has no hmac-secret or no PIN, was removed or not touched, the PIN is wrong, or the
                        secret differs from one time to the next.
    """
    with _needing_the_package():
        from cryptfs.unlock.carriers.ctap import Token
    return _new_key(Token(device), asker, uv=uv, account=account)


def _new_key(token: Token, asker: TokenAsker, *, uv: bool, account: str) -> NewKey:
    uv = uv or token.always_verifies
    token.check_use(uv=uv)
    salt = os.urandom(SALT_SIZE)
    secrets: list[bytes] = []
    touches = (
        functools.partial(asker.waiting, token.name, f"{reason} ({number} of 3)")
        for number, reason in enumerate(("to make a credential", *["to compare its secrets"] * 2), 1)
    )
    pin = token.enter_pin(asker) if token.takes_pin(uv=uv, makes=True) else None
    try:
        credential_id = token.make(account, pin, next(touches), uv=uv)
        if not 1 <= len(credential_id) <= MAX_CREDENTIAL_SIZE:
            raise TokenError(
                f"{token.name} made a credential of {len(credential_id)} bytes, which is too long"
            )
        for waiting in touches:  # a PIN that was only for the credential would make another secret
            secrets.append(token.secret(credential_id, salt, pin if uv else None, waiting, uv=uv))
        if not hmac.compare_digest(*secrets):
            raise TokenError(f"{token.name} computes another secret each time, so it cannot open a vault")
        slot_key = derive(secrets[0], _PURPOSE)
    finally:
        for secret in (pin, *secrets):
            _wipe(secret)
    return NewKey(FIDO2, TokenParams(credential_id, salt, uv).params(), slot_key)


def _wipe(secret: bytes | None) -> None:
    if secret is not None:
        wipe(secret)
