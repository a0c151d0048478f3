"""Deltas: round trips, every byte counts, and what a delta shows of its size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.aead import AEGIS_256, SUITES, XCHACHA20_POLY1305, CipherSuite
from cryptfs.core.format.delta import Delta, DeltaCipher, delta_key
from cryptfs.core.geometry import ChunkGeometry

KEY = delta_key(b"c" * 32)
CHUNK = 4096


def cipher_of(suite: CipherSuite, chunk_size: int = CHUNK) -> DeltaCipher:
    """Seals deltas of a suite."""
    return DeltaCipher(suite, ChunkGeometry(chunk_size, suite.overhead))


@given(
    suite=st.sampled_from(sorted(SUITES.values(), key=str)),
    length=st.integers(1, CHUNK),
    at=st.integers(0, 100),
    size=st.integers(1, CHUNK),
    index=st.integers(0, 2**64 - 1),
)
def test_round_trip(suite: CipherSuite, length: int, at: int, size: int, index: int) -> None:
    offset = min(length * at // 100, CHUNK - 1)
    data = b"d" * min(size, CHUNK - offset)
    delta = Delta(length, offset, bytes(range(suite.overhead)), data)
    cipher, nonce = cipher_of(suite), b"n" * suite.nonce_size
    payload = cipher.seal(KEY, index, delta, nonce)
    assert len(payload) == suite.overhead + 8 + suite.overhead + len(data)
    assert cipher.open(KEY, index, payload) == delta
    assert cipher.ends(payload) == nonce + payload[-suite.tag_size :]
    assert delta.new_length == max(length, offset + len(data))


def test_every_byte_counts() -> None:
    cipher = cipher_of(XCHACHA20_POLY1305)
    payload = cipher.seal(KEY, 7, Delta(100, 50, b"b" * 40, b"data"), b"n" * 24)
    for at in range(len(payload)):
        changed = payload[:at] + bytes((payload[at] ^ (1 << at % 8),)) + payload[at + 1 :]
        assert cipher.open(KEY, 7, changed) is None
    assert [cipher.open(KEY, 7, payload[:size]) for size in range(len(payload))] == [None] * len(payload)
    assert cipher.open(KEY, 8, payload) is None
    assert cipher.open(delta_key(b"o" * 32), 7, payload) is None


@pytest.mark.parametrize(
    ("length", "offset", "base", "data"),
    [
        (0, 0, 40, 1),
        (10, 11, 40, 1),
        (10, 0, 40, 0),
        (10, 0, 39, 1),
        (10, 0, 40, CHUNK + 1),
        (10, 10, 40, CHUNK - 9),
        (CHUNK + 1, 0, 40, 1),
        (CHUNK, CHUNK, 40, 1),
    ],
)
def test_what_does_not_fit_is_refused(length: int, offset: int, base: int, data: int) -> None:
    delta = Delta(length, offset, bytes(base), bytes(data))
    with pytest.raises(ValueError, match="fits"):
        cipher_of(XCHACHA20_POLY1305).seal(KEY, 0, delta, bytes(24))


def test_keys_and_nonces_of_wrong_size_are_refused() -> None:
    cipher, delta = cipher_of(AEGIS_256), Delta(10, 0, bytes(64), b"d")
    for key, nonce in ((KEY[:31], bytes(32)), (KEY, bytes(31)), (KEY, b"")):
        with pytest.raises(ValueError, match="key"):
            cipher.seal(key, 0, delta, nonce)
    with pytest.raises(ValueError, match="key"):
        cipher.open(KEY[:31], 0, bytes(200))


@pytest.mark.parametrize(
    ("chunk_size", "start", "stop", "length", "expected"),
    [
        (16384, 0, 1, 16384, (0, 4096)),
        (16384, 4095, 4097, 16384, (0, 8192)),
        (16384, 4096, 8192, 16384, (4096, 8192)),
        (16384, 5000, 5001, 16384, (4096, 8192)),
        (16384, 5000, 5001, 6000, (4096, 6000)),
        (16384, 4095, 8193, 16384, None),
        (16384, 16383, 16384, 16384, (12288, 16384)),
        (16384, 0, 16384, 16384, None),
        (16384, 0, 100, 100, (0, 100)),
        (4096, 0, 1, 4096, (0, 1024)),
        (4096, 1000, 2048, 4096, (0, 2048)),
        (4096, 1000, 2049, 4096, None),
        (1048576, 0, 1, 1048576, (0, 4096)),
    ],
)
def test_a_delta_shows_steps(
    chunk_size: int, start: int, stop: int, length: int, expected: tuple[int, int] | None
) -> None:
    assert ChunkGeometry(chunk_size, 64).delta_range(start, stop, length) == expected
