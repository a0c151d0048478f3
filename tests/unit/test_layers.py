"""Imports point down only; and the check for that notices when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest

import cryptfs
from tests.unit.layers import violations

PACKAGE_DIR = Path(cryptfs.__file__).parent


def test_imports_point_down() -> None:
    assert violations(PACKAGE_DIR) == []


def test_every_layer_is_looked_at() -> None:
    layers = {path.name for path in PACKAGE_DIR.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert layers == {"core", "storage", "vfs", "mount", "cli"}


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
        ("errors.py", "from cryptfs.core import names", "core is above errors"),
        ("core/a.py", "from cryptfs.storage.dirs import x", "storage is above core"),
        ("core/a.py", "from cryptfs import storage", "storage is above core"),
        ("core/a.py", "from ..storage import dirs", "storage is above core"),
        ("core/sub/a.py", "from ...vfs import tree", "vfs is above core"),
        ("storage/a.py", "import cryptfs.vfs.tree", "vfs is above storage"),
        ("storage/a.py", "from cryptfs.core import aead", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.aead import SUITES", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.sodium import Buffer", "only ciphertext"),
        ("storage/a.py", "from cryptfs.core.header import FileHeader", "only ciphertext"),
        ("storage/a.py", "from nacl.bindings import x", "libsodium is behind core"),
        ("version.py", "from cryptfs import errors", "errors is above version"),
        ("vfs/a.py", "from cryptfs.mount import session", "mount is above vfs"),
        ("vfs/a.py", "import mfusepy", "only mount knows FUSE"),
        ("cli/a.py", "def f():\n    from mfusepy import FUSE", "only mount knows FUSE"),
        ("mount/a.py", "from cryptfs.cli.main import run", "cli is above mount"),
        ("mount/a.py", "import cryptfs", "root is above"),
        ("vfs/a.py", "from cryptfs import Vault", "root is above"),
        ("stray.py", "x = 1\nimport json", "no layer"),
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
        ("core/a.py", "from .keys import derive\nfrom . import names"),
        ("storage/a.py", "import os\nfrom cryptfs.core.names import LONG_PREFIX"),
        ("vfs/a.py", "import threading\nfrom cryptfs.core.aead import SUITES\nfrom ..storage import dirs"),
        ("mount/a.py", "import mfusepy\nfrom cryptfs.vfs.tree import VaultTree"),
        ("cli/a.py", "import nacl.bindings\nfrom cryptfs.version import VERSION"),
        ("cli/a.py", "from cryptfs import __version__\nfrom cryptfs.mount.session import run"),
        ("__init__.py", "from cryptfs.vfs.vault import Vault"),
    ],
)
def test_what_is_allowed(tmp_path: Path, file: str, source: str) -> None:
    assert findings(tmp_path, file, source) == []
