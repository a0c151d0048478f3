"""Where keys and passphrases must not be: core dumps, others' hands, arguments, environment, memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from cryptfs.core.keys import Subkeys
from cryptfs.mount.daemon import harden_process
from cryptfs.mount.mounts import wait_until
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.vault import read_config
from tests.e2e.mounting import detach
from tests.e2e.users import OTHER, OWNER
from tests.support import child_environment

pytestmark = [
    pytest.mark.waits,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="looking into other processes needs root"),
]

PASSPHRASE = "Qx7 a passphrase like no other 93"
PROGRAM = (sys.executable, "-m", "cryptfs")
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


class Place:
    """A vault, a mountpoint, and commands that run here."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.vault = base / "vault"
        self.mountpoint = base / "mountpoint"
        self.passfile = base / "passfile"
        self.mountpoint.mkdir()
        self.passfile.touch(mode=0o600)
        self.passfile.write_text(PASSPHRASE + "\n")

    def run(self, *args: object, text: str = "") -> str:
        words = [*PROGRAM, *map(str, args)]
        done = subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            env=child_environment(),
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *args: object, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """A command that runs on, in a directory of its own, allowed to dump core without limit."""
        (self.base / "cwd").mkdir()
        return subprocess.Popen(
            [*PROGRAM, *map(str, args)],
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=self.base / "cwd",
            env=child_environment(),
            preexec_fn=unlimited,
        )

    def daemon(self) -> int:
        return int(json.loads(self.run("info", "--json", self.vault))["held_by"]["pid"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.run("init", made.vault, "--passfile", made.passfile, "--kdf-memory", "64m")
    yield made
    detach(made.mountpoint)


# ---- core dumps


def unlimited() -> None:
    """In a child before it becomes the program: `ulimit -c unlimited`."""
    resource.setrlimit(resource.RLIMIT_CORE, UNLIMITED)


def dumps_core(process: subprocess.Popen[bytes], number: signal.Signals) -> bool:
    """Let it die of a signal that dumps core by default."""
    process.send_signal(number)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -number
    if process.stderr is not None:
        process.stderr.close()
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == number
    return os.WCOREDUMP(status)


@pytest.fixture(scope="module")
def _cores_are_possible(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same signal makes an ordinary program dump core here, so that none below means something."""
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE,
        cwd=tmp_path_factory.mktemp("cores"),
        preexec_fn=unlimited,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    if not dumps_core(process, signal.SIGSEGV):
        pytest.skip("this machine makes no core dumps at all")


@pytest.mark.usefixtures("_cores_are_possible")
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_mount_leaves_no_core(place: Place, number: signal.Signals) -> None:
    process = place.start("mount", "-f", "--passfile", place.passfile, place.vault, place.mountpoint)
    assert wait_until(lambda: os.path.ismount(place.mountpoint), 30)
    (place.mountpoint / "file").write_bytes(b"content")
    assert not dumps_core(process, number)
    assert os.listdir(place.base / "cwd") == []


def waiting_for_passcommand(place: Place) -> list[object]:
    """A passphrase command that says that it runs and then waits for ever."""
    script = place.base / "passcommand"
    script.write_text(f"#!/bin/sh\ntouch {place.base}/asked\nexec sleep 60\n")
    script.chmod(0o700)
    return ["--passcommand", script]


COMMANDS: dict[str, Callable[[Place], list[object]]] = {
    "init": lambda place: ["init", place.base / "new", *waiting_for_passcommand(place)],
    "mount": lambda place: ["mount", place.vault, place.mountpoint, *waiting_for_passcommand(place)],
    "passwd": lambda place: ["passwd", place.vault, *waiting_for_passcommand(place)],
    "key add": lambda place: ["key", "add", "passphrase", place.vault, *waiting_for_passcommand(place)],
    "askpass": lambda place: ["fsck", place.vault, "--askpass", waiting_for_passcommand(place)[1]],
}


@pytest.mark.usefixtures("_cores_are_possible")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_waits_for_a_passphrase_leaves_no_core(place: Place, command: str) -> None:
    process = place.start(*COMMANDS[command](place))
    assert wait_until((place.base / "asked").exists, 30)
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert not dumps_core(process, signal.SIGSEGV)
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGTERM)  # the command that it ran
    assert os.listdir(place.base / "cwd") == []


# ---- other processes


def in_child(work: Callable[[], None]) -> int:
    """Run it in a fork; its exit code, 77 for an error that it did not foresee."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except PermissionError:
            os._exit(13)
        except BaseException:  # noqa: BLE001 - a fork must not go on as a second pytest
            os._exit(77)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def become(uid: int, gid: int) -> None:
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def look_into(pid: int, file: str) -> None:
    os.close(os.open(f"/proc/{pid}/{file}", os.O_RDONLY))


def ordinary_process(*, hardened: bool) -> tuple[int, int]:
    """A process of OWNER, as if OWNER had started it: (pid, descriptor to close when it may end)."""
    ready_out, ready_in = os.pipe()
    end_out, end_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end_in)
        become(OWNER.uid, OWNER.gid)
        import ctypes

        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: changing the user had taken it away
        if hardened:
            harden_process()
        os.write(ready_in, b"!")
        os.read(end_out, 1)
        os._exit(0)
    os.close(end_out)
    os.read(ready_out, 1)
    os.close(ready_out)
    os.close(ready_in)
    return child, end_in


@pytest.mark.parametrize("file", ["mem", "environ", "maps", "auxv"])
def test_memory_and_environment_are_out_of_reach_of_the_same_user(file: str) -> None:
    """Without harden_process they are not: that is what it is for."""
    for hardened, code in ((False, 0), (True, 13)):
        pid, end = ordinary_process(hardened=hardened)

        def look(pid: int = pid) -> None:
            become(OWNER.uid, OWNER.gid)
            look_into(pid, file)

        try:
            assert in_child(look) == code
        finally:
            os.close(end)
            os.waitpid(pid, 0)


def test_a_daemon_is_out_of_reach_of_other_users(place: Place) -> None:
    place.run("mount", place.vault, place.mountpoint, text=PASSPHRASE + "\n")
    pid = place.daemon()
    for file in ("mem", "environ", "maps"):
        look_into(pid, file)  # root may

        def look(file: str = file) -> None:
            become(OTHER.uid, OTHER.gid)
            look_into(pid, file)

        assert in_child(look) == 13
    place.run("umount", place.mountpoint)


# ---- what a process holds


def writable_memory(pid: int) -> bytes:
    """All of a process's own memory that it may write, end to end."""
    pieces = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            start, end = (int(number, 16) for number in place.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError):  # what the kernel keeps to itself
                    memory.seek(start)
                    pieces.append(memory.read(end - start))
    return b"\n".join(pieces)


def mount_with(place: Place, how: str) -> None:
    command = ["mount", place.vault, place.mountpoint]
    if how == "askpass":
        script = place.base / "askpass"
        script.write_text(f"#!/bin/sh\ncat {place.passfile}\n")
        script.chmod(0o700)
        place.run(*command, "--askpass", script)
        return
    if how == "stdin":
        place.run(*command, text=PASSPHRASE + "\n")
    elif how == "passfile":
        place.run(*command, "--passfile", place.passfile)
    else:
        place.run(*command, "--passcommand", f"cat {place.passfile}")


@pytest.mark.parametrize("how", ["stdin", "passfile", "passcommand", "askpass"])
def test_a_daemon_keeps_neither_passphrase_nor_masterkey(place: Place, how: str) -> None:
    """Its subkeys are there, of course: that shows that the search finds what there is."""
    mount_with(place, how)
    (place.mountpoint / "file").write_bytes(b"content")
    pid = place.daemon()
    for file in ("cmdline", "environ"):
        assert PASSPHRASE.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    masterkey = open_vault(read_config(place.vault), PASSPHRASE.encode(), 1 << 40).masterkey
    memory = writable_memory(pid)
    assert Subkeys.from_masterkey(masterkey).content_key in memory
    assert masterkey not in memory
    assert PASSPHRASE.encode() not in memory
    place.run("umount", place.mountpoint)
