"""One rule, one place; and the checks for that notice a second copy."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

import cryptfs
from tests.unit.rules import (
    Found,
    chunk_arithmetic,
    closed_headers,
    findings,
    made_errors,
    unpacked_headers,
)

PACKAGE_DIR = Path(cryptfs.__file__).parent
LIBC = frozenset({"storage/libc.py"})
UNPACKING = frozenset(
    {
        "vfs/content/context.py",
        "vfs/content/filestate.py",  # keeps the packed form, to compare it with what is there later
        "core/format/header.py",  # asks which rule a header keeps
        "core/format/salvage.py",  # tries candidates that no file holds
    }
)
ARITHMETIC = frozenset(
    {
        "core/geometry.py",
        # The layout inside of one record, and the loop for each chunk, where a call more takes 2 %.
        "core/aead.py",
    }
)


def test_one_function_makes_errors_of_an_errno() -> None:
    assert findings(PACKAGE_DIR, made_errors, LIBC) == []
    assert len(findings(PACKAGE_DIR, made_errors, frozenset())) == 1


@pytest.mark.parametrize(
    "source",
    [
        "raise OSError(errno.EIO, os.strerror(errno.EIO))",
        "def f(code):\n    return FileNotFoundError(code, strerror(code))",
        "raise OSError(code := errno.EROFS, os.strerror(code)) from None",
    ],
)
def test_a_second_maker_is_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.py").write_text(source)
    assert len(findings(tmp_path, made_errors, LIBC)) == 1


def test_a_message_may_name_an_errno(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("raise MountError(f'{place}: {os.strerror(code)}')\nOSError(1, 'x')")
    assert findings(tmp_path, made_errors, LIBC) == []


def test_one_function_unpacks_headers() -> None:
    assert findings(PACKAGE_DIR, unpacked_headers, UNPACKING) == []
    assert len(findings(PACKAGE_DIR, unpacked_headers, frozenset())) == 6


def test_one_function_makes_a_header_clean() -> None:
    assert findings(PACKAGE_DIR, closed_headers, frozenset({"core/format/header.py"})) == []


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("header = FileHeader.unpack(read_header(fd), keys, 1, 14)", unpacked_headers),
        ("def f(self):\n    return self._context.unpack_header(raw)", unpacked_headers),
        ("header.changed(size=1, flags=HeaderFlag.CLEAN)", closed_headers),
        ("FileHeader(1, 14, file_id, flags=flags | HeaderFlag.CLEAN)", closed_headers),
    ],
)
def test_a_second_copy_is_found(tmp_path: Path, source: str, rule: Callable[[ast.Module], Found]) -> None:
    (tmp_path / "a.py").write_text(source)
    assert len(findings(tmp_path, rule, frozenset())) == 1


def test_all_chunk_arithmetic_is_in_the_geometry() -> None:
    assert findings(PACKAGE_DIR, chunk_arithmetic, ARITHMETIC) == []
    for file in ARITHMETIC:
        assert any(line.startswith(file) for line in findings(PACKAGE_DIR, chunk_arithmetic, frozenset()))


@pytest.mark.parametrize(
    "source",
    [
        "offset // geometry.chunk_size",
        "chunk_size * 3",
        "-(-size // self._geometry.record_size)",
        "size % -record_size",
        "size >> log2_chunk_size",
        "1 << header.log2_chunk_size",
        "size & ~chunk_size",
        "chunks * suite.nonce_size",
        "place //= record_size",
        "divmod(offset, context.geometry.chunk_size)",
        "length + geometry.overhead",
        "end - suite.overhead",
        "max(size - HEADER_SIZE, 0)",
        "geometry.HEADER_SIZE + 5",
        "def f():\n    return [each * chunk_size for each in range(3)]",
    ],
)
def test_arithmetic_is_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.py").write_text(source)
    assert len(findings(tmp_path, chunk_arithmetic, ARITHMETIC)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "geometry.chunk_start(2) + geometry.chunk_length(2, size)",
        "chunk_size - span.head",
        "records[: geometry.record_size]",
        "size >= HEADER_SIZE",
        "range(0, len(records), record_size)",
        "divmod(time_ns, 10**9)",
        "CHUNK_SIZE = 16 * 1024",
    ],
)
def test_what_is_no_arithmetic_of_chunks(tmp_path: Path, source: str) -> None:
    (tmp_path / "a.py").write_text(source)
    assert findings(tmp_path, chunk_arithmetic, ARITHMETIC) == []


def test_the_keys_of_names_are_used_for_names_alone() -> None:
    package = Path(cryptfs.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(word in path.read_text() for word in ("names_mac_key", "names_stream_key"))
    }
    assert users == {"core/keys.py", "core/names/names.py"}
