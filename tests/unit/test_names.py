"""Names: every string of bytes there and back, one spelling each, and nothing that makes it fall over."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import (
    INTERNAL_PREFIX,
    LONG_PREFIX,
    MAX_NAME_SIZE,
    SIDECAR_SUFFIX,
    TEMP_PREFIX,
    XATTR_CONTEXT,
    NameCipher,
    decode_text,
    encode_text,
    long_entry_name,
    siv_of,
)
from cryptfs.errors import NameError_, NameTooLongError

CIPHER = NameCipher(Subkeys.from_masterkey(b"m" * 32))
HERE, ELSEWHERE = CIPHER.in_directory(b"directory number"), CIPHER.in_directory(b"directory nomber")
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

plain_names = (
    st.binary(min_size=1, max_size=MAX_NAME_SIZE)
    .map(lambda name: name.replace(b"\0", b"\1").replace(b"/", b"|"))
    .filter(lambda name: name not in (b".", b".."))
)
cipher_texts = st.text(alphabet=ALPHABET, max_size=400) | st.text(max_size=60)


@given(plain_names)
@example(b"a" * 255)
@example(b"...")
@example(b"cryptfs.json")
@example(b"\xff\xfe")
def test_round_trip(name: bytes) -> None:
    cipher_name = HERE.seal(name)
    assert HERE.open(cipher_name) == name
    assert set(cipher_name) <= set(ALPHABET)
    assert CIPHER.open_unverified(cipher_name) == (name, siv_of(cipher_name))
    assert HERE.seal(name) == cipher_name


@given(plain_names)
def test_the_same_name_elsewhere_differs_and_does_not_verify(name: bytes) -> None:
    cipher_name = HERE.seal(name)
    assert ELSEWHERE.seal(name) != cipher_name
    with pytest.raises(NameError_, match="directory"):
        ELSEWHERE.open(cipher_name)
    assert CIPHER.open_unverified(cipher_name)[0] == name


@given(plain_names, plain_names)
def test_two_names_have_two_sivs(one: bytes, two: bytes) -> None:
    assume(one != two)
    assert siv_of(HERE.seal(one)) != siv_of(HERE.seal(two))


def test_lengths_show_in_steps_of_16_only() -> None:
    lengths = [len(HERE.seal(b"n" * size)) for size in range(1, 256)]
    for size, length in enumerate(lengths, start=1):
        padded = -(-size // 16) * 16
        assert length == -(-(16 + padded) * 4 // 3)
    assert len(set(lengths)) == 16
    assert (lengths[0], lengths[159], lengths[160], lengths[254]) == (43, 235, 256, 363)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0", b"\0"])
def test_what_is_no_name(name: bytes) -> None:
    with pytest.raises(ValueError, match="not a name"):
        HERE.seal(name)


def test_a_name_of_256_bytes_is_too_long() -> None:
    assert HERE.open(HERE.seal(b"n" * 255)) == b"n" * 255
    with pytest.raises(NameTooLongError, match="256 bytes"):
        HERE.seal(b"n" * 256)


@given(cipher_texts)
def test_arbitrary_cipher_names_are_refused(cipher_name: str) -> None:
    with pytest.raises(NameError_):
        HERE.open(cipher_name)


@given(plain_names, st.data())
def test_no_other_spelling_opens(name: bytes, data: st.DataObject) -> None:
    cipher_name = HERE.seal(name)
    at = data.draw(st.integers(0, len(cipher_name) - 1))
    other = data.draw(st.sampled_from(ALPHABET + "+/=. \n").filter(lambda letter: letter != cipher_name[at]))
    with pytest.raises(NameError_):
        HERE.open(cipher_name[:at] + other + cipher_name[at + 1 :])


@pytest.mark.parametrize("undecodable", ["\udcff", "\ud800", "é", "\0" * 43, "cryptfs.dir", "ж" * 43])
def test_entries_that_are_no_cipher_names(undecodable: str) -> None:
    with pytest.raises(NameError_, match="canonical"):
        HERE.open(undecodable)
    with pytest.raises(NameError_, match="canonical"):
        siv_of(undecodable)


@given(st.binary(max_size=100))
def test_text_round_trip(data: bytes) -> None:
    text = encode_text(data)
    assert decode_text(text) == data
    assert "=" not in text
    assert decode_text(text + "=") is None
    assert decode_text(text + "\n") is None


@given(st.text(alphabet=ALPHABET + "+/=\n ", max_size=12))
def test_decoding_is_strict(text: str) -> None:
    data = decode_text(text)
    assert data is None or encode_text(data) == text


def test_every_spelling_of_one_byte() -> None:
    accepted = [a + b for a in ALPHABET for b in ALPHABET if decode_text(a + b) is not None]
    assert accepted == [encode_text(bytes((value,))) for value in range(256)]


def test_long_entries() -> None:
    full = HERE.seal(b"n" * 161)
    entry = long_entry_name(full)
    assert entry.startswith(LONG_PREFIX)
    assert len(entry + SIDECAR_SUFFIX) <= 255
    assert len(entry) == len(LONG_PREFIX) + 43
    assert long_entry_name(HERE.seal(b"n" * 162)) != entry


def test_internal_names_are_none() -> None:
    assert LONG_PREFIX.startswith(INTERNAL_PREFIX)
    assert TEMP_PREFIX.startswith(INTERNAL_PREFIX)
    assert not set(INTERNAL_PREFIX) <= set(ALPHABET)


def test_xattr_names_stand_in_a_context_of_their_own() -> None:
    attributes = CIPHER.of_xattrs()
    assert attributes.open(attributes.seal(b"user.comment")) == b"user.comment"
    assert attributes.seal(b"user.comment") == CIPHER.in_directory(XATTR_CONTEXT).seal(b"user.comment")
    with pytest.raises(NameError_):
        HERE.open(attributes.seal(b"user.comment"))


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_dir_id_has_16_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="dir_id has 16"):
        CIPHER.in_directory(bytes(size))


def test_names_of_two_vaults_differ() -> None:
    other = NameCipher(Subkeys.from_masterkey(b"n" * 32)).in_directory(b"directory number")
    assert other.seal(b"a") != HERE.seal(b"a")
    with pytest.raises(NameError_):
        other.open(HERE.seal(b"a"))


@given(siv=st.binary(min_size=16, max_size=16), data=st.binary(max_size=300))
def test_the_stream_is_its_own_inverse(siv: bytes, data: bytes) -> None:
    assert CIPHER.apply_stream(siv, CIPHER.apply_stream(siv, data)) == data
    assert CIPHER.apply_stream(siv, bytes(300))[: len(data)] == CIPHER.apply_stream(siv, bytes(len(data)))
