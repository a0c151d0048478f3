"""Through the frames of CTAPHID, as the package fido2 makes them, down to what would be the device node."""

from __future__ import annotations

import contextlib
import errno
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator

import pytest
from fido2.ctap import CtapError
from fido2.hid import CtapHidDevice
from fido2.hid.base import CtapHidConnection, HidDescriptor

from cryptfs.errors import TokenError
from cryptfs.unlock.carriers.ctap import Token
from cryptfs.unlock.token import new_fido2
from tests.softtoken import GET_ASSERTION, Person, SoftToken

SIZE = 64
INIT, CBOR, CANCEL, KEEPALIVE = 0x86, 0x90, 0x91, 0xBB
CHANNEL = 0x01020304


class Cable(CtapHidConnection):
    """Packets to and from a SoftToken. It waits for a touch in `keepalives` messages."""

    def __init__(self, token: SoftToken) -> None:
        self.token = token
        self.to_read: deque[bytes] = deque()
        self.commands: list[int] = []
        self.failure: BaseException | None = None
        self.keepalives = 3
        self.closed = False
        self._request, self._left, self._command = b"", 0, 0

    def write_packet(self, data: bytes) -> None:
        """A packet from the program."""
        assert len(data) == SIZE
        if data[4] & 0x80:
            self._command, self._left = struct.unpack(">BH", data[4:7])
            self._request, body = b"", data[7:]
            self.commands.append(self._command)
        else:
            body = data[5:]
        piece = body[: self._left]
        self._request += piece
        self._left -= len(piece)
        if not self._left:
            self._answer(data[:4])

    def _answer(self, channel: bytes) -> None:
        if self._command == INIT:
            self._send(channel, INIT, self._request + struct.pack(">IBBBBB", CHANNEL, 2, 1, 0, 0, 4))
        elif self._command == CBOR:
            for _ in range(self.keepalives):
                self._send(channel, KEEPALIVE, b"\x02")
            self._send(channel, CBOR, self.token.call(0x10, self._request))

    def _send(self, channel: bytes, command: int, body: bytes) -> None:
        head = channel + struct.pack(">BH", command, len(body))
        self.to_read.append((head + body[: SIZE - 7]).ljust(SIZE, b"\0"))
        for number, at in enumerate(range(SIZE - 7, len(body), SIZE - 5)):
            packet = channel + bytes((number,)) + body[at : at + SIZE - 5]
            self.to_read.append(packet.ljust(SIZE, b"\0"))

    def read_packet(self) -> bytes:
        """A packet for the program."""
        if self.failure is not None:
            raise self.failure
        return self.to_read.popleft()

    def close(self) -> None:
        """See CtapHidConnection."""
        self.closed = True


class PatientCable(Cable):
    """Once it waits, its token answers a request for a secret only when the program cancels it."""

    waits = False

    def _answer(self, channel: bytes) -> None:
        if self._command == CANCEL:
            self._send(channel, CBOR, bytes((CtapError.ERR.KEEPALIVE_CANCEL,)))
        elif not (self.waits and self._command == CBOR and self._request[0] == GET_ASSERTION):
            super()._answer(channel)

    def read_packet(self) -> bytes:
        """A packet for the program: there is always one."""
        if not self.to_read:
            time.sleep(0.01)
            self._send(struct.pack(">I", CHANNEL), KEEPALIVE, b"\x02")
        return super().read_packet()


@pytest.fixture
def cable() -> Cable:
    return Cable(SoftToken())


def device_on(cable: Cable) -> CtapHidDevice:
    descriptor = HidDescriptor("/dev/hidraw3", 1, 2, SIZE, SIZE, "Cabled Key", None)
    return CtapHidDevice(descriptor, cable)


def test_a_secret_through_frames(cable: Cable) -> None:
    device = device_on(cable)
    person = Person([device])
    new = new_fido2(device, person, uv=False)
    assert person.touched[0] == "the FIDO2 token 'Cabled Key' to make a credential (1 of 3)"
    credential_id = bytes.fromhex(str(new.params["credential"]))
    token = Token(device)
    assert token.has(credential_id)
    assert not token.has(b"another")

    def ask() -> bytes:
        return token.secret(credential_id, bytes(32), None, lambda _: contextlib.nullcontext(), uv=False)

    assert len({ask() for _ in range(3)}) == 1


def test_a_person_who_gives_up_is_told_to_the_token() -> None:
    cable = PatientCable(SoftToken())
    device = device_on(cable)
    new = new_fido2(device, Person([device]), uv=False)
    token = Token(device)
    cable.waits = True

    @contextlib.contextmanager
    def for_a_moment(cancel: threading.Event) -> Iterator[None]:
        timer = threading.Timer(0.1, cancel.set)
        timer.start()
        yield
        timer.join()

    credential_id = bytes.fromhex(str(new.params["credential"]))
    with pytest.raises(TokenError, match="was interrupted"):
        token.secret(credential_id, bytes(32), None, for_a_moment, uv=False)
    assert CANCEL in cable.commands
    cable.waits = False
    assert token.has(credential_id), "it is of use afterwards"


@pytest.mark.parametrize("code", [errno.ENODEV, errno.EIO])
def test_the_node_goes(cable: Cable, code: int) -> None:
    token = Token(device_on(cable))
    cable.failure = OSError(code, "gone")
    with pytest.raises(TokenError, match="'Cabled Key' was unplugged while it was asked"):
        token.has(b"one")


def test_a_node_that_is_at_its_end(cable: Cable) -> None:
    token = Token(device_on(cable))
    cable.read_packet = lambda: b""  # type: ignore[method-assign]
    with pytest.raises(TokenError, match="invalid answer"):
        token.has(b"one")


def test_ctrl_c_stops_the_blinking(cable: Cable) -> None:
    token = Token(device_on(cable))
    cable.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        token.has(b"one")
    assert cable.commands[-1] == CANCEL
