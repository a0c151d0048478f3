"""A change of the masterkey and power cuts, on the model of the disk: what was not synced may be gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cryptfs.rekey.report import Report
from cryptfs.vfs.vault import Vault, read_config
from tests.crash.power.powermodel import crash_images
from tests.crash.power.recorder import Recorder
from tests.rekey.material import (
    CHUNK,
    LONG,
    LONG_TARGET,
    PASSPHRASE,
    change_masterkey,
    finish,
    make_directory,
    make_vault,
    put,
    shown,
)
from tests.rekey.test_rekey import faults
from tests.support import pattern

SEED = int(os.environ.get("CRYPTFS_CRASH_SEED", "0"))
IMAGES = int(os.environ.get("CRYPTFS_CRASH_POWER_IMAGES", "40")) * 4


def furnish(vault_dir: Path) -> None:
    """The model of the disk knows no attributes and no FIFOs."""
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        root = vault.tree.root
        put(vault, root, b"file", pattern(3 * CHUNK + 5))
        put(vault, root, b"empty", b"")
        one = make_directory(vault, root, b"one")
        two = make_directory(vault, one, LONG)
        for number in range(4):
            put(vault, two, b"%d" % number, pattern(100, number))
        put(vault, one, LONG + b"2", b"long")
        vault.tree.link(one, LONG + b"2", root, b"hard")
        vault.tree.make_symlink(two, b"far", LONG_TARGET)
        vault.tree.make_symlink(root, b"link", b"target")


def content(vault_dir: Path) -> dict[bytes, tuple[object, ...]]:
    """Size and content alone: an image has no times, modes or inode numbers of before."""
    return {path: (fields[0] >> 12, fields[-1]) for path, fields in shown(vault_dir).items()}


@pytest.mark.parametrize("at_once", [1, 3, 128])
def test_power_cuts(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number of changes shares the syncs."""
    monkeypatch.setattr("cryptfs.rekey.pipeline.MOST", at_once)
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir)
    furnish(vault_dir)
    before = content(vault_dir)
    recorder = Recorder(vault_dir)
    with recorder.on():
        change_masterkey(vault_dir)
    recording = recorder.recording
    assert content(vault_dir) == before
    states: set[tuple[bool, bool]] = set()
    for image in crash_images(recording, seed=SEED, count=IMAGES):
        where = (SEED, image.cut, image.choices)
        target = tmp_path / "image"
        image.write_to(target)
        config = read_config(target)
        states.add((config.is_rekeying, config.generation == 1))
        if config.generation == 1:
            change_masterkey(target)
        elif config.is_rekeying:
            report = Report()
            finish(target, report=report, take_over=True)
            assert report.damages == [], where
        assert content(target) == before, where
        # An image is another directory, so what the other one has not finished is another machine's.
        assert [each for each in faults(target) if not each.startswith("other-unfinished")] == [], where
        shutil.rmtree(target)
    assert states == {(False, True), (True, False), (False, False)}
