"""Scenarios of section 9: the recovery record, words and shares.

Words and shares are written down here: shares have random parts, so vectors go one way, opening. Three sets
of words are published with BIP-39.
"""

from __future__ import annotations

import struct
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.vector import Scenarios, Vector, bad, good

FEATURES = ["bound-dirs", "machine-state", "slots"]
VAULT_ID = ref.fixed("vault_id", 16)
WORDS_SECRET = ref.fixed("the secret in words", 32)
WORDS = (
    "vicious inmate museum there wire hood sphere mirror media able scrap coyote manage broccoli term unfair "
    "armed lobster love salmon bottom ranch address member"
)
OTHER_WORDS = (
    "orchard grid harbor coffee buzz gloom mom screen truck immune satoshi prison rifle cart later horn desk "
    "lock phone inform clinic drop few hotel"
)
SHARES_SECRET = ref.fixed("the secret in shares", 32)
SHARES = [
    "diminish favorite academic acid aquatic pencil airline grasp senior bumpy venture diet junk stick jump "
    "element prayer warmth civil emerald silent infant switch math dismiss center royal hand umbrella skin "
    "elevator preach cleanup",
    "diminish favorite academic agency adjust alpha tracks breathe pitch tracks cylinder shaft endorse "
    "recover ladle realize reaction alive unknown filter grief easel exotic health lift anatomy dining prize "
    "makeup acquire flea evening satisfy",
    "diminish favorite academic always actress grief subject upstairs anatomy penalty family slim parcel "
    "package indicate scatter lecture leader painting anxiety loud check taught cowboy undergo veteran "
    "destroy theory miracle favorite goat stay result",
]
OTHER_SHARE = (
    "frozen spend academic agency aunt frost check rapids club mandate amount cubic carve username station "
    "black juice browser payroll pitch license smith crush item branch trash diagnose smell lend visitor "
    "object drink jewelry"
)
_WORDS_ID, _SHARES_ID = ref.fixed("recovery_id of words", 16), ref.fixed("recovery_id of shares", 16)
_OF_WORDS = (_WORDS_ID, (ref.WORDS, 0, 0), WORDS_SECRET)
_OF_SHARES = (_SHARES_ID, (ref.SHARES, 2, 3), SHARES_SECRET)
_BOTH = [_OF_WORDS, _OF_SHARES]
_OTHER_MASTERKEY = ref.fixed("an older masterkey", 32)
_HEAD, _ENTRY = 32, 200


def _record(**changes: Any) -> bytes:
    """A good record with words and 2-of-3 shares, or with something changed."""
    secrets = changes.pop("secrets", _BOTH)
    body = changes.pop("body", None) or ref.recovery_body(FEATURES)
    return ref.recovery_record(secrets, body, changes.pop("vault_id", VAULT_ID), **changes)


def _inputs(raw: bytes, **offer: Any) -> dict[str, Any]:
    return {"raw": raw, "vault_id": VAULT_ID} | offer


def _opens(about: str, raw: bytes, recovery_id: bytes, offer: dict[str, Any], **results: Any) -> Vector:
    expected = {
        "recovery_id": recovery_id,
        "masterkey": ref.MASTERKEY,
        "old_masterkey": None,
        "cipher_id": 1,
        "log2_chunk_size": 14,
        "config_version": 2,
        "features": FEATURES,
        "generation": 1,
    }
    return good(about, "open_recovery", _inputs(raw, **offer), **expected | results)


def recovery_scenarios() -> Scenarios:
    """Records, right and wrong, and words and shares."""
    old = ref.recovery_body(FEATURES, old=_OTHER_MASTERKEY, generation=9)
    first = ref.recovery_body([], cipher="xchacha20-poly1305", chunk_size=4096, config_version=1)
    eight = [(ref.fixed(f"id {n}", 16), (ref.WORDS, 0, 0), ref.fixed(f"secret {n}", 32)) for n in range(7)]
    by_words, by_shares = {"words": WORDS}, {"shares": SHARES[:2]}
    return (
        {
            "words": _opens("Words open the record.", _record(), _WORDS_ID, by_words),
            "shares": _opens("Two of three shares open it.", _record(), _SHARES_ID, by_shares),
            "other-shares": _opens("Two others.", _record(), _SHARES_ID, {"shares": SHARES[1:]}),
            "all-shares": _opens("All three.", _record(), _SHARES_ID, {"shares": SHARES}),
            "words-alone": _opens("One secret.", _record(secrets=[_OF_WORDS]), _WORDS_ID, by_words),
            "eight-secrets": _opens(
                "As many as can be.", _record(secrets=[*eight, _OF_WORDS]), _WORDS_ID, by_words
            ),
            "version-1": _opens(
                "Of a vault without features.",
                _record(body=first),
                _WORDS_ID,
                by_words,
                cipher_id=2,
                log2_chunk_size=12,
                config_version=1,
                features=[],
            ),
            "old-masterkey": _opens(
                "While a change of the masterkey is under way.",
                _record(body=old),
                _WORDS_ID,
                by_words,
                old_masterkey=_OTHER_MASTERKEY,
                generation=9,
            ),
            "sealed-again": _opens(
                "The same secrets, sealed for another generation.",
                _record(body=ref.recovery_body(FEATURES, generation=7)),
                _WORDS_ID,
                by_words,
                generation=7,
            ),
            "masterkey": good(
                "A holder of the masterkey has all secrets.",
                "open_recovery_by_masterkey",
                _inputs(_record(), masterkey=ref.MASTERKEY),
                secrets=[WORDS_SECRET.hex(), SHARES_SECRET.hex()],
            ),
            "older-masterkey": bad(
                "Of another masterkey.",
                "open_recovery_by_masterkey",
                _inputs(_record(), masterkey=_OTHER_MASTERKEY),
                "RecoveryRecordError",
                "another masterkey",
            ),
        }
        | _refusals()
        | _spellings()
    )


def _refused(about: str, raw: bytes, why: str, outcome: str = "RecoveryRecordError", **offer: Any) -> Vector:
    return bad(about, "open_recovery", _inputs(raw, **(offer or {"words": WORDS})), outcome, why)


def _refusals() -> Scenarios:
    raw, damaged, changed = _record(), "is damaged", "was changed"
    entry = {"id": 0, "kind": 16, "commitment": 24, "secret": 60, "record-key": 140}
    found = {
        f"{name}-flipped": bad(
            f"A bit of the first entry's {name} was turned over.",
            "open_recovery_by_masterkey" if name == "secret" else "open_recovery",
            _inputs(ref.flip(raw, _HEAD + at))
            | ({"masterkey": ref.MASTERKEY} if name == "secret" else {"words": WORDS}),
            "WrongPassphraseError" if name == "commitment" else "RecoveryRecordError",
            {"commitment": "not those", "kind": damaged}.get(name, changed),
        )
        for name, at in entry.items()
    }
    swapped = raw[:_HEAD] + raw[_HEAD + _ENTRY : _HEAD + 2 * _ENTRY] + raw[_HEAD : _HEAD + _ENTRY]
    swapped += raw[_HEAD + 2 * _ENTRY :]
    twice = _record(secrets=[_OF_WORDS, _OF_WORDS])
    numbers = {
        "one-of-three": (2, 1, 3),
        "three-of-two": (2, 3, 2),
        "of-17": (2, 2, 17),
        "words-of-2": (1, 2, 2),
    }
    found |= {
        name: _refused(
            f"Impossible numbers: {name}.", _record(secrets=[(_WORDS_ID, three, WORDS_SECRET)]), damaged
        )
        for name, three in numbers.items()
    }
    too_long = ref.recovery_body([f"{n:032}" for n in range(123)])
    bodies = {
        "feature-in-capitals": ref.recovery_body(["SLOTS"]),
        "feature-twice": ref.recovery_body(["slots", "slots"]),
        "features-out-of-order": ref.recovery_body(["slots", "bound-dirs"]),
        "feature-too-long": ref.recovery_body(["x" * 33]),
        "feature-empty": ref.recovery_body([""]),
        "features-too-few": ref.recovery_body(["slots"], count=2),
        "features-too-many": ref.recovery_body(["slots"], count=0),
        "body-zeros": ref.recovery_body(FEATURES, zeros=b"\0\0\0\1"),
        "body-too-long": too_long + struct.pack("B", 0),
    }
    found |= {
        name: _refused(f"A body: {name}.", _record(body=body), damaged) for name, body in bodies.items()
    }
    return found | {
        "empty": _refused("Nothing at all.", b"", damaged),
        "cut": _refused("The last byte is missing.", raw[:-1], changed),
        "cut-below-a-body": _refused("No room for a body.", raw[: _HEAD + 2 * _ENTRY + 119], damaged),
        "longer": _refused("A byte more.", raw + b"\0", changed),
        "much-longer": _refused("More than a record can have.", raw + bytes(8192), damaged),
        "magic": _refused("Another magic.", _record(magic=b"CRYPTREK"), damaged),
        "later-version": _refused(
            "A later version.", _record(version=2), "version 2", "UnsupportedFormatError"
        ),
        "no-secret": _refused("No secret.", _record(count=0), damaged),
        "count-too-high": _refused("More secrets than there are.", _record(count=3), damaged),
        "nine-secrets": _refused(
            "One too many.",
            _record(
                secrets=[(ref.fixed(f"id {n}", 16), (1, 0, 0), ref.fixed(f"s {n}", 32)) for n in range(9)]
            ),
            damaged,
        ),
        "head-zeros": _refused("A byte in the zeros of the head.", _record(zeros=bytes(5) + b"\1"), damaged),
        "entry-zeros": _refused("In those of an entry.", _record(entry_zeros=bytes(4) + b"\1"), damaged),
        "id-twice": _refused("One recovery_id twice.", twice, damaged),
        "entries-exchanged": _refused("The entries exchanged.", swapped, changed),
        "of-another-vault": _refused("Of another vault.", _record(vault_id=bytes(16)), "another vault"),
        "vault-id-replaced": _refused(
            "Another vault's id was put in.",
            _record(vault_id=bytes(16))[:16] + VAULT_ID + _record(vault_id=bytes(16))[32:],
            changed,
        ),
        "body-flipped": _refused("A bit of the body was turned over.", ref.flip(raw, -1), changed),
        "body-of-another": _refused(
            "The body of another sealing.",
            raw[: _HEAD + 2 * _ENTRY] + _record(body=ref.recovery_body(FEATURES, generation=2))[432:],
            changed,
        ),
        "other-words": _refused(
            "Other words.", raw, "not those of this vault", "WrongPassphraseError", words=OTHER_WORDS
        ),
    }


def _spellings() -> Scenarios:
    """Words and shares as people write them, and slips of the pen."""
    words = WORDS.split()
    numbered = "\n".join(f"{number:>2}. {word.capitalize()}" for number, word in enumerate(words, 1))
    short = " ".join(word[:4] for word in words)
    wide = "".join(chr(ord(each) + 0xFEE0) if each != " " else "\u3000" for each in WORDS)
    published = {
        "published-00": (bytes(32), "abandon " * 23 + "art"),
        "published-7f": (b"\x7f" * 32, "legal winner thank year wave sausage worth useful " * 2
                         + "legal winner thank year wave sausage worth title"),
        "published-ff": (b"\xff" * 32, "zoo " * 23 + "vote"),
    }  # fmt: skip
    found = {
        name: good("Published with BIP-39.", "read_words", {"words": text}, secret=secret)
        for name, (secret, text) in published.items()
    }
    good_spellings = {
        "numbered": numbered,
        "short": short,
        "wide": wide,
        "capitals": "\ufeff" + WORDS.upper(),
    }
    found |= {
        f"words-{name}": good(f"Words: {name}.", "read_words", {"words": text}, secret=WORDS_SECRET)
        for name, text in good_spellings.items()
    }
    exchanged = " ".join([words[1], words[0], *words[2:]])
    shares = {
        "share-missing": (SHARES[:1], "it takes 2 different shares"),
        "share-twice": ([SHARES[0], SHARES[0]], "it takes 2 different shares"),
        "share-of-another-set": ([SHARES[0], OTHER_SHARE], "another set"),
        "share-cut": ([SHARES[0], SHARES[1].rpartition(" ")[0]], "32"),
        "share-checksum": ([SHARES[0], SHARES[1].replace("agency", "always", 1)], "checksum"),
        "share-unknown-word": ([SHARES[0], SHARES[1].replace("agency", "agencies", 1)], "share 2: word 4"),
    }
    bad_words = {
        "words-23": (" ".join(words[:-1]), "these are 23"),
        "words-exchanged": (exchanged, "checksum"),
        "words-unknown": (WORDS.replace("museum", "musuem"), "word 3"),
        "words-none": ("", "these are 0"),
    }
    wrong = "MistypedWordsError"
    found |= {
        name: bad(name, "read_words", {"words": text}, wrong, why) for name, (text, why) in bad_words.items()
    }
    return (
        found
        | {
            name: bad(name, "read_shares", {"shares": texts}, wrong, why)
            for name, (texts, why) in shares.items()
        }
        | {"shares-read": good("Shares.", "read_shares", {"shares": SHARES}, secret=SHARES_SECRET)}
    )
