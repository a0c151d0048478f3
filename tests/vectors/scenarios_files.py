"""Scenarios of sections 2 to 4: keys, sealed small values, chunk records, file headers, whole files."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.vector import Scenarios, Vector, bad, good

CHUNK_SIZE = 4096
SHORT = b"twenty-one bytes here"
_PURPOSES = (
    *("content", "header", "hdrmac", "namemac", "namestrm"),
    *("dirs", "links", "xattrs", "journal", "config", "manifest"),
)


def key_scenarios() -> Scenarios:
    """Subkeys, file keys, a key from a passphrase."""
    subkeys = {purpose: ref.subkey(purpose).hex() for purpose in _PURPOSES}
    found: Scenarios = {
        "subkeys": good(
            "The subkeys of a masterkey, by purpose, and the dir_id of the root.",
            "subkeys",
            {"masterkey": ref.MASTERKEY},
            subkeys=subkeys,
            root_dir_id=ref.root_dir_id(),
        ),
        "passphrase": good(
            "Argon2id of a passphrase that is not ASCII, at the lowest cost that a vault may ask for.",
            "passphrase_key",
            {
                "passphrase": "blåbærgrød".encode(),
                "salt": ref.fixed("salt of slot 0", 16),
                "memory": 64 << 20,
                "passes": 3,
            },
            slot_key=ref.slot_key("blåbærgrød".encode(), ref.fixed("salt of slot 0", 16), 64 << 20, 3),
        ),
    }
    for cipher in ref.CIPHERS:
        for epoch, chunk_size in ((0, 4096), (1, 4096), (0, 16384)):
            found[f"file-key-{cipher}-epoch-{epoch}-chunk-size-{chunk_size}"] = good(
                "The key of a file's chunks depends on cipher, chunk size, epoch and file_id.",
                "file_key",
                {
                    "masterkey": ref.MASTERKEY,
                    "cipher": cipher,
                    "chunk_size": chunk_size,
                    "epoch": epoch,
                    "file_id": ref.FILE_ID,
                },
                file_key=ref.file_key(cipher, chunk_size, epoch, ref.FILE_ID),
            )
    return found


def small_scenarios() -> Scenarios:
    """Sealed small values."""
    key, aad = ref.fixed("small key", 32), b"\x05\x01and whatever the kind adds"
    sealed = ref.seal_small(key, b"a small value", aad)

    def opened(about: str, value: bytes, used_aad: bytes = aad) -> Vector:
        return bad(about, "open_small", {"key": key, "aad": used_aad, "sealed": value}, "refused", "tag")

    empty = ref.seal_small(key, b"", aad)
    return {
        "ok": good(
            "A small value.", "open_small", {"key": key, "aad": aad, "sealed": sealed}, plain=b"a small value"
        ),
        "empty": good(
            "An empty value is 40 bytes.", "open_small", {"key": key, "aad": aad, "sealed": empty}, plain=b""
        ),
        "flipped-nonce": opened("A bit of the nonce was turned over.", ref.flip(sealed, 0)),
        "flipped-ciphertext": opened("A bit of the ciphertext was turned over.", ref.flip(sealed, 24)),
        "flipped-tag": opened("A bit of the tag was turned over.", ref.flip(sealed, -1)),
        "other-kind": opened("Another kind in the AAD.", sealed, b"\x06" + aad[1:]),
        "cut": opened("The last byte is missing.", sealed[:-1]),
        "too-short": opened("39 bytes are less than nonce and tag.", sealed[:39]),
    }


def chunk_scenarios() -> Scenarios:
    """Runs of chunk records."""
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        good_ones, bad_ones = _good_runs(cipher), _bad_runs(cipher)
        found |= {f"{name}-{cipher}": vector for name, vector in (good_ones | bad_ones).items()}
    return found


def _run(cipher: str, sealed: bytes, **fields: Any) -> dict[str, Any]:
    return {
        "masterkey": ref.MASTERKEY,
        "cipher": cipher,
        "chunk_size": CHUNK_SIZE,
        "file_id": ref.FILE_ID,
        "epoch": 0,
        "first_index": 0,
        "sparse": False,
        "sealed": sealed,
    } | fields


def record(cipher: str, chunk_index: int, plain: bytes, epoch: int = 0) -> bytes:
    """A record of the file that the vectors are about."""
    key = ref.file_key(cipher, CHUNK_SIZE, epoch, ref.FILE_ID)
    return ref.seal_record(cipher, key, chunk_index, plain)


def overhead(cipher: str) -> int:
    """Nonce and tag."""
    return ref.CIPHERS[cipher][1] + ref.CIPHERS[cipher][2]


def _good_runs(cipher: str) -> Scenarios:
    whole = ref.fixed("a whole chunk", CHUNK_SIZE)
    hole = bytes(CHUNK_SIZE + overhead(cipher))
    short = record(cipher, 0, SHORT)
    second = record(cipher, 1, SHORT)
    far = record(cipher, 2**40, SHORT)
    zeros = record(cipher, 0, bytes(21))
    return {
        "short": good("One chunk that is not full.", "open_chunks", _run(cipher, short), plain=SHORT),
        "one-byte": good(
            "The smallest record.", "open_chunks", _run(cipher, record(cipher, 0, b"x")), plain=b"x"
        ),
        "whole-and-short": good(
            "A whole chunk and a short one behind it.",
            "open_chunks",
            _run(cipher, record(cipher, 0, whole) + second),
            plain=whole + SHORT,
        ),
        "far-index": good(
            "A chunk index beyond 32 bits.",
            "open_chunks",
            _run(cipher, far, first_index=2**40),
            plain=SHORT,
        ),
        "later-epoch": good(
            "A file that was truncated to zero three times.",
            "open_chunks",
            _run(cipher, record(cipher, 0, SHORT, epoch=3), epoch=3),
            plain=SHORT,
        ),
        "sealed-zeros": good(
            "Plaintext zeros in a file without holes.", "open_chunks", _run(cipher, zeros), plain=bytes(21)
        ),
        "hole": good(
            "An all-zero record in a file with SPARSE reads as zeros; a sealed chunk follows.",
            "open_chunks",
            _run(cipher, hole + second, sparse=True),
            plain=bytes(CHUNK_SIZE) + SHORT,
        ),
        "short-hole": good(
            "An all-zero record that is not full, in a file with SPARSE.",
            "open_chunks",
            _run(cipher, bytes(overhead(cipher) + 5), sparse=True),
            plain=bytes(5),
        ),
    }


def _bad_runs(cipher: str) -> Scenarios:
    short, second = record(cipher, 0, SHORT), record(cipher, 1, SHORT)
    nonce_size, extra = ref.CIPHERS[cipher][1], overhead(cipher)
    zeroed, first, other = bytes(len(short)), ref.fixed("first", CHUNK_SIZE), ref.fixed("other", CHUNK_SIZE)
    swapped = record(cipher, 1, other) + record(cipher, 0, first)

    def run(about: str, sealed: bytes, why: str = "authenticate", at: int = 0, **fields: Any) -> Vector:
        inputs = _run(cipher, sealed, **fields)
        return bad(about, "open_chunks", inputs, "ChunkError", why, chunk_index=at)

    return {
        "flipped-nonce": run("A bit of the nonce was turned over.", ref.flip(short, 0)),
        "flipped-ciphertext": run("A bit of the ciphertext was turned over.", ref.flip(short, nonce_size)),
        "flipped-tag": run("A bit of the tag was turned over.", ref.flip(short, -1)),
        "short-tag": run("The last byte of the tag is missing.", short[:-1]),
        "without-plaintext": run("Nonce and tag, and nothing between.", short[:extra], "no plaintext"),
        "below-overhead": run("Less than nonce and tag.", short[: extra - 1], "no plaintext"),
        "moved-index": run("A record moved from chunk 1 to chunk 0.", second),
        "swapped-records": run("Two records of one file in each other's place.", swapped),
        "second-flipped": run(
            "The first record is right, the second is not.",
            record(cipher, 0, first) + ref.flip(second, -1),
            at=1,
        ),
        "other-file": run("A record moved to another file.", short, file_id=ref.OTHER_FILE_ID),
        "earlier-epoch": run("A record from before a truncate to zero.", short, epoch=1),
        "zeroed": run("A zeroed record in a file without SPARSE.", zeroed, "zeroed"),
        "almost-hole": run(
            "Zero but for the last bit, in a file with SPARSE.", ref.flip(zeroed, -1), sparse=True
        ),
    }


_HEADER_DEFAULTS: dict[str, Any] = {
    "epoch": 0,
    "size": 0,
    "size_min": 0,
    "generation": 0,
    "flags": 0,
    "journal_id": bytes(16),
    "journal_floor": 0,
}


def header_scenarios() -> Scenarios:
    """File headers."""
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        states = {
            "new": ("The header of a file that is being written.", {}),
            "clean": (
                "A file that was closed.",
                {"size": 70000, "size_min": 70000, "generation": 4, "flags": 1},
            ),
            "sparse": ("Open for writing, with holes.", {"size_min": 12288, "generation": 5, "flags": 2}),
            "clean-sparse": ("Closed, with holes.", {"size": 2**40, "size_min": 2**40, "flags": 3}),
            "void": ("Between the steps of a truncate to zero.", {"epoch": 7, "generation": 8, "flags": 4}),
            "largest": (
                "Every field at its limit.",
                {
                    "epoch": 2**32 - 1,
                    "size": 2**64 - 1,
                    "size_min": 2**64 - 1,
                    "generation": 2**64 - 1,
                    "journal_id": b"\xff" * 16,
                    "journal_floor": 2**64 - 1,
                },
            ),
            "journalled": (
                "Being written in a session with a journal, of which records from number 12 on may apply.",
                {"size_min": 70000, "generation": 6, "journal_id": ref.JOURNAL_ID, "journal_floor": 12},
            ),
            "clean-unsynced": (
                "Closed, and of no more than 4096 bytes is it known that they are on disk.",
                {
                    "size": 70000,
                    "size_min": 4096,
                    "generation": 6,
                    "flags": 1,
                    "journal_id": ref.JOURNAL_ID,
                    "journal_floor": 1,
                },
            ),
        }
        for name, (about, fields) in states.items():
            raw = ref.pack_header(cipher, CHUNK_SIZE, **fields)  # type: ignore[arg-type]
            results: dict[str, Any] = _HEADER_DEFAULTS | fields  # type: ignore[operator]
            found[f"{name}-{cipher}"] = good(
                about, "open_header", _header(cipher, raw), file_id=ref.FILE_ID, **results
            )
    for name, flags in (("journalled", 0), ("clean-unsynced", ref.CLEAN)):
        fields = {"size": 70000, "size_min": 4096, "generation": 6, "flags": flags}
        named = fields | {"journal_id": ref.JOURNAL_ID, "journal_floor": 1}
        raw = ref.pack_header("aegis-256", CHUNK_SIZE, **(named | {"flags": flags | ref.HOST}))  # type: ignore[arg-type]
        found[f"{name}-host"] = good(
            "It names the journal of a machine that has its own.",
            "open_header",
            _header("aegis-256", raw) | {"machine_state": True},
            file_id=ref.FILE_ID,
            **(_HEADER_DEFAULTS | named),
        )
    return found | _bad_headers()


def _header(cipher: str, raw: bytes) -> dict[str, Any]:
    return {"masterkey": ref.MASTERKEY, "cipher": cipher, "chunk_size": CHUNK_SIZE, "raw": raw}


def _bad_headers() -> Scenarios:
    cipher = "aegis-256"
    right = ref.pack_header(cipher, CHUNK_SIZE, size=9, size_min=9, flags=ref.CLEAN)

    def header(about: str, raw: bytes, why: str = "does not authenticate", **fields: Any) -> Vector:
        return bad(about, "open_header", _header(cipher, raw) | fields, "HeaderError", why)

    def packed(**fields: Any) -> bytes:
        return ref.pack_header(cipher, CHUNK_SIZE, **fields)

    named = packed(flags=ref.HOST, journal_id=ref.JOURNAL_ID)
    hosts = {
        "host-in-old-vault": header(
            "HOST in a vault without machine-state, as with an older config.", named, "does not know"
        ),
        "host-without-journal": header(
            "HOST, and no journal that it could be about.",
            packed(flags=ref.HOST),
            "does not know",
            machine_state=True,
        ),
    }
    other_prefix = (
        bytes((ref.HEADER, 1)) + ref.pack_header(cipher, CHUNK_SIZE, file_id=ref.OTHER_FILE_ID)[:48]
    )
    wrong = {
        "flipped-magic": (0, "magic"),
        "flipped-version": (7, "version"),
        "flipped-cipher": (8, "cipher id"),
        "flipped-epoch": (12, "epoch"),
        "flipped-file-id": (16, "file_id"),
        "flipped-nonce": (48, "nonce"),
        "flipped-state": (72, "sealed state"),
        "flipped-state-tag": (223, "tag of the sealed state"),
        "flipped-mac": (255, "mac"),
    }
    found = {
        name: header(f"A bit of the {what} was turned over.", ref.flip(right, at))
        for name, (at, what) in wrong.items()
    }
    return (
        found
        | hosts
        | {
            "cut": header("The last byte is missing.", right[:-1], "255 bytes"),
            "surplus": header("One byte too many.", right + b"\0", "257 bytes"),
            "zeroed": header("256 zeros.", bytes(256)),
            "other-vault": header("A header under another masterkey.", packed(masterkey=bytes(32))),
            "valid-mac-other-magic": header(
                "Another magic, under a valid mac.", packed(magic=b"CRYPTFX"), "know"
            ),
            "valid-mac-later-version": header(
                "Version 2, under a valid mac.", packed(version=2), "version 2"
            ),
            "valid-mac-zeros-set": header("Bytes 10 and 11 are not zero.", packed(zeros=1), "know"),
            "valid-mac-unknown-flag": header("Bit 4 of the flags.", packed(flags=16), "know"),
            "valid-mac-reserved-set": header(
                "The last reserved byte is not zero.", packed(reserved=bytes(83) + b"\1"), "know"
            ),
            "valid-mac-floor-without-journal": header(
                "A journal_floor, and no journal_id.", packed(journal_floor=1), "know"
            ),
            "valid-mac-state-of-other-file": header(
                "The sealed state of another header, under a valid mac.",
                packed(sealed_for=other_prefix),
                "state",
            ),
            "other-cipher-than-vault": header(
                "A file with AEGIS-256 in a vault with XChaCha20.",
                right,
                "cipher",
                cipher="xchacha20-poly1305",
            ),
            "other-chunk-size-than-vault": header(
                "Chunks of 4 KiB in a vault with 8.", right, "chunk size", chunk_size=8192
            ),
        }
    )
