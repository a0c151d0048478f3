"""Offsets and sizes: at every boundary, for several chunk sizes and both overheads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.aead import AEGIS_256, XCHACHA20_POLY1305
from cryptfs.core.geometry import HEADER_SIZE, MAX_FILE_OFFSET, ChunkGeometry, ChunkSpan, is_chunk_size

OVERHEADS = (AEGIS_256.overhead, XCHACHA20_POLY1305.overhead)
CHUNK_SIZES = (4096, 16384, 65536, 1048576)
GEOMETRIES = [ChunkGeometry(chunk_size, overhead) for chunk_size in CHUNK_SIZES for overhead in OVERHEADS]
geometries = st.builds(
    ChunkGeometry, st.sampled_from([2**n for n in range(12, 21)]), st.sampled_from(OVERHEADS)
)
sizes = st.integers(0, 2**50)

# FORMAT.md, section 4: plaintext size, and the backing file with aegis-256 and xchacha20-poly1305
SIZE_TABLE = [
    (1, 321, 297),
    (16383, 16703, 16679),
    (16384, 16704, 16680),
    (16385, 16769, 16721),
    (32768, 33152, 33104),
    (2**40, 1103806595328, 1102195982592),
]


def boundaries(chunk_size: int) -> list[int]:
    """Plaintext sizes at which something changes."""
    near = [
        chunk_size - 1,
        chunk_size,
        chunk_size + 1,
        2 * chunk_size - 1,
        2 * chunk_size,
        2 * chunk_size + 1,
    ]
    return [0, 1, *near, 1000 * chunk_size, 2**40 + 1]


def slow_cipher_size(geometry: ChunkGeometry, plain_size: int) -> int:
    """The same, chunk by chunk."""
    total = HEADER_SIZE
    while plain_size > 0:
        total += min(plain_size, geometry.chunk_size) + geometry.overhead
        plain_size -= geometry.chunk_size
    return total


def test_overheads() -> None:
    assert OVERHEADS == (64, 40)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_sizes_at_boundaries(geometry: ChunkGeometry) -> None:
    for plain_size in boundaries(geometry.chunk_size):
        cipher_size = geometry.cipher_size(plain_size)
        if plain_size < 2**30:
            assert cipher_size == slow_cipher_size(geometry, plain_size)
        assert geometry.plain_size(cipher_size) == plain_size
        assert geometry.plain_size_floor(cipher_size) == plain_size
        assert geometry.records_size(plain_size) == cipher_size - HEADER_SIZE


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_impossible_sizes_are_refused(geometry: ChunkGeometry) -> None:
    for cipher_size in range(1, HEADER_SIZE):
        with pytest.raises(ValueError, match="no whole header"):
            geometry.plain_size(cipher_size)
        assert geometry.plain_size_floor(cipher_size) == 0
    for whole in (0, 1, 2, 1000):
        complete = HEADER_SIZE + whole * geometry.record_size
        for surplus in range(1, geometry.overhead + 1):
            with pytest.raises(ValueError, match="without plaintext"):
                geometry.plain_size(complete + surplus)
            assert geometry.plain_size_floor(complete + surplus) == whole * geometry.chunk_size
        assert geometry.plain_size(complete + geometry.overhead + 1) == whole * geometry.chunk_size + 1


@pytest.mark.parametrize("overhead", OVERHEADS)
def test_every_length_of_three_chunks(overhead: int) -> None:
    geometry = ChunkGeometry(4096, overhead)
    possible = {geometry.cipher_size(plain_size): plain_size for plain_size in range(3 * 4096 + 1)}
    possible[0] = 0
    last = 0
    for cipher_size in range(geometry.cipher_size(3 * 4096) + 1):
        if cipher_size in possible:
            last = possible[cipher_size]
            assert geometry.plain_size(cipher_size) == last
        else:
            with pytest.raises(ValueError, match="backing file"):
                geometry.plain_size(cipher_size)
        assert geometry.plain_size_floor(cipher_size) == last


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_spans_at_boundaries(geometry: ChunkGeometry) -> None:
    size = geometry.chunk_size
    assert geometry.span(0, 1) == ChunkSpan(0, 0, 0, 1)
    assert geometry.span(0, size) == ChunkSpan(0, 0, 0, size)
    assert geometry.span(0, size + 1) == ChunkSpan(0, 1, 0, 1)
    assert geometry.span(size - 1, 1) == ChunkSpan(0, 0, size - 1, size)
    assert geometry.span(size - 1, 2) == ChunkSpan(0, 1, size - 1, 1)
    assert geometry.span(size, size) == ChunkSpan(1, 1, 0, size)
    assert geometry.span(1, 3 * size) == ChunkSpan(0, 3, 1, 1)
    assert geometry.span(5 * size, 1).chunks == 1
    assert geometry.span(1, 3 * size).chunks == 4


def test_every_small_span() -> None:
    geometry = ChunkGeometry(4096, 64)
    edges = sorted({abs(chunk * 4096 + delta) for chunk in range(4) for delta in (-2, -1, 0, 1, 2)})
    for offset in edges:
        for end in edges:
            if end <= offset:
                continue
            span = geometry.span(offset, end - offset)
            touched = sorted({position // 4096 for position in (*range(offset, end, 1000), end - 1)})
            assert (span.first, span.last) == (touched[0], touched[-1])
            assert span.head == offset - span.first * 4096
            assert span.tail == end - span.last * 4096


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1), (4096, 0)])
def test_spans_of_nothing_are_refused(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="no span"):
        ChunkGeometry(4096, 64).span(offset, length)


@given(geometries, sizes, st.integers(1, 2**40))
def test_spans_cover_their_range_exactly(geometry: ChunkGeometry, offset: int, length: int) -> None:
    span = geometry.span(offset, length)
    assert geometry.chunk_start(span.first) + span.head == offset
    assert geometry.chunk_start(span.last) + span.tail == offset + length
    assert 0 <= span.head < geometry.chunk_size
    assert 1 <= span.tail <= geometry.chunk_size
    assert span.chunks == span.last - span.first + 1


@given(geometries, sizes)
def test_chunks_make_up_the_file(geometry: ChunkGeometry, plain_size: int) -> None:
    count = geometry.chunk_count(plain_size)
    assert geometry.chunk_length(count, plain_size) == 0
    assert geometry.chunk_length(count + 1, plain_size) == 0
    if count:
        last = geometry.chunk_length(count - 1, plain_size)
        assert 1 <= last <= geometry.chunk_size
        assert geometry.chunk_start(count - 1) + last == plain_size
        end = geometry.record_offset(count - 1) + last + geometry.overhead
        assert end == geometry.cipher_size(plain_size)
    if count > 1:
        assert geometry.chunk_length(0, plain_size) == geometry.chunk_size


@given(geometries, sizes)
def test_cipher_size_only_grows(geometry: ChunkGeometry, plain_size: int) -> None:
    growth = geometry.cipher_size(plain_size + 1) - geometry.cipher_size(plain_size)
    assert growth == (1 + geometry.overhead if plain_size % geometry.chunk_size == 0 else 1)


@given(geometries, st.integers(0, 2**40))
def test_plain_length_is_what_whole_records_and_a_rest_hold(
    geometry: ChunkGeometry, records_size: int
) -> None:
    length = geometry.plain_length(records_size)
    assert geometry.records_size(length) <= records_size
    assert geometry.records_size(length + 1) > records_size


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_largest_file_just_fits(geometry: ChunkGeometry) -> None:
    largest = geometry.max_plain_size
    assert geometry.cipher_size(largest) <= MAX_FILE_OFFSET < geometry.cipher_size(largest + 1)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_bytes_belong_to_their_chunk(geometry: ChunkGeometry) -> None:
    assert geometry.chunk_of_record_byte(0) == 0
    assert geometry.chunk_of_record_byte(HEADER_SIZE) == 0
    for chunk_index in (0, 1, 2, 2**30):
        start = geometry.record_offset(chunk_index)
        assert geometry.chunk_of_record_byte(start) == chunk_index
        assert geometry.chunk_of_record_byte(start + geometry.record_size - 1) == chunk_index


@pytest.mark.parametrize("chunk_size", [0, 1, -4096, 2048, 4095, 4097, 12288, 2**21])
def test_impossible_chunk_sizes(chunk_size: int) -> None:
    with pytest.raises(ValueError, match="chunk size"):
        ChunkGeometry(chunk_size, 64)


@pytest.mark.parametrize("overhead", [0, -1, 4096])
def test_impossible_overheads(overhead: int) -> None:
    with pytest.raises(ValueError, match="overhead"):
        ChunkGeometry(4096, overhead)


@given(geometries)
def test_the_longest_file_that_holds_nothing(geometry: ChunkGeometry) -> None:
    longest = geometry.max_empty_size
    assert geometry.plain_size_floor(longest) == 0
    assert geometry.plain_size_floor(longest + 1) == 1


# Around a chunk of 4096 bytes; a record has 4160.
CHUNK, RECORD = 4096, 4160


@pytest.mark.parametrize(
    ("plain_offset", "chunk_index", "before"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (CHUNK - 1, 0, CHUNK - 1),
        (CHUNK, 1, 0),
        (CHUNK + 1, 1, 1),
        (2 * CHUNK - 1, 1, CHUNK - 1),
        (2**40 + 5, 2**28, 5),
    ],
)
def test_a_plaintext_byte_has_its_chunk(plain_offset: int, chunk_index: int, before: int) -> None:
    geometry = ChunkGeometry(CHUNK, 64)
    assert geometry.chunk_at(plain_offset) == chunk_index
    assert geometry.offset_in_chunk(plain_offset) == before
    assert geometry.chunk_start(chunk_index) + before == plain_offset


@pytest.mark.parametrize(
    ("records_size", "count", "whole", "short"),
    [
        (0, 0, 0, 0),
        (1, 1, 0, 1),
        (RECORD - 1, 1, 0, RECORD - 1),
        (RECORD, 1, 1, 0),
        (RECORD + 1, 2, 1, 1),
        (2 * RECORD - 1, 2, 1, RECORD - 1),
        (2 * RECORD, 2, 2, 0),
        (1000 * RECORD + 65, 1001, 1000, 65),
    ],
)
def test_records_in_a_run(records_size: int, count: int, whole: int, short: int) -> None:
    geometry = ChunkGeometry(CHUNK, 64)
    assert geometry.record_count(records_size) == count
    assert geometry.whole_records(records_size) == whole
    assert geometry.short_record(records_size) == short
    assert geometry.record_start(whole) + short == records_size
    assert geometry.record_offset(whole) == HEADER_SIZE + geometry.record_start(whole)


@pytest.mark.parametrize(("plain_length", "size"), [(1, 65), (CHUNK - 1, RECORD - 1), (CHUNK, RECORD)])
def test_the_record_of_a_chunk(plain_length: int, size: int) -> None:
    geometry = ChunkGeometry(CHUNK, 64)
    assert geometry.record_length(plain_length) == size == geometry.records_size(plain_length)


@pytest.mark.parametrize(
    ("first", "last", "plain_size", "length"),
    [
        (0, 0, 0, 0),
        (0, 0, 1, 1),
        (0, 0, CHUNK - 1, CHUNK - 1),
        (0, 0, CHUNK, CHUNK),
        (0, 0, CHUNK + 1, CHUNK),
        (0, 1, CHUNK + 1, CHUNK + 1),
        (1, 1, CHUNK + 1, 1),
        (1, 2, CHUNK, 0),
        (2, 2, CHUNK, 0),
        (1, 3, 10 * CHUNK, 3 * CHUNK),
        (1, 9, 9 * CHUNK + 5, 8 * CHUNK + 5),
    ],
)
def test_the_bytes_of_a_run(first: int, last: int, plain_size: int, length: int) -> None:
    geometry = ChunkGeometry(CHUNK, 64)
    assert geometry.run_length(first, last, plain_size) == length
    assert length == sum(geometry.chunk_length(index, plain_size) for index in range(first, last + 1))


@pytest.mark.parametrize(
    ("cipher_offset", "chunk_index"),
    [
        (0, 0),
        (HEADER_SIZE - 1, 0),
        (HEADER_SIZE, 0),
        (HEADER_SIZE + 1, 1),
        (HEADER_SIZE + RECORD - 1, 1),
        (HEADER_SIZE + RECORD, 1),
        (HEADER_SIZE + RECORD + 1, 2),
    ],
)
def test_the_first_record_behind_an_offset(cipher_offset: int, chunk_index: int) -> None:
    geometry = ChunkGeometry(CHUNK, 64)
    assert geometry.first_record_from(cipher_offset) == chunk_index
    assert geometry.record_offset(chunk_index) >= cipher_offset


@pytest.mark.parametrize(
    ("size", "possible"),
    [
        *((size, False) for size in (-4096, 0, 2048, 4095, 4097, 12288, 2**20 - 1, 2**21)),
        *((size, True) for size in (4096, 8192, 2**20)),
    ],
)
def test_chunk_sizes(size: int, possible: bool) -> None:
    assert is_chunk_size(size) is possible


@pytest.mark.parametrize(("chunk_size", "log2"), [(4096, 12), (16384, 14), (2**20, 20)])
def test_a_header_has_the_logarithm(chunk_size: int, log2: int) -> None:
    assert ChunkGeometry(chunk_size, 64).log2_chunk_size == log2
