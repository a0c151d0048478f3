"""What the native engine does and libfuse cannot: docs/ENGINES.md, section 3. Each limit is an xfail, strict.

More of them stand beside what they are about: KNOWN_LIMITS in trace.py, test_outside_paths.py.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.storage.libc import statx_birth_time
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.test_file_handles import forget, handle_of, open_soon

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users, and opens file handles"),
]


@pytest.fixture(scope="module", params=ENGINES)
def mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    spec = MountSpec(request.param, options="allow_other", tmpfs=False)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.mountpoint.chmod(0o755)
        yield mount


def a_file_without_a_name(place: Path) -> None:
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"content")
    above = os.open(place, os.O_PATH)  # with it Python follows the link in /proc
    os.link(f"/proc/self/fd/{fd}", "linked", dst_dir_fd=above)
    os.close(above)
    os.close(fd)
    assert (place / "linked").read_bytes() == b"content"


def a_time_of_birth(place: Path) -> None:
    (place / "file").touch()
    fd = os.open(place / "file", os.O_RDONLY)
    birth = statx_birth_time(fd, "")
    os.close(fd)
    assert birth is not None


def a_file_handle_after_the_caches_are_gone(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    handle = handle_of(place / "file")
    for _ in range(10):  # Linux may keep an inode that it was just asked to drop
        forget()
        fd = open_soon(place, handle)
        assert fd >= 0, os.strerror(-fd)
        os.close(fd)
        time.sleep(0.1)


def acls_for_several_users(place: Path) -> None:
    assert shutil.which("setfacl")
    (place / "file").touch()
    subprocess.run(["setfacl", "-m", "u:12345:rw", str(place / "file")], check=True, capture_output=True)


def an_acl_takes_setgid_away(place: Path) -> None:
    """From a file whose owner is not in its group."""
    path = place / "file"
    path.touch()
    os.chown(path, 1004, 100)
    path.chmod(0o2777)
    for acl in ("u::rwx,g::rwx,o::rwx", "u:1001:rwx"):
        words = [
            "setpriv",
            "--reuid",
            "1004",
            "--regid",
            "1005",
            "--clear-groups",
            "setfacl",
            "-m",
            acl,
            str(path),
        ]
        subprocess.run(words, check=False, capture_output=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def data_behind_a_hole(place: Path) -> None:
    """In a file that is open for writing."""
    fd, at = os.open(place / "file", os.O_RDWR | os.O_CREAT), 259 * 16384
    os.pwrite(fd, b"a" * 4096, 0)
    os.pwrite(fd, b"a" * 4096, at)
    os.fsync(fd)
    found = os.lseek(fd, 49152, os.SEEK_DATA)
    os.close(fd)
    assert found == at


def a_link_count_by_the_other_name(place: Path) -> None:
    (place / "file").touch()
    (place / "file").stat()
    os.link(place / "file", place / "second")
    assert (place / "file").stat().st_nlink == 2


LIMITS: list[Callable[[Path], None]] = [
    a_file_without_a_name,
    a_time_of_birth,
    a_file_handle_after_the_caches_are_gone,
    acls_for_several_users,
    an_acl_takes_setgid_away,
    data_behind_a_hole,
    a_link_count_by_the_other_name,
]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.__name__)
def test_a_limit_of_libfuse(
    limit: Callable[[Path], None], mount: Mounted, request: pytest.FixtureRequest
) -> None:
    if mount.spec.engine == "fusepy":
        request.applymarker(pytest.mark.xfail(strict=True, reason="docs/ENGINES.md, section 3"))
    place = mount.mountpoint / limit.__name__
    place.mkdir()
    limit(place)
