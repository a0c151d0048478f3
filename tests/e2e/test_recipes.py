"""The recipes in docs/recipes: their commands run at a terminal as they are, and do what they promise."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import detach
from tests.e2e.programs import require, run
from tests.e2e.recipes import (
    OLD_FILES,
    PASSPHRASE,
    RECIPES,
    ROOT,
    at_home,
    put_old_files,
    script_of,
    typed_at_a_terminal,
)

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

CRYFS_VAULT = Path(__file__).with_name("cryfs-vault.tar.gz")
"""make_cryfs_vault.py made it: the key of a new one takes 14 seconds."""


def _mounts_below(directory: Path) -> list[str]:
    """Every mountpoint in a directory, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [place for place in reversed(places) if Path(place).is_relative_to(directory)]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home directory; no mount in it stays."""
    yield tmp_path
    for place in _mounts_below(tmp_path):
        detach(place, lazy=True)


def _old_vaults(home: Path, environment: dict[str, str]) -> None:
    """Vaults of the three programs, as somebody has them who moves."""
    plain, secret = home / "plain", home / "secret"
    secret.write_text(PASSPHRASE + "\n")
    made = {name: home / f"{name}-vault" for name in ("gocryptfs", "encfs")}
    for each in (plain, *made.values()):
        each.mkdir()
    run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", secret, made["gocryptfs"])
    run("gocryptfs", "-q", "-passfile", secret, made["gocryptfs"], plain)
    put_old_files(plain)
    run("fusermount3", "-u", plain)
    run("encfs", "--standard", f"--extpass=cat {shlex.quote(str(secret))}", made["encfs"], plain)
    put_old_files(plain)
    run("encfs", "-u", plain)
    run("tar", "-xzf", CRYFS_VAULT, "-C", home)
    secret.unlink()
    plain.rmdir()


def _cloud(home: Path, environment: dict[str, str]) -> None:
    """A remote of rclone, as a person has it who has run `rclone config`."""
    (home / "cloud").mkdir()
    (home / "second").mkdir()
    config = home / ".config" / "rclone" / "rclone.conf"
    config.parent.mkdir(parents=True)
    config.write_text(f"[cloud]\ntype = alias\nremote = {home / 'cloud'}\n")


def _nothing(home: Path, environment: dict[str, str]) -> None:
    """The page makes what it needs."""


SCENES: dict[str, tuple[tuple[str, ...], Callable[[Path, dict[str, str]], None]]] = {
    "backup": (("rsync", "restic", "borg"), _nothing),
    "cloud-sync": (("rclone",), _cloud),
    "several-people": ((), _nothing),
    "servers": ((), _nothing),
    "recovery": ((), _nothing),
    "moving": (("rsync", "gocryptfs", "encfs", "cryfs"), _old_vaults),
}
"""The programs that a recipe is about, and what is there before its first command."""


def _has_all_old_files(home: Path) -> None:
    """The vault has what the old ones had: as a command without a mount reads it."""
    secret, found = home / "secret", home / "again"
    secret.write_text(PASSPHRASE + "\n")
    secret.chmod(0o600)
    said = {"HOME": str(home), "PYTHONPATH": str(ROOT), "CRYPTFS_PASSFILE": str(secret)}
    run(home / ".local/bin/cryptfs", "export", home / "vault", found, env=said)
    for name in ("gocryptfs", "encfs", "cryfs"):
        for path, content in OLD_FILES.items():
            assert (found / f"from-{name}" / path).read_bytes() == content
        assert os.readlink(found / f"from-{name}" / "link") == "letter.txt"


PROMISES: dict[str, tuple[str, ...]] = {
    "backup": ("Dear diary", "Everything is in order", "first"),
    "cloud-sync": ("Milk, bread, tea", "Everything is in order"),
    "several-people": ("ana", "Everything is in order"),
    "servers": ("key-file, server", "nothing was offered that this vault takes"),
    "recovery": ("Everything is in order", "cryptfs: these words or shares are not those of this vault"),
    "moving": ("from-gocryptfs/photos/2025/sea.raw", "from-encfs/letter.txt", "from-cryfs/letter.txt"),
}
"""What the terminal shows of what a recipe is for."""


def test_every_recipe_has_its_scene() -> None:
    assert {path.stem for path in RECIPES.glob("*.md")} - {"README"} == SCENES.keys()


@pytest.mark.parametrize("name", SCENES)
def test_a_recipe(home: Path, name: str) -> None:
    programs, prepare = SCENES[name]
    require(*programs, "bash")
    environment = at_home(home)
    prepare(home, environment)
    said = typed_at_a_terminal(script_of(RECIPES / f"{name}.md"), environment)
    for promise in PROMISES[name]:
        assert promise in said
    assert _mounts_below(home) == []
    if name == "moving":
        _has_all_old_files(home)
