"""Headers that come back without their content, and files that are cut under a handle: FORMAT.md, section 4.

Nothing is cut from the disk because a header says so; no byte is given out that no header vouches for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import ChunkError, HeaderError, IntegrityError
from cryptfs.fsck.findings import FindingKind
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from cryptfs.vfs.content.redo import Durability
from tests.fsck.scene import bad, repair
from tests.support import CIPHERS, GAP, KIB, BareVault, pattern

NAME = b"file"
CHUNK = 4 * KIB
OLD = pattern(2 * CHUNK + 300, 1)
NEW = pattern(3 * CHUNK + 100, 2)


@pytest.fixture(params=CIPHERS)
def vault(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BareVault]:
    vault = BareVault(tmp_path / "vault", cipher=request.param)
    vault.put(NAME, OLD)
    yield vault
    vault.close()


def header_of(vault: BareVault) -> bytes:
    return vault.backing(NAME).read_bytes()[:HEADER_SIZE]


def put_back(vault: BareVault, header: bytes) -> bytes:
    """An older header over the file as it is; returns the whole."""
    path = vault.backing(NAME)
    whole = header + path.read_bytes()[HEADER_SIZE:]
    path.write_bytes(whole)
    return whole


def void_header(vault: BareVault) -> bytes:
    """From the moment after open(O_TRUNC); then the file gets its new content."""
    with vault.opened(NAME, os.O_RDWR | os.O_TRUNC) as file:
        header = header_of(vault)
        file.write(0, NEW)
    return header


def clean_empty_header(vault: BareVault) -> bytes:
    """From a file that was emptied and closed; then it gets its new content."""
    vault.tree.truncate(vault.root, NAME, 0)
    header = header_of(vault)
    with vault.opened(NAME) as file:
        file.write(0, NEW)
    return header


EMPTY_HEADERS = pytest.mark.parametrize("empty", [void_header, clean_empty_header])


@EMPTY_HEADERS
def test_content_under_an_empty_header_is_there(
    vault: BareVault, empty: Callable[[BareVault], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    whole = put_back(vault, empty(vault))
    with caplog.at_level(logging.WARNING):
        assert vault.get(NAME) == NEW
    assert f"{vault.entry(NAME)}: writing to it was interrupted" in caplog.text
    assert vault.backing(NAME).read_bytes() == whole
    with vault.opened(NAME) as file:
        file.append(b"more")
    vault.reopen()
    assert vault.get(NAME) == NEW + b"more"
    assert vault.header(NAME).size == len(NEW) + 4


@EMPTY_HEADERS
def test_content_of_an_earlier_epoch_is_not(vault: BareVault, empty: Callable[[BareVault], bytes]) -> None:
    old_records = vault.backing(NAME).read_bytes()[HEADER_SIZE:]
    whole = empty(vault) + old_records
    vault.backing(NAME).write_bytes(whole)
    assert vault.get(NAME) == b""
    assert vault.backing(NAME).read_bytes() == whole
    with vault.opened(NAME) as file:
        file.append(b"more")
    assert vault.get(NAME) == b"more"
    assert vault.plain_size(NAME) == 4


@EMPTY_HEADERS
def test_a_repair_keeps_content_under_an_empty_header(
    vault: BareVault, empty: Callable[[BareVault], bytes]
) -> None:
    put_back(vault, empty(vault))
    assert [each.kind for each in bad(repair(vault))] == [FindingKind.NOT_SETTLED]
    assert vault.get(NAME) == NEW
    assert vault.header(NAME).is_clean


def shorten(file: OpenFile) -> None:
    file.truncate(1)


def longer_later(vault: BareVault) -> bytes:
    """The header of OLD, put back over OLD and what was appended later."""
    header = header_of(vault)
    with vault.opened(NAME) as file:
        file.append(NEW)
    return put_back(vault, header)


def test_an_older_header_over_a_longer_file_cuts_nothing(
    vault: BareVault, caplog: pytest.LogCaptureFixture
) -> None:
    """The header's last chunk has grown since, so it does not open at the length that the header says."""
    whole = longer_later(vault)
    with vault.opened(NAME) as file:
        assert file.read(0, CHUNK) == OLD[:CHUNK]
        with pytest.raises(ChunkError):
            file.read(2 * CHUNK, 1)
        for change in (
            lambda: file.write(0, b"x"),
            lambda: file.append(b"x"),
            lambda: shorten(file),
            lambda: ranges.allocate(file, 0, 0, len(OLD) + len(NEW)),
        ):
            with pytest.raises(HeaderError, match="does not authenticate at the length"):
                change()
            assert file.state.change_count % 2 == 0
        assert file.read(0, CHUNK) == OLD[:CHUNK]
    assert vault.backing(NAME).read_bytes() == whole
    vault.tree.truncate(vault.root, NAME, 0)
    assert vault.get(NAME) == b""


def test_a_repair_finds_what_is_longer_than_the_header(vault: BareVault) -> None:
    longer_later(vault)
    assert [each.kind for each in bad(repair(vault))] == [FindingKind.NOT_SETTLED]
    assert vault.get(NAME) == OLD + NEW


def test_what_readers_leave_they_leave_for_good(vault: BareVault) -> None:
    """However often and in whatever company; a handle that could write, and does not, is a reader."""
    header = vault.header(NAME).changed(flags=0, size_min=0)
    path = vault.backing(NAME)
    torn = vault.context.pack_header(header) + path.read_bytes()[HEADER_SIZE:] + b"torn"
    path.write_bytes(torn)
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        with vault.opened(NAME, flags) as file, vault.opened(NAME) as other:
            assert file.read(2 * CHUNK, CHUNK) == b""
            assert other.read(0, CHUNK) == OLD[:CHUNK]
            assert ranges.seek(file, 0, os.SEEK_HOLE) == 2 * CHUNK
            vault.tree.make_clean(vault.root, NAME)
    vault.reopen()
    assert path.read_bytes() == torn


# ---- cut under a handle


def sparse_file(vault: BareVault) -> OpenFile:
    """Open for writing: data, a hole, whole chunks of data, so that nothing has to be merged with its end."""
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    file.write(2 * GAP, NEW[: 3 * CHUNK])
    assert file.state.sparse
    return file


CHANGES: dict[str, Callable[[OpenFile], object]] = {
    "grow": lambda file: file.truncate(file.state.size + GAP),
    "grow far": lambda file: file.write(file.state.size + 2 * GAP, b"x"),
    "append": lambda file: file.append(NEW),
    "reserve": lambda file: ranges.allocate(file, 0, 0, file.state.size + GAP),
    "shrink": lambda file: file.truncate(2 * GAP + CHUNK),
    "same length": lambda file: file.truncate(file.state.size),
    "seek data": lambda file: ranges.seek(file, 2 * GAP, os.SEEK_DATA),
    "seek hole": lambda file: ranges.seek(file, 2 * GAP, os.SEEK_HOLE),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("left", [0, 100, HEADER_SIZE, GAP])
@pytest.mark.parametrize("durability", Durability)
def test_what_was_cut_off_never_becomes_zeros(
    tmp_path: Path, durability: Durability, change: str, left: int
) -> None:
    """In a file with holes a cut that is made longer again would read as one."""
    vault = BareVault(tmp_path / "vault", durability=durability)
    vault.put(NAME, OLD)
    file = sparse_file(vault)
    size = file.state.size
    os.truncate(vault.backing(NAME), left)
    with pytest.raises(IntegrityError):
        CHANGES[change](file)
    for offset in (2 * GAP, size - 1):
        with pytest.raises(IntegrityError):
            file.read(offset, 1)
    assert file.state.size == size
    vault.tree.release(file)
    vault.reopen()
    if left:
        with pytest.raises(HeaderError):
            vault.get(NAME)
    else:
        assert vault.get(NAME) == b""  # an empty file is a valid one, and its last writer was somebody else
    vault.close()


@pytest.mark.parametrize("durability", Durability)
def test_a_file_emptied_under_a_handle_is_an_error(durability: Durability, tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=durability)
    vault.put(NAME, OLD)
    vault.reopen()
    with vault.opened(NAME, os.O_RDONLY) as first:
        assert first.read(0, CHUNK) == OLD[:CHUNK]
        os.truncate(vault.backing(NAME), 0)
        out = bytearray(b"\xee" * len(OLD))
        with pytest.raises(HeaderError, match="cut"):
            first.read_into(0, memoryview(out))
        assert out == b"\xee" * len(OLD)
        with vault.opened(NAME, os.O_RDONLY) as second:
            assert second.read(0, CHUNK) == b""
        with pytest.raises(IntegrityError):
            first.read(0, CHUNK)
    vault.close()


def test_a_cut_takes_what_it_took_and_no_more(tmp_path: Path) -> None:
    """With a chunk in the overlay, behind the cut and before it."""
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER)
    vault.put(NAME, OLD)
    vault.reopen()
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    file.write(0, NEW[:CHUNK])
    file.write(2 * CHUNK, NEW[: len(OLD) - 2 * CHUNK])
    assert sorted(file.state.overlay.records) == [0, 2]
    os.truncate(vault.backing(NAME), vault.geometry.cipher_size(CHUNK) - 10)
    assert file.read(0, CHUNK) == NEW[:CHUNK]
    assert file.read(2 * CHUNK, CHUNK) == NEW[: len(OLD) - 2 * CHUNK]
    for offset, length in ((CHUNK, 1), (0, CHUNK + 1), (0, len(OLD)), (2 * CHUNK - 1, 2)):
        with pytest.raises(HeaderError, match="cut"):
            file.read(offset, length)
    vault.die()


# ---- what a file was when it was left


def seen(path: Path) -> tuple[int, int, int]:
    st = path.stat()
    return st.st_ctime_ns, st.st_mtime_ns, st.st_size


@pytest.mark.parametrize("durability", Durability)
def test_a_state_knows_what_it_left(durability: Durability, tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault", durability=durability)
    path = vault.backing(NAME)
    file = vault.tree.create(vault.root, NAME, os.O_RDWR, 0o600)
    state = file.state
    assert (state.version, state.left) == (0, (0, 0, 0))
    versions = [0]
    for change in (
        lambda: file.write(0, OLD),
        state.write_clean,
        lambda: file.write(10, b"x"),
        lambda: file.truncate(CHUNK + 1),
        lambda: file.truncate(0),
        lambda: file.write(0, OLD),
    ):
        change()
        assert state.version == int.from_bytes(path.read_bytes()[224:232], "little")
        versions.append(state.version)
    assert len(set(versions)) == len(versions)
    vault.checkpoint()
    vault.checkpoint()
    state.write_clean()
    assert state.left == seen(path)
    vault.tree.release(file)
    vault.checkpoint()
    vault.checkpoint()
    assert state.left == seen(path)
    vault.reopen()
    with vault.opened(NAME, os.O_RDONLY) as reader:
        reader.read(0, 1)
        assert reader.state.version == state.version
        assert reader.state.left == state.left
    vault.close()


@pytest.mark.parametrize("is_open", [False, True])
def test_nothing_goes_home_into_a_version_that_came_in_place(tmp_path: Path, is_open: bool) -> None:
    """What waits in the journal belongs to the version that is gone: the two would be mixed for good."""
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER)
    vault.put(NAME, OLD)
    vault.reopen()
    path = vault.backing(NAME)
    theirs = path.read_bytes()
    file = vault.tree.open(vault.root, NAME, os.O_RDWR)
    file.write(0, NEW[:CHUNK])
    file.sync(data_only=False)
    if not is_open:
        vault.tree.release(file)
    with path.open("r+b") as backing:
        backing.write(theirs)
    vault.checkpoint()
    vault.checkpoint()
    assert path.read_bytes() == theirs
    assert vault.get(NAME) == OLD
    if is_open:
        with pytest.raises(IntegrityError):
            file.read(0, 1)
        vault.tree.release(file)
    vault.close()
