"""Imports point down only; and the check for that notices when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

import cryptfs
from tests.project.layers import MOST_FILES, RANK, UNCOUNTED, circles, rooms, violations

PACKAGE_DIR = Path(cryptfs.__file__).parent


def test_imports_point_down() -> None:
    assert violations(PACKAGE_DIR) == []


def test_every_room_is_drawn() -> None:
    assert set(rooms(PACKAGE_DIR)) == RANK.keys() - {"version", "interpreter", "errors", "errnos", "signals"}


def test_no_room_holds_more_than_one_program() -> None:
    crowded = {room: len(files) for room, files in rooms(PACKAGE_DIR).items() if len(files) > MOST_FILES}
    assert not crowded.keys() - set(UNCOUNTED), crowded


def test_no_imports_in_circles() -> None:
    assert circles(PACKAGE_DIR) == []


@pytest.mark.parametrize(
    "second", ["from cryptfs.vfs import a", "if TYPE_CHECKING:\n    from cryptfs.vfs.a import A"]
)
def test_a_circle_is_found(tmp_path: Path, second: str) -> None:
    (tmp_path / "vfs").mkdir()
    (tmp_path / "vfs" / "a.py").write_text("from cryptfs.vfs.b import B")
    (tmp_path / "vfs" / "b.py").write_text(second)
    (tmp_path / "vfs" / "c.py").write_text("from cryptfs.vfs.a import A")
    assert circles(tmp_path) == [["cryptfs.vfs.a", "cryptfs.vfs.b"]]


def findings(tmp_path: Path, file: str, source: str) -> list[str]:
    """What is found in a package of one file."""
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    return violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source", "rule"),
    [
        ("core/a.py", "import os", "core is pure"),
        ("core/a.py", "import os.path as p", "core is pure"),
        ("core/a.py", "from os import urandom", "core is pure"),
        ("core/a.py", "def f():\n    import threading", "core is pure"),
        ("core/a.py", "if True:\n    from time import sleep", "core is pure"),
        ("core/a.py", "import logging", "core is pure"),
        ("core/a.py", "import random, secrets", "core is pure"),
        ("core/a.py", "from pathlib import Path", "core is pure"),
        ("core/a.py", "import socket", "core is pure"),
        ("core/a.py", "import subprocess", "core is pure"),
        ("core/a.py", "__import__('os')", "core is pure"),
        ("core/a.py", "import importlib\nimportlib.import_module('os')", "core is pure"),
        ("errors.py", "import time", "errors is pure"),
        ("errors.py", "from cryptfs.core import names", "core.names is above errors"),
        ("core/a.py", "from cryptfs.storage.dirs import x", "storage is above core"),
        ("core/a.py", "from cryptfs import storage", "storage is above core"),
        ("core/a.py", "from ..storage import dirs", "storage is above core"),
        ("core/names/a.py", "from ...vfs import tree", "vfs.tree is above core.names"),
        ("core/sub/a.py", "import struct", "no room"),
        ("storage/a.py", "import cryptfs.vfs.tree.tree", "vfs.tree is above storage"),
        ("storage/a.py", "from cryptfs.core import aead", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.aead import SUITES", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.sodium import Buffer", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.format.header import FileHeader", "only ciphertext"),
        ("storage/a.py", "from nacl.bindings import x", "libsodium is behind core"),
        ("version.py", "from cryptfs import errors", "errors is above version"),
        ("vfs/a.py", "from cryptfs.mount import life", "mount is above vfs"),
        ("vfs/a.py", "import mfusepy", "only mount knows FUSE"),
        ("cli/a.py", "def f():\n    from mfusepy import FUSE", "only mount knows FUSE"),
        ("vfs/tree/a.py", "from cryptfs.vfs.scan import walk", "vfs.scan is above vfs.tree"),
        ("fsck/a.py", "from cryptfs.witness import spill", "witness is beside fsck"),
        ("mount/native/a.py", "from cryptfs.mount.fusepy import told", "mount.fusepy is beside mount.native"),
        ("mount/a.py", "from cryptfs.cli.main import run", "cli is above mount"),
        ("mount/a.py", "import cryptfs", "root is above"),
        ("vfs/a.py", "from cryptfs import Vault", "root is above"),
        ("stray.py", "x = 1\nimport json", "no room"),
        ("cli/a.py", "from mnemonic import Mnemonic", "only unlock/carriers/words.py may use it"),
        (
            "unlock/carriers/words.py",
            "import shamir_mnemonic.share",
            "only unlock/carriers/shares.py may use it",
        ),
        ("storage/a.py", "import ctypes", "behind storage.libc"),
        ("vfs/a.py", "def f():\n    from ctypes import memset", "behind storage.libc"),
        ("mount/fusepy/a.py", "import ctypes.util", "behind storage.libc"),
        ("cli/libc.py", "__import__('ctypes')", "behind storage.libc"),
        ("core/a.py", "from fido2.ctap2 import Ctap2", "only unlock/carriers/ctap.py may use it"),
        ("unlock/a.py", "import fido2.hid", "draws its own randomness"),
        ("unlock/a.py", "def f():\n    from cryptography import exceptions", "only unlock/hybrid.py may"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, file: str, source: str, rule: str) -> None:
    found = findings(tmp_path, file, source)
    assert found
    assert all(rule in line and line.startswith(file) for line in found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/a.py", "import hashlib\nfrom nacl.bindings import x\nfrom cryptfs.errors import y"),
        ("core/a.py", "from .keys import derive\nfrom . import acl"),
        ("storage/a.py", "import os\nfrom cryptfs.core.names.names import LONG_PREFIX"),
        ("vfs/a.py", "import threading\nfrom cryptfs.core.aead import SUITES\nfrom ..storage import dirs"),
        ("storage/libc.py", "import ctypes"),
        ("mount/fusepy/engine.py", "import ctypes\nimport mfusepy"),
        ("mount/a.py", "import mfusepy\nfrom cryptfs.vfs.tree.tree import VaultTree"),
        ("unlock/hybrid.py", "from cryptography.hazmat.primitives.hpke import Suite"),
        ("cli/a.py", "import nacl.bindings\nfrom cryptfs.version import VERSION"),
        ("cli/a.py", "from cryptfs import __version__\nfrom cryptfs.mount.life import run"),
        ("__init__.py", "from cryptfs.vfs.vault import Vault"),
        ("unlock/carriers/ctap.py", "from fido2.ctap2 import Ctap2\nimport hashlib"),
    ],
)
def test_what_is_allowed(tmp_path: Path, file: str, source: str) -> None:
    assert findings(tmp_path, file, source) == []
