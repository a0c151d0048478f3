"""Fuzzing manifests: as files that somebody hands us, and as streams that authenticate."""

from __future__ import annotations

from collections.abc import Callable

from cryptfs.core.format.manifest import (
    HEADER_SIZE,
    SEALED_BLOCK_SIZE,
    ManifestCipher,
    ManifestHead,
    ManifestPacker,
    ManifestReader,
    Object,
    Record,
    pack_record,
    unpack_record,
)
from cryptfs.errors import ManifestError
from tests.fuzz.targets import DIR_ID, FILE_ID, KEYS, Target, fixed

VAULT_ID = bytes(range(16))
HEAD = ManifestHead(3, fixed(32, "config mac"), 5, 1_700_000_000)


def _records() -> list[Record]:
    place = DIR_ID + fixed(16, "siv")
    name = fixed(16, "sealed name")
    no = bytes(16)
    return [
        Record(place, Object.EMPTY, 0, place, 0, 0, 0, no, no, name),
        Record(FILE_ID, Object.FILE, 1, place, 2, 9, 5000, fixed(16, "digest"), no, name),
        Record(b"\xfe" * 32, Object.DAMAGED, 0, bytes(32), 0, 0, 0, no, no, b""),
    ]


def _stream() -> bytes:
    packer = ManifestPacker(HEAD)
    made = b"".join(packer.add(raw) for raw in sorted(map(pack_record, _records())))
    full, last = packer.finish(0)
    return made + full + last


def file_target() -> Target:
    """Any file in the place of a manifest: the one that was made, or ManifestError."""
    cipher = ManifestCipher.new(KEYS, VAULT_ID, fixed(32, "salt"))
    good = cipher.header + cipher.seal(0, _stream(), fixed(24, "block"), last=True)

    def run(data: bytes) -> None:
        try:
            found = ManifestCipher.of_header(KEYS, VAULT_ID, data[:HEADER_SIZE])
            rest = data[HEADER_SIZE:]
            starts = range(0, max(len(rest), 1), SEALED_BLOCK_SIZE)
            blocks = [
                found.open(
                    index,
                    rest[start : start + SEALED_BLOCK_SIZE],
                    last=start + SEALED_BLOCK_SIZE >= len(rest),
                )
                for index, start in enumerate(starts)
            ]
            records = list(ManifestReader(blocks).records())
        except ManifestError as error:
            assert data != good and str(error).isprintable()
        else:
            assert data == good and sorted(records) == sorted(_records())

    return Target("manifest", run, [good])


def stream_target() -> Target:
    """Any stream, in blocks of any size: well-formed to the last byte, or ManifestError."""

    def run(data: bytes) -> None:
        size = 1 + (data[0] if data else 0)
        blocks = [data[at : at + size] for at in range(0, len(data), size)]
        try:
            reader = ManifestReader(blocks)
            records = list(reader.records())
        except ManifestError:
            return
        packer = ManifestPacker(reader.head)
        again = b"".join(packer.add(pack_record(record)) for record in records)
        assert reader.tail is not None and reader.tail.records == len(records)
        full, last = packer.finish(reader.tail.skipped)
        assert again + full + last == data
        assert [unpack_record(pack_record(record)) for record in records] == records

    return Target("manifest-stream", run, [_stream()])


MANIFEST_TARGETS: dict[str, Callable[[], Target]] = {
    "manifest": file_target,
    "manifest-stream": stream_target,
}
