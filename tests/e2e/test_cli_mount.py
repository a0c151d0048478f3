"""The command line on real mounts: what a person or a script does with it from init to umount."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at, wait_until
from tests.e2e.conftest import ENGINES
from tests.e2e.mounting import assert_log_file_quiet

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse")


PROGRAM = (sys.executable, "-m", "cryptfs")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@dataclass(frozen=True)
class Place:
    """A vault, where it can be mounted, and the passphrase."""

    vault: Path
    mountpoint: Path
    passfile: Path
    allowed: list[str] = field(default_factory=list)
    """Patterns of what the daemon's log may say."""

    def prepare(self) -> None:
        """Make the mountpoint and the passfile."""
        self.mountpoint.mkdir()
        self.passfile.touch(mode=0o600)
        self.passfile.write_text("correct horse\n")

    @property
    def log_file(self) -> Path:
        return self.vault.parent / "log of the mount"

    def assert_log_quiet(self) -> None:
        assert_log_file_quiet(self.log_file, self.allowed)

    def cryptfs(self, *args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the program, and insist on its exit code."""
        words = [*PROGRAM, *(str(arg) for arg in args)]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, check=False, env=ENVIRONMENT
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def mount(self, *options: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        words: list[object] = ["mount", self.vault, self.mountpoint, "--passfile", self.passfile, *options]
        if not any("log" in str(option) for option in options):
            words += ["--log-file", self.log_file]
        return self.cryptfs(*words, code=code)

    def umount(self, *options: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.cryptfs("umount", self.mountpoint, *options, code=code)

    def info(self) -> dict[str, object]:
        found = json.loads(self.cryptfs("info", "--json", self.vault).stdout)
        assert isinstance(found, dict)
        return found

    def daemon(self) -> int:
        held_by = self.info()["held_by"]
        assert isinstance(held_by, dict)
        return int(held_by["pid"])

    def is_mounted(self) -> bool:
        return mount_at(self.mountpoint) is not None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "a vault, new", tmp_path / "mount\\point", tmp_path / "passfile")
    place.prepare()
    place.cryptfs("init", place.vault, "--passfile", place.passfile, "--kdf-memory", "64m")
    yield place
    while place.is_mounted():
        subprocess.run(
            [*PROGRAM, "umount", "--lazy", place.mountpoint],
            env=ENVIRONMENT,
            check=True,
            capture_output=True,
        )
    place.assert_log_quiet()


def test_from_init_to_umount_and_again(place: Place) -> None:
    mounted = place.mount()
    assert mounted.stdout == ""
    assert "cryptfs umount" in mounted.stderr
    found = mount_at(place.mountpoint)
    assert found is not None
    assert (found.fs_type, found.source) == ("fuse.cryptfs", str(place.vault))
    (place.mountpoint / "note.txt").write_text("seen only here")
    assert place.umount().stderr == ""
    assert list(place.mountpoint.iterdir()) == []
    assert not any(b"seen only" in file.read_bytes() for file in place.vault.iterdir() if file.is_file())
    assert not (place.vault / "note.txt").exists()
    place.mount()
    assert (place.mountpoint / "note.txt").read_text() == "seen only here"
    place.umount()


# What other commands need, or none; each takes milliseconds of a start.
UNWANTED = {
    *("rich", "rich_click", "cryptography", "fido2", "mnemonic", "shamir_mnemonic", "zxcvbn", "mfusepy"),
    *("nacl.public", "subprocess", "shutil", "tempfile", "random", "secrets", "pickle", "asyncio"),
}
COMMAND_LINE = {
    *(
        "commands",
        "configfile",
        "exit_codes",
        "interrupts",
        "main",
        "mounthelper",
        "newfile",
        "offers",
        "output",
    ),
    *("params", "pinning", "prompt", "recoverywords", "terminal", "tokens", "vaults", "wishes"),
}


def test_a_mount_loads_what_it_needs_and_no_more(place: Place) -> None:
    words = ("--quiet", place.vault, place.mountpoint, "--passfile", place.passfile)
    done = subprocess.run(
        [*PROGRAM, "mount", *words, "--log-file", place.log_file],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT | {"PYTHONPROFILEIMPORTTIME": "1"},
    )
    place.umount()
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "cryptfs.mount.native.connection" in loaded
    assert loaded & UNWANTED == set()
    mine = {name.removeprefix("cryptfs.cli.") for name in loaded if name.startswith("cryptfs.cli.")}
    assert mine == COMMAND_LINE


@pytest.mark.skipif(Path("/dev/log").exists(), reason="this machine has a syslog")
def test_without_a_syslog_mount_says_where_findings_are_kept(place: Place) -> None:
    words = ("mount", place.vault, place.mountpoint, "--passfile", place.passfile)
    told = place.cryptfs(*words).stderr.splitlines()
    assert len(told) == 2
    assert told[0].startswith("cryptfs: warning: this system has no syslog. ")
    assert f"`cryptfs status {place.mountpoint}`" in told[0].replace("'", "")
    assert "--log-file FILE" in told[0]
    place.umount()
    assert "warning" not in place.mount("--log-file", place.vault.parent / "log").stderr
    place.umount()
    assert place.cryptfs(*words, "--quiet").stderr == ""  # so `mount -a` prints no line
    place.umount()


def test_umount_returns_when_the_vault_is_free(place: Place) -> None:
    for _ in range(3):
        place.mount()
        (place.mountpoint / "data").write_bytes(os.urandom(8 << 20))
        place.umount()
        assert place.info()["held_by"] is None


def test_info_says_where(place: Place) -> None:
    place.mount()
    found = place.info()
    assert found["mounts"] == [{"mountpoint": str(place.mountpoint), "read_only": False, "stale": False}]
    assert found["held_by"] == {"pid": place.daemon(), "mountpoint": str(place.mountpoint)}
    text = place.cryptfs("info", place.vault).stdout
    assert f"mounted on:  {place.mountpoint}\n" in text


def test_wrong_passphrase(place: Place) -> None:
    place.passfile.write_text("wrong one\n")
    told = place.mount(code=12)
    assert told.stderr == f"cryptfs: the passphrase is wrong (from {place.passfile})\n"
    assert "wrong one" not in told.stderr
    assert not place.is_mounted()
    place.passfile.write_text("correct horse\n")
    place.mount()  # and no lock stayed behind


def test_mountpoints_that_are_refused(place: Place) -> None:
    (place.mountpoint / "file").touch()
    told = place.mount(code=10)
    assert told.stderr.startswith(f"cryptfs: {place.mountpoint} is not empty. If programs wrote files here ")
    assert "they are NOT encrypted: move them away, mount, and move them in." in told.stderr
    assert "--nonempty" in told.stderr
    (place.mountpoint / "file").unlink()
    told = place.cryptfs("mount", place.vault, place.vault, "--passfile", place.passfile, code=10)
    assert "over itself" in told.stderr
    told = place.cryptfs("mount", place.mountpoint, place.vault, code=6)
    right = shlex.join(["cryptfs", "mount", str(place.vault), str(place.mountpoint)])
    assert told.stderr.endswith(f"{place.vault} is one. The vault comes first: {right}\n")
    told = place.cryptfs("umount", place.mountpoint, code=10)
    assert "nothing is mounted there" in told.stderr


def test_nonempty_hides_what_was_there(place: Place) -> None:
    (place.mountpoint / "file").touch()
    place.mount("--nonempty")
    assert list(place.mountpoint.iterdir()) == []
    place.umount()
    assert (place.mountpoint / "file").exists()


def test_a_second_mount_is_refused_and_names_the_first(place: Place, tmp_path: Path) -> None:
    place.mount()
    assert "is mounted there already" in place.mount(code=10).stderr
    (tmp_path / "other").mkdir()
    told = place.cryptfs("mount", place.vault, tmp_path / "other", "--passfile", place.passfile, code=40)
    assert f"process {place.daemon()}" in told.stderr
    assert str(place.mountpoint) in told.stderr


def test_what_is_no_vault(place: Place, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = place.cryptfs("mount", tmp_path / "empty", place.mountpoint, "--passfile", place.passfile, code=6)
    assert "cryptfs init" in told.stderr


def test_a_busy_mount_stays_and_names_who(place: Place) -> None:
    place.mount()
    with subprocess.Popen(["sleep", "60"], cwd=place.mountpoint) as sleeper:
        told = place.umount(code=10)
        assert f"sleep (pid {sleeper.pid}, current directory)" in told.stderr
        assert place.is_mounted()
        sleeper.kill()
    place.umount()


def test_umount_from_within(place: Place) -> None:
    place.mount()
    done = subprocess.run(
        [*PROGRAM, "umount", "."],
        env=ENVIRONMENT,
        cwd=place.mountpoint,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_lazy_lets_go_when_the_last_file_is_closed(place: Place) -> None:
    place.mount()
    with (place.mountpoint / "open").open("w") as file:
        assert "last program" in place.umount("--lazy").stderr
        assert not place.is_mounted()
        file.write("still works")
    assert wait_until(lambda: place.info()["held_by"] is None, 20)
    place.mount()
    assert (place.mountpoint / "open").read_text() == "still works"


def test_a_dead_daemon_leaves_a_mount_that_can_be_removed(place: Place) -> None:
    place.mount()
    os.kill(place.daemon(), signal.SIGKILL)
    assert wait_until(lambda: place.info()["held_by"] is None, 20)
    assert "daemon died" in place.cryptfs("info", place.vault).stdout
    assert "daemon died" in place.mount(code=10).stderr
    place.umount()
    place.mount()


def test_sigterm_writes_everything_and_unmounts(place: Place) -> None:
    place.mount()
    content = os.urandom(16 << 20)
    (place.mountpoint / "data").write_bytes(content)
    os.kill(place.daemon(), signal.SIGTERM)
    assert wait_until(lambda: place.info()["held_by"] is None, 60)
    assert not place.is_mounted()
    place.mount()
    assert (place.mountpoint / "data").read_bytes() == content


def test_foreground_until_ctrl_c(place: Place) -> None:
    words = ["mount", "-f", str(place.vault), str(place.mountpoint), "--passfile", str(place.passfile)]
    with subprocess.Popen([*PROGRAM, *words], env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        assert wait_until(place.is_mounted, 20)
        (place.mountpoint / "file").write_text("kept")
        process.send_signal(signal.SIGINT)
        _, text = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"closed the vault" in text
    assert not place.is_mounted()


def test_read_only_mounts_share_the_vault(place: Place, tmp_path: Path) -> None:
    place.mount()
    (place.mountpoint / "file").write_text("kept")
    place.umount()
    place.mount("--read-only")
    other = Place(place.vault, tmp_path / "second", place.passfile)
    other.mountpoint.mkdir()
    other.mount("-o", "ro")
    try:
        assert (other.mountpoint / "file").read_text() == "kept"
        with pytest.raises(OSError, match="Read-only"):
            (other.mountpoint / "new").touch()
        place.umount()
    finally:
        other.umount()
    place.mount()


def test_options_reach_the_kernel(place: Place) -> None:
    place.mount("-o", "noexec,noatime", "-o", f"log_file={place.vault.parent / 'log'}")
    found = mount_at(place.mountpoint)
    assert found is not None
    assert {"noexec", "noatime"} <= set(found.options)


def test_remount_as_mount_8_asks_for_it(place: Place) -> None:
    """mount(8) hands `-o remount` to the helper of the type, with all options of the mount."""
    place.cryptfs("mount", place.vault, place.mountpoint, "-o", "remount,ro", code=10)
    place.mount()
    place.cryptfs(place.vault, place.mountpoint, "-o", f"remount,ro,nosuid,passfile={place.passfile}")
    with pytest.raises(OSError, match="Read-only"):
        (place.mountpoint / "new").touch()
    place.cryptfs(place.vault, place.mountpoint, "-o", "remount,rw,noexec")
    (place.mountpoint / "new").write_text("content")
    assert os.statvfs(place.mountpoint).f_flag & os.ST_NOEXEC
    place.umount()


@pytest.mark.skipif(os.geteuid() != 0, reason="allow_other needs root, or a line in fuse.conf")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_mount_for_others_says_what_keeps_them_out(place: Place, engine: str) -> None:
    place.vault.parent.chmod(0o755)
    closed = [each for each in place.mountpoint.resolve().parents if not each.stat().st_mode & 0o011]
    expected = [f"Other users cannot reach it: {each} has mode 0700." for each in closed]
    root = "Other users cannot enter yet: the root of the vault has mode 0700. "
    for options, where in ((("--read-only",), " on a writable mount"), ((), "")):
        told = place.mount("--allow-other", "--engine", engine, *options).stderr.splitlines()
        allow = f"chmod 755 '{place.mountpoint}'"
        assert told[1:] == [f"{root}Allow it{where}: {allow}", *expected]
        if options:
            place.umount()
    subprocess.run(["sh", "-c", allow], check=True)
    place.umount()
    assert place.mount("--allow-other", "--engine", engine).stderr.splitlines()[1:] == expected
    place.umount()
    place.mountpoint.parent.chmod(0o700)
    above = f"Other users cannot reach it: {place.mountpoint.parent} has mode 0700.\n"
    assert above in place.mount("--allow-other", "--engine", engine).stderr
    place.umount()
    assert "Other users" not in place.mount("--engine", engine).stderr


def test_another_name_in_the_mount_table(place: Place) -> None:
    for name in ("my, files", "NAME@/path", str(place.passfile)):
        place.mount("--fsname", name)
        found = mount_at(place.mountpoint)
        assert found is not None
        assert found.source == name
        (place.mountpoint / "data").write_bytes(os.urandom(8 << 20))
        assert place.umount().stderr == ""
        assert place.info()["held_by"] is None


def test_passwd_while_mounted(place: Place, tmp_path: Path) -> None:
    place.mount()
    changed = subprocess.run(
        [*PROGRAM, "passwd", place.vault, "--kdf-memory", "64m"],
        env=ENVIRONMENT,
        input=b"correct horse\nbattery staple\n",
        capture_output=True,
        check=False,
    )
    assert changed.returncode == 0, changed.stderr
    (place.mountpoint / "file").write_text("kept")
    place.umount()
    place.mount(code=12)
    place.passfile.write_text("battery staple\n")
    place.mount()
    assert (place.mountpoint / "file").read_text() == "kept"


def test_the_daemon_keeps_its_memory_to_itself(place: Place) -> None:
    place.mount()
    pid = place.daemon()
    assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # not dumpable: the kernel gives it to root
    assert "Max core file size        0                    0 " in Path(f"/proc/{pid}/limits").read_text()
