"""scripts/run as a person meets it: in a foreign directory, at a terminal, with a wrong mountpoint."""

from __future__ import annotations

import os
import pty
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import detach, mount_at

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "scripts" / "run")


class Home:
    """A directory to be in, an environment that needs no installation, and a place for a vault."""

    def __init__(self, base: Path) -> None:
        self.here = base / "here"
        self.vault = base / "my vault"
        self.mountpoint = base / "my files"
        venv = base / "venv"
        stubs = base / "stubs"
        for directory in (self.here / "cryptfs", venv / "bin", stubs):
            directory.mkdir(parents=True)
        for name in ("__init__", "__main__"):
            (self.here / "cryptfs" / f"{name}.py").write_text("raise SystemExit('the wrong cryptfs')\n")
        self._script(venv / "bin" / "python", f'exec {shlex.quote(sys.executable)} "$@"')
        self._script(venv / "bin" / "cryptfs", f'exec {shlex.quote(sys.executable)} -P -m cryptfs "$@"')
        self._script(stubs / "dpkg-query", "printf 'install ok installed'")
        checksum = (
            subprocess.run(
                ["cksum"], input=(ROOT / "pyproject.toml").read_bytes(), capture_output=True, check=True
            )
            .stdout.decode()
            .strip()
        )
        (venv / ".cryptfs-installed").write_text(f"{ROOT} plain {checksum}\n")
        self.environment = {
            **os.environ,
            "CRYPTFS_VENV": str(venv),
            "CRYPTFS_PYTHON": sys.executable,  # whatever its build: no advice
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TERM": "dumb",
        }

    @staticmethod
    def _script(path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def at_terminal(self, *words: str) -> tuple[int, str]:
        """Exit code, and what the terminal shows; each prompt gets a passphrase."""
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(self.here)
            os.execve(RUN, [RUN, *words], self.environment)
        seen, answered = b"", 0
        while select.select([fd], [], [], 60)[0]:
            try:
                piece = os.read(fd, 4096)
            except OSError:
                break
            seen += piece
            if seen.count(b": ") and seen.endswith((b"assphrase: ", b"once more: ")) and len(seen) > answered:
                answered = len(seen)
                os.write(fd, b"correct horse battery staple\n")
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(fd)
        return code, seen.decode().replace("\r\n", "\n")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    made = Home(tmp_path)
    yield made
    if mount_at(made.mountpoint) is not None:
        detach(str(made.mountpoint), lazy=True)
    if ownmountpoint.is_own(made.mountpoint):
        ownmountpoint.restore(made.mountpoint)


def test_a_first_and_a_second_time(home: Home) -> None:
    code, shown = home.at_terminal(str(home.vault), str(home.mountpoint), "--log-file", f"{home.here}/log")
    assert code == 0, shown
    unmount = f"{home.environment['CRYPTFS_VENV']}/bin/cryptfs umount -- {home.vault.parent}/my\\ files"
    assert shown.splitlines() == [
        f"There is no vault in {home.vault} yet: making one.",
        "New passphrase: ",
        "New passphrase, once more: ",
        "There is no way in without the passphrase: write it down and keep it safe.",
        f"Back up {home.vault}/cryptfs.json as well: if it is lost, the files are lost with it.",
        f"Your files are in {home.mountpoint}. To unmount: {unmount}",
    ]
    (home.mountpoint / "file").write_text("content")
    subprocess.run(["bash", "-c", unmount], env=home.environment, cwd=home.here, check=True)
    assert not (home.mountpoint / "file").exists()
    code, shown = home.at_terminal(str(home.vault), str(home.mountpoint), "--log-file", f"{home.here}/log")
    assert code == 0, shown
    assert [line.partition(" ")[0] for line in shown.splitlines()] == ["Passphrase:", "Your"]
    assert (home.mountpoint / "file").read_text() == "content"


def test_a_wrong_mountpoint_is_noticed_before_anything_is_made(home: Home) -> None:
    home.mountpoint.mkdir()
    (home.mountpoint / "file").touch()
    code, shown = home.at_terminal(str(home.vault), str(home.mountpoint))
    assert (code, shown.partition(" If programs")[0]) == (10, f"run: {home.mountpoint} is not empty.")
    code, shown = home.at_terminal(str(home.vault), str(home.vault / "below"))
    assert code == 10, shown
    (home.here / "file").touch()
    code, shown = home.at_terminal(str(home.vault), str(home.here / "file"))
    assert (code, shown.splitlines()[0]) == (10, f"run: {home.here}/file: not a directory")
    assert not home.vault.exists()


def test_a_wrong_option_is_noticed_before_anything_is_made(home: Home) -> None:
    for option, said in (
        ("--bogus", "No such option '--bogus'."),
        ("-obogus", "unknown mount option 'bogus'"),
        ("--max-threads=no", "Invalid value for '--max-threads': give a whole number from 1 to 64"),
    ):
        code, shown = home.at_terminal(str(home.vault), str(home.mountpoint), option)
        assert (code, shown.splitlines()[0]) == (1, f"run: {said}; see --help")
    assert not home.vault.exists()


def test_after_an_error_it_says_where_the_command_is(home: Home) -> None:
    """Hints name `cryptfs`, which scripts/run does not put into PATH."""
    path = ":".join(
        each for each in home.environment["PATH"].split(":") if not (Path(each) / "cryptfs").exists()
    )
    home.environment["PATH"] = path
    words = (str(home.vault), str(home.mountpoint), "--log-file", f"{home.here}/log")
    assert home.at_terminal(*words)[0] == 0
    code, shown = home.at_terminal(*words)
    command = f"{home.environment['CRYPTFS_VENV']}/bin/cryptfs"
    assert code == 10
    assert f"unmount it with: cryptfs umount {shlex.quote(str(home.mountpoint))}\n" in shown
    assert shown.endswith(f"(cryptfs is not in PATH; here it is {command})\n")
