"""Scenarios of section 13: manifests, right and wrong."""

from __future__ import annotations

import struct
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.vector import Scenarios, Vector, bad, good

MANIFEST = 11
BLOCK = 65536
VAULT_ID = ref.fixed("vault_id", 16)
ZEROS = bytes(32)
FILE, DIRECTORY, SYMLINK, EMPTY, SPECIAL, DAMAGED = range(1, 7)


def record(
    key: bytes,
    kind: int,
    name: bytes,
    *,
    dir_id: bytes = ref.DIR_ID,
    flags: int = 0,
    epoch: int = 0,
    generation: int = 0,
    size: int = 0,
    digest: bytes = bytes(16),
    xattrs: bytes = bytes(16),
    placed: bool = True,
) -> bytes:
    """One record of the stream; the key is the place where it is empty."""
    sealed = ref.seal_name(name, dir_id)
    place = dir_id + sealed[:16] if placed else ZEROS
    rest = sealed[16:] if placed else b""
    return (
        (key or place)
        + struct.pack("<BB", kind, flags)
        + place
        + struct.pack("<IQQ", epoch, generation, size)
        + digest
        + xattrs
        + struct.pack("<H", len(rest))
        + rest
    )


def digest(data: bytes) -> bytes:
    """The keyed hash of section 13."""
    key = ref.keyed(ref.subkey("manifest"), "mandgst")
    return ref.keyed(key, "mandgst", data, 16)


def tail(count: int, skipped: int = 0) -> bytes:
    """What ends the stream."""
    return b"\xff" * 32 + bytes((255, 0)) + ZEROS + struct.pack("<IQQ", 0, count, skipped) + bytes(34)


def head(generation: int = 1, sessions: int = 7, created: int = 1_700_000_000) -> bytes:
    """What begins it."""
    return struct.pack("<Q32sQQQ", generation, ref.fixed("config mac", 32), sessions, created, 0)


def seal(stream: bytes, *, magic: bytes = b"CRYPTMAN", version: int = 1, vault_id: bytes = VAULT_ID) -> bytes:
    """A manifest of a stream, whatever it is."""
    start = magic + bytes((version,)) + bytes(7) + vault_id + ref.fixed("manifest salt", 32)
    key = ref.keyed(ref.subkey("manifest"), "manfile", start)
    pieces = [stream[at : at + BLOCK] for at in range(0, len(stream), BLOCK)]
    sealed = [
        ref.seal_small(
            key, piece, bytes((MANIFEST, 1, index == len(pieces) - 1)) + struct.pack("<5xQ", index)
        )
        for index, piece in enumerate(pieces)
    ]
    return start + b"".join(sealed)


def entries() -> list[bytes]:
    """One of each kind."""
    chunks = b"".join(struct.pack("<Q", index) + ref.fixed(f"seam {index}", 64) for index in (0, 2))
    attributes = struct.pack("<HI", 14, 3) + b"user.cryptfs.x" + b"abc"
    return sorted(
        (
            record(
                ref.FILE_ID,
                FILE,
                b"file",
                flags=1,
                epoch=2,
                generation=9,
                size=12289,
                digest=digest(chunks),
                xattrs=digest(attributes),
            ),
            record(ref.OTHER_FILE_ID, FILE, b"being written", generation=3, size=100),
            record(ref.OTHER_DIR_ID + bytes(16), DIRECTORY, b"directory"),
            record(b"", SYMLINK, b"link", digest=digest(b"text of the link\0")),
            record(b"", EMPTY, b"empty"),
            record(b"", SPECIAL, b"fifo", digest=digest(struct.pack("<IQ", 0o010000, 0))),
            record(ref.fixed("path", 32), DAMAGED, b"lost", placed=False),
        )
    )


def _stream(records: list[bytes], **fields: int) -> bytes:
    return head(**fields) + b"".join(records) + tail(len(records))


def _inputs(raw: bytes, vault_id: bytes = VAULT_ID) -> dict[str, Any]:
    return {"masterkey": ref.MASTERKEY, "vault_id": vault_id.hex(), "raw": raw}


def _shown(raw: bytes) -> dict[str, Any]:
    names = ("key", "kind", "flags", "place", "epoch", "generation", "size", "digest", "xattrs", "name")
    fixed = struct.unpack("<32sBB32sIQQ16s16sH", raw[:120])
    fields = (*fixed[:-1], raw[120:])
    return {
        name: value.hex() if isinstance(value, bytes) else value
        for name, value in zip(names, fields, strict=True)
    }


def _good(about: str, records: list[bytes]) -> Vector:
    return good(
        about,
        "read_manifest",
        _inputs(seal(_stream(records))),
        config_generation=1,
        config_mac=ref.fixed("config mac", 32),
        sessions=7,
        created=1_700_000_000,
        records=[_shown(raw) for raw in records],
        skipped=0,
    )


def _bad(about: str, raw: bytes, why: str, vault_id: bytes = VAULT_ID) -> Vector:
    return bad(about, "read_manifest", _inputs(raw, vault_id), "ManifestError", why)


def manifest_scenarios() -> Scenarios:
    """Manifests that are read, and those that are refused."""
    records = entries()
    whole = seal(_stream(records))
    many = sorted(record(ref.fixed(f"file {number}", 32), FILE, b"n" * 200) for number in range(200))
    two_blocks = seal(_stream(many))
    cut = "damaged, cut short"
    return {
        "ok": _good("One record of each kind.", records),
        "empty": _good("Of a vault without any entry.", []),
        "two-blocks": _good("A stream that is longer than a block.", many),
        "other-vault": _bad("Of another vault.", whole, "another vault", ref.fixed("other vault", 16)),
        "no-manifest": _bad("Another magic.", seal(_stream(records), magic=b"CRYPTDIR"), "not a manifest"),
        "cut-header": _bad("Cut in its header.", whole[:63], "not a manifest"),
        "version-2": _bad("Of a later version.", seal(_stream(records), version=2), "does not know"),
        "flipped-salt": _bad("The salt is changed.", ref.flip(whole, 40), cut),
        "flipped-block": _bad("A block is changed.", ref.flip(whole, -1), cut),
        "cut-to-header": _bad("Cut behind its header.", whole[:64], cut),
        "cut-at-a-block": _bad("The last block is missing.", two_blocks[: 64 + BLOCK + 40], cut),
        "blocks-exchanged": _bad(
            "Two blocks in the wrong order.",
            two_blocks[:64] + two_blocks[64 + BLOCK + 40 :] + two_blocks[64 : 64 + BLOCK + 40],
            cut,
        ),
        "disorder": _bad(
            "Records that are not in ascending order.", seal(_stream(records[::-1])), "no program writes"
        ),
        "twice": _bad("A record twice.", seal(_stream([records[0], *records])), "no program writes"),
        "wrong-count": _bad(
            "The tail counts one too many.",
            seal(head() + b"".join(records) + tail(len(records) + 1)),
            "does not end where it should",
        ),
        "more-behind-the-tail": _bad(
            "Something stands behind the tail.",
            seal(_stream(records) + b"\0"),
            "does not end where it should",
        ),
        "no-tail": _bad("The stream has no tail.", seal(head() + b"".join(records)), "ends too early"),
        "unknown-kind": _bad(
            "A kind that version 1 does not have.", seal(_stream([record(b"", 7, b"x")])), "no program writes"
        ),
        "unknown-flag": _bad(
            "A flag that version 1 does not have.",
            seal(_stream([record(b"", EMPTY, b"x", flags=2)])),
            "no program writes",
        ),
    }
