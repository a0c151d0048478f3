"""Recipients and identity files of age: what is taken, and what a person reads about the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.slots.agekeys import (
    MAX_FILE_SIZE,
    MAX_IDENTITIES,
    identities_of,
    recipient_bytes,
    recipient_of,
    short_recipient,
)
from tests.age_keys import NPM, SPECIFICATION, TESTKIT, bech32, identity_file

FIRST, SECOND = NPM[0], NPM[1]
X25519 = bech32("age-secret-key-", bytes(32)).upper()
PLUGIN = bech32("age-plugin-yubikey-", b"x").upper()


def seed(identity: str) -> bytes:
    """The 32 bytes, from an encoder of the tests: the one input that encodes to this text."""
    (found,) = identities_of(identity.encode())
    assert bech32("age-secret-key-pq-", found).upper() == identity
    return found


@pytest.mark.parametrize("keys", [SPECIFICATION, *NPM], ids=["specification", *map(str, range(len(NPM)))])
def test_keys_that_others_made(keys: dict[str, str]) -> None:
    recipient = recipient_of(keys["recipient"])
    assert recipient == keys["recipient"]
    assert bech32("age1pq", recipient_bytes(recipient)) == recipient
    assert len(recipient_bytes(recipient)) == 1216
    assert len(seed(keys["identity"])) == 32


def test_identities_of_the_testkit() -> None:
    assert len({seed(vector["identity"]) for vector in TESTKIT}) == 2


@pytest.mark.parametrize(
    "content",
    [
        FIRST["identity"].encode(),
        identity_file(FIRST["identity"]),
        identity_file(FIRST["identity"]).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + identity_file(FIRST["identity"]),
        b"\n \t \n#" + b" x" * 500 + b"\n\t " + FIRST["identity"].encode() + b" \n\n",
        f"{X25519}\n{PLUGIN}\n{FIRST['identity']}\n".encode(),
    ],
)
def test_spellings_of_a_file(content: bytes) -> None:
    before = bytes(bytearray(content))
    assert identities_of(content) == (seed(FIRST["identity"]),)
    assert content == before  # the caller wipes it


def test_several_in_one_file() -> None:
    both = identity_file(FIRST["identity"]) + identity_file(SECOND["identity"])
    assert identities_of(both) == (seed(FIRST["identity"]), seed(SECOND["identity"]))
    many = identity_file(FIRST["identity"]) * MAX_IDENTITIES
    assert len(identities_of(many)) == MAX_IDENTITIES
    with pytest.raises(ValueError, match="65 identities, and at most 64"):
        identities_of(many + identity_file(FIRST["identity"]))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no identity"),
        (b"# only a comment\n\n", "no identity"),
        (X25519.encode(), "other kinds; age-keygen -pq"),
        (PLUGIN.encode(), "other kinds"),
        (b"age-encryption.org/v1\n-> scrypt x 18\n", "encrypted itself; decrypt it with: age --decrypt"),
        (b"\n-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n", "encrypted itself"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "line 1 is not an age identity"),
        (b"# x\n\n" + FIRST["recipient"].encode(), "line 3 is a recipient, which opens nothing"),
        (identity_file(FIRST["identity"][:-1]), "line 3 has a mistake: its checksum"),
        (identity_file(FIRST["identity"].replace("PQ-1", "PQ-1 ")), "line 3 has a mistake: .* never has"),
        (identity_file(FIRST["identity"].lower()), "line 3 is not an age identity"),
        (identity_file(FIRST["identity"][:-3] + FIRST["identity"][-3:].lower()), "small and capital"),
        (identity_file(bech32("age-secret-key-pq-", bytes(31)).upper()), "not 32 bytes"),
        (identity_file(bech32("age-secret-key-pq-", bytes(33)).upper()), "not 32 bytes"),
        (identity_file(FIRST["identity"]) + b"rubbish\n", "line 4 is not"),
        (bytes(MAX_FILE_SIZE + 1), "at most 65536 bytes"),
        (b"\0\xff", "line 1 is not"),
    ],
)
def test_files_that_are_refused(content: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        identities_of(content)
    assert FIRST["identity"][19:30] not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_file_is_an_identity_file_or_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):
        identities_of(content)


def test_the_largest_file_takes_no_time() -> None:
    """Blanks within a line are looked at once."""
    with pytest.raises(ValueError, match="line 1 is not"):
        identities_of(b"x" + b" " * (MAX_FILE_SIZE - 2) + b"x")


@pytest.mark.parametrize("text", ["{0}", "  {0}\n", "# ana's server\n\n{0}\n", "\ufeff{0}\r\n"])
def test_spellings_of_a_recipient(text: str) -> None:
    assert recipient_of(text.format(FIRST["recipient"])) == FIRST["recipient"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "there are 0"),
        (f"{FIRST['recipient']}\n{SECOND['recipient']}", "there are 2"),
        (FIRST["identity"], "secret identity; its recipient is printed by: age-keygen -y"),
        (FIRST["identity"].lower(), "secret identity"),
        ("age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj", "not a recipient age1pq1"),
        (bech32("age1tagpq", bytes(1217)), "not a recipient age1pq1"),
        ("ssh-ed25519 AAAA", "not a recipient age1pq1"),
        (FIRST["recipient"].upper(), "not a recipient age1pq1"),
        (FIRST["recipient"][:-1], "1959 lower-case letters"),
        (FIRST["recipient"] + "q", "1959 lower-case letters"),
        (FIRST["recipient"][:-1] + "Q", "1959 lower-case letters"),
        (FIRST["recipient"][:-1] + "ü", "1959 lower-case letters"),
        (FIRST["recipient"][:60] + FIRST["recipient"][61:] + "q", "mistake: its checksum"),
        (bech32("age1pq", bytes(1215)), "1959 lower-case letters"),
        (bech32("age1pq", bytes(1217)), "1959 lower-case letters"),
        ("#" * (MAX_FILE_SIZE + 1), "too long"),
    ],
)
def test_recipients_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        recipient_of(text)
    assert FIRST["identity"][19:30].lower() not in str(caught.value).lower()


def test_a_short_form_for_tables() -> None:
    short = short_recipient(FIRST["recipient"])
    assert short == f"{FIRST['recipient'][:15]}...{FIRST['recipient'][-8:]}"
    assert len({short_recipient(keys["recipient"]) for keys in NPM}) == len(NPM)
