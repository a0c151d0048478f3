"""Front ends for gocryptfs drive cryptfs-gocryptfs with their own sequences of calls, on real mounts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.cli.gocryptfs import write_front_end_file
from cryptfs.mount.mounts import mount_at
from cryptfs.vfs.vault import Vault
from tests.e2e.mounting import detach
from tests.support import child_environment

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")

PASSPHRASE = "as front ends give it\n"
DESCRIPTION = Path(__file__).parents[2] / "share" / "SiriKali" / "backends" / "cryptfs.json"
EMPTY = ("createOptions", "mountOptions", "fuseOpts")
OURS = (sys.executable, "-m", "cryptfs.cli.gocryptfs")


@dataclass(frozen=True)
class Desk:
    """A directory with room for vaults, and a mountpoint."""

    root: Path

    @property
    def vault(self) -> Path:
        return self.root / "vault"

    @property
    def mountpoint(self) -> Path:
        return self.root / "mounted"

    def run(
        self, *words: object, stdin: str = PASSPHRASE, code: int = 0, program: tuple[str, ...] = OURS
    ) -> subprocess.CompletedProcess[str]:
        """As a front end: with pipes, and a password written to stdin. Insists on the exit code."""
        done = subprocess.run(
            [*program, *(str(word) for word in words)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=child_environment(),
        )
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def make(self) -> None:
        """A vault whose passphrase costs less than one that -init makes."""
        Vault.create(self.vault, PASSPHRASE.strip().encode(), kdf_memory=64 << 20)
        write_front_end_file(self.vault)

    def keeps_a_file(self) -> None:
        """A file that was written before, or is written now."""
        file = self.mountpoint / "file"
        if not file.exists():
            file.write_text("kept")
        assert file.read_text() == "kept"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    made.mountpoint.mkdir()
    yield made
    detach(made.mountpoint)


def test_gnome_vaults(desk: Desk) -> None:
    """Vaults 0.7: is it there; make, open, close; open again at once."""
    desk.vault.mkdir()
    desk.run("--version")
    desk.run("--init", "-q", "--", desk.vault, stdin=PASSPHRASE * 2)
    for _ in range(2):
        assert desk.run("-q", "--", desk.vault, desk.mountpoint).stdout == ""
        desk.keeps_a_file()
        subprocess.run(["fusermount3", "-u", desk.mountpoint], check=True)
    desk.run("-fusedebug", desk.vault, desk.mountpoint)  # as version 0.1 did
    desk.keeps_a_file()
    desk.run("-q", "--", desk.vault, desk.root / "elsewhere", stdin="another\n", code=10)


def test_plasma_vault(desk: Desk) -> None:
    """Plasma Vault 5.27: it makes both directories itself, and looks for gocryptfs.conf."""
    desk.vault.mkdir()
    assert not (desk.vault / "gocryptfs.conf").exists()
    desk.run("-init", desk.vault, stdin=PASSPHRASE * 2)
    assert (desk.vault / "gocryptfs.conf").exists()
    desk.run(desk.vault, desk.mountpoint)
    desk.keeps_a_file()
    subprocess.run(["fusermount", "-u", desk.mountpoint], check=True)
    desk.run(desk.vault, desk.mountpoint, stdin="wrong\n", code=12)
    assert mount_at(desk.mountpoint) is None
    desk.run(desk.vault, desk.mountpoint)
    desk.keeps_a_file()


def test_sirikali_as_with_gocryptfs(desk: Desk) -> None:
    """SiriKali 1.5 with its own description of gocryptfs; a private directory has the name in PATH."""
    private = desk.root / "private"
    private.mkdir()
    link = private / "gocryptfs"
    link.write_text(f'#!/bin/sh\nexec {sys.executable} -m cryptfs.cli.gocryptfs "$@"\n')
    link.chmod(0o755)
    named = (str(link),)
    desk.make()
    desk.run(desk.vault, desk.mountpoint, "-q", stdin="wrong\n", code=12, program=named)
    options = f"rw,fsname=gocryptfs@{desk.vault},subtype=gocryptfs"
    desk.run("-q", desk.vault, desk.mountpoint, "-o", options, program=named)
    found = mount_at(desk.mountpoint)
    assert found is not None
    assert (found.source, found.fs_type) == (f"gocryptfs@{desk.vault}", "fuse.cryptfs")
    desk.keeps_a_file()
    subprocess.run(["fusermount", "-u", desk.mountpoint], check=True)
    desk.run("-q", "-ro", desk.vault, desk.mountpoint, program=named)
    desk.keeps_a_file()
    with pytest.raises(OSError, match="Read-only"):
        (desk.mountpoint / "other").touch()


def test_sirikali_with_our_description(desk: Desk) -> None:
    """The calls of SiriKali 1.5.0, from the structures in the file that the package installs for it."""
    about = json.loads(DESCRIPTION.read_text())
    vault, comma = desk.root / "my vault, 2026", "SiriKaliSpecialCharacter001"
    fsname = f"Cryptfs@{vault}".replace(",", comma)

    def call(structure: str, **given: str) -> tuple[str, ...]:
        known = {"cipherFolder": str(vault), "mountPoint": str(desk.mountpoint), **given}
        words = (word.removeprefix("%{").removesuffix("}") for word in structure.split())
        found = [known.get(word, "" if word in EMPTY else word) for word in words]
        return tuple(filter(None, found))

    program = (sys.executable, "-m", about["executableName"])
    desk.run(*call(about["createControlStructure"]), program=program)
    mount = call(about["mountControlStructure"], mountOptions=about["configFileArgument"])
    desk.run(
        *mount,
        "-o",
        f"rw,fsname={fsname},subtype=Cryptfs",
        stdin="wrong\n",
        program=program,
        code=int(about["wrongPasswordErrorCode"]),
    )
    for mode in ("rw", "ro"):
        done = desk.run(*mount, "-o", f"{mode},fsname={fsname},subtype=Cryptfs", program=program)
        assert done.stdout == ""
        found = mount_at(desk.mountpoint)
        assert found is not None
        assert (found.source, [found.fs_type]) == (fsname, about["fuseNames"])
        assert found.read_only == (mode == "ro")
        desk.keeps_a_file()
        assert str(vault) in desk.run(*call(about["volumePropertiesCommands"][0])[1:], program=program).stdout
        desk.run(*call(" ".join(about["unMountCommand"][1:])), program=program)
    assert (vault / about["configFileNames"][0]).exists()


def test_in_the_foreground(desk: Desk) -> None:
    desk.make()
    words = [*OURS, "-fg", "-fsname", "a name", str(desk.vault), str(desk.mountpoint)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment()
    ) as running:
        assert running.stdin is not None
        assert running.stderr is not None
        running.stdin.write(PASSPHRASE)
        running.stdin.flush()
        assert "is mounted on" in running.stderr.readline()
        found = mount_at(desk.mountpoint)
        assert found is not None
        assert found.source == "a name"
        assert {"nosuid", "nodev"} <= set(found.options)
        subprocess.run(["fusermount3", "-u", desk.mountpoint], check=True)
        running.stdin.close()
        running.stderr.read()
        assert running.wait(60) == 0


def test_gocryptfs_refuses_a_vault_of_cryptfs(desk: Desk) -> None:
    if shutil.which("gocryptfs") is None:
        pytest.skip("gocryptfs is not installed")
    desk.make()
    program = (str(shutil.which("gocryptfs")),)
    done = subprocess.run(
        [*program, desk.vault, desk.mountpoint], input=PASSPHRASE, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert 'Unknown feature flag "cryptfs"' in done.stderr
