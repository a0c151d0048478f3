"""All offset and size arithmetic of the project.

A backing file is empty, or a 256-byte header and the chunk records one after another:

    0            256                256 + R            256 + 2R
    | header     | record of chunk 0 | record of chunk 1 | ...     R = chunk_size + overhead

where overhead is nonce plus tag. Only the last record may be shorter, and it holds at least one
plaintext byte. Source: docs/FORMAT.md, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

HEADER_SIZE = 256
MIN_CHUNK_SIZE = 4 * 1024
MAX_CHUNK_SIZE = 1024 * 1024
MAX_FILE_OFFSET = 2**63 - 1  # off_t
_DELTA_STEP = 4 * 1024  # a delta shows its size in steps of this, or of a quarter of a small chunk


def is_chunk_size(size: int) -> bool:
    """Whether chunks may have that many plaintext bytes: a power of two from 4 KiB to 1 MiB."""
    return MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE and not size & (size - 1)


def chunk_size_of(log2_chunk_size: int) -> int:
    """The chunk size that a file header or recovery record says.

    Raises: ValueError: no chunk has that size.
    """
    size = 1 << min(log2_chunk_size, 64)
    if not is_chunk_size(size):
        raise ValueError(f"no chunk has 2^{log2_chunk_size} bytes")
    return size


class ChunkSpan(NamedTuple):
    """The chunks that a range of plaintext touches.

    first, last:   chunk indices, both included.
    head:          plaintext bytes of chunk `first` before the range.
    tail:          plaintext bytes of chunk `last` up to and including the range's end (1 .. chunk_size).
    """

    first: int
    last: int
    head: int
    tail: int

    @property
    def chunks(self) -> int:
        """Number of chunks touched."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class ChunkGeometry:
    """Sizes and offsets for one chunk size and one cipher suite.

    Args: chunk_size: plaintext bytes of a whole chunk, a power of two from 4 KiB to 1 MiB.
          overhead: bytes of nonce and tag in each record.
    """

    chunk_size: int
    overhead: int
    record_size: int = field(init=False)  # bytes of a whole chunk record
    max_plain_size: int = field(init=False)  # the largest whose backing file still has an off_t length

    def __post_init__(self) -> None:
        size = self.chunk_size
        if not is_chunk_size(size):
            raise ValueError(f"chunk size {size}: not a power of 2 from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}")
        if not 0 < self.overhead < MIN_CHUNK_SIZE:
            raise ValueError(f"overhead {self.overhead} is out of range")
        object.__setattr__(self, "record_size", size + self.overhead)
        object.__setattr__(self, "max_plain_size", self.plain_size_floor(MAX_FILE_OFFSET))

    @property
    def log2_chunk_size(self) -> int:
        """What a file header says of the chunk size."""
        return self.chunk_size.bit_length() - 1

    @property
    def max_empty_size(self) -> int:
        """Longest backing file without a byte of plaintext: a header, and a record that is cut off."""
        return HEADER_SIZE + self.overhead

    def span(self, plain_offset: int, length: int) -> ChunkSpan:
        """The chunks that hold `length` (>= 1) plaintext bytes from `plain_offset` (>= 0)."""
        if plain_offset < 0 or length < 1:
            raise ValueError(f"no span for offset {plain_offset} and length {length}")
        chunk_size = self.chunk_size
        end = plain_offset + length
        first = plain_offset // chunk_size
        last = (end - 1) // chunk_size
        return ChunkSpan(first, last, plain_offset - first * chunk_size, end - last * chunk_size)

    def chunk_count(self, plain_size: int) -> int:
        """Chunks in a file of `plain_size` bytes."""
        return -(-plain_size // self.chunk_size)

    def chunk_start(self, chunk_index: int) -> int:
        """Plaintext offset of a chunk's first byte; so also the plaintext bytes of that many whole chunks."""
        return chunk_index * self.chunk_size

    def chunk_at(self, plain_offset: int) -> int:
        """Index of the chunk that has the plaintext byte at an offset."""
        return plain_offset // self.chunk_size

    def offset_in_chunk(self, plain_offset: int) -> int:
        """Plaintext bytes of the same chunk before an offset."""
        return plain_offset % self.chunk_size

    def chunk_length(self, chunk_index: int, plain_size: int) -> int:
        """Plaintext bytes of one chunk in a file of `plain_size` bytes; 0 if it is past the end."""
        return max(0, min(self.chunk_size, plain_size - chunk_index * self.chunk_size))

    def delta_range(self, start: int, stop: int, length: int) -> tuple[int, int] | None:
        """The bytes of a chunk that a delta covers, for a change of its bytes `start` to `stop`.

        Args:    length: plaintext bytes of the chunk after the change.
        Returns: whole steps, up to the chunk's end; None if a delta would save less than half of the chunk.
        """
        step = min(_DELTA_STEP, self.chunk_size // 4)
        first = start - start % step
        last = min(stop + -stop % step, length)
        return (first, last) if 2 * (last - first) <= self.chunk_size else None

    def run_length(self, first: int, last: int, plain_size: int) -> int:
        """Plaintext bytes of the chunks `first` to `last`, both included, in a file of `plain_size` bytes."""
        start = first * self.chunk_size
        return max(0, min((last + 1) * self.chunk_size, plain_size) - start)

    def record_offset(self, chunk_index: int) -> int:
        """Offset in the backing file of a chunk's record."""
        return HEADER_SIZE + chunk_index * self.record_size

    def record_start(self, place: int) -> int:
        """Offset of a record in a run of whole ones, by its place from 0; so also the bytes of that many."""
        return place * self.record_size

    def record_length(self, plain_length: int) -> int:
        """Bytes of the record of a chunk that has `plain_length` (>= 1) plaintext bytes."""
        return plain_length + self.overhead

    def record_count(self, records_size: int) -> int:
        """Records in `records_size` bytes of them; the last may be short."""
        return -(-records_size // self.record_size)

    def whole_records(self, records_size: int) -> int:
        """Records of whole chunks in `records_size` bytes."""
        return records_size // self.record_size

    def short_record(self, records_size: int) -> int:
        """Bytes of the record at the end of `records_size` bytes that is shorter than others; 0 for none."""
        return records_size % self.record_size

    def records_size(self, plain_length: int) -> int:
        """Bytes of the records that hold `plain_length` plaintext bytes from the start of a chunk."""
        return plain_length + self.chunk_count(plain_length) * self.overhead

    def cipher_size(self, plain_size: int) -> int:
        """Length of the backing file that holds `plain_size` bytes, header included."""
        return HEADER_SIZE + self.records_size(plain_size)

    def plain_size(self, cipher_size: int) -> int:
        """Plaintext size of a backing file from its length alone.

        Raises: ValueError: no file has that length (a cut header, or a last record without plaintext).
        """
        if cipher_size == 0:
            return 0
        if cipher_size < HEADER_SIZE:
            raise ValueError(f"a backing file of {cipher_size} bytes has no whole header")
        whole, rest = divmod(cipher_size - HEADER_SIZE, self.record_size)
        if rest == 0:
            return whole * self.chunk_size
        if rest <= self.overhead:
            raise ValueError(f"a backing file of {cipher_size} bytes ends in a record without plaintext")
        return whole * self.chunk_size + rest - self.overhead

    def plain_length(self, records_size: int) -> int:
        """Plaintext bytes in `records_size` bytes of records; an impossible last piece counts as absent."""
        whole, rest = divmod(records_size, self.record_size)
        return whole * self.chunk_size + max(rest - self.overhead, 0)

    def plain_size_floor(self, cipher_size: int) -> int:
        """As plain_size, but counts an impossible last piece as absent: the size for stat, for any file."""
        if cipher_size <= HEADER_SIZE:
            return 0
        whole, rest = divmod(cipher_size - HEADER_SIZE, self.record_size)
        return whole * self.chunk_size + (rest - self.overhead if rest > self.overhead else 0)

    def chunk_of_record_byte(self, cipher_offset: int) -> int:
        """Index of the chunk whose record holds the byte at `cipher_offset`; 0 for the header's bytes."""
        return max(cipher_offset - HEADER_SIZE, 0) // self.record_size

    def first_record_from(self, cipher_offset: int) -> int:
        """Index of the first chunk whose record begins at `cipher_offset` or behind it."""
        return self.record_count(max(cipher_offset - HEADER_SIZE, 0))
