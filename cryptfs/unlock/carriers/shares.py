"""Shares: SLIP-39 of a recovery secret, k of n, in one group and without a passphrase.

A wrong SLIP-39 passphrase gives another secret without an error, so none is used. The package draws its own
randomness, and says that it is not hardened against somebody who measures the machine: docs/THREAT_MODEL.md.
Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cryptfs.core.keys import KEY_SIZE
from cryptfs.core.slots.recovery import MAX_SHARES, MIN_SHARES
from cryptfs.errors import MistypedWordsError
from cryptfs.storage.libc import wipe_text
from cryptfs.unlock.carriers.words import known_words

if TYPE_CHECKING:
    from shamir_mnemonic.share import Share

WORDS_OF_SHARE = 33  # of a secret of 32 bytes
_MAX_EXPONENT = 5  # of the work that combining takes: 10,000 rounds at 0; other programs' default is 1


def split(secret: bytes, needed: int, shares: int) -> list[str]:
    """The texts of all shares of a recovery secret of 32 bytes.

    Raises: ValueError: needed and shares are not 2 <= k <= n <= 16.
    """
    if len(secret) != KEY_SIZE or not MIN_SHARES <= needed <= shares <= MAX_SHARES:
        raise ValueError(f"shares are k of n, with {MIN_SHARES} <= k <= n <= {MAX_SHARES}")
    from shamir_mnemonic import generate_mnemonics

    groups: list[list[str]] = generate_mnemonics(1, [(needed, shares)], secret, iteration_exponent=0)
    return groups[0]


def share_words(text: bytes) -> list[str]:
    """The words of a share in a text, however many. Raises: MistypedWordsError: one is unknown."""
    from shamir_mnemonic.wordlist import WORDLIST

    return known_words(text, WORDLIST, "the share")


def parse_share(text: bytes, number: int = 1) -> Share:
    """One share, whose checksum is right.

    Args:   number: of this share among those offered, for messages.
    Raises: MistypedWordsError: it is not a share of a vault.
    """
    from shamir_mnemonic import MnemonicError, Share
    from shamir_mnemonic.wordlist import WORDLIST

    what = f"share {number}"
    words = known_words(text, WORDLIST, what)
    if len(words) != WORDS_OF_SHARE:
        raise MistypedWordsError(f"{what}: a share has {WORDS_OF_SHARE} words; this one has {len(words)}")
    spelled = " ".join(words)
    try:
        share = Share.from_mnemonic(spelled)
    except MnemonicError:
        raise MistypedWordsError(
            f"{what}: one of its words is wrong, or two are exchanged: the checksum does not fit; compare "
            "them with what was written down"
        ) from None
    finally:
        wipe_text(spelled)
    if (
        share.group_count != 1
        or share.member_threshold < MIN_SHARES
        or share.iteration_exponent > _MAX_EXPONENT
    ):
        raise MistypedWordsError(f"{what} belongs to another kind of backup, not to a vault")
    return share


def combine(texts: Sequence[bytes]) -> bytes:
    """The 32 bytes of the recovery secret; more shares than needed may be given, and one twice.

    Raises: MistypedWordsError: one is not a share, they belong to different sets, or they are too few.
    """
    from shamir_mnemonic import MnemonicError
    from shamir_mnemonic.shamir import ShareGroup, recover_ems

    found: dict[int, Share] = {}
    for number, text in enumerate(texts, 1):
        share = parse_share(text, number)
        first = found.setdefault(share.index, share)
        if share.group_parameters() != next(iter(found.values())).group_parameters():
            raise MistypedWordsError(f"share {number} belongs to another set of shares than share 1")
        if first != share:
            raise MistypedWordsError(f"share {number} contradicts another share of the same number")
    needed = next(iter(found.values())).member_threshold if found else MIN_SHARES
    if len(found) < needed:
        have = f"{len(found)} of them {'is' if len(found) == 1 else 'are'} here"
        raise MistypedWordsError(f"it takes {needed} different shares; {have}")
    group = ShareGroup()
    for share in list(found.values())[:needed]:
        group.add(share)
    try:
        secret: bytes = recover_ems({0: group}).decrypt(b"")
    except MnemonicError:
        raise MistypedWordsError("the shares do not fit together: one is of another set") from None
    if len(secret) != KEY_SIZE:
        raise MistypedWordsError("the shares belong to another kind of backup, not to a vault")
    return secret
