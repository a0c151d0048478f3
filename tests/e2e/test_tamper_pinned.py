"""Somebody exchanges a vault, or puts older parts of it back: `cryptfs mount` knows what it has seen."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import ENVIRONMENT, Place, place
from tests.support import state_files

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")

__all__ = ["place"]  # a fixture
REFUSED = 43
TOLD = "the vault has counted fewer sessions than this machine has seen"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    yield f"engine={request.param}"


def work(place: Place, engine: str, content: str) -> None:
    """A session that writes a file."""
    place.mount("-o", engine)
    (place.mountpoint / "file").write_text(content)
    place.umount()


def code_of(place: Place) -> str:
    return str(place.info()["identity"])


def test_another_vault_in_its_place(place: Place, engine: str) -> None:
    """It opens by the same passphrase, so that what is written next could be read by somebody else."""
    work(place, engine, "mine")
    right = code_of(place)
    aside, other = place.vault.with_name("aside"), place.vault.with_name("other")
    place.cryptfs("init", other, "--passfile", place.passfile, "--kdf-memory", "64m")
    place.vault.rename(aside)
    other.rename(place.vault)
    told = place.mount("-o", engine, code=REFUSED).stderr
    assert "is not the vault that this machine opened there before" in told
    assert right in told
    assert not place.is_mounted()
    for options in ("accept", "no_pin"):
        place.mount("-o", f"{engine},{options},expect_identity={right}", code=REFUSED)
    place.mount("-o", f"{engine},accept")
    assert os.listdir(place.mountpoint) == []
    place.umount()
    place.mount("-o", engine)
    place.umount()
    shutil.rmtree(place.vault)
    aside.rename(place.vault)
    place.mount("-o", engine, code=REFUSED)
    place.mount("-o", engine, "--expect-identity", right)
    assert (place.mountpoint / "file").read_text() == "mine"
    place.umount()


def test_an_older_config(place: Place, engine: str) -> None:
    config = place.vault / "cryptfs.json"
    old = config.read_bytes()
    words = ("passwd", place.vault, "--passfile", place.passfile, "--new-passfile", place.passfile)
    place.cryptfs(*words, "--kdf-memory", "64m")
    work(place, engine, "content")
    assert place.info()["generation"] == 2
    config.write_bytes(old)
    told = place.mount("-o", engine, code=REFUSED).stderr
    assert "is older than the one that this machine has seen (generation 1 instead of 2)" in told
    assert not place.is_mounted()
    place.mount("-o", f"{engine},no_pin")
    assert (place.mountpoint / "file").read_text() == "content"
    place.umount()


def test_an_older_state_of_the_vault(place: Place, engine: str) -> None:
    """A warning on the terminal and in the daemon's log: the copy may be a backup of one's own."""
    work(place, engine, "old")
    copy = place.vault.with_name("copy")
    shutil.copytree(place.vault, copy)
    work(place, engine, "new")
    place.cryptfs("info", place.vault)
    for path in copy.iterdir():
        shutil.copy2(path, place.vault / path.name)
    assert state_files(place.vault, "sessions") == state_files(copy, "sessions")
    place.allowed.append(TOLD)
    assert place.mount("-o", engine).stderr.count(TOLD) == 1
    assert TOLD in place.log_file.read_text()
    assert (place.mountpoint / "file").read_text() == "old"
    place.umount()
    assert TOLD not in place.mount("-o", engine).stderr
    place.umount()


def test_a_mount_without_a_place_for_pins(
    place: Place, engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A home that is read-only, full or missing: the vault opens as if it was never seen."""
    (tmp_path / "a file").write_bytes(b"")
    monkeypatch.setitem(ENVIRONMENT, "XDG_STATE_HOME", str(tmp_path / "a file"))
    work(place, engine, "content")
    assert json.loads(place.cryptfs("info", "--json", place.vault).stdout)["identity"] is None
