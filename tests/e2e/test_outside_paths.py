"""What others do to the vault while programs have files open: what a name means, and what a handle means."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import MountSpec, mounted
from tests.e2e.outside import FRESH, KEPT, NEW, OLD, SAME, SHORT, STEP, Outside

HANGS = 8.0  # seconds


def whole(fd: int, size: int) -> bytes:
    """All that a descriptor shows, piece by piece; it must end there."""
    seen = b"".join(os.pread(fd, STEP, at) for at in range(0, size, STEP))
    assert os.pread(fd, STEP, size) == b""
    return seen


@pytest.fixture
def old_handle(outside: Outside) -> Iterator[int]:
    """A handle on `doc` as it was before others replaced it by NEW, of which the mount has heard by now."""
    new = outside.make("new", NEW)
    outside.make("doc", OLD)
    fd = os.open(outside.shown / "doc", os.O_RDWR)
    try:
        assert os.pread(fd, STEP, 0) == OLD[:STEP]
        outside.replace("doc", new)
        time.sleep(FRESH)
        yield fd
    finally:
        os.close(fd)


def kept_beside_doc(outside: Outside) -> bytes:
    """What was written to the `doc` that somebody replaced: it has a name of its own."""
    (name,) = set(os.listdir(outside.shown)) - {"doc", "new"}
    assert name.startswith("doc (conflict 20")
    return (outside.shown / name).read_bytes()


def known_limit(outside: Outside, request: pytest.FixtureRequest, engine: str, reason: str) -> None:
    """Expect a failure on one engine, strictly."""
    if outside.mount.spec.engine == engine:
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))


# ---- a handle on the old file, and the name that has a new one


def test_old_and_new_are_read_side_by_side(outside: Outside, old_handle: int) -> None:
    doc = outside.shown / "doc"
    for _ in range(2):
        assert doc.read_bytes() == NEW
        assert whole(old_handle, len(OLD)) == OLD
    with doc.open("rb") as new:
        for at in range(0, len(OLD) - STEP, 3 * STEP):
            assert os.pread(new.fileno(), STEP, at) == NEW[at : at + STEP]
            assert os.pread(old_handle, STEP, at) == OLD[at : at + STEP]


@pytest.mark.parametrize("content", [SHORT, b""], ids=["short", "empty"])
def test_an_old_handle_is_read_to_its_own_end(outside: Outside, content: bytes) -> None:
    """Whatever the kernel was told of the name meanwhile."""
    raw = outside.make("new", content)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    with doc.open("rb") as old, doc.open("rb") as unread:
        assert old.read(STEP) == OLD[:STEP]
        outside.replace("doc", raw)
        time.sleep(FRESH)
        for fd in (old.fileno(), unread.fileno()):
            assert doc.stat().st_size == len(content)
            assert whole(fd, len(OLD)) == OLD
            assert doc.stat().st_size == len(content)
            assert doc.read_bytes() == content
    assert doc.read_bytes() == content
    assert doc.stat().st_size == len(content)


def test_after_the_old_handle_is_closed_the_name_shows_the_new_file(outside: Outside) -> None:
    outside.mount.allow_log(KEPT)
    new = outside.make("new", NEW)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    with doc.open("r+b") as old:
        old.read()
        outside.replace("doc", new)
        time.sleep(FRESH)
        assert doc.read_bytes() == NEW
        old.seek(0, os.SEEK_END)
        old.write(b"an end of its own")
    for _ in range(3):
        assert doc.read_bytes() == NEW
        time.sleep(FRESH / 2)
    assert doc.stat().st_size == len(NEW)
    assert outside.backing("doc").read_bytes() == new
    assert kept_beside_doc(outside) == OLD + b"an end of its own"


def test_what_is_written_by_the_old_handle_stays_out_of_the_new_file(
    outside: Outside, old_handle: int
) -> None:
    outside.mount.allow_log(KEPT)
    os.pwrite(old_handle, b"by the old handle", 7)
    os.ftruncate(old_handle, 100_000)
    os.fsync(old_handle)
    assert os.pread(old_handle, 30, 0) == (OLD[:7] + b"by the old handle" + OLD[24:30])
    assert (outside.shown / "doc").read_bytes() == NEW
    assert outside.sealed("doc") == outside.sealed("new")
    assert kept_beside_doc(outside) == OLD[:7] + b"by the old handle" + OLD[24:100_000]


def test_what_is_written_by_a_new_handle_is_not_in_the_old_file(outside: Outside, old_handle: int) -> None:
    doc = outside.shown / "doc"
    with doc.open("r+b", buffering=0) as new:
        new.write(b"by the new handle")
        assert os.pread(old_handle, STEP, 0) == OLD[:STEP]
    with doc.open("ab", buffering=0) as new:
        new.write(b"an end")
    expected = b"by the new handle" + NEW[17:] + b"an end"
    assert doc.read_bytes() == expected
    assert whole(old_handle, len(OLD)) == OLD


def take_away(outside: Outside, new: bytes, *, gone: bool) -> None:
    """Somebody else deletes `doc`, or replaces it."""
    if gone:
        outside.backing("doc").unlink()
    else:
        outside.replace("doc", new)


@pytest.mark.parametrize("wait", [0.0, FRESH])
@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "deleted"])
def test_a_name_is_removed_beside_an_old_handle(outside: Outside, wait: float, gone: bool) -> None:
    new = outside.make("new", NEW)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    with doc.open("rb") as old:
        take_away(outside, new, gone=gone)
        time.sleep(wait)
        try:
            doc.unlink()
        except FileNotFoundError:
            assert gone
        assert os.listdir(outside.shown) == ["new"]
        assert not outside.backing("doc").exists()
        assert whole(old.fileno(), len(OLD)) == OLD
        doc.write_bytes(SAME)
        assert doc.read_bytes() == SAME
        assert whole(old.fileno(), len(OLD)) == OLD
    assert sorted(os.listdir(outside.shown)) == ["doc", "new"]
    assert doc.read_bytes() == SAME


@pytest.mark.parametrize("wait", [0.0, FRESH])
@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "deleted"])
def test_a_name_is_renamed_over_beside_an_old_handle(outside: Outside, wait: float, gone: bool) -> None:
    """As editors save."""
    new = outside.make("new", NEW)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    with doc.open("rb") as old:
        take_away(outside, new, gone=gone)
        time.sleep(wait)
        (outside.shown / "saved").write_bytes(SAME)
        (outside.shown / "saved").rename(doc)
        assert sorted(os.listdir(outside.shown)) == ["doc", "new"]
        assert doc.read_bytes() == SAME
        assert whole(old.fileno(), len(OLD)) == OLD
    assert sorted(os.listdir(outside.shown)) == ["doc", "new"]
    assert doc.read_bytes() == SAME


def test_the_old_handle_has_its_own_size(
    outside: Outside, old_handle: int, request: pytest.FixtureRequest
) -> None:
    known_limit(
        outside, request, "fusepy", "fstat(2) comes without a handle: libfuse has one inode for each path"
    )
    assert os.fstat(old_handle).st_size == len(OLD)


SETTERS: dict[str, Callable[[int], None]] = {
    "fchmod": lambda fd: os.fchmod(fd, 0o751),
    "fchown": lambda fd: os.fchown(fd, 1234, 1234),
    "futimens": lambda fd: os.utime(fd, (1, 1)),
    "fsetxattr": lambda fd: os.setxattr(fd, "user.note", b"old"),
}


@pytest.mark.parametrize("call", SETTERS)
def test_what_is_set_by_the_old_handle_is_not_set_on_the_name(
    outside: Outside, old_handle: int, request: pytest.FixtureRequest, call: str
) -> None:
    if call == "fchown" and os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    known_limit(
        outside, request, "fusepy", f"{call}(2) comes without a handle: libfuse has one inode for each path"
    )

    def attributes() -> tuple[object, ...]:
        backing = outside.backing("doc")
        st = backing.stat()
        return st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, os.listxattr(backing)

    before = attributes()
    SETTERS[call](old_handle)
    assert attributes() == before


def test_a_shared_mapping_beside_an_old_handle(
    outside: Outside, old_handle: int, request: pytest.FixtureRequest
) -> None:
    known_limit(
        outside,
        request,
        "fusepy",
        "the new file is opened without the page cache, where Linux has no such maps",
    )
    with (
        (outside.shown / "doc").open("rb") as new,
        mmap.mmap(new.fileno(), 0, prot=mmap.PROT_READ) as pages,
    ):
        assert pages[:] == NEW


# ---- one name, twice

RENAME_ONTO_ITSELF = """
import os, sys
os.stat(sys.argv[1])
print("seen", flush=True)
sys.stdin.readline()
try:
    os.rename(sys.argv[1], sys.argv[1])
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_name_that_others_have_removed_is_renamed_to_itself(
    engine: str, request: pytest.FixtureRequest
) -> None:
    """Linux takes the name from its cache as the old one, and is told that it is gone as the new one."""
    if engine == "fusepy":
        reason = "libfuse locks the name twice, and waits for itself"
        request.applymarker(pytest.mark.xfail(strict=True, raises=subprocess.TimeoutExpired, reason=reason))
    spec = MountSpec(engine)
    require_fuse(spec)
    with mounted(spec) as mount:
        outside = Outside(mount)
        outside.make("doc", OLD)
        backing = outside.backing("doc")
        outside.close()
        program = subprocess.Popen(
            [sys.executable, "-c", RENAME_ONTO_ITSELF, mount.mountpoint / "doc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert program.stdin is not None and program.stdout is not None
        with program.stdin as go, program.stdout as seen:
            assert seen.readline() == b"seen\n"
            backing.unlink()
            go.write(b"\n")
        try:
            assert program.wait(HANGS) == errno.ENOENT
        except subprocess.TimeoutExpired:
            mount.kill()  # nothing else ends such a request
            program.wait()
            raise


# ---- content that changes in place


def test_other_content_with_the_same_size_and_times_is_read_anew(outside: Outside) -> None:
    raw = outside.make("same", SAME)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    assert doc.read_bytes() == OLD
    outside.rewrite("doc", raw)
    time.sleep(FRESH)
    assert doc.read_bytes() == SAME


def test_a_file_that_is_changed_in_place_while_open_is_never_a_mixture(outside: Outside) -> None:
    outside.mount.allow_log("somebody else has changed the file in place", "does not authenticate")
    raw = outside.make("same", SAME)
    outside.make("doc", OLD)
    doc = outside.shown / "doc"
    with doc.open("rb", buffering=0) as old:
        first = old.read(STEP)
        outside.rewrite("doc", raw)
        for _ in range(2):
            assert doc.read_bytes() == SAME
            try:
                seen = first + b"".join(
                    os.pread(old.fileno(), STEP, at) for at in range(STEP, len(OLD), STEP)
                )
            except OSError as error:
                assert error.errno == errno.EIO
            else:
                assert seen == OLD
            time.sleep(FRESH)
    assert doc.read_bytes() == SAME


# ---- sizes that no header vouches for


@pytest.mark.parametrize("options", ["", "exclusive", "exclusive,nowriteback"])
@pytest.mark.parametrize("engine", ENGINES)
def test_surplus_bytes_are_never_zeros(engine: str, options: str) -> None:
    spec = MountSpec(engine, options=options)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.allow_log("do not belong to it", "bytes at its end")
        outside = Outside(mount)
        outside.make("doc", b"100 bytes" * 11)
        with outside.backing("doc").open("ab") as file:
            file.write(os.urandom(49_152))
        outside.close()
        mount.remount()
        doc = mount.mountpoint / "doc"
        doc.stat()
        assert doc.read_bytes() == b"100 bytes" * 11
        with doc.open("ab") as file:
            file.write(b"more")
        assert doc.read_bytes() == b"100 bytes" * 11 + b"more"
        mount.remount()
        assert doc.read_bytes() == b"100 bytes" * 11 + b"more"
        assert doc.stat().st_size == 103
