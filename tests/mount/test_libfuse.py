"""The engine on libfuse says what to install where libfuse 3 is missing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from cryptfs.errors import MountError
from cryptfs.mount.life import load_engine


@pytest.fixture(autouse=True)
def _unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is imported anew, and what was there before comes back afterwards."""
    monkeypatch.setenv("FUSE_LIBRARY_NAME", "")
    monkeypatch.delenv("FUSE_LIBRARY_PATH", raising=False)
    for name in [name for name in sys.modules if name.startswith("cryptfs.mount.fusepy.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)


def test_libfuse_3_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"fuse": "libfuse.so.2"}
    monkeypatch.setattr("ctypes.util.find_library", found.get)  # only libfuse 2 is there
    with pytest.raises(MountError, match=r"libfuse 3 cannot be used .* apt-get install fuse3"):
        load_engine("fusepy")


def test_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    older = SimpleNamespace(fuse_version_major=2, fuse_version_minor=9)
    monkeypatch.setitem(sys.modules, "mfusepy", older)
    with pytest.raises(MountError, match=r"loaded version 2\.9\).* apt-get install fuse3"):
        load_engine("fusepy")
