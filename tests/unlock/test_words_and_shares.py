"""Recovery words and shares: as people write them down and type them."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shamir_mnemonic import Share

from cryptfs.errors import MistypedWordsError
from cryptfs.storage.libc import wipe_text
from cryptfs.unlock.carriers.shares import WORDS_OF_SHARE, combine, parse_share, split
from cryptfs.unlock.carriers.words import MAX_TEXT_SIZE, WORD_COUNT, secret_of_words, words_of
from tests.vectors.scenarios_recovery import SHARES, SHARES_SECRET, WORDS, WORDS_SECRET

WORD_LIST = WORDS.split()


@given(st.binary(min_size=32, max_size=32))
def test_words_are_the_secret(secret: bytes) -> None:
    words = words_of(secret)
    assert len(words.split()) == WORD_COUNT
    assert secret_of_words(words.encode()) == secret


@pytest.mark.parametrize(
    "text",
    [
        WORDS.upper(),
        f"  {WORDS}\r\n",
        "\n".join(f"{number:2}. {word}" for number, word in enumerate(WORD_LIST, 1)),
        "\t".join(f"{number}) {word}," for number, word in enumerate(WORD_LIST, 1)),
        " ".join(word[:4] for word in WORD_LIST),
        "\ufeff" + WORDS.replace(" ", "\u00a0"),
        WORDS.replace("able", "a\u200bble"),
    ],
)
def test_spellings(text: str) -> None:
    assert secret_of_words(text.encode()) == WORDS_SECRET


def test_an_unknown_word_is_told_by_its_number_and_the_closest_one() -> None:
    typed = WORDS.replace("museum", "musuem")
    with pytest.raises(MistypedWordsError, match=r"word 3 is not in the list") as raised:
        secret_of_words(typed.encode())
    assert "musuem" not in str(raised.value)  # a message may go to a log
    assert raised.value.hint == "Word 3 was read as 'musuem'; perhaps it is 'museum'."


def test_a_word_like_no_other_has_no_suggestion() -> None:
    with pytest.raises(MistypedWordsError) as raised:
        secret_of_words(WORDS.replace("museum", "qqqqqqqq" * 9).encode())
    assert raised.value.hint == f"Word 3 was read as '{'q' * 20}'."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "these are 0"),
        (" ".join(WORD_LIST[:12]).encode(), "these are 12"),
        ((WORDS + " able").encode(), "these are 25"),
        (" ".join(reversed(WORD_LIST)).encode(), "checksum"),
        (b"\xff\xfe" + WORDS.encode(), "not text in UTF-8"),
        (b"able " * MAX_TEXT_SIZE, f"more than {MAX_TEXT_SIZE}"),
        (("able\u0301" + WORDS).encode(), "word 1"),
    ],
)
def test_what_is_wrong(text: bytes, said: str) -> None:
    with pytest.raises(MistypedWordsError, match=said):
        secret_of_words(text)


def test_one_word_replaced_is_found_nearly_always() -> None:
    """8 of the 264 bits are the checksum."""
    wrong = 0
    for number in range(WORD_COUNT):
        for other in ("zoo", "abandon", "lobster"):
            words = [*WORD_LIST[:number], other, *WORD_LIST[number + 1 :]]
            try:
                wrong += secret_of_words(" ".join(words).encode()) == WORDS_SECRET and words != WORD_LIST
            except MistypedWordsError:
                continue
    assert not wrong


@pytest.mark.parametrize(("needed", "shares"), [(2, 2), (2, 3), (3, 5), (16, 16)])
def test_any_k_of_n(needed: int, shares: int) -> None:
    secret = os.urandom(32)
    texts = [text.encode() for text in split(secret, needed, shares)]
    assert len(texts) == shares
    assert {len(text.split()) for text in texts} == {WORDS_OF_SHARE}
    for chosen in itertools.islice(itertools.combinations(texts, needed), 20):
        assert combine(chosen[::-1]) == secret
    assert combine([*texts, texts[0]]) == secret
    with pytest.raises(MistypedWordsError, match=f"it takes {needed} different shares"):
        combine(texts[: needed - 1] * 2)


def test_two_sets_for_one_secret_do_not_mix() -> None:
    secret = os.urandom(32)
    first, second = ([text.encode() for text in split(secret, 2, 2)] for _ in range(2))
    with pytest.raises(MistypedWordsError, match="share 2 belongs to another set"):
        combine([first[0], second[1]])


@pytest.mark.parametrize(("needed", "shares"), [(1, 1), (1, 3), (3, 2), (2, 17), (0, 0)])
def test_numbers_of_shares(needed: int, shares: int) -> None:
    with pytest.raises(ValueError, match="k of n"):
        split(bytes(32), needed, shares)


def other_backup(**options: int) -> list[bytes]:
    from shamir_mnemonic import generate_mnemonics

    groups = options.pop("groups", 1)
    made = generate_mnemonics(groups, [(2, 2)] * groups, SHARES_SECRET, **options)
    return [text.encode() for group in made for text in group]


def test_shares_of_other_programs_that_have_the_same_secret() -> None:
    assert combine(other_backup(iteration_exponent=1)) == SHARES_SECRET
    assert combine(other_backup(iteration_exponent=2, extendable=False)) == SHARES_SECRET


@pytest.mark.parametrize("options", [{"groups": 2}, {"iteration_exponent": 9}])
def test_shares_that_cost_too_much_or_are_in_groups(options: dict[str, int]) -> None:
    texts = other_backup(iteration_exponent=0, groups=2) if "groups" in options else None
    if texts is None:
        from shamir_mnemonic import EncryptedMasterSecret, split_ems

        sealed = EncryptedMasterSecret(1, True, options["iteration_exponent"], bytes(32))
        texts = [share.mnemonic().encode() for share in split_ems(1, [(2, 2)], sealed)[0]]
    with pytest.raises(MistypedWordsError, match="another kind of backup"):
        combine(texts)


def test_a_shorter_secret_is_none_of_a_vault() -> None:
    from shamir_mnemonic import generate_mnemonics

    texts = generate_mnemonics(1, [(2, 2)], bytes(16), iteration_exponent=0)[0]
    with pytest.raises(MistypedWordsError, match="33 words; this one has 20"):
        combine([text.encode() for text in texts])


def test_a_mistyped_share_is_told_by_its_number() -> None:
    typed = SHARES[1].replace("cylinder", "cilinder")
    with pytest.raises(MistypedWordsError, match=r"share 2: word 11 is not in the list") as raised:
        combine([SHARES[0].encode(), typed.encode()])
    assert raised.value.hint.endswith("perhaps it is 'cylinder'.")


def test_the_text_of_a_share_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put together for the package, and what was decoded before that, is overwritten afterwards."""
    text = split(bytes(range(32)), 2, 3)[0]
    seen: list[str] = []
    real = Share.from_mnemonic

    def spy(mnemonic: str) -> Share:
        seen.append(mnemonic)
        return real(mnemonic)

    monkeypatch.setattr(Share, "from_mnemonic", spy)
    parse_share(text.encode())
    with pytest.raises(MistypedWordsError):
        parse_share(" ".join(reversed(text.split())).encode())
    assert [set(each) for each in seen] == [{"\0"}, {"\0"}]


def test_wipe_text() -> None:
    """One letter, of which Python has only one, and texts that are not ASCII stay."""
    for text in ("two words", "x", "", "not only ASCII: \xe4"):
        made = "".join([text[:1], text[1:]])
        wipe_text(made)
        assert made == ("\0" * 9 if text == "two words" else text)
