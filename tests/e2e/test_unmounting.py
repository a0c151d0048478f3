"""Mounts that go by themselves, commands around them, and what is left in their place, on both engines."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cryptfs.mount import mounts
from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import detach, mount_at, wait_until
from cryptfs.storage.libc import umount2
from cryptfs.storage.vaultdir import lock_holder
from tests.commands import runner
from tests.e2e.conftest import ENGINES
from tests.e2e.mounting import scratch_directory
from tests.e2e.test_cli_mount import ENVIRONMENT, PROGRAM, Place
from tests.e2e.test_users import NOBODY
from tests.e2e.unmounting import ENDS, Scene, scene_of, vault

__all__ = ["vault"]

pytestmark = [
    pytest.mark.waits,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]


@pytest.fixture(params=ENGINES)
def scene(
    vault: Place, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Iterator[Scene]:
    """On each engine."""
    with scene_of(vault, tmp_path / "mount $(point)", request.param, runner(capsys)) as made:
        yield made


@pytest.fixture
def native(vault: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Scene]:
    """On one engine, for what knows none."""
    with scene_of(vault, tmp_path / "mount $(point)", ENGINES[-1], runner(capsys)) as made:
        yield made


# ---- idleness


def test_it_goes_when_nobody_uses_it(scene: Scene) -> None:
    """Looks at all filesystems, as df and desktops have them, are no use."""
    scene.mount("--idle", "2s")
    content = os.urandom(3 << 20)
    (scene.mountpoint / "file").write_bytes(content)
    until = time.monotonic() + ENDS
    while scene.place.is_mounted() and time.monotonic() < until:
        with contextlib.suppress(OSError):  # it is going
            os.statvfs(scene.mountpoint)
            scene.mountpoint.stat()
        time.sleep(0.05)
    assert scene.closes()
    assert scene.logs("nobody used it")
    scene.mount()
    assert (scene.mountpoint / "file").read_bytes() == content


def test_use_keeps_it(scene: Scene) -> None:
    """Requests do, a working directory, and an open file with unwritten data."""
    scene.mount("--idle", "2s")
    file = scene.mountpoint / "file"
    file.touch()
    until = time.monotonic() + 2.4
    while time.monotonic() < until:
        file.chmod(0o600)
        time.sleep(0.1)
    with subprocess.Popen(["sleep", "60"], cwd=scene.mountpoint) as sleeper:
        time.sleep(2.4)
        with file.open("w") as written:
            written.write("not yet written")
            sleeper.kill()
            sleeper.wait()
            time.sleep(2.4)
            assert scene.place.is_mounted()
    assert scene.closes()
    scene.mount()
    assert file.read_text() == "not yet written"


# ---- commands


def noting(out: Path, code: int = 0) -> str:
    """A command that notes what it was told."""
    script = f'printf "%s|" "$CRYPTFS_EVENT" "$CRYPTFS_VAULT" "$CRYPTFS_MOUNTPOINT" >> "$0"; exit {code}'
    return f"sh -c '{script}' '{out}'"


def test_commands_after_the_mount_and_before_the_unmount(native: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    native.mount("--after-mount", noting(out), "--before-unmount", noting(out))
    native.umount()
    names = f"|{native.place.vault}|{native.mountpoint}|"
    assert out.read_text() == f"mount{names}umount{names}"


def test_a_command_sees_the_files(native: Scene) -> None:
    copy = 'sh -c \'cp "$CRYPTFS_MOUNTPOINT/%s" "$CRYPTFS_MOUNTPOINT/%s"\''
    native.mount("--before-unmount", copy % ("seen", "copied"))
    (native.mountpoint / "seen").write_text("content")
    native.umount()
    native.mount("--after-mount", copy % ("copied", "again"))
    assert (native.mountpoint / "again").read_text() == "content"


def test_a_command_before_the_unmount_that_fails_keeps_the_mount(native: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    native.mount("--before-unmount", noting(out, 3))
    told = native.umount(code=10)
    assert "stays mounted, because of --before-unmount: sh failed with exit code 3" in told
    assert f"cryptfs umount --no-hook '{native.mountpoint}'" in told
    assert native.place.is_mounted()
    native.umount("--no-hook")
    assert out.read_text().count("umount|") == 1


def test_a_command_after_the_mount_that_fails_leaves_it_mounted(native: Scene) -> None:
    told = native.mount("--after-mount", "sh -c 'exit 3'", code=11)
    assert told.endswith(
        "the vault is mounted, but there was a problem with --after-mount: sh failed with exit code 3\n"
    )
    assert native.place.is_mounted()


def test_no_command_runs_while_a_program_uses_the_mount(native: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    native.mount("--before-unmount", noting(out))
    with subprocess.Popen(["sleep", "60"], cwd=native.mountpoint) as sleeper:
        told = native.umount(code=10)
        assert f": still in use by sleep (pid {sleeper.pid}, current directory)\n" in told
        sleeper.kill()
    assert not out.exists()


def test_a_command_before_an_idle_mount_goes(native: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    native.place.allowed.append("stays mounted, because of --before-unmount: sh failed with exit code 1")
    script = f'echo "$CRYPTFS_EVENT" >> "$0"; [ $(wc -l < "$0") -ge 2 ]'  # noqa: F541
    native.mount("--idle", "1s", "--before-unmount", f"sh -c '{script}' '{out}'")
    assert native.closes()
    assert out.read_text() == "idle\nidle\n"
    assert "stays mounted" in native.log()


def test_a_command_before_sigterm_takes_it_away(native: Scene, tmp_path: Path) -> None:
    out = tmp_path / "out"
    native.place.allowed.append("unmounting anyway")
    native.mount("--before-unmount", noting(out, 1))
    native.kill(signal.SIGTERM)
    assert native.closes()
    assert out.read_text().startswith("signal|")


@pytest.mark.parametrize("by", ["the system", "fusermount"])
@pytest.mark.parametrize("lazy", [(), ("--lazy",)])
def test_somebody_else_unmounts_at_the_same_moment(
    native: Scene, by: str, lazy: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As --idle does, or a file manager: it is unmounted, which is what the person wanted."""

    def second(mountpoint: str, *, lazy: bool) -> None:
        umount2(mountpoint, 0)
        detach(mountpoint, lazy=lazy)

    monkeypatch.setattr(mounts, "detach", second)
    if by == "fusermount":
        monkeypatch.setattr(mounts, "has_umount2", lambda: False)
    native.mount()
    assert native.umount(*lazy) == ""
    assert native.closes()


# ---- all of them


FORGET_OTHERS = """
from cryptfs.mount.mounts import detach, read_mounts
for mount in read_mounts():
    if mount.is_cryptfs:
        detach(mount.mountpoint, lazy=True)
"""


def test_all(native: Scene, tmp_path: Path) -> None:
    """In a mount namespace of its own: other tests have mounts."""
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    script = tmp_path / "script"
    passfile, log_file = native.place.passfile, native.place.log_file
    words = f"--passfile '{passfile}' --engine {native.engine} -q --log-file '{log_file}'"
    cryptfs_ = " ".join(PROGRAM)
    script.write_text(
        f"""
        {PROGRAM[0]} -c '{FORGET_OTHERS}'
        cd '{tmp_path}'
        {cryptfs_} umount --all; echo "none: $?"
        {cryptfs_} init inner --passfile '{passfile}' --kdf-memory 64m -q
        {cryptfs_} mount '{native.place.vault}' '{native.mountpoint}' {words}
        {cryptfs_} mount inner '{native.mountpoint}/nested' {words}
        {cryptfs_} umount --all '{native.mountpoint}'; echo "wrong: $?"
        (cd '{native.mountpoint}/nested' && exec sleep 60) & sleeper=$!
        until [ "$(readlink /proc/$sleeper/cwd)" = '{native.mountpoint}/nested' ]; do :; done
        {cryptfs_} umount --all; echo "busy: $?"
        kill $sleeper; wait $sleeper
        {cryptfs_} umount --all; echo "all: $?"
        grep -c fuse.cryptfs /proc/self/mountinfo
        {cryptfs_} umount --restore '{native.mountpoint}'
        """
    )
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", script],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )
    nested, outer = f"{native.mountpoint}/nested", str(native.mountpoint)
    said = done.stdout
    for line in (
        "No vault of yours is mounted.\nnone: 0\n",
        "cryptfs: --all takes no MOUNTPOINT and no --restore\nwrong: 1\n",
        f"cryptfs: {nested}: still in use by sleep (pid ",
        f"{outer}: something else is mounted below it, on {nested}\n",
        "busy: 10\n",
        f"{nested} is unmounted.\n{outer} is unmounted.\nall: 0\n0\n",
    ):
        assert line in said, said


# ---- what is left in the place of a mount


def test_a_mountpoint_that_cryptfs_made_is_not_written_to(scene: Scene) -> None:
    told = scene.mount()
    assert told.endswith(
        f"{scene.mountpoint} is new. Nobody can write to it while no vault is mounted on it.\n"
    )
    (scene.mountpoint / "note").write_text("first")
    scene.umount()
    with pytest.raises(PermissionError):
        (scene.mountpoint / "note").write_text("saved after the unmount")
    assert list(scene.mountpoint.iterdir()) == []
    assert "is new" not in scene.mount()
    assert (scene.mountpoint / "note").read_text() == "first"
    scene.umount()
    told = scene.umount("--restore")
    assert told == (
        f"{scene.mountpoint} is an ordinary directory now: "
        "files that programs write there are NOT encrypted.\n"
    )
    (scene.mountpoint / "note").touch()
    (scene.mountpoint / "note").unlink()
    scene.mountpoint.rmdir()


def test_after_a_crash_it_is_protected_below_the_dead_mount(native: Scene) -> None:
    native.mount()
    native.kill(signal.SIGKILL)
    assert wait_until(lambda: lock_holder(native.place.vault) is None, ENDS)
    native.umount()
    assert ownmountpoint.is_own(native.mountpoint)
    with pytest.raises(PermissionError):
        (native.mountpoint / "note").touch()


def test_a_mountpoint_of_the_person_stays_as_it_is(native: Scene) -> None:
    native.mountpoint.mkdir(0o751)
    before = native.mountpoint.stat()
    native.mount()
    native.umount()
    after = native.mountpoint.stat()
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    (native.mountpoint / "plain").touch()
    assert "they are NOT encrypted" in native.mount(code=10)
    told = native.mount("--nonempty")
    assert told.startswith(f"cryptfs: warning: {native.mountpoint} has files in it. They are NOT encrypted")
    native.umount()
    assert "has files in it" not in native.mount("--nonempty", "--quiet")
    native.umount()
    told = native.umount("--restore", code=10)
    assert told == (
        f"cryptfs: {native.mountpoint}: cryptfs did not make this directory, and does not protect it\n"
    )


def test_a_mount_that_fails_leaves_no_directory(native: Scene) -> None:
    right = native.place.passfile.read_text()
    native.place.passfile.write_text("wrong\n")
    try:
        native.mount(code=12)
    finally:
        native.place.passfile.write_text(right)
    assert not native.mountpoint.exists()
    below = replace(native.place, mountpoint=native.mountpoint / "below")
    told = below.mount(code=10).stderr
    assert told.endswith(f"no such directory; create it with: mkdir -p '{below.mountpoint}'\n")
    if os.geteuid() == 0:
        words = ["mount", native.place.vault, native.mountpoint, "--passfile", native.place.passfile]
        words += ["--engine", native.engine, "--log-file", native.place.log_file]
        done = subprocess.run(
            ["unshare", "-m", PROGRAM[0], "-c", NO_DEVICE, *map(str, words)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 10, done.stderr
        assert not native.mountpoint.exists()


NO_DEVICE = """
import subprocess, sys
subprocess.run(["mount", "--bind", "/dev/null", "/dev/fuse"], check=True)
from cryptfs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
"""Runs a command that cannot mount."""


def test_the_python_api_makes_it_as_well(scene: Scene) -> None:
    script = """
import sys
from pathlib import Path
import cryptfs
hook = sys.argv[5]
options = cryptfs.MountOptions(engine=sys.argv[4], idle=60.0, after_mount=hook, before_unmount=hook)
passphrase = Path(sys.argv[3]).read_bytes().strip()
with cryptfs.mount_vault(sys.argv[1], sys.argv[2], passphrase, options, log_file=sys.argv[6]) as mounted:
    (mounted.mountpoint / "by python").touch()
"""
    out = scene.mountpoint.with_name("out")
    engine, log_file = scene.engine, scene.place.log_file
    words = [scene.place.vault, scene.mountpoint, scene.place.passfile, engine, noting(out), log_file]
    subprocess.run([PROGRAM[0], "-c", script, *map(str, words)], env=ENVIRONMENT, check=True)
    names = f"|{scene.place.vault}|{scene.mountpoint}|"
    assert out.read_text() == f"mount{names}umount{names}"
    assert ownmountpoint.is_own(scene.mountpoint)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3: apt-get install fuse3")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_ordinary_user(engine: str, home: Path, fuse_for_everybody: None) -> None:
    """fusermount3 mounts and unmounts, and the directory is unwritable before, below and after the mount."""
    script = f"""
        set -e
        export HOME='{home}' XDG_STATE_HOME='{home}/state'
        cd '{home}'
        umask 077; echo 'correct horse' > passfile
        cryptfs() {{ {" ".join(PROGRAM)} "$@"; }}
        cryptfs init vault --passfile passfile --kdf-memory 64m -q
        for turn in 1 2; do
            [ $turn = 1 ] || set -- --idle 3s
            cryptfs mount vault private --passfile passfile --engine {engine} -q --log-file log "$@" \
                --before-unmount 'sh -c "id -u >> {home}/ids"'
            echo kept > private/note
            if [ $turn = 1 ]; then cryptfs umount private; else
                while grep -q '{home}/private ' /proc/self/mountinfo; do sleep 0.1; done
            fi
            stat -c %a private
            (echo plain > private/note) 2>/dev/null || echo refused
        done
        cryptfs umount --restore private 2>/dev/null
        rmdir private
        cat ids
    """
    done = subprocess.run(
        ["sh", "-c", script],
        env=ENVIRONMENT,
        user=NOBODY[0],
        group=NOBODY[1],
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["500", "refused"] * 2 + [str(NOBODY[0])] * 2
    assert mount_at(home / "private") is None


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of an ordinary user, who can reach it."""
    directory = scratch_directory(tmpfs=False)
    os.chown(directory, *NOBODY)
    yield directory
    while mount_at(directory / "private") is not None:
        detach(str(directory / "private"), lazy=True)
    shutil.rmtree(directory)
