"""A FIDO2 token in software: CTAP 2.1 with makeCredential, getAssertion, hmac-secret, and clientPIN 1 and 2.

It follows the specification, with `cryptography` alone behind it: none of the code of the package fido2 for
PINs and extensions, which cryptfs uses. So the two sides agree only if both do what CTAP says.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fido2 import cbor
from fido2.ctap import STATUS, CtapDevice, CtapError

ERR = CtapError.ERR
MAKE_CREDENTIAL, GET_ASSERTION, GET_INFO, CLIENT_PIN = 1, 2, 4, 6
_CBOR = 0x10
_UP, _UV, _AT, _ED = 1, 4, 0x40, 0x80
_MAKE, _GET = 1, 2  # permissions
WAITS = 2.0
"""Seconds after which somebody touches a token whose touch is awaited."""


@dataclass(frozen=True)
class Credential:
    """rp_id_hash, and the two keys of hmac-secret: without and with a verified user."""

    rp_id_hash: bytes
    without_uv: bytes
    with_uv: bytes


@dataclass
class _PinToken:
    key: bytes
    permissions: int
    verified: bool


class Protocol:
    """One of the two PIN/UV protocols, as the token's side has it."""

    def __init__(self, version: int) -> None:
        self.version = version
        self._private = ec.generate_private_key(ec.SECP256R1())

    def public(self) -> dict[int, Any]:
        """The token's key for the agreement."""
        point = self._private.public_key().public_numbers()
        return {1: 2, 3: -25, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")}

    def agree(self, other: dict[int, Any]) -> tuple[bytes, bytes]:
        """The keys for HMAC and AES."""
        x, y = int.from_bytes(other[-2], "big"), int.from_bytes(other[-3], "big")
        point = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        shared = self._private.exchange(ec.ECDH(), point)
        if self.version == 1:
            key = hashlib.sha256(shared).digest()
            return key, key
        return _hkdf(shared, b"CTAP2 HMAC key"), _hkdf(shared, b"CTAP2 AES key")

    def seal(self, key: bytes, plain: bytes) -> bytes:
        """AES-256-CBC."""
        start = bytes(16) if self.version == 1 else os.urandom(16)
        cipher = Cipher(algorithms.AES(key), modes.CBC(start)).encryptor()
        sealed = cipher.update(plain) + cipher.finalize()
        return sealed if self.version == 1 else start + sealed

    def open(self, key: bytes, sealed: bytes) -> bytes:
        """The inverse."""
        start, body = (bytes(16), sealed) if self.version == 1 else (sealed[:16], sealed[16:])
        cipher = Cipher(algorithms.AES(key), modes.CBC(start)).decryptor()
        return cipher.update(body) + cipher.finalize()

    def proves(self, key: bytes, message: bytes, proof: bytes) -> bool:
        """Whether `proof` is that of the message."""
        whole = hmac.digest(key, message, "sha256")
        return hmac.compare_digest(whole[:16] if self.version == 1 else whole, proof)


def _hkdf(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=bytes(32), info=info).derive(secret)


@dataclass
class Behaviour:
    """Ways of a token. Each test changes one or two.

    Args: protocols: numbers, the preferred one first.   pin: None has none.
          always_uv, make_without_uv, fingerprint: options of CTAP 2.1.   modern: has pinUvAuthToken.
          touch: "yes", "late", "refused", or "awaited": for WAITS seconds or until the program cancels.
          drifts: computes another secret each time.
          answers_for: another rpId, in its answers.   verifies: says so of its user, whatever is asked.
    """

    protocols: Sequence[int] = (2, 1)
    pin: bytes | None = None
    always_uv: bool = False
    make_without_uv: bool = True
    fingerprint: bool | None = None
    modern: bool = True
    extensions: Sequence[str] = ("hmac-secret",)
    touch: str = "yes"
    drifts: bool = False
    answers_for: str | None = None
    verifies: bool | None = None
    capabilities: int = 4


class SoftToken(CtapDevice):
    """One token. `calls` has what it was asked; `touches` counts those of a person."""

    def __init__(self, product_name: str = "Soft Key", behaviour: Behaviour | None = None) -> None:
        self.product_name = product_name
        self.behaviour = behaviour or Behaviour()
        self.credentials: dict[bytes, Credential] = {}
        self.calls: list[int] = []
        self.touches = self.silent = self.pins_sent = 0
        self.pin_tries, self.wrong_in_a_row, self.fingerprint_tries = 8, 0, 3
        self.closed = 0
        self.accounts: list[dict[str, Any]] = []
        self._protocols = {version: Protocol(version) for version in (1, 2)}
        self._pin_token = _PinToken(os.urandom(32), 0, False)
        self._failure: tuple[int, BaseException] | None = None
        self._cancel = Event()

    @property
    def capabilities(self) -> int:
        """That it speaks CBOR, or not."""
        return self.behaviour.capabilities

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        """None: a test says which are plugged in."""
        return iter(())

    def close(self) -> None:
        """See CtapDevice."""
        self.closed += 1

    def has_made(self, credential_id: bytes, rp_id_hash: bytes) -> bool:
        """Whether it knows a credential, and for this rpId."""
        found = self.credentials.get(credential_id)
        return found is not None and found.rp_id_hash == rp_id_hash

    def fail_at(self, number: int, failure: BaseException) -> None:
        """Fail the nth of the calls that it gets from now on."""
        self.calls.clear()
        self._failure = (number, failure)

    def plug_in_again(self) -> None:
        """As a person does after three wrong PINs."""
        self.wrong_in_a_row = 0

    def plant(self, credential_id: bytes, without_uv: bytes, with_uv: bytes, rp_id: str = "cryptfs") -> None:
        """Give it a credential with known keys."""
        self.credentials[credential_id] = Credential(_sha256(rp_id.encode()), without_uv, with_uv)

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        """See CtapDevice."""
        assert cmd == _CBOR
        command = data[0]
        self._cancel = event or Event()
        if self._failure is not None and self._failure[0] == len(self.calls):
            raise self._failure[1]
        self.calls.append(command)
        request: Any = cbor.decode(data[1:]) if data[1:] else {}
        answer = {
            MAKE_CREDENTIAL: self._make_credential,
            GET_ASSERTION: self._get_assertion,
            GET_INFO: self._get_info,
            CLIENT_PIN: self._client_pin,
        }[command]
        try:
            fields = answer(request)
        except CtapError as error:
            return bytes((error.code,))
        except (KeyError, ValueError):
            return bytes((ERR.MISSING_PARAMETER,))
        return b"\0" + (cbor.encode(fields) if fields else b"")

    def _get_info(self, request: dict[int, Any]) -> dict[int, Any]:
        ways = self.behaviour
        options = {"rk": True, "up": True, "clientPin": ways.pin is not None}
        if ways.modern:
            options |= {"pinUvAuthToken": True, "makeCredUvNotRqd": ways.make_without_uv}
            options |= {"alwaysUv": ways.always_uv}
        if ways.fingerprint is not None:
            options["uv"] = True
        info = {1: ["FIDO_2_0", "FIDO_2_1"], 2: list(ways.extensions), 3: bytes(16), 4: options, 5: 1200}
        return info | {6: list(ways.protocols), 7: 8, 8: 128}

    def _client_pin(self, request: dict[int, Any]) -> dict[int, Any]:
        command, protocol = request[2], self._protocols[request[1]]
        if command == 1:
            return {3: self.pin_tries, 4: self.wrong_in_a_row >= 3}
        if command == 2:
            return {1: protocol.public()}
        if command == 7:
            return {5: self.fingerprint_tries}
        _, aes_key = protocol.agree(request[3])
        if command == 6:
            self._look_at_finger()
        else:
            _require(command == (9 if self.behaviour.modern else 5), ERR.INVALID_SUBCOMMAND)
            self._compare_pin(protocol.open(aes_key, request[6]))
        _require(not self.behaviour.modern or request[10] == "cryptfs", ERR.UNAUTHORIZED_PERMISSION)
        granted = request[9] if self.behaviour.modern else _MAKE | _GET
        self._pin_token = _PinToken(os.urandom(32), granted, True)
        return {2: protocol.seal(aes_key, self._pin_token.key)}

    def _compare_pin(self, pin_hash: bytes) -> None:
        self.pins_sent += 1
        if self.behaviour.pin is None:
            raise CtapError(ERR.PIN_NOT_SET)
        if not self.pin_tries:
            raise CtapError(ERR.PIN_BLOCKED)
        if self.wrong_in_a_row >= 3:
            raise CtapError(ERR.PIN_AUTH_BLOCKED)
        self.pin_tries -= 1
        if pin_hash != _sha256(self.behaviour.pin)[:16]:
            self.wrong_in_a_row += 1
            if not self.pin_tries:
                raise CtapError(ERR.PIN_BLOCKED)
            raise CtapError(ERR.PIN_AUTH_BLOCKED if self.wrong_in_a_row >= 3 else ERR.PIN_INVALID)
        self.pin_tries, self.wrong_in_a_row = 8, 0

    def _look_at_finger(self) -> None:
        if not self.fingerprint_tries:
            raise CtapError(ERR.UV_BLOCKED)
        if not self.behaviour.fingerprint:
            self.fingerprint_tries -= 1
            raise CtapError(ERR.UV_INVALID)
        self.fingerprint_tries = 3

    def _verified(self, request: dict[int, Any], digest: bytes, first: int, permission: int) -> bool:
        """Whether the user is verified for a request whose options are field `first`."""
        if self.behaviour.verifies is not None:
            return self.behaviour.verifies
        if first + 1 in request:
            protocol = self._protocols[request[first + 2]]
            token = self._pin_token
            if not protocol.proves(token.key, digest, request[first + 1]):
                raise CtapError(ERR.PIN_AUTH_INVALID)
            if not token.verified or not token.permissions & permission:
                raise CtapError(ERR.PIN_AUTH_INVALID)
            return True
        if request.get(first, {}).get("uv"):
            self._look_at_finger()
            return True
        return False

    def _touch(self) -> None:
        """Wait for a person; a touch ends what the PIN token was good for."""
        if self.behaviour.touch == "late":
            raise CtapError(ERR.USER_ACTION_TIMEOUT)
        if self.behaviour.touch == "awaited" and self._cancel.wait(WAITS):
            raise CtapError(ERR.KEEPALIVE_CANCEL)
        if self.behaviour.touch == "refused":
            raise CtapError(ERR.OPERATION_DENIED)
        self.touches += 1
        if self.behaviour.modern:
            self._pin_token.permissions, self._pin_token.verified = 0, False

    def _make_credential(self, request: dict[int, Any]) -> dict[int, Any]:
        verified = self._verified(request, request[1], 7, _MAKE)
        needs = self.behaviour.pin is not None and not (
            self.behaviour.modern and self.behaviour.make_without_uv
        )
        if (needs or self.behaviour.always_uv) and not verified:
            raise CtapError(ERR.PUAT_REQUIRED)
        assert request[2]["id"] and len(request[3]["id"]) == 32 and not request.get(7, {}).get("rk")
        assert any(kind["alg"] == -7 for kind in request[4])
        self._touch()
        self.accounts.append(request[3])
        credential_id = os.urandom(64)
        rp_id_hash = _sha256(request[2]["id"].encode())
        self.credentials[credential_id] = Credential(rp_id_hash, os.urandom(32), os.urandom(32))
        point = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
        public = {1: 2, 3: -7, -1: 1, -2: point.x.to_bytes(32, "big"), -3: point.y.to_bytes(32, "big")}
        made = bytes(16) + len(credential_id).to_bytes(2, "big") + credential_id + cbor.encode(public)
        extensions = {"hmac-secret": True} if "hmac-secret" in self.behaviour.extensions else {}
        flags = _UP | _AT | _UV * verified
        return {1: "none", 2: _auth_data(rp_id_hash, flags, made, extensions), 3: {}}

    def _get_assertion(self, request: dict[int, Any]) -> dict[int, Any]:
        is_silent = request.get(5, {}).get("up") is False
        self.silent += is_silent
        if is_silent and 4 in request:
            raise CtapError(ERR.UNSUPPORTED_OPTION)
        rp_id_hash = _sha256(request[1].encode())
        verified = self._verified(request, request[2], 5, _GET)
        if self.behaviour.always_uv and not verified and not is_silent:
            raise CtapError(ERR.PUAT_REQUIRED)
        known = [each["id"] for each in request[3] if self.has_made(each["id"], rp_id_hash)]
        if not is_silent:
            self._touch()
        if not known:
            raise CtapError(ERR.NO_CREDENTIALS)
        extensions = {}
        if 4 in request:
            extensions["hmac-secret"] = self._hmac_secret(
                request[4]["hmac-secret"], self.credentials[known[0]], verified=verified
            )
        if self.behaviour.answers_for is not None:
            rp_id_hash = _sha256(self.behaviour.answers_for.encode())
        flags = _UP * (not is_silent) | _UV * verified
        credential = {"type": "public-key", "id": known[0]}
        return {1: credential, 2: _auth_data(rp_id_hash, flags, b"", extensions), 3: bytes(70)}

    def _hmac_secret(self, inputs: dict[int, Any], credential: Credential, *, verified: bool) -> bytes:
        _require(self.behaviour.modern or 4 not in inputs or inputs[4] != 1, ERR.INVALID_PARAMETER)
        protocol = self._protocols[inputs.get(4, 1)]
        hmac_key, aes_key = protocol.agree(inputs[1])
        if not protocol.proves(hmac_key, inputs[2], inputs[3]):
            raise CtapError(ERR.INVALID_PARAMETER)
        salt = protocol.open(aes_key, inputs[2])
        _require(len(salt) == 32, ERR.INVALID_LENGTH)
        key = credential.with_uv if verified else credential.without_uv
        output = os.urandom(32) if self.behaviour.drifts else hmac.digest(key, salt, "sha256")
        return protocol.seal(aes_key, output)


def _require(fits: bool, error: CtapError.ERR) -> None:
    if not fits:
        raise CtapError(error)


def _auth_data(rp_id_hash: bytes, flags: int, made: bytes, extensions: dict[str, Any]) -> bytes:
    flags |= _ED * bool(extensions)
    tail = cbor.encode(extensions) if extensions else b""
    return rp_id_hash + bytes((flags,)) + bytes(4) + made + tail


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


GONE = OSError(errno.ENODEV, "No such device")


@dataclass
class Person:
    """The TokenAsker of tests: plugs tokens in, types PINs, and notes what it was shown."""

    plugged: Sequence[CtapDevice] = ()
    pins: list[bytes] = field(default_factory=list)
    shown: list[tuple[str, int]] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    handed: list[bytes] = field(default_factory=list)
    is_asked: bool = False
    gives_up: bool = False

    def devices(self) -> Sequence[CtapDevice]:
        """See TokenAsker."""
        return self.plugged

    def ask_pin(self, token: str, tries_left: int) -> bytes:
        """See TokenAsker."""
        self.shown.append((token, tries_left))
        self.handed.append(bytes(bytearray(self.pins.pop(0))))  # a copy, which is wiped
        return self.handed[-1]

    @contextlib.contextmanager
    def waiting(self, token: str, reason: str, cancel: Event) -> Iterator[None]:
        """See TokenAsker."""
        self.touched.append(f"{token} {reason}")
        self.is_asked = True
        if self.gives_up:
            cancel.set()
        try:
            yield
        finally:
            self.is_asked = False
