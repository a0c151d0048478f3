"""Scenarios of section 4 about whole backing files: what their length is, and what is left of it."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_files import CHUNK_SIZE, SHORT, overhead, record
from tests.vectors.vector import Scenarios, Vector, bad, good

_CIPHER = "xchacha20-poly1305"  # the smaller records
_WHOLE = ref.fixed("a whole chunk", CHUNK_SIZE)
_SIZE = CHUNK_SIZE + len(SHORT)


def _file(raw: bytes, cipher: str = _CIPHER) -> dict[str, Any]:
    return {"masterkey": ref.MASTERKEY, "cipher": cipher, "chunk_size": CHUNK_SIZE, "raw": raw}


def _header(cipher: str = _CIPHER, **fields: Any) -> bytes:
    return ref.pack_header(cipher, CHUNK_SIZE, **fields)


def _reads(about: str, raw: bytes, plain: bytes) -> Vector:
    return good(about, "read_file", _file(raw), plain=plain)


def _fails(about: str, raw: bytes, outcome: str, why: str, **more: Any) -> Vector:
    return bad(about, "read_file", _file(raw), outcome, why, **more)


def file_scenarios() -> Scenarios:
    """Whole files."""
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        raw = _header(cipher, size=_SIZE, size_min=_SIZE, generation=1, flags=ref.CLEAN)
        raw += record(cipher, 0, _WHOLE) + record(cipher, 1, SHORT)
        found[f"two-chunks-{cipher}"] = good(
            "A closed file of one whole chunk and a short one.",
            "read_file",
            _file(raw, cipher),
            plain=_WHOLE + SHORT,
        )
    return found | _clean() | _unclean() | _torn()


def _clean() -> Scenarios:
    clean: dict[str, Any] = {"generation": 1, "flags": ref.CLEAN}
    first, second = record(_CIPHER, 0, _WHOLE), record(_CIPHER, 1, SHORT)
    whole = _header(size=_SIZE, size_min=_SIZE, **clean)
    one = _header(size=CHUNK_SIZE, size_min=CHUNK_SIZE, **clean)
    short = _header(size=len(SHORT), size_min=len(SHORT), **clean) + record(_CIPHER, 0, SHORT)
    hole = bytes(CHUNK_SIZE + overhead(_CIPHER))
    sparse = _header(size=_SIZE, size_min=_SIZE, generation=1, flags=ref.CLEAN | ref.SPARSE)
    return {
        "empty": _reads("A file that was never written: no header, no key, no byte.", b"", b""),
        "header-alone": _reads("Written once, now empty, and closed.", _header(**clean), b""),
        "one-short-chunk": _reads("A closed file of one short chunk.", short, SHORT),
        "hole-and-chunk": _reads(
            "A hole and a short chunk.", sparse + hole + second, bytes(CHUNK_SIZE) + SHORT
        ),
        "clean-surplus-record": _reads("An authentic record behind the end.", one + first + second, _WHOLE),
        "clean-surplus-bytes": _reads("Torn bytes behind the end.", short + b"\xff" * 7, SHORT),
        "clean-surplus-of-empty": _reads(
            "A record of an earlier epoch behind a header that says 0.",
            _header(epoch=1, **clean) + record(_CIPHER, 0, SHORT),
            b"",
        ),
        "clean-empty-over-content": _reads(
            "A record of its own epoch behind a header that says 0: the content counts.",
            _header(**clean) + record(_CIPHER, 0, SHORT),
            SHORT,
        ),
        "clean-cut-at-record": _fails("The second record was cut off.", whole + first, "HeaderError", "cut"),
        "clean-cut-in-record": _fails("The last byte was cut off.", short[:-1], "HeaderError", "cut"),
        "clean-cut-to-header": _fails("Every record was cut off.", whole, "HeaderError", "cut"),
        "cut-in-header": _fails("255 bytes.", whole[:-1], "HeaderError", "255 bytes"),
        "clean-zeroed-record": _fails(
            "The first record was zeroed; the file has no holes.",
            whole + hole + second,
            "ChunkError",
            "zeroed",
            chunk_index=0,
        ),
    }


def _unclean() -> Scenarios:
    first, second = record(_CIPHER, 0, _WHOLE), record(_CIPHER, 1, SHORT)
    leftover = record(_CIPHER, 0, SHORT)
    void = _header(epoch=1, generation=2, flags=ref.VOID)
    grown = _header(size_min=len(SHORT), generation=2)
    return {
        "void-with-leftovers": _reads("A truncate to zero, broken off before the cut.", void + leftover, b""),
        "void-over-content": _reads(
            "VOID, but a record of its own epoch behind it, and a torn one: the content counts.",
            _header(generation=2, flags=ref.VOID) + first + second[:-1],
            _WHOLE,
        ),
        "void-cut": _reads("A truncate to zero, broken off before the header was closed.", void, b""),
        "open-grown": _reads("Not CLEAN, and longer than size_min.", grown + first + second, _WHOLE + SHORT),
        "open-at-size-min": _reads("Not CLEAN, and just size_min.", grown + leftover, SHORT),
        "open-cut": _fails(
            "Not CLEAN, and shorter than size_min.",
            _header(size_min=CHUNK_SIZE + 1) + first,
            "HeaderError",
            "cut",
        ),
        "open-ignores-size": _reads(
            "Not CLEAN: the field `size` means nothing.", _header(size=9) + leftover, SHORT
        ),
    }


def _torn() -> Scenarios:
    first, second = record(_CIPHER, 0, _WHOLE), record(_CIPHER, 1, SHORT)
    extra = overhead(_CIPHER)
    shrunk = record(_CIPHER, 0, SHORT[:10])
    leftover = record(_CIPHER, 0, SHORT)[len(shrunk) :]
    at_first = _header(size_min=CHUNK_SIZE, generation=2)
    return {
        "torn-tail": _reads(
            "A tail too short to be a record is cut.", at_first + first + second[:extra], _WHOLE
        ),
        "torn-record-behind-size-min": _reads(
            "The last record was not written whole; it lies behind size_min, so it is dropped.",
            at_first + first + second[:-1],
            _WHOLE,
        ),
        "torn-records-behind-size-min": _reads(
            "Two such records: both are dropped, and nothing is left.",
            _header(generation=2) + ref.flip(first, 99) + second[:-1],
            b"",
        ),
        "torn-shrink": _reads(
            "A shrink to 10 bytes: the record was rewritten, the rest of the old one not yet cut.",
            _header(size_min=10, generation=2) + shrunk + leftover,
            SHORT[:10],
        ),
        "torn-below-size-min": _fails(
            "The record holds bytes below size_min and does not authenticate at either length.",
            _header(size_min=10, generation=2) + ref.flip(record(_CIPHER, 0, SHORT), 30),
            "ChunkError",
            "authenticate",
            chunk_index=0,
        ),
    }
