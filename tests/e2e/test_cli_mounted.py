"""umount, status and info without an argument, and what completion proposes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from cryptfs.mount import mounts
from tests.commands import Run, runner
from tests.e2e.test_cli_mount import ENVIRONMENT, PROGRAM, Place, place

__all__ = ["place"]

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: Place, tmp_path: Path
) -> Run:
    """Commands that see the mounts of this test only."""
    all_mounts = mounts.read_mounts
    ours = f"{place.mountpoint.parent}/"
    monkeypatch.setattr(
        mounts, "read_mounts", lambda: [each for each in all_mounts() if each.mountpoint.startswith(ours)]
    )
    monkeypatch.chdir(tmp_path)  # umount leaves it
    return runner(capsys)


def test_no_mount_one_and_two(place: Place, run: Run, tmp_path: Path) -> None:
    for command in ("umount", "status"):
        assert run(command).code == 1
        assert run(command).err == "cryptfs: no vault of yours is mounted\n"
    assert run("info").err == "No vault of yours is mounted.\n"
    assert json.loads(run("info", "--json").out) == {"schema": 1, "mounts": []}

    place.mount("--fsname", "NAME@/path", "--read-only")
    assert run("info").out == f"{place.vault} on {place.mountpoint} (read-only)\n"
    assert f"mounted on:  {place.mountpoint} (read-only)" in run("status").out

    other = Place(tmp_path / "other", tmp_path / "second", place.passfile)
    other.mountpoint.mkdir()
    other.cryptfs("init", other.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    other.mount("--log-file", place.log_file)
    try:
        for command in ("umount", "status"):
            told = run(command)
            assert told.code == 1
            assert "name one of these mounts:" in told.err
            assert f"cryptfs {command} '{place.mountpoint}'    ({place.vault})" in told.err
            assert f"cryptfs {command} {other.mountpoint}    ({other.vault})" in told.err
        listed = json.loads(run("info", "--json").out)["mounts"]
        assert {each["vault"]: each["mountpoint"] for each in listed} == {
            str(place.vault): str(place.mountpoint),
            str(other.vault): str(other.mountpoint),
        }
        words = f"cryptfs umount {other.mountpoint.parent}/"
        for command in ("umount", "status"):
            environment = {
                "_CRYPTFS_COMPLETE": "bash_complete", "COMP_CWORD": "2",
                "COMP_WORDS": words.replace("umount", command),
            }  # fmt: skip
            done = subprocess.run(
                PROGRAM, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False
            )
            assert f"plain,{other.mountpoint}\n" in done.stdout
    finally:
        other.umount()
    assert run("umount").err == f"{place.mountpoint} is unmounted.\n"
    assert not place.is_mounted()


def test_bash_completes_a_mountpoint_with_blanks(place: Place, tmp_path: Path) -> None:
    """The word that bash puts into the line is the path, also for a person who began it without a quote."""
    program = tmp_path / "bin" / "cryptfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    odd = place.mountpoint.with_name("it's \\ odd")
    odd.mkdir()
    here = Place(place.vault, odd, place.passfile)
    here.mount("--log-file", place.log_file)
    begun = f"{odd.parent}/it"
    script = f"""
        source <(cryptfs completion bash)
        for begun in {shlex.quote(begun)} it; do
            COMP_WORDS=(cryptfs umount "$begun") COMP_CWORD=2
            COMPREPLY=()
            _cryptfs_completion cryptfs
            [ ${{#COMPREPLY[@]}} -eq 1 ] && eval "printf '%s\\n' ${{COMPREPLY[0]}}"
        done
    """
    try:
        environment = ENVIRONMENT | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=odd.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == (f"{odd}\n{odd.name}\n", "")
    finally:
        here.umount()
