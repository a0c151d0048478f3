"""The cipher suites: both implementations agree, and nothing leaves that has not verified."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core import sodium
from cryptfs.core.aead import (
    AEGIS_256,
    SMALL_OVERHEAD,
    SUITES,
    XCHACHA20_POLY1305,
    ChunkCipher,
    CipherSuite,
    Kind,
    chunk_aad,
    open_small,
    seal_small,
)
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.sodium import DirectCalls, WrappedCalls, aead_calls
from cryptfs.errors import ChunkError

CHUNK_SIZE = 4096
KEY = bytes(range(32))
BOTH = [AEGIS_256, XCHACHA20_POLY1305]
both_suites = pytest.mark.parametrize("suite", BOTH, ids=lambda suite: suite.name)

# draft-irtf-cfrg-aegis-aead, AEGIS-256 test vector 1; draft-irtf-cfrg-xchacha-03, A.3.1
PUBLISHED = {
    "aegis-256": (
        "1001000000000000000000000000000000000000000000000000000000000000",
        "1000020000000000000000000000000000000000000000000000000000000000",
        "",
        "00000000000000000000000000000000",
        "754fc3d8c973246dcc6d741412a4b2361181a1d18091082bf0266f66297d167d2e68b845f61a3b0527d31fc7b7b89f13",
    ),
    "xchacha20-poly1305": (
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "404142434445464748494a4b4c4d4e4f5051525354555657",
        "50515253c0c1c2c3c4c5c6c7",
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip "
        b"for the future, sunscreen would be it.".hex(),
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39"
        "ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49",
    ),
}


def make_cipher(suite: CipherSuite, *, wrapped: bool = False) -> ChunkCipher:
    """A cipher with chunks of 4 KiB on either implementation."""
    calls = WrappedCalls(suite.function) if wrapped else DirectCalls(suite.function)
    return ChunkCipher(suite, ChunkGeometry(CHUNK_SIZE, suite.overhead), calls)


def nonces_for(suite: CipherSuite, count: int) -> bytes:
    """Fixed nonces, no two alike."""
    return b"".join(i.to_bytes(suite.nonce_size, "big") for i in range(1, count + 1))


def sealed_run(cipher: ChunkCipher, plain: bytes, first_index: int = 0) -> bytearray:
    """The records of plain."""
    geometry = cipher.geometry
    out = bytearray(geometry.records_size(len(plain)))
    nonces = nonces_for(cipher.suite, geometry.chunk_count(len(plain)))
    assert cipher.seal_run(KEY, first_index, plain, nonces, memoryview(out)) == len(out)
    return out


@both_suites
@pytest.mark.parametrize("implementation", [DirectCalls, WrappedCalls])
def test_published_vectors(
    suite: CipherSuite, implementation: type[DirectCalls] | type[WrappedCalls]
) -> None:
    key, nonce, aad, plain, expected = (bytes.fromhex(text) for text in PUBLISHED[suite.name])
    calls = implementation(suite.function)
    sealed, opened = bytearray(len(expected)), bytearray(len(plain))
    calls.seal(calls.pointer(sealed), calls.pointer(plain), len(plain), aad, calls.pointer(nonce), key)
    assert sealed == expected
    target, source = calls.pointer(opened), calls.pointer(expected)
    assert calls.open(target, source, len(expected), aad, calls.pointer(nonce), key)
    assert opened == plain


@both_suites
@settings(deadline=None, max_examples=40)
@given(
    plain=st.binary(min_size=1, max_size=300),
    repeat=st.integers(1, 60),
    first_index=st.integers(0, 2**63),
    flip_at=st.integers(0, 2**20),
)
def test_both_implementations_agree(
    suite: CipherSuite, plain: bytes, repeat: int, first_index: int, flip_at: int
) -> None:
    plain *= repeat
    direct, wrapped = make_cipher(suite), make_cipher(suite, wrapped=True)
    sealed = sealed_run(direct, plain, first_index)
    assert sealed == sealed_run(wrapped, plain, first_index)
    sealed_again = bytearray(sealed)
    sealed_again[flip_at % len(sealed)] ^= 0x80
    results = []
    for cipher in (direct, wrapped):
        out = bytearray(b"\xee" * len(plain))
        assert cipher.open_run(KEY, first_index, memoryview(sealed), memoryview(out), holes=False) == len(
            plain
        )
        assert out == plain
        with pytest.raises(ChunkError) as caught:
            cipher.open_run(KEY, first_index, memoryview(sealed_again), memoryview(out), holes=True)
        results.append((caught.value.chunk_index, caught.value.reason, bytes(out)))
    assert results[0] == results[1]
    damaged = flip_at % len(sealed) // direct.geometry.record_size
    assert results[0][0] == first_index + damaged


@both_suites
@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "wrapped"])
@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_failing_chunk_leaves_no_plaintext(suite: CipherSuite, wrapped: bool, damaged: int) -> None:
    cipher = make_cipher(suite, wrapped=wrapped)
    plain = bytes(range(1, 256)) * 40
    sealed = sealed_run(cipher, plain)
    sealed[damaged * cipher.geometry.record_size + suite.nonce_size] ^= 1
    out = bytearray(b"\xee" * len(plain))
    with pytest.raises(ChunkError) as caught:
        cipher.open_run(KEY, 0, memoryview(sealed), memoryview(out), holes=True)
    assert caught.value.chunk_index == damaged
    start = damaged * CHUNK_SIZE
    end = min(start + CHUNK_SIZE, len(plain))
    assert out[:start] == plain[:start]
    assert out[start:end] == bytes(end - start)
    assert out[end:] == b"\xee" * (len(plain) - end)


@both_suites
def test_holes_overwrite_what_the_buffer_held(suite: CipherSuite) -> None:
    cipher = make_cipher(suite)
    sealed = bytearray(cipher.geometry.records_size(CHUNK_SIZE + 10))
    out = bytearray(b"\xee" * (CHUNK_SIZE + 10))
    assert cipher.open_run(KEY, 7, memoryview(sealed), memoryview(out), holes=True) == CHUNK_SIZE + 10
    assert out == bytes(CHUNK_SIZE + 10)
    with pytest.raises(ChunkError, match="zeroed") as caught:
        cipher.open_run(KEY, 7, memoryview(sealed), memoryview(out), holes=False)
    assert caught.value.chunk_index == 7


@both_suites
@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "wrapped"])
def test_a_short_tail_does_not_shrink_the_room_that_is_asked_for(suite: CipherSuite, wrapped: bool) -> None:
    """A tail without plaintext once made 4036 bytes of room pass for enough, and 4096 were written."""
    cipher = make_cipher(suite, wrapped=wrapped)
    sealed = sealed_run(cipher, bytes(CHUNK_SIZE)) + b"tail"
    room = CHUNK_SIZE + 4 - suite.overhead
    guarded = bytearray(b"\xee" * (CHUNK_SIZE + 64))
    with pytest.raises(ValueError, match="room"):
        cipher.open_run(KEY, 0, memoryview(sealed), memoryview(guarded)[:room], holes=False)
    assert guarded == b"\xee" * len(guarded)
    with pytest.raises(ChunkError, match="no plaintext") as caught:
        cipher.open_run(KEY, 0, memoryview(sealed), memoryview(guarded), holes=False)
    assert caught.value.chunk_index == 1


@both_suites
def test_an_empty_run_opens_to_nothing(suite: CipherSuite) -> None:
    cipher = make_cipher(suite)
    assert cipher.open_run(KEY, 0, memoryview(b""), memoryview(bytearray()), holes=False) == 0


@both_suites
def test_bad_arguments_of_seal_run(suite: CipherSuite) -> None:
    cipher = make_cipher(suite)
    nonce, out = nonces_for(suite, 1), memoryview(bytearray(200))
    cipher.seal_run(KEY, 0, b"plain", nonce, out)
    for key, plain, nonces, room in [
        (KEY[:-1], b"plain", nonce, out),
        (KEY + b"x", b"plain", nonce, out),
        (KEY, b"", b"", out),
        (KEY, b"plain", nonce[:-1], out),
        (KEY, b"plain", nonce * 2, out),
        (KEY, bytes(CHUNK_SIZE + 1), nonce, memoryview(bytearray(9000))),
        (KEY, b"plain", nonce, out[: suite.overhead + 4]),
        (KEY, b"plain", nonce, memoryview(bytes(200))),
    ]:
        with pytest.raises(ValueError, match="seal_run needs"):
            cipher.seal_run(key, 0, plain, nonces, room)


@both_suites
def test_bad_arguments_of_open_run(suite: CipherSuite) -> None:
    cipher = make_cipher(suite)
    sealed, read_only = memoryview(sealed_run(cipher, b"plain")), bytes(5)
    for key, out in [
        (KEY[:-1], memoryview(bytearray(5))),
        (KEY, memoryview(bytearray(4))),
        (KEY, memoryview(read_only)),
    ]:
        with pytest.raises(ValueError, match="open_run needs"):
            cipher.open_run(key, 0, sealed, out, holes=False)
    assert read_only == bytes(5)


def test_geometry_must_fit_the_suite() -> None:
    with pytest.raises(ValueError, match="overhead"):
        ChunkCipher(AEGIS_256, ChunkGeometry(CHUNK_SIZE, XCHACHA20_POLY1305.overhead))


def test_suites_by_name() -> None:
    assert [(suite.name, suite.cipher_id, suite.overhead) for suite in SUITES.values()] == [
        ("aegis-256", 1, 64),
        ("xchacha20-poly1305", 2, 40),
    ]
    assert all(SUITES[name].name == name for name in SUITES)


def test_the_fastest_calls_are_taken_and_the_others_where_they_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(aead_calls(AEGIS_256.function), DirectCalls)
    monkeypatch.setitem(sys.modules, "nacl._sodium", None)
    assert isinstance(sodium.aead_calls(AEGIS_256.function), WrappedCalls)


def test_chunk_aad() -> None:
    assert chunk_aad(0x0102030405060708) == bytes.fromhex("0101000000000000 0807060504030201")


def test_kinds_are_those_of_the_format() -> None:
    assert [(kind.name, kind.value) for kind in Kind] == [
        ("CHUNK", 1),
        ("HEADER", 2),
        ("LINK", 3),
        ("LINK_UNBOUND", 4),
        ("XATTR_OF_FILE", 5),
        ("XATTR_OF_DIRECTORY", 6),
        ("SLOT_VERSION_1", 7),
        ("JOURNAL_RECORD", 8),
        ("JOURNAL_HEAD", 9),
        ("SESSIONS", 10),
        ("MANIFEST", 11),
        ("SLOT", 12),
        ("RECOVERY_SECRET", 13),
        ("RECOVERY_RECORD", 14),
        ("DELTA", 15),
        ("OLD_MASTERKEY", 16),
        ("XATTR_OF_LINK", 17),
    ]


@given(plain=st.binary(max_size=200), aad=st.binary(max_size=50), nonce=st.binary(min_size=24, max_size=24))
def test_small_values_round_trip(plain: bytes, aad: bytes, nonce: bytes) -> None:
    sealed = seal_small(KEY, plain, aad, nonce)
    assert len(sealed) == len(plain) + SMALL_OVERHEAD
    assert open_small(KEY, sealed, aad) == plain
    assert open_small(KEY, sealed, aad + b"\0") is None
    assert open_small(KEY[::-1], sealed, aad) is None


@both_suites
@given(plain=st.binary(max_size=200), aad=st.binary(max_size=50), flip_at=st.integers(0, 2**20))
def test_small_values_are_the_same_on_both_implementations(
    suite: CipherSuite, plain: bytes, aad: bytes, flip_at: int
) -> None:
    direct, wrapped = DirectCalls(suite.function), WrappedCalls(suite.function)
    nonce = nonces_for(suite, 1)
    sealed = direct.seal_value(plain, aad, nonce, KEY)
    assert sealed == wrapped.seal_value(plain, aad, nonce, KEY)
    forged = bytearray(sealed)
    forged[flip_at % len(forged)] ^= 1
    for calls in (direct, wrapped):
        assert calls.open_value(sealed, aad, nonce, KEY) == plain
        assert calls.open_value(bytes(forged), aad, nonce, KEY) is None
        assert calls.open_value(sealed[: suite.tag_size - 1], aad, nonce, KEY) is None


def test_small_values_need_keys_and_nonces_of_the_right_length() -> None:
    """libsodium reads as much as it needs, whatever is there."""
    nonce = bytes(24)
    sealed = seal_small(KEY, b"plain", b"", nonce)
    for key, bad_nonce in [(KEY[:-1], nonce), (KEY + b"x", nonce), (KEY, nonce[:-1]), (KEY, nonce + b"x")]:
        with pytest.raises(ValueError, match="seal_small needs"):
            seal_small(key, b"plain", b"", bad_nonce)
    for key in (KEY[:-1], KEY + b"x"):
        with pytest.raises(ValueError, match="open_small needs"):
            open_small(key, sealed, b"")


@given(sealed=st.binary(max_size=100))
def test_small_values_that_nobody_sealed(sealed: bytes) -> None:
    assert open_small(KEY, sealed, b"") is None
