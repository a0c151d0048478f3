"""Names once more from the masterkey by hashlib alone, and what separates the two functions that seal them.

The argument in docs/decisions/0018-sealing-names.md rests on it.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import XATTR_CONTEXT, NameCipher

MASTERKEY = hashlib.sha256(b"a masterkey").digest()
DIR_ID = bytes(range(16))
MAC_PURPOSE, STREAM_PURPOSE = b"cryptfs:namemac", b"cryptfs:namestrm"
names = st.binary(min_size=1, max_size=255).filter(
    lambda name: not set(name) & set(b"\0/") and name not in (b".", b"..")
)


def key(purpose: bytes) -> bytes:
    return hashlib.blake2b(key=MASTERKEY, person=purpose, digest_size=32).digest()


def padded(name: bytes) -> bytes:
    return name.ljust(-(-len(name) // 16) * 16, b"\0")


def siv(
    name: bytes,
    dir_id: bytes = DIR_ID,
    *,
    purpose: bytes = MAC_PURPOSE,
    person: bytes = b"cryptfs:name",
    size: int = 16,
) -> bytes:
    message = dir_id + bytes([len(name)]) + padded(name)
    return hashlib.blake2b(message, key=key(purpose), person=person, digest_size=size).digest()


def stream(
    iv: bytes, *, purpose: bytes = STREAM_PURPOSE, person: bytes = b"cryptfs:stream", size: int = 64
) -> bytes:
    blocks = (
        hashlib.blake2b(iv + struct.pack("<I", i), key=key(purpose), person=person, digest_size=size)
        for i in range(256 // size)
    )
    return b"".join(block.digest() for block in blocks)


def sealed(name: bytes, iv: bytes, hiding: bytes) -> str:
    hidden = bytes(a ^ b for a, b in zip(padded(name), hiding, strict=False))
    return base64.urlsafe_b64encode(iv + hidden).rstrip(b"=").decode()


def seal(name: bytes, dir_id: bytes = DIR_ID) -> str:
    return NameCipher(Subkeys.from_masterkey(MASTERKEY)).in_directory(dir_id).seal(name)


@given(names, st.binary(min_size=16, max_size=16))
@example(b"n", DIR_ID)
@example(b"n" * 16, DIR_ID)
@example(b"n" * 64, bytes(16))
@example(b"n" * 65, XATTR_CONTEXT)
@example(b"n" * 255, b"\xff" * 16)
def test_names_are_sealed_as_the_decision_says(name: bytes, dir_id: bytes) -> None:
    iv = siv(name, dir_id)
    assert seal(name, dir_id) == sealed(name, iv, stream(iv))


OTHER_SIVS = {
    "the stream's key": siv(b"name", purpose=STREAM_PURPOSE),
    "the stream's personalization": siv(b"name", person=b"cryptfs:stream"),
    "no personalization": siv(b"name", person=b""),
    "cut from a longer digest": siv(b"name", size=64)[:16],
}
OTHER_STREAMS = {
    "the siv's key": stream(siv(b"name"), purpose=MAC_PURPOSE),
    "the siv's personalization": stream(siv(b"name"), person=b"cryptfs:name"),
    "made of shorter digests": stream(siv(b"name"), size=32),
}


@pytest.mark.parametrize("iv", OTHER_SIVS.values(), ids=list(OTHER_SIVS))
def test_the_siv_is_of_a_function_of_its_own(iv: bytes) -> None:
    assert seal(b"name") != sealed(b"name", iv, stream(iv))
    assert iv != siv(b"name")


@pytest.mark.parametrize("hiding", OTHER_STREAMS.values(), ids=list(OTHER_STREAMS))
def test_the_stream_is_of_a_function_of_its_own(hiding: bytes) -> None:
    assert seal(b"name") != sealed(b"name", siv(b"name"), hiding)


@given(names, names, *[st.binary(min_size=16, max_size=16)] * 2)
@example(b"n", b"n" * 16, DIR_ID, DIR_ID)
def test_no_two_names_are_one_input(one: bytes, other: bytes, here: bytes, there: bytes) -> None:
    messages = [d + bytes([len(n)]) + padded(n) for n, d in ((one, here), (other, there))]
    assert (messages[0] == messages[1]) == ((one, here) == (other, there))


def test_all_subkeys_differ() -> None:
    keys = Subkeys.from_masterkey(MASTERKEY)
    assert keys.names_mac_key == key(MAC_PURPOSE)
    assert keys.names_stream_key == key(STREAM_PURPOSE)
    values = [getattr(keys, name)[:16] for name in Subkeys.__dataclass_fields__]
    assert all(a != b for a, b in itertools.combinations(values, 2))
