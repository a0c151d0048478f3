"""Where `cryptfs` is started: closed streams, a shell's limits, mount(8), fstab, and programs that mount."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at, wait_until
from cryptfs.vfs.vault import Vault
from tests.e2e.conftest import ENGINES
from tests.e2e.test_cli_mount import ENVIRONMENT, PROGRAM, Place, place

__all__ = ["place"]

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param  # type: ignore[no-any-return]


def shell(place: Place, before: str, *args: object, after: str = "", **environment: str) -> tuple[int, bytes]:
    """`cryptfs mount` from a shell, with words before and after it; exit code, and what it printed."""
    options = ("--passfile", place.passfile, "--log-file", place.log_file, *args)
    command = shlex.join([*PROGRAM, "mount", *map(str, options), str(place.vault), str(place.mountpoint)])
    done = subprocess.run(
        ["bash", "-c", f"{before} exec {command} {after}"],
        env=ENVIRONMENT | environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(place: Place, closed: str) -> None:
    """As cron and services start programs. No file of the vault gets the number of a stream."""
    assert shell(place, "", after=closed)[0] == 0
    (place.mountpoint / "file").write_bytes(b"content" * 1000)
    assert (place.mountpoint / "file").read_bytes() == b"content" * 1000
    streams = {os.readlink(f"/proc/{place.daemon()}/fd/{number}") for number in range(3)}
    assert streams <= {"/dev/null", str(place.log_file)}
    place.umount()
    for command in (("info", place.vault), ("fsck", place.vault, "--passfile", place.passfile)):
        words = shlex.join([*PROGRAM, *map(str, command)])
        assert (
            subprocess.run(["bash", "-c", f"{words} {closed}"], env=ENVIRONMENT, check=False).returncode == 0
        )


def test_a_limit_of_file_sizes_is_the_shells_own(place: Place, engine: str) -> None:
    code, said = shell(place, "ulimit -S -f 1024; ulimit -S -t 900;", "--engine", engine)
    assert (code, b"ulimit" in said) == (0, False)
    content = os.urandom(3 << 20)
    (place.mountpoint / "large").write_bytes(content)
    place.umount()
    shell(place, "")
    assert (place.mountpoint / "large").read_bytes() == content
    place.umount()


def test_a_limit_that_stays_is_said(place: Place) -> None:
    """An ordinary user cannot raise a hard limit; here root gives up the right to."""
    without = "ulimit -f 1024; ulimit -t 900; exec setpriv --bounding-set -sys_resource"
    options = ("--passfile", place.passfile, "--log-file", place.log_file, place.vault, place.mountpoint)
    words = shlex.join([*PROGRAM, "mount", *map(str, options)])
    done = subprocess.run(
        ["bash", "-c", f"{without} {words}"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "this shell limits files to 1 MiB (ulimit -f), and so does the mount" in done.stderr
    assert "processor time to 900 s (ulimit -t)" in done.stderr
    with pytest.raises(OSError, match=r"File too large|Input/output error"):
        (place.mountpoint / "large").write_bytes(bytes(3 << 20))
    (place.mountpoint / "small").write_bytes(b"fits")
    place.umount()


def test_options_that_other_programs_give(place: Place, engine: str) -> None:
    """SiriKali's line, and what every filesystem takes. umount waits, and info finds the mount."""
    line = "rw,fsname=NAME@/path,subtype=NAME,lazytime,strictatime,nodiratime,silent,quiet,debug,nosymfollow"
    told = place.mount("--engine", engine, "-o", line)
    assert (told.stdout, told.stderr) == ("", "")
    found = mount_at(place.mountpoint)
    assert found is not None
    assert (found.source, found.fs_type) == ("NAME@/path", "fuse.cryptfs")
    (place.mountpoint / "file").write_bytes(b"x")
    (place.mountpoint / "link").symlink_to("file")
    with pytest.raises(OSError, match="symbolic links"):
        (place.mountpoint / "link").read_bytes()
    assert place.info()["mounts"] == [
        {"mountpoint": str(place.mountpoint), "read_only": False, "stale": False}
    ]
    place.umount()
    assert place.info()["held_by"] is None
    for option, words in (("debug=1", "takes no value"), ("subtype", ""), ("colour", "unknown mount option")):
        told = place.mount("-o", option, code=1 if words else 0)
        assert words in told.stderr
    place.umount()


def test_debug_within_o(place: Place, tmp_path: Path) -> None:
    """It shows the traceback of an error."""
    command = [*PROGRAM, "mount", str(place.vault), str(tmp_path / "missing" / "m"), "-o", "debug"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert "Traceback" in done.stderr


def test_foreground_within_o(place: Place) -> None:
    options = ("--passfile", place.passfile, "-o", "foreground", place.vault, place.mountpoint)
    with subprocess.Popen([*PROGRAM, "mount", *options], env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"is mounted on" in process.stderr.readline()
        assert place.daemon() == process.pid
        place.umount()
        assert process.wait(20) == 0


def test_a_mount_helper_is_silent(place: Place, tmp_path: Path) -> None:
    helper = tmp_path / "mount.fuse.cryptfs"
    helper.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {ENVIRONMENT['PYTHONPATH']!r})\n"
        "from cryptfs.cli.main import run\nrun()\n"
    )
    helper.chmod(0o755)
    option = f"passfile={place.passfile},log_file={place.log_file}".replace(" ", "\\040")
    for flags, silent in ((["-o", f"rw,{option}"], True), (["-v", "-o", option], False)):
        words = [str(helper), str(place.vault), str(place.mountpoint), *flags]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (done.stderr == "") is silent
        place.umount()
    assert place.mount("--quiet").stderr == ""
    place.umount()


def test_a_line_in_fstab_as_the_manual_has_it(place: Place, tmp_path: Path) -> None:
    """The manual's commands make the helper; then mount(8) finds it with any PATH."""
    manual = (Path(__file__).parents[2] / "docs" / "MANUAL.md").read_text("utf-8")
    commands = manual[manual.index("printf '#!/bin/sh") :].partition("```")[0]
    assert "> /sbin/mount.fuse.cryptfs\nchmod 755" in commands
    helper = tmp_path / "bin" / "mount.fuse.cryptfs"
    helper.parent.mkdir()
    helper.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {ENVIRONMENT['PYTHONPATH']!r})\n"
        "from cryptfs.cli.main import run\nrun()\n"
    )
    helper.chmod(0o755)
    options = f"noauto,passfile={place.passfile},log_file={place.log_file},allow_other"
    fields = (place.vault, place.mountpoint, "fuse.cryptfs", options)
    fstab = "  ".join(str(field).replace(" ", "\\040") for field in fields)
    (tmp_path / "fstab").write_text(f"{fstab}  0  0\n")
    over, sbin = tmp_path / "over", os.path.realpath("/sbin")
    over.mkdir()
    mountpoint = shlex.quote(str(place.mountpoint))
    script = f"""
        set -e
        mount -t tmpfs tmpfs {over}
        mkdir {over}/up {over}/work
        mount -t overlay -o lowerdir={sbin},upperdir={over}/up,workdir={over}/work overlay {sbin}
        mount --bind {tmp_path}/fstab /etc/fstab
        {commands}
        export PATH=/usr/bin:/bin PYTHONPATH=/nonexistent
        mount {mountpoint}
        echo content > {mountpoint}/file
        umount {mountpoint}
    """
    environment = ENVIRONMENT | {"PATH": f"{helper.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert wait_until(lambda: place.info()["held_by"] is None, 20)
    place.mount()
    assert (place.mountpoint / "file").read_text() == "content\n"
    place.umount()


def test_an_encoding_without_the_letter(tmp_path: Path) -> None:
    """A path may have any letter, also where the terminal's encoding, or any encoding, lacks it."""
    for name in ("Ünter 漢", os.fsdecode(b"raw\xff")):
        for encoding in ("latin-1", "ascii", "utf-8"):
            missing = tmp_path / name
            done = subprocess.run(
                [*PROGRAM, "info", missing],
                env=ENVIRONMENT | {"PYTHONIOENCODING": encoding},
                capture_output=True,
                check=False,
            )
            assert done.returncode == 6, done.stderr
            assert b"does not exist" in done.stderr


def as_user_with_device(device: Path, uid: int, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of an ordinary user where another file is /dev/fuse."""
    become = f"setpriv --reuid {uid} --regid {uid} --clear-groups"
    script = f'mount --bind {device} /dev/fuse && exec {become} "$@"'
    command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *PROGRAM]
    return subprocess.run(
        [*command, *map(str, words)],
        env=ENVIRONMENT | {"XDG_STATE_HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.mark.parametrize(
    ("mode", "group", "says"),
    [
        (0o600, 0, ("shows crw-------; it should be crw-rw-rw-", 'KERNEL=="fuse", MODE="0666"')),
        (0o660, 44, ("shows crw-rw----", "or you should be in its group. As root: adduser 64001 video, and")),
    ],
)
def test_a_device_that_the_user_may_not_open(
    engine: str, mode: int, group: int, says: tuple[str, ...]
) -> None:
    """It is said before the passphrase is asked for."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        base = Path(made)
        base.chmod(0o755)
        Vault.create(base / "vault", b"right", kdf_memory=64 << 20)
        (base / "m").mkdir()
        for path in (base / "m", base / "vault", *(base / "vault").iterdir()):
            os.chown(path, 64001, 64001)
        device = base / "fuse"
        os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
        device.chmod(mode)
        os.chown(device, 0, group)
        words = ("mount", base / "vault", base / "m", "--engine", engine, "--passfile", base / "none")
        done = as_user_with_device(device, 64001, *words)
    assert (done.returncode, done.stdout) == (10, ""), done.stderr
    assert done.stderr.startswith("cryptfs: /dev/fuse cannot be opened: Permission denied. ls -l /dev/fuse ")
    assert all(text in done.stderr for text in says), done.stderr


def test_a_log_file_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    """It is said before the passphrase is asked for."""
    log_file = tmp_path / "no" / "log"
    words = ("mount", place.vault, place.mountpoint, "--passfile", tmp_path / "none", "--log-file", log_file)
    told = place.cryptfs(*words, code=11).stderr
    assert told == f"cryptfs: {log_file}: cannot open the log file: No such file or directory\n"
