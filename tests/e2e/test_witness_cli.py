"""`cryptfs snapshot` and `cryptfs verify` as a person runs them, on vaults that are mounted or not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli.newfile import writing
from tests.e2e.mounting import assert_log_file_quiet, detach
from tests.support import child_environment, state_files

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

PASSPHRASE = "correct horse"


class Place:
    """A vault with its mountpoint, a manifest, and commands."""

    def __init__(self, base: Path) -> None:
        self.vault = base / "vault"
        self.mountpoint = base / "mountpoint"
        self.manifest = base / "manifest"
        self.log_file = base / "log"
        self.mountpoint.mkdir()

    def run(self, *args: object, code: int = 0, text: str = PASSPHRASE + "\n") -> bytes:
        return self._done(*args, code=code, text=text).stdout

    def says(self, *args: object, code: int = 0) -> str:
        """What it writes to stderr."""
        return self._done(*args, code=code, text=PASSPHRASE + "\n").stderr.decode()

    def _done(self, *args: object, code: int, text: str) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "cryptfs", *map(str, args)],
            input=text.encode(),
            capture_output=True,
            check=False,
            env=child_environment(),
            timeout=90,
        )
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        return done

    def mount(self, *options: str) -> None:
        self.run("mount", "--log-file", self.log_file, self.vault, self.mountpoint, *options)

    def umount(self) -> None:
        self.run("umount", self.mountpoint)

    def snapshot(self) -> None:
        self.manifest.write_bytes(self.run("snapshot", self.vault))

    def verify(self, code: int = 0, *options: str) -> dict[str, Any]:
        words = ("verify", "--json", self.vault, self.manifest, *options)
        found: dict[str, Any] = json.loads(self.run(*words, code=code))
        return found

    def changes(self, code: int = 0) -> set[tuple[str, str | None]]:
        return {(each["change"], each["path"]) for each in self.verify(code)["findings"]}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.run("init", made.vault, "--kdf-memory", "64m")
    yield made
    detach(made.mountpoint)
    assert_log_file_quiet(made.log_file)


def test_a_session_of_work(place: Place) -> None:
    """Snapshot and verify while mounted: nothing that is done there is an alarm."""
    place.mount()
    root = place.mountpoint
    for name in ("kept", "changed", "deleted", "moved", "saved"):
        (root / name).write_text(name)
    (root / "directory").mkdir()
    place.umount()
    place.snapshot()
    place.mount()
    with (root / "open").open("w") as stays_open:
        stays_open.write("being written")
        stays_open.flush()
        os.fsync(stays_open.fileno())
        with (root / "changed").open("a") as file:
            file.write("more")
            os.fsync(file.fileno())
        (root / "deleted").unlink()
        (root / "moved").rename(root / "directory" / "elsewhere")
        (root / "saved.new").write_text("an editor's way")
        (root / "saved.new").rename(root / "saved")
        (root / "café \x1b[2J").write_text("a name that wants to be more")
        found = place.verify()
    place.umount()
    shown = {(each["change"], each["path"], each["was"]) for each in found["findings"]}
    assert shown == {
        ("deleted", "deleted", None),
        ("added", "open", None),
        ("added", "café \\x1b[2J", None),
        ("renewed", "saved", None),
        ("moved", "directory/elsewhere", "moved"),
    }
    assert found["summary"]["counts"]["changed"] == 1
    assert not any(each["alarm"] for each in found["findings"])
    listed = json.loads(place.run("verify", "--changed", "--json", place.vault, place.manifest))["findings"]
    assert [each["path"] for each in listed if each["change"] == "changed"] == ["changed"]
    assert len(listed) == len(found["findings"]) + 1
    assert "changed      changed\n" in place.run("verify", "--changed", place.vault, place.manifest).decode()
    text = place.run("verify", place.vault, place.manifest).decode()
    assert "1 changed (--changed lists what changed)" in text
    assert "moved        moved -> directory/elsewhere" in text
    assert "\x1b" not in text
    assert "1 moved" in text


def test_what_is_said_of_a_file_that_is_being_written(place: Place) -> None:
    place.mount()
    manifest, said = place.manifest, place.says
    with (place.mountpoint / "one").open("w") as one:
        one.write("being written")
        one.flush()
        os.fsync(one.fileno())
        made = said("snapshot", place.vault, "-o", manifest)
        assert "1 file was being written: the manifest records that it exists, not its content\n" in made
        assert "1 file was being written: its current content was not compared\n" in said(
            "verify", place.vault, manifest
        )
        assert "mounted: the length of files still being written was not checked.\n" in said(
            "fsck", place.vault
        )
        with (place.mountpoint / "two").open("w") as two:
            two.write("as well")
            two.flush()
            os.fsync(two.fileno())
            made = said("snapshot", place.vault, "-o", manifest, "--replace")
            assert "2 files were being written: the manifest records that they exist, not their" in made


def test_a_file_put_back_while_mounted(place: Place) -> None:
    place.mount()
    (place.mountpoint / "file").write_text("old")
    place.umount()
    (backing,) = [path for path in place.vault.iterdir() if not path.name.startswith("cryptfs.")]
    old = backing.read_bytes()
    place.mount()
    with (place.mountpoint / "file").open("r+") as file:
        file.write("new")
    place.umount()
    place.snapshot()
    place.mount()
    backing.write_bytes(old)
    assert place.changes(41) == {("rolled-back", "file")}
    text = place.run("verify", place.vault, place.manifest, code=41).decode()
    assert "rolled-back  file  (generation" in text
    assert "somebody changed the vault's files" in text
    place.umount()


def test_the_whole_vault_put_back(place: Place, tmp_path: Path) -> None:
    """Also where no file tells: the number of sessions does."""
    place.mount()
    (place.mountpoint / "file").write_text("1")
    place.umount()
    shutil.copytree(place.vault, tmp_path / "copy")
    place.mount()
    (place.mountpoint / "file").unlink()
    (place.mountpoint / "temporary").write_text("a session is one that writes content")
    (place.mountpoint / "temporary").unlink()
    place.umount()
    place.snapshot()
    shutil.rmtree(place.vault)
    shutil.copytree(tmp_path / "copy", place.vault)
    found = place.verify(41)["findings"]
    (told,) = ((each["change"], each["cipher_path"]) for each in found if each["alarm"])
    assert told[0] == "rolled-back"
    assert told[1] in state_files(tmp_path / "copy", "sessions")
    assert ("added", "file") in {(each["change"], each["path"]) for each in found}


def test_an_older_config_put_back(place: Place) -> None:
    config = place.vault / "cryptfs.json"
    old = config.read_bytes()
    place.run("passwd", place.vault, "--kdf-memory", "64m", text=f"{PASSPHRASE}\nanother\n")
    place.manifest.write_bytes(place.run("snapshot", place.vault, text="another\n"))
    config.write_bytes(old)
    place.says("verify", place.vault, place.manifest, code=43)  # this machine has seen the newer one
    (finding,) = place.verify(41, "--no-pin")["findings"]
    assert (finding["change"], finding["cipher_path"]) == ("rolled-back", "cryptfs.json")


def test_damage_has_its_own_exit_code(place: Place) -> None:
    place.mount()
    (place.mountpoint / "file").write_text("content")
    place.umount()
    place.snapshot()
    (backing,) = [path for path in place.vault.iterdir() if not path.name.startswith("cryptfs.")]
    backing.write_bytes(bytes(300))
    assert place.changes(26) == {("damaged", "file")}


def test_manifests_that_are_refused(place: Place, tmp_path: Path) -> None:
    place.run("verify", place.vault, tmp_path / "nothing", code=11)
    for content in (b"", b"not a manifest", bytes(5000)):
        place.manifest.write_bytes(content)
        place.run("verify", place.vault, place.manifest, code=42)
    place.snapshot()
    place.manifest.write_bytes(place.manifest.read_bytes()[:-1])
    place.run("verify", place.vault, place.manifest, code=42)
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.run("init", other.vault, "--kdf-memory", "64m")
    place.snapshot()
    other.run("verify", other.vault, place.manifest, code=42)
    place.run("verify", place.vault, place.manifest, code=12, text="wrong\n")


def test_messages_name_the_manifest(place: Place, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(bytes(5000))
    assert f"{junk}: not a manifest of cryptfs\n" in place.says("verify", place.vault, junk, code=42)
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.run("init", other.vault, "--kdf-memory", "64m")
    place.says("snapshot", place.vault, "-o", place.manifest)
    told = other.says("verify", other.vault, place.manifest, code=42)
    ids = [json.loads(each.run("info", "--json", each.vault))["vault_id"] for each in (place, other)]
    wrong = f"a manifest of another vault (id {ids[0]}), not of this one (id {ids[1]})"
    assert f"{place.manifest}: {wrong}\n" in told


def test_an_older_manifest_survives(place: Place, tmp_path: Path) -> None:
    """It is the only record of what the vault was: no error, and no slip, may take it."""
    assert (
        place.says("snapshot", place.vault, "-o", place.manifest) == f"Wrote {place.manifest}: 0 entries.\n"
    )
    older = place.manifest.read_bytes()
    told = place.says("snapshot", place.vault, "-o", place.manifest, code=1)
    assert f"exists. Compare the vault with it first: cryptfs verify {place.vault} {place.manifest}\n" in told
    assert place.manifest.read_bytes() == older
    other = tmp_path / "photo.jpg"
    other.write_bytes(b"a photo")
    assert "not a manifest. Choose" in place.says("snapshot", place.vault, "-o", other, code=1)
    limited = [
        *(
            "prlimit",
            "--fsize=20",
            sys.executable,
            "-m",
            "cryptfs",
            "snapshot",
            str(place.vault),
            "--replace",
        ),
        *("-o", str(place.manifest), "--passcommand", f"echo {PASSPHRASE}"),
    ]
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(limited, capture_output=True, check=False, env=child_environment(), timeout=60)
    assert done.returncode == 11
    why = "cannot be written: File too large; the old file is unchanged"
    assert done.stderr.decode() == f"cryptfs: {place.manifest}: {why}\n"
    assert place.manifest.read_bytes() == older
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(KeyboardInterrupt), writing(place.manifest) as write:
        write(bytes(100_000))
        raise KeyboardInterrupt
    assert place.manifest.read_bytes() == older
    assert sorted(tmp_path.iterdir()) == before
    place.says("snapshot", place.vault, "--replace", "-o", place.manifest)
    assert place.manifest.read_bytes() != older
    assert sorted(tmp_path.iterdir()) == before
    link = tmp_path / "link"
    link.symlink_to(place.manifest)
    place.says("snapshot", place.vault, "--replace", "-o", link)
    assert link.is_symlink()
    place.says("snapshot", place.vault, "-o", "/dev/null")
    assert place.says("snapshot", place.vault, "-o", tmp_path / "no" / "such", code=1).startswith(
        f"cryptfs: {tmp_path}/no/such: the directory {tmp_path}/no does not exist. To make it: mkdir -p "
    )


def test_no_manifest_into_the_vault(place: Place) -> None:
    """There an attacker would put it back together with the rest."""
    place.mount()
    before = sorted(place.vault.iterdir())
    for output in (place.vault / "manifest", place.mountpoint / "manifest"):
        assert f"{output} is in the vault itself" in place.says("snapshot", place.vault, "-o", output, code=1)
    assert sorted(place.vault.iterdir()) == before
    assert not list(place.mountpoint.iterdir())
    place.umount()


def test_output_to_a_file_and_a_manifest_from_a_pipe(place: Place) -> None:
    assert place.run("snapshot", place.vault, "--output", place.manifest) == b""
    before = sorted((path.name, path.stat().st_mtime_ns) for path in place.vault.iterdir())
    verify = f"{sys.executable} -m cryptfs verify {place.vault} /dev/stdin"
    words = f"cat {place.manifest} | {verify} --passcommand 'echo {PASSPHRASE}'"
    done = subprocess.run(
        ["bash", "-c", words], capture_output=True, check=False, env=child_environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert b"Nothing has changed." in done.stdout
    assert sorted((path.name, path.stat().st_mtime_ns) for path in place.vault.iterdir()) == before
