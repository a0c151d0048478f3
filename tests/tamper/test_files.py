"""Backing files: bytes flipped, records swapped, moved, repeated, zeroed, cut, and taken from elsewhere."""

from __future__ import annotations

import logging
import os
from functools import partial

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from cryptfs.vfs.content import ranges
from tests.support import BareVault, assert_detected, pattern
from tests.tamper.scene import BYSTANDER, CHUNK, SIZE, VICTIM, Scene

LAST = 3  # index of the short chunk


def flipped(content: bytes, place: int, bit: int = 1) -> bytes:
    changed = bytearray(content)
    changed[place] ^= bit
    return bytes(changed)


def test_every_byte_of_the_header_matters(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for place in range(HEADER_SIZE):
        scene.plant(flipped(scene.original, place, 1 << place % 8))
        error = assert_detected(scene.read, caplog, scene.path)
        assert type(error) is HeaderError
    scene.assert_file_detected(caplog)
    scene.assert_contained()


def test_every_byte_of_a_small_record_matters(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.vault.put(VICTIM, b"twelve bytes")
    small = scene.backing.read_bytes()
    for place in range(HEADER_SIZE, len(small)):
        scene.plant(flipped(small, place, 1 << place % 8))
        error = assert_detected(scene.read, caplog, scene.path, 0)
        assert type(error) is ChunkError
    scene.assert_contained()


@pytest.mark.parametrize("index", [0, 1, LAST])
def test_bytes_of_a_large_record_matter(scene: Scene, caplog: pytest.LogCaptureFixture, index: int) -> None:
    record = scene.record(index)
    suite = scene.vault.config.suite
    body = record.start + suite.nonce_size
    tag = record.stop - suite.tag_size
    for place in (record.start, body - 1, body, (body + tag) // 2, tag - 1, tag, record.stop - 1):
        scene.plant(flipped(scene.original, place))
        scene.assert_chunk_detected(caplog, index)
    scene.assert_contained()


def test_every_byte_of_three_chunks_matters(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """All bytes of the records, one by one: the chunk that is read fails, and nothing of it is there."""
    scene.vault.put(VICTIM, pattern(2 * CHUNK + 100, 3))
    content = scene.backing.read_bytes()
    geometry = scene.vault.geometry
    reply = memoryview(bytearray(CHUNK))
    with scene.vault.opened(VICTIM, os.O_RDONLY) as file, scene.backing.open("r+b", buffering=0) as backing:
        for place in range(HEADER_SIZE, len(content)):
            index = geometry.chunk_of_record_byte(place)
            os.pwrite(backing.fileno(), bytes((content[place] ^ 1 << place % 8,)), place)
            reply[:] = b"\xee" * CHUNK
            with pytest.raises(ChunkError) as raised:
                file.read_into(index * CHUNK, reply)
            assert raised.value.chunk_index == index
            assert not any(reply[: geometry.chunk_length(index, 2 * CHUNK + 100)])
            os.pwrite(backing.fileno(), content[place : place + 1], place)
    assert scene.read() == pattern(2 * CHUNK + 100, 3)
    scene.assert_contained()


@pytest.mark.parametrize("index", [0, LAST])
def test_a_damaged_chunk_is_not_merged_into(
    scene: Scene, caplog: pytest.LogCaptureFixture, index: int
) -> None:
    """A write that needs the rest of the chunk fails; one that replaces all of it heals the file."""
    scene.plant(flipped(scene.original, scene.record(index).start))
    start = index * CHUNK
    length = min(CHUNK, SIZE - start)
    with scene.vault.opened(VICTIM) as file:
        assert_detected(lambda: file.write(start + 1, b"x"), caplog, scene.path, index)
        assert_detected(lambda: file.truncate(start + 10), caplog, scene.path, index)
        file.write(start, bytes(length))
    expected = bytearray(pattern(SIZE, 1))
    expected[start : start + length] = bytes(length)
    assert scene.read() == expected
    scene.assert_contained()


def test_swapped_chunks(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(scene.original)
    first, second = scene.record(1), scene.record(2)
    content[first], content[second] = scene.original[second], scene.original[first]
    scene.plant(bytes(content))
    scene.assert_chunk_detected(caplog, 1)
    with pytest.raises(ChunkError):
        scene.read_chunk(2)
    scene.assert_contained()


def test_repeated_chunk(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(scene.original)
    content[scene.record(2)] = scene.original[scene.record(0)]
    scene.plant(bytes(content))
    scene.assert_chunk_detected(caplog, 2)
    scene.assert_contained()


def test_moved_chunks(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """One record taken out, those behind it moved down, the length filled up with the last again."""
    record = scene.record(1)
    moved = scene.original[: record.start] + scene.original[record.stop :]
    scene.plant(moved + scene.original[-(record.stop - record.start) :])
    scene.assert_chunk_detected(caplog, 1)
    scene.assert_contained()


def test_chunk_of_another_file(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    foreign = scene.vault.backing(BYSTANDER).read_bytes()
    for index in range(4):
        content = bytearray(scene.original)
        content[scene.record(index)] = foreign[scene.record(index)]
        scene.plant(bytes(content))
        scene.assert_chunk_detected(caplog, index)
    scene.assert_contained()


def test_header_of_another_file(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    foreign = scene.vault.backing(BYSTANDER).read_bytes()
    scene.plant(foreign[:HEADER_SIZE] + scene.original[HEADER_SIZE:])
    for index in range(4):
        assert_detected(partial(scene.read_chunk, index), caplog, scene.path, index)
    scene.assert_contained()


def test_file_of_another_vault(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    config = scene.vault.config
    other = BareVault(scene.vault.vault_dir.parent / "other", cipher=config.cipher, masterkey=bytes(32))
    other.put(VICTIM, pattern(SIZE, 1))
    scene.plant(other.backing(VICTIM).read_bytes())
    other.close()
    del other
    scene.assert_file_detected(caplog)
    scene.assert_contained()


def test_whole_file_of_another_name_is_not_detected(scene: Scene) -> None:
    """Not promised in format 1: a header is not bound to its name (DESIGN keeps room for that)."""
    scene.plant(scene.vault.backing(BYSTANDER).read_bytes())
    assert scene.read() == pattern(SIZE, 2)
    scene.assert_contained()


def test_two_files_exchanged_are_not_detected(scene: Scene) -> None:
    """Not promised in format 1: each is authentic, under the other's name. A witness shows both as moved."""
    other, between = scene.vault.backing(BYSTANDER), scene.backing.with_name("between")
    scene.backing.rename(between)
    other.rename(scene.backing)
    between.rename(other)
    assert scene.read() == pattern(SIZE, 2)
    assert scene.vault.get(BYSTANDER) == pattern(SIZE, 1)


def test_old_version_of_a_file_is_not_detected(scene: Scene) -> None:
    """Not promised without a witness: header and chunks of a moment ago are authentic for ever."""
    with scene.vault.opened(VICTIM) as file:
        file.truncate(0)
        file.write(0, b"newer")
    scene.plant(scene.original)
    assert scene.read() == pattern(SIZE, 1)


def test_old_header_with_new_chunks(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """An older header tells an older length and, after a truncate to zero, an older key."""
    with scene.vault.opened(VICTIM) as file:
        file.truncate(2 * CHUNK)
    shorter = scene.backing.read_bytes()
    scene.plant(scene.original[:HEADER_SIZE] + shorter[HEADER_SIZE:])
    assert_detected(scene.read, caplog, scene.path)  # the old length says that it was cut
    scene.plant(shorter)
    with scene.vault.opened(VICTIM) as file:
        file.truncate(0)
        file.write(0, pattern(SIZE, 3))
    renewed = scene.backing.read_bytes()
    scene.plant(scene.original[:HEADER_SIZE] + renewed[HEADER_SIZE:])
    for index in range(4):
        assert_detected(partial(scene.read_chunk, index), caplog, scene.path, index)
    scene.assert_contained()


def test_old_version_of_a_chunk_is_not_detected_within_an_epoch(scene: Scene) -> None:
    """Not promised in format 1: whoever keeps an older record can put it back, until a truncate to zero."""
    with scene.vault.opened(VICTIM) as file:
        file.write(0, bytes(CHUNK))
    changed = bytearray(scene.backing.read_bytes())
    changed[scene.record(0)] = scene.original[scene.record(0)]
    scene.plant(bytes(changed))
    assert scene.read() == pattern(SIZE, 1)


def test_chunks_from_before_a_truncate_to_zero_are_refused(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """It raises the epoch, and with it changes the key."""
    with scene.vault.opened(VICTIM) as file:
        file.truncate(0)
        file.write(0, pattern(SIZE, 3))
    renewed = scene.backing.read_bytes()
    assert renewed[16:48] == scene.original[16:48]  # the same file_id: xattrs stay valid
    for index in range(4):
        content = bytearray(renewed)
        content[scene.record(index)] = scene.original[scene.record(index)]
        scene.plant(bytes(content))
        assert_detected(partial(scene.read_chunk, index), caplog, scene.path, index)
    scene.assert_contained()


@pytest.mark.parametrize("index", [0, 1, LAST])
def test_zeroed_chunk_without_sparse(scene: Scene, caplog: pytest.LogCaptureFixture, index: int) -> None:
    content = bytearray(scene.original)
    record = scene.record(index)
    content[record] = bytes(record.stop - record.start)
    scene.plant(bytes(content))
    scene.assert_chunk_detected(caplog, index)
    scene.assert_contained()


def test_partly_zeroed_chunk_with_sparse(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """A hole is a record of zeros from end to end; anything less is damage."""
    with scene.vault.opened(VICTIM) as file:
        ranges.allocate(file, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, CHUNK, CHUNK)
    sparse = bytearray(scene.backing.read_bytes())
    assert not any(sparse[scene.record(1)])
    record = scene.record(2)
    sparse[record.start : record.stop] = bytes(record.stop - 1 - record.start) + b"\x01"  # 0 by chance, else
    scene.plant(bytes(sparse))
    assert scene.read_chunk(1) == bytes(CHUNK)
    assert_detected(lambda: scene.read_chunk(2), caplog, scene.path, 2)
    scene.assert_contained()


def test_chunk_turned_into_a_hole_of_a_sparse_file_is_not_detected(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Not promised: where SPARSE is set, any whole record can be zeroed, and reads as zeros.

    SPARSE goes with the next truncate to zero; a file that never had a hole is safe.
    """
    with scene.vault.opened(VICTIM) as file:
        file.truncate(0)
        file.truncate(10 * CHUNK)  # a hole from end to end: sets SPARSE
        file.write(0, pattern(CHUNK, 3))
    sparse = bytearray(scene.backing.read_bytes())
    sparse[scene.record(0)] = bytes(CHUNK + scene.vault.config.suite.overhead)
    scene.plant(bytes(sparse))
    assert scene.read_chunk(0) == bytes(CHUNK)
    with scene.vault.opened(VICTIM) as file:
        file.truncate(0)
        file.write(0, pattern(SIZE, 4))
    dense = bytearray(scene.backing.read_bytes())
    dense[scene.record(0)] = bytes(CHUNK + scene.vault.config.suite.overhead)
    scene.plant(bytes(dense))
    assert_detected(partial(scene.read_chunk, 0), caplog, scene.path, 0)
    scene.assert_contained()


def cuts(scene: Scene) -> list[int]:
    """Lengths at every record boundary, beside it, within records, at and within the header."""
    lengths = {1, HEADER_SIZE // 2, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1, len(scene.original) - 1}
    for index in range(4):
        start = scene.record(index).start
        lengths.update((start - 1, start, start + 1, start + scene.vault.config.suite.overhead, start + 500))
    return sorted(lengths)


def test_cut_file(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    for length in cuts(scene):
        scene.plant(scene.original[:length])
        error = assert_detected(scene.read, caplog, scene.path)
        assert type(error) is HeaderError
    scene.assert_file_detected(caplog)
    scene.assert_contained()


def test_file_cut_until_it_seems_empty_cannot_be_opened(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel takes the end of an empty file for granted: no read of it would ever meet the damage.

    So it cannot be opened, and stat shows the size that the header vouches for, or the length of the rest.
    """
    overhead = scene.vault.config.suite.overhead
    tree, root = scene.vault.tree, scene.vault.root
    for length in (1, HEADER_SIZE, HEADER_SIZE + 1, HEADER_SIZE + overhead):
        scene.plant(scene.original[:length])
        assert tree.stat(root, VICTIM).size == (length if length < HEADER_SIZE else SIZE)
        for flags in (os.O_RDONLY, os.O_RDWR):
            assert_detected(lambda flags=flags: tree.open(root, VICTIM, flags), caplog, scene.path)  # type: ignore[misc]
    scene.assert_file_detected(caplog)
    tree.truncate(root, VICTIM, 0)
    assert scene.read() == b""
    scene.assert_contained()


def test_empty_file_with_a_header_can_be_opened(scene: Scene) -> None:
    scene.vault.tree.truncate(scene.vault.root, VICTIM, 0)
    assert scene.backing.stat().st_size == HEADER_SIZE
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with scene.vault.opened(VICTIM, flags):
            pass
    scene.assert_contained()


def test_file_cut_while_it_is_open(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    with scene.vault.opened(VICTIM) as file:
        file.write(0, b"x")
        os.truncate(scene.backing, scene.record(2).start)
        assert_detected(lambda: file.read(2 * CHUNK, 10), caplog, scene.path)
        assert_detected(lambda: file.write(2 * CHUNK + 5, b"y"), caplog, scene.path)
        assert file.read(CHUNK, CHUNK) == pattern(SIZE, 1)[CHUNK : 2 * CHUNK]
    scene.assert_contained()


def test_emptied_file_is_not_detected(scene: Scene) -> None:
    """Not promised: DESIGN has 0 bytes for a file that was never written, and nothing else says it was."""
    scene.plant(b"")
    assert scene.read() == b""
    scene.assert_contained()


@pytest.mark.parametrize(
    "surplus", [b"\0", b"junk", bytes(5000), None], ids=["byte", "junk", "zeros", "record"]
)
def test_surplus_is_no_part_of_the_file_and_trimmed_by_a_writer(
    scene: Scene, caplog: pytest.LogCaptureFixture, surplus: bytes | None
) -> None:
    added = scene.original[scene.record(0)] if surplus is None else surplus
    scene.plant(scene.original + added)
    with caplog.at_level(logging.WARNING):
        assert scene.read() == pattern(SIZE, 1)
    assert [record.getMessage() for record in caplog.records] == [
        f"{scene.path}: {len(added)} bytes after its end do not belong to it"
    ]
    assert scene.backing.read_bytes() == scene.original + added
    caplog.clear()
    with caplog.at_level(logging.WARNING), scene.vault.opened(VICTIM) as file:
        assert file.read(0, 10) == pattern(SIZE, 1)[:10]
        assert scene.backing.read_bytes() == scene.original + added
        file.write(0, pattern(SIZE, 1)[:10])
    assert f"{scene.path}: removed {len(added)} bytes at its end (surplus)" in caplog.text
    assert scene.backing.stat().st_size == len(scene.original)
    assert scene.read() == pattern(SIZE, 1)
    scene.assert_contained()
