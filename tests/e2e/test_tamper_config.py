"""Somebody changes the config: `cryptfs mount` refuses it, nothing hangs, and a mount that runs goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.mount.mounts import mount_at
from cryptfs.storage.vaultdir import LOCK_NAME
from cryptfs.vfs.vault import Vault, change_passphrase
from tests.commands import Run, runner
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.test_tamper_planted import PLANTS

pytestmark = [
    pytest.mark.timeout(60),  # a hang is among what these cases are about
    pytest.mark.skipif(os.geteuid() != 0, reason="makes devices"),
]

KDF_MEMORY = 64 << 20
Config = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What an attacker has. present, removed: the config, and one from before a change of the passphrase.

    other: the config of another vault with the same passphrase.
    """

    present: Config
    removed: Config
    other: Config


Change = Callable[[Evidence], Config]


def field(**fields: object) -> Change:
    """Fields of the config replaced or added."""
    return lambda has: has.present | fields


def in_slot(**fields: object) -> Change:
    """Fields of its first slot replaced or added."""
    return lambda has: has.present | {"slots": [has.present["slots"][0] | fields]}


def cost(**fields: object) -> Change:
    """Costs of its first slot replaced."""
    return lambda has: in_slot(params=has.present["slots"][0]["params"] | fields)(has)


def slots(make: Callable[[Evidence], list[Config]]) -> Change:
    """The present slot and others."""
    return lambda has: has.present | {"slots": [*has.present["slots"], *make(has)]}


def flipped(text: str) -> str:
    return ("b" if text[0] == "a" else "a") + text[1:]


CHANGES: dict[str, Change] = {
    "another cipher": field(cipher="xchacha20-poly1305"),
    "another chunk size": field(chunk_size=64 << 10),
    "another version": field(version=3),
    "version 1": field(version=1),
    "a recovery secret": field(recovery=["00" * 16]),
    "an unknown kind": in_slot(kind="tpm2"),
    "an unknown feature": field(features=["machine-state", "slots", "unknown"]),
    "no feature": field(features=[]),
    "another generation": field(generation=77),
    "another vault_id": lambda has: has.present | {"vault_id": flipped(has.present["vault_id"])},
    "another mac": lambda has: has.present | {"mac": flipped(has.present["mac"])},
    "a field added": field(note="x"),
    "a field removed": lambda has: {key: has.present[key] for key in has.present if key != "mac"},
    "another label": in_slot(label="another"),
    "another wrapped key": lambda has: in_slot(wrapped=flipped(has.present["slots"][0]["wrapped"]))(has),
    "no slot": field(slots=[]),
    "a slot of another vault": slots(lambda has: [has.other["slots"][0] | {"id": 9}]),
    "the slot of another vault": lambda has: has.present | {"slots": has.other["slots"]},
    "a slot that was removed": slots(lambda has: [has.removed["slots"][0] | {"id": 9}]),
    "terabytes": cost(memory=4 << 40),
    "billions of passes": cost(passes=2**32 - 1),
    "thousands of slots": slots(lambda has: [has.other["slots"][0] | {"id": n} for n in range(9, 3000)]),
}
RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda content: content[:-10],
    "no JSON": lambda _: b"\xff\x00 no config \x1b[2J",
    "deep JSON": lambda _: b"[" * 60_000,
    "a byte flipped": lambda content: content.replace(b'"mac"', b'"mbc"'),
}


def take_away(path: Path) -> None:
    """Remove what is there, of any kind."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


class Scene:
    """A mounted vault and its config, as it is and as it was."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.path = mount.vault_dir / CONFIG_NAME
        self.passfile = mount.scratch / "passfile"
        self.passfile.touch(mode=0o600)
        self.passfile.write_text(PASSPHRASE)
        removed = json.loads(self.path.read_bytes())
        for before, after in ((PASSPHRASE, "between"), ("between", PASSPHRASE)):
            change_passphrase(mount.vault_dir, before.encode(), after.encode(), kdf_memory=KDF_MEMORY)
        self.content = self.path.read_bytes()
        other = mount.scratch / "other vault"
        Vault.create(other, PASSPHRASE.encode(), kdf_memory=KDF_MEMORY)
        self.other = (other / CONFIG_NAME).read_bytes()
        self.has = Evidence(json.loads(self.content), removed, json.loads(self.other))
        (mount.mountpoint / "file").write_bytes(b"content")
        mount.remount()

    def changed(self, name: str) -> bytes:
        """The config after a change."""
        if name in RAW:
            return RAW[name](self.content)
        return json.dumps(CHANGES[name](self.has)).encode()

    def put(self, content: bytes) -> None:
        """Replace the config, whatever is in its place."""
        take_away(self.path)
        self.path.write_bytes(content)


@pytest.fixture(scope="module", params=ENGINES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as mount:
        yield Scene(mount)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def assert_refused(scene: Scene, run: Run) -> None:
    """No second mount, and a message that writes nothing to the terminal but letters."""
    place = scene.mount.scratch / "refused"
    place.mkdir(exist_ok=True)
    engine = f"engine={scene.mount.spec.engine}"
    done = run("mount", scene.mount.vault_dir, place, "--passfile", scene.passfile, "-o", engine)
    assert done.code not in (0, 1, 70), done
    assert mount_at(place) is None
    assert done.err.startswith("cryptfs")
    assert done.err.replace("\n", "").isprintable()
    assert "Traceback" not in done.err


def test_a_mount_that_runs_goes_on(scene: Scene) -> None:
    """It has read the config. What is put there meanwhile counts from the next mount on."""
    for name in (*CHANGES, *RAW):
        scene.put(scene.changed(name))
        path = scene.mount.mountpoint / "file"
        assert path.read_bytes() == b"content"
        path.write_bytes(b"content")
    scene.path.unlink()
    assert (scene.mount.mountpoint / "file").read_bytes() == b"content"
    scene.put(scene.content)
    scene.mount.remount()
    assert (scene.mount.mountpoint / "file").read_bytes() == b"content"


def test_a_changed_config_is_refused(scene: Scene, run: Run) -> None:
    scene.mount.unmount()
    try:
        for name in (*CHANGES, *RAW):
            scene.put(scene.changed(name))
            assert_refused(scene, run)
        for plant in PLANTS.values():
            take_away(scene.path)
            plant(scene.path, scene.mount.scratch)
            assert_refused(scene, run)
    finally:
        scene.put(scene.content)
        scene.mount.start()
    assert (scene.mount.mountpoint / "file").read_bytes() == b"content"


def test_what_is_planted_for_the_lock_is_refused(scene: Scene, run: Run) -> None:
    """A lock on a thing that is no file would lock nobody out."""
    scene.mount.unmount()
    lock = scene.mount.vault_dir / LOCK_NAME
    try:
        for plant in PLANTS.values():
            take_away(lock)
            plant(lock, scene.mount.scratch)
            assert_refused(scene, run)
    finally:
        take_away(lock)
        scene.mount.start()
    assert (scene.mount.mountpoint / "file").read_bytes() == b"content"


def test_under_the_config_of_another_vault_nothing_verifies(scene: Scene) -> None:
    """Its passphrase opens it. Its keys open no name and no file of this vault."""
    scene.mount.unmount()
    scene.mount.allow_log(r"WARNING ", r"ERROR ")
    entry = next(path for path in scene.mount.vault_dir.iterdir() if not path.name.startswith("cryptfs."))
    before = entry.read_bytes()
    scene.put(scene.other)
    try:
        scene.mount.start()
        assert os.listdir(scene.mount.mountpoint) == []
        assert not (scene.mount.mountpoint / "file").exists()
        scene.mount.unmount()
    finally:
        scene.put(scene.content)
        scene.mount.start()
    assert entry.read_bytes() == before
    assert (scene.mount.mountpoint / "file").read_bytes() == b"content"


def test_an_older_config_is_not_detected(scene: Scene) -> None:
    """Not promised: a slot that a change of the passphrase has removed opens the vault again."""
    scene.mount.unmount()
    try:
        scene.put(json.dumps(scene.has.removed).encode())
        scene.mount.start()
        assert (scene.mount.mountpoint / "file").read_bytes() == b"content"
        scene.mount.unmount()
    finally:
        scene.put(scene.content)
        scene.mount.start()
