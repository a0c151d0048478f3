"""libsodium's AEAD calls below PyNaCl's wrappers, and the same through the wrappers.

PyNaCl's public functions take and return bytes: they allocate, zero and copy for each call. The cffi
module below them seals from one buffer into another, without a copy, and releases the interpreter lock
meanwhile. That module is not a public interface, so everything here has a second implementation on the
public functions; `tests/unit/test_aead.py` checks that both agree.

This is the one module that touches nacl._sodium.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import nacl.bindings
import nacl.exceptions

Buffer = bytes | bytearray | memoryview


class AeadCalls(Protocol):
    """Seal and open single records between buffers, and small values.

    A pointer is a result of `pointer`, plus an offset in bytes: it keeps its buffer alive. The caller
    has checked all lengths, those of key and nonce too: below, libsodium reads through bare pointers.
    """

    def pointer(self, buffer: Buffer) -> Any:
        """Something that `+ offset` and the calls below accept as an address in `buffer`."""

    def seal(self, out: Any, plain: Any, length: int, aad: bytes, nonce: Any, key: bytes) -> None:
        """Write ciphertext and tag of `length` plaintext bytes to `out`."""

    def open(self, out: Any, sealed: Any, length: int, aad: bytes, nonce: Any, key: bytes) -> bool:
        """Verify `length` bytes of ciphertext and tag, write the plaintext; False if it is forged."""

    def seal_value(self, plain: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes:
        """Ciphertext and tag of a small value."""

    def open_value(self, sealed: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes | None:
        """The plaintext of a small value from its ciphertext and tag; None if they are forged."""


class DirectCalls:
    """On the cffi module: no copies, no interpreter lock held."""

    def __init__(self, function: str) -> None:
        from nacl._sodium import ffi, lib

        self._from_buffer = ffi.from_buffer
        self._array = ffi.typeof("unsigned char[]")
        self._null = ffi.NULL
        self._encrypt = getattr(lib, f"{function}_encrypt")
        self._decrypt = getattr(lib, f"{function}_decrypt")
        self._tag_size: int = getattr(lib, f"{function}_abytes")()

    def pointer(self, buffer: Buffer) -> Any:
        return self._from_buffer(self._array, buffer)

    def seal(self, out: Any, plain: Any, length: int, aad: bytes, nonce: Any, key: bytes) -> None:
        null = self._null
        if self._encrypt(out, null, plain, length, aad, len(aad), null, nonce, key):
            raise RuntimeError("libsodium refused to seal")

    def open(self, out: Any, sealed: Any, length: int, aad: bytes, nonce: Any, key: bytes) -> bool:
        null = self._null
        return not self._decrypt(out, null, null, sealed, length, aad, len(aad), nonce, key)

    def seal_value(self, plain: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes:
        sealed = bytearray(len(plain) + self._tag_size)
        self.seal(self._from_buffer(self._array, sealed), plain, len(plain), aad, nonce, key)
        return bytes(sealed)

    def open_value(self, sealed: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes | None:
        length = len(sealed) - self._tag_size
        if length < 0:
            return None
        plain = bytearray(length)
        if not self.open(self._from_buffer(self._array, plain), sealed, len(sealed), aad, nonce, key):
            return None
        opened = bytes(plain)
        plain[:] = bytes(length)  # it may be a masterkey; freed memory keeps its content
        return opened


class _Position:
    """A place in a buffer, for WrappedCalls."""

    __slots__ = ("offset", "view")

    def __init__(self, view: memoryview, offset: int = 0) -> None:
        self.view = view
        self.offset = offset

    def __add__(self, offset: int) -> _Position:
        return _Position(self.view, self.offset + offset)

    def take(self, length: int) -> bytes:
        return bytes(self.view[self.offset : self.offset + length])

    def put(self, data: bytes) -> None:
        self.view[self.offset : self.offset + len(data)] = data


class WrappedCalls:
    """On PyNaCl's public functions: slower by copies, but a stable interface."""

    def __init__(self, function: str) -> None:
        self._encrypt: Callable[[bytes, bytes, bytes, bytes], bytes]
        self._decrypt: Callable[[bytes, bytes, bytes, bytes], bytes]
        self._encrypt = getattr(nacl.bindings, f"{function}_encrypt")
        self._decrypt = getattr(nacl.bindings, f"{function}_decrypt")
        self._nonce_size: int = getattr(nacl.bindings, f"{function}_NPUBBYTES")
        self._tag_size: int = getattr(nacl.bindings, f"{function}_ABYTES")

    def pointer(self, buffer: Buffer) -> _Position:
        return _Position(memoryview(buffer).cast("B"))

    def seal(
        self, out: _Position, plain: _Position, length: int, aad: bytes, nonce: _Position, key: bytes
    ) -> None:
        out.put(self._encrypt(plain.take(length), aad, nonce.take(self._nonce_size), key))

    def open(
        self, out: _Position, sealed: _Position, length: int, aad: bytes, nonce: _Position, key: bytes
    ) -> bool:
        try:
            plain = self._decrypt(sealed.take(length), aad, nonce.take(self._nonce_size), key)
        except nacl.exceptions.CryptoError:
            return False
        out.put(plain)
        return True

    def seal_value(self, plain: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes:
        return self._encrypt(plain, aad, nonce, key)

    def open_value(self, sealed: bytes, aad: bytes, nonce: bytes, key: bytes) -> bytes | None:
        if len(sealed) < self._tag_size:
            return None
        try:
            return self._decrypt(sealed, aad, nonce, key)
        except nacl.exceptions.CryptoError:
            return None


def is_offered(function: str) -> bool:
    """Whether this libsodium has an AEAD: older ones lack AEGIS."""
    try:
        aead_calls(function)
    except AttributeError:
        return False
    return True


def aead_calls(function: str) -> AeadCalls:
    """The fastest calls for a libsodium AEAD, such as 'crypto_aead_aegis256', that this PyNaCl offers."""
    try:
        return DirectCalls(function)
    except (ImportError, AttributeError):
        return WrappedCalls(function)
