"""One FIDO2 token, by the protocol CTAP2: has it a credential, what is its secret, a new credential.

It knows tokens, and no slots. This is the one module that loads the package fido2, which is an extra. That
package draws the randomness of the exchange with the token; nothing of it stays. Source: docs/FORMAT.md,
section 9; CTAP 2.1, authenticatorGetAssertion, authenticatorClientPIN and hmac-secret.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin, PinProtocol, PinProtocolV1
from fido2.hid import CAPABILITY, ConnectionFailure, CtapHidDevice
from fido2.hid.base import parse_report_descriptor
from fido2.webauthn import AuthenticatorData

from cryptfs.core.slots.checks import showable
from cryptfs.core.slots.spellings import composed
from cryptfs.errors import TokenError
from cryptfs.storage.libc import wipe
from cryptfs.unlock.carriers.asker import TokenAsker

RP_ID = "cryptfs"
EXTENSION = "hmac-secret"
SECRET_SIZE = 32
MIN_PIN_LETTERS = 4
MAX_PIN_SIZE = 63
_ALGORITHMS = (-7, -8)  # ES256, EdDSA: of signatures, which nobody checks
_MAX_ACCOUNT_SIZE = 64
_ERR = CtapError.ERR
_PERMISSION = ClientPin.PERMISSION
_ABSENT = (
    *(_ERR.NO_CREDENTIALS, _ERR.INVALID_CREDENTIAL, _ERR.REQUEST_TOO_LARGE, _ERR.LIMIT_EXCEEDED),
    *(_ERR.INVALID_LENGTH, _ERR.CBOR_UNEXPECTED_TYPE, _ERR.INVALID_PARAMETER),
)
"""Answers to a silent question about another token's credential, which may be too long for this one."""
_NONSENSE = (
    *(ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError),
    struct.error,
)
"""What comes of decoding bytes that are no answer."""
_LATE = "was not touched in time; try again"
_BLOCKED = (
    "is blocked after too many wrong PINs. Only a reset helps, which deletes its credentials: open the vault "
    "with another key"
)
_WORDS: Mapping[int, str] = {
    _ERR.PIN_BLOCKED: _BLOCKED,
    _ERR.PIN_AUTH_BLOCKED: "got three wrong PINs in a row. Unplug it, plug it in again, and try again",
    _ERR.PIN_NOT_SET: "has no PIN; set one with the program of its manufacturer",
    _ERR.PIN_POLICY_VIOLATION: "wants a new PIN first; change it with the program of its manufacturer",
    _ERR.PUAT_REQUIRED: "now wants its PIN, but its key slot was made without one; add another key slot "
    "for it",
    _ERR.UV_BLOCKED: "accepts no fingerprint now, after too many wrong ones; try again, and type its PIN",
    _ERR.UV_INVALID: "did not recognize its user; try again",
    _ERR.USER_ACTION_TIMEOUT: _LATE,
    _ERR.ACTION_TIMEOUT: _LATE,
    _ERR.TIMEOUT: _LATE,
    _ERR.OPERATION_DENIED: "was not allowed to answer: somebody refused, or did not touch it",
    _ERR.KEEPALIVE_CANCEL: "was interrupted by another program; try again",
    _ERR.NO_CREDENTIALS: "no longer has the credential of the key slot",
    _ERR.KEY_STORE_FULL: "has no room for another credential",
    _ERR.UNSUPPORTED_ALGORITHM: "supports no kind of credential that cryptfs makes",
}


SaysTouch = Callable[[Event], contextlib.AbstractContextManager[None]]
"""See TokenAsker.waiting: for one token and one reason."""


def list_devices() -> list[CtapDevice]:
    """The FIDO2 tokens that are plugged in: the only way to the devices of the system; tests replace it.

    Raises: TokenError: there is one, and this user may not open it.
    """
    devices: list[CtapDevice] = []
    listed = CtapHidDevice.list_devices()
    try:
        for device in listed:
            devices.append(device)
    except (OSError, ConnectionFailure, CtapError):
        pass  # one that is being unplugged, or that this user may not open
    if not devices:
        locked = locked_nodes()
        if locked:
            raise TokenError(no_permission(locked[0]))
    return devices


def locked_nodes(classes: Path = Path("/sys/class/hidraw"), nodes: Path = Path("/dev")) -> list[Path]:
    """The device nodes of FIDO2 tokens that this user may not open. Opens none; sysfs says what they are."""
    found = []
    for entry in sorted(classes.glob("hidraw*")):
        try:
            parse_report_descriptor((entry / "device" / "report_descriptor").read_bytes())
        except (OSError, ValueError, struct.error):
            continue  # gone, or another device
        node = nodes / entry.name
        if not os.access(node, os.R_OK | os.W_OK):
            found.append(node)
    return found


def no_permission(node: Path) -> str:
    """The message about a node that this user may not open, with a way to change that."""
    if not node.exists():
        return f"there is a FIDO2 token, but no {node}; in a container, pass this device in"
    return (
        f"there is a FIDO2 token, but this user may not open {node}. udev gives it to the user who is logged "
        "in at the machine itself (tag uaccess; old systems need the packages libfido2-1 and libu2f-udev). "
        "For other logins write to /etc/udev/rules.d/70-fido2-plugdev.rules the line "
        'KERNEL=="hidraw*", SUBSYSTEM=="hidraw", ENV{ID_FIDO_TOKEN}=="1", GROUP="plugdev", MODE="0660", '
        "then: sudo adduser $USER plugdev, log in again, and plug the token in again"
    )


@dataclass(frozen=True, slots=True)
class Plugged:
    """The tokens that are plugged in. unusable: for each that cannot serve, a sentence that says why."""

    tokens: list[Token]
    unusable: list[str]


@contextlib.contextmanager
def plugged_in(asker: TokenAsker) -> Iterator[Plugged]:
    """All tokens, closed afterwards. Raises: TokenError: this user may not open them."""
    devices = asker.devices()
    try:
        plugged = Plugged([], [])
        for device in devices:
            try:
                plugged.tokens.append(Token(device))
            except TokenError as error:
                plugged.unusable.append(str(error))
        yield plugged
    finally:
        for device in devices:
            with contextlib.suppress(OSError):
                device.close()


class _Touch(contextlib.ExitStack):
    """From `begin` to the end of the context a token waits for a touch.

    cancel: set when the person gives up; goes with each request that waits.
    """

    def __init__(self, waiting: SaysTouch) -> None:
        super().__init__()
        self._waiting = waiting
        self.cancel = Event()

    def begin(self) -> None:
        """The next request waits."""
        self.enter_context(self._waiting(self.cancel))


class Token:
    """A token that is plugged in, and has hmac-secret. name: for messages."""

    def __init__(self, device: CtapDevice) -> None:
        """Raises: TokenError: it has no FIDO2 or no hmac-secret, or is gone."""
        product = getattr(device, "product_name", None)
        self.name = f"the FIDO2 token '{showable(product)}'" if product else "the FIDO2 token"
        with self._speaking():
            if not device.capabilities & CAPABILITY.CBOR:
                raise TokenError(f"{self.name} is too old: it supports only U2F")
            self._ctap = Ctap2(device, strict_cbor=False)
            info = self._ctap.info
            if EXTENSION not in info.extensions:
                raise TokenError(f"{self.name} cannot open a vault: it lacks the extension {EXTENSION}")
            known = (each for each in ClientPin.PROTOCOLS if each.VERSION in info.pin_uv_protocols)
            self._protocol: PinProtocol = next(known, PinProtocolV1)()

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Raises: TokenError: for each way in which a token fails."""
        try:
            yield
        except CtapError as error:
            words = _WORDS.get(error.code, f"refuses, with the CTAP error 0x{int(error.code):02x}")
            raise TokenError(f"{self.name} {words}") from None
        except (OSError, ConnectionFailure):
            raise TokenError(f"{self.name} was unplugged while it was asked; try again") from None
        except _NONSENSE:
            raise TokenError(f"{self.name} gave an invalid answer; try again") from None

    def _has_option(self, name: str) -> bool:
        return self._ctap.info.options.get(name) is True

    @property
    def always_verifies(self) -> bool:
        """Whether it verifies its user each time, asked or not."""
        return self._has_option("alwaysUv")

    def check_use(self, *, uv: bool) -> None:
        """Raises: TokenError: it cannot verify its user, or does so though it must not (another secret)."""
        if uv and not (self._has_option("clientPin") or self._has_option("uv")):
            raise TokenError(
                f"{self.name} cannot verify its user: it has no PIN. Set one with the program of its maker"
            )
        if self.always_verifies and not uv:
            raise TokenError(
                f"{self.name} now verifies its user each time, which gives another secret; switch that off "
                "(alwaysUv) with the program of its maker, or add another key slot for it"
            )

    def takes_pin(self, *, uv: bool, makes: bool = False) -> bool:
        """Whether it needs its PIN for a secret, or before that to make a credential.

        A fingerprint goes before the PIN, unless it is blocked.
        """
        if not self._has_option("clientPin"):
            return False
        if uv:
            return not self._verifies_itself()
        return makes and not self._has_option("makeCredUvNotRqd")

    def _verifies_itself(self) -> bool:
        """By a fingerprint or the like; not while that is blocked."""
        if not self._has_option("uv"):
            return False
        if not self._has_option("pinUvAuthToken"):
            return True
        with self._speaking():
            answer = self._ctap.client_pin(self._protocol.VERSION, ClientPin.CMD.GET_UV_RETRIES)
            return int(answer[ClientPin.RESULT.UV_RETRIES]) > 0

    def has(self, credential_id: bytes) -> bool:
        """Whether it made a credential, for cryptfs. It asks without a touch, and nobody sees it.

        Raises: TokenError: it gives no answer.
        """
        longest = self._ctap.info.max_cred_id_length
        if longest and len(credential_id) > longest:
            return False
        request: dict[int, Any] = {1: RP_ID, 2: os.urandom(32), 3: [_descriptor(credential_id)]}
        if self._ctap.info.options.get("up", True):
            request[5] = {"up": False}
        with self._speaking():
            try:
                self._ctap.send_cbor(Ctap2.CMD.GET_ASSERTION, request)
            except CtapError as error:
                if error.code in _ABSENT:
                    return False
                raise
        return True

    def enter_pin(self, asker: TokenAsker) -> bytes:
        """Ask a person for the PIN, and say how many tries are left; nothing is sent.

        Raises: TokenError: the token is blocked, or this cannot be a PIN.
        """
        tries, wants_replug = self._tries()
        if not tries:
            raise TokenError(f"{self.name} {_BLOCKED}")
        if wants_replug:
            raise TokenError(f"{self.name} {_WORDS[_ERR.PIN_AUTH_BLOCKED]}")
        typed = asker.ask_pin(self.name, tries)
        pin = composed(typed)
        if pin is not typed:
            wipe(typed)
        letters = sum(byte & 0xC0 != 0x80 for byte in pin)  # all but the later bytes of a character
        if letters < MIN_PIN_LETTERS or len(pin) > MAX_PIN_SIZE:
            wipe(pin)
            raise TokenError(
                f"a PIN has at least {MIN_PIN_LETTERS} characters and at most {MAX_PIN_SIZE} bytes; this one "
                f"was not sent, and {self.name} has {_count(tries)} left"
            )
        return pin

    def _tries(self) -> tuple[int, bool]:
        """How many wrong PINs it takes before it blocks itself; whether it must be plugged in again first."""
        with self._speaking():
            answer = self._ctap.client_pin(self._protocol.VERSION, ClientPin.CMD.GET_PIN_RETRIES)
            power_cycle = answer.get(ClientPin.RESULT.POWER_CYCLE_STATE)
            return int(answer[ClientPin.RESULT.PIN_RETRIES]), power_cycle is True

    def make(self, account: str, pin: bytes | None, waiting: SaysTouch, *, uv: bool) -> bytes:
        """A new credential that is kept outside of the token: its id. Costs a touch.

        Args:   account: a name that the token may show.   pin: where takes_pin(makes=True).
                waiting: is entered when the token is about to wait for it.
        """
        name = account.encode()[:_MAX_ACCOUNT_SIZE].decode(errors="ignore")
        request: dict[int, Any] = {
            1: os.urandom(32),
            2: {"id": RP_ID, "name": RP_ID},
            3: {"id": os.urandom(32), "name": name, "displayName": name},
            4: [{"type": "public-key", "alg": algorithm} for algorithm in _ALGORITHMS],
            6: {EXTENSION: True},
        }
        with self._speaking(), _Touch(waiting) as touch:
            verification = self._verification(pin, _PERMISSION.MAKE_CREDENTIAL, request[1], touch, uv=uv)
            request |= {field + 7: value for field, value in verification.items()}
            answer = self._ctap.send_cbor(Ctap2.CMD.MAKE_CREDENTIAL, request, event=touch.cancel)
            data = AuthenticatorData(answer[2])
            if not (data.extensions or {}).get(EXTENSION):
                raise TokenError(f"{self.name} made a credential without {EXTENSION}; it cannot open a vault")
            if data.credential_data is None:
                raise TokenError(f"{self.name} made no credential")
            return bytes(data.credential_data.credential_id)

    def secret(
        self, credential_id: bytes, salt: bytes, pin: bytes | None, waiting: SaysTouch, *, uv: bool
    ) -> bytes:
        """The 32 bytes of hmac-secret for one salt of 32 bytes. Costs a touch.

        Args:   pin: where takes_pin().   waiting: is entered when the token is about to wait for it.
        Raises: TokenError: it refuses, or verified its user where it should not, or the reverse.
        """
        digest = os.urandom(32)
        with self._speaking(), _Touch(waiting) as touch:
            verification = self._verification(pin, _PERMISSION.GET_ASSERTION, digest, touch, uv=uv)
            key_agreement, shared_key = self._shared_key()
            sealed = self._protocol.encrypt(shared_key, salt)
            inputs: dict[int, Any] = {1: key_agreement, 2: sealed}
            inputs[3] = self._protocol.authenticate(shared_key, sealed)
            if self._protocol.VERSION != 1:  # CTAP 2.0 does not know the field
                inputs[4] = self._protocol.VERSION
            request = {1: RP_ID, 2: digest, 3: [_descriptor(credential_id)], 4: {EXTENSION: inputs}}
            request |= {field + 5: value for field, value in verification.items()}
            try:
                answer = self._ctap.send_cbor(Ctap2.CMD.GET_ASSERTION, request, event=touch.cancel)
                data = AuthenticatorData(answer[2])
                self._check(data, uv=uv)
                secret = self._protocol.decrypt(shared_key, (data.extensions or {})[EXTENSION])
            finally:
                wipe(shared_key)
            if len(secret) != SECRET_SIZE:
                raise ValueError("a secret of another length")
            return secret

    def _check(self, data: AuthenticatorData, *, uv: bool) -> None:
        if data.rp_id_hash != hashlib.sha256(RP_ID.encode()).digest():
            raise TokenError(f"{self.name} answered for another program")
        if data.is_user_verified() != uv:
            did = "did not verify its user" if uv else "verified its user"
            raise TokenError(f"{self.name} {did}, so its secret is not the one of the key slot")

    def _shared_key(self) -> tuple[Mapping[int, Any], bytes]:
        """A fresh key agreement: what the token needs for it, and the key."""
        answer = self._ctap.client_pin(self._protocol.VERSION, ClientPin.CMD.GET_KEY_AGREEMENT)
        return self._protocol.encapsulate(answer[ClientPin.RESULT.KEY_AGREEMENT])

    def _verification(
        self,
        pin: bytes | None,
        permission: ClientPin.PERMISSION,
        digest: bytes,
        touch: _Touch,
        *,
        uv: bool,
    ) -> dict[int, Any]:
        """The fields of a request by which the token verifies its user: 0 options, 1 proof, 2 its protocol.

        A PIN is accepted before the touch is due; a fingerprint is the touch.
        """
        if pin is None:
            touch.begin()
        if pin is None and not uv:
            return {}
        if pin is None and not self._has_option("pinUvAuthToken"):
            return {0: {"uv": True}}
        token_key = self._token_key(pin, permission, touch.cancel)
        proof = self._protocol.authenticate(token_key, digest)
        wipe(token_key)
        if pin is not None:
            touch.begin()
        return {1: proof, 2: self._protocol.VERSION}

    def _token_key(self, pin: bytes | None, permission: ClientPin.PERMISSION, cancel: Event) -> bytes:
        """CTAP's pinUvAuthToken, by PIN, or by the token's own means where there is none.

        The PIN is sent once. Raises: TokenError: it is wrong; the message says how many tries are left.
        """
        command = ClientPin.CMD.GET_TOKEN_USING_UV if pin is None else ClientPin.CMD.GET_TOKEN_USING_PIN
        named: dict[str, Any] = {"permissions": int(permission), "permissions_rpid": RP_ID}
        if pin is not None and not self._has_option("pinUvAuthToken"):
            command, named = ClientPin.CMD.GET_TOKEN_USING_PIN_LEGACY, {}
        key_agreement, shared_key = self._shared_key()
        try:
            if pin is not None:
                named["pin_hash_enc"] = self._protocol.encrypt(shared_key, hashlib.sha256(pin).digest()[:16])
            answer = self._ctap.client_pin(
                self._protocol.VERSION, command, key_agreement=key_agreement, event=cancel, **named
            )
            sealed = answer[ClientPin.RESULT.PIN_UV_TOKEN]
            return self._protocol.validate_token(self._protocol.decrypt(shared_key, sealed))
        except CtapError as error:
            if error.code != _ERR.PIN_INVALID:
                raise
            tries, _ = self._tries()
            raise TokenError(
                f"the PIN is wrong; {self.name} has {_count(tries)} left, then it blocks itself"
                if tries
                else f"the PIN is wrong, and {self.name} {_BLOCKED}"
            ) from None
        finally:
            wipe(shared_key)


def _descriptor(credential_id: bytes) -> dict[str, Any]:
    return {"type": "public-key", "id": credential_id}


def _count(tries: int) -> str:
    return "1 try" if tries == 1 else f"{tries} tries"
