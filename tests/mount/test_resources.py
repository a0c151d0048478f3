"""Descriptors and memory that a daemon asks for and gives back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import child_environment

pytestmark = pytest.mark.serial

RAISED = """
import resource
from cryptfs.mount.resources import claim_resources
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
claim_resources()
claim_resources()  # no harm in asking twice
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
"""

GIVEN_BACK = """
from cryptfs.storage.libc import release_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
blocks = [b"x" * 10_000 for _ in range(10_000)]
last = [bytes(10_000)]  # keeps the heap from being cut at its end
full = resident()
del blocks
release_memory()
assert full - resident() > 80 << 20, (full, resident())
"""


def run(source: str) -> None:
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_limit_of_descriptors_is_raised() -> None:
    run(RAISED)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc_trim is glibc's")
def test_free_memory_goes_back() -> None:
    run(GIVEN_BACK)
