"""`cryptfs status` on real mounts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from cryptfs.mount.background import MountedVault
from cryptfs.mount.mounts import mount_at
from cryptfs.mount.statistics import ask_status
from tests.e2e.mounting import PROJECT
from tests.schema import check_answer

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}


@pytest.fixture(params=["native", "fusepy"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MountedVault]:
    cryptfs.Vault.create(tmp_path / "vault", b"tests only", kdf_memory=64 << 20)
    (tmp_path / "place").mkdir()
    options = cryptfs.MountOptions(engine=request.param)
    with cryptfs.mount_vault(tmp_path / "vault", tmp_path / "place", b"tests only", options) as made:
        yield made


def status(mounted: MountedVault, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "cryptfs", "status", str(mounted.mountpoint), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT)


def engine_of(mounted: MountedVault) -> str:
    return str(json.loads(status(mounted, "--json").stdout)["engine"])


def test_it_tells_what_was_done_and_no_name(mounted: MountedVault, request: pytest.FixtureRequest) -> None:
    (mounted.mountpoint / "unmistakable").write_bytes(b"x" * 100_000)
    done = status(mounted, "--json")
    assert done.returncode == 0, done.stderr
    found = check_answer("status", done.stdout)
    assert found["pid"] == mounted.pid
    assert found["engine"] == request.node.callspec.params["mounted"]
    assert found["mountpoint"] == str(mounted.mountpoint)
    assert found["operations"]["create"] == 1
    assert found["bytes"]["written"] == 100_000
    assert found["memory"]["resident"] > 1 << 20
    assert "unmistakable" not in done.stdout
    with (mounted.mountpoint / "unmistakable").open("rb"):
        assert json.loads(status(mounted, "--json").stdout)["open"]["files"] == 1


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    """Every command gives JSON, and writes them alike; also for a person nothing of them acts."""
    name = os.fsdecode(b"v\xff\xc3\x9c\n\x1b[2J")
    vault, mountpoint = tmp_path / name, tmp_path / f"{name}.mount"
    mountpoint.mkdir()
    cryptfs.Vault.create(vault, b"tests only", kdf_memory=64 << 20)

    def output(*words: str | Path, code: int = 0) -> bytes:
        done = subprocess.run(
            [sys.executable, "-m", "cryptfs", *words],
            input=b"tests only\n",
            capture_output=True,
            timeout=60,
            check=False,
            env=ENVIRONMENT,
        )
        assert done.returncode == code, done.stderr
        assert all(line.decode().isprintable() for line in (done.stdout + done.stderr).splitlines())
        return bytes(done.stdout)

    text, log = f"{tmp_path}/v\\xffÜ\\n\\x1b[2J", tmp_path / "log"
    with cryptfs.mount_vault(vault, mountpoint, b"tests only", log_file=log):
        found = check_answer("info", output("info", "--json", vault).decode())
        assert (found["schema"], found["vault"]) == (1, text)
        assert found["held_by"]["mountpoint"] == found["mounts"][0]["mountpoint"] == f"{text}.mount"
        found = check_answer("status", output("status", "--json", mountpoint).decode())
        assert (found["schema"], found["vault"], found["mountpoint"]) == (1, text, f"{text}.mount")
        assert f"vault:       {text}\n".encode() in output("info", vault)
        assert text.encode() in output("status", mountpoint)
        output("status", vault, code=10)
    lines = log.read_text().splitlines()
    assert f"unmounted {text}.mount and closed" in lines[-1]
    assert all(line[:2] == "20" and line.isprintable() for line in lines), "a name begins no line"
    for words in (("fsck", "--json", vault), ("upgrade", "--json", vault)):
        found = json.loads(output(*words))
        assert (found["schema"], found["vault"]) == (1, text)
    manifest = tmp_path / "manifest"
    output("snapshot", vault, "-o", manifest)
    assert json.loads(output("verify", "--json", vault, manifest))["schema"] == 1
    output("passwd", vault, code=9)


def test_a_person_reads_a_page(mounted: MountedVault) -> None:
    (mounted.mountpoint / "file").write_bytes(b"x" * 4096)
    done = status(mounted)
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"mounted on: {mounted.mountpoint}" in lines
    assert "bytes written 4.0 KiB" in lines
    assert not [line for line in done.stdout.splitlines() if line.endswith(" ")]
    with (mounted.mountpoint / "file").open("rb"):
        opened = [line for line in status(mounted).stdout.splitlines() if line.startswith("open:")]
    assert len(opened) == 1
    assert opened[0].split(None, 1)[1].startswith("1 file, 0 directories")


def test_watching_ends_with_the_mount(mounted: MountedVault) -> None:
    words = [sys.executable, "-m", "cryptfs", "status", str(mounted.mountpoint)]
    with subprocess.Popen(
        [*words, "--watch", "--interval", "0.1", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as watcher:
        assert watcher.stdout is not None and watcher.stderr is not None
        looks = [json.loads(watcher.stdout.readline())["uptime_seconds"] for _ in range(3)]
        mounted.unmount()
        assert watcher.wait(30) == 10
        assert "nothing is mounted there" in watcher.stderr.read()
    assert looks == sorted(looks) and looks[0] < looks[2]


def watching(mounted: MountedVault, *options: str) -> subprocess.Popen[bytes]:
    """`status --watch` into a pipe."""
    words = [sys.executable, "-m", "cryptfs", "status", str(mounted.mountpoint), "--watch"]
    return subprocess.Popen(
        [*words, "--interval", "0.1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_watch_into_a_pipe_has_whole_lines(mounted: MountedVault, options: tuple[str, ...]) -> None:
    """However it ends. It shows each look, one below the other."""
    begins = b'{"schema"' if options else b"mounted on:"
    with watching(mounted, *options) as watcher:
        assert watcher.stdout is not None and watcher.stderr is not None
        shown = b""
        while shown.count(begins) < 3:
            shown += watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        shown += watcher.stdout.read()
        assert (watcher.wait(30), watcher.stderr.read()) == (0, b"")
    assert shown.endswith(b"\n") and b"\x1b" not in shown
    assert len([line for line in shown.splitlines() if line.startswith(begins)]) >= 3
    with watching(mounted, *options) as watcher:
        assert watcher.stdout is not None and watcher.stderr is not None
        watcher.stdout.readline()
        watcher.stdout.close()
        assert (watcher.wait(30), watcher.stderr.read()) == (141, b"")


def test_it_shows_when_the_vault_goes_by_itself(mounted: MountedVault) -> None:
    options = cryptfs.MountOptions(engine=engine_of(mounted), idle=600)
    nothing = {"idle_seconds": None, "idle_left_seconds": None}
    assert check_answer("status", status(mounted, "--json").stdout)["unmounts"].items() >= nothing.items()
    assert "unmounts:" not in status(mounted).stdout
    mounted.unmount()
    with cryptfs.mount_vault(mounted.vault_dir, mounted.mountpoint, b"tests only", options) as again:
        (again.mountpoint / "file").touch()
        lefts = [
            check_answer("status", status(again, "--json").stdout)["unmounts"]["idle_left_seconds"]
            for _ in range(2)
        ]
        assert 500 < lefts[1] <= lefts[0] <= 600
        assert re.search(r"after 10 min without use: in (10 min|9 min \d+ s)\n", status(again).stdout)
        with (again.mountpoint / "file").open("rb"):
            told = check_answer("status", status(again, "--json").stdout)["unmounts"]
            assert (told["idle_seconds"], told["idle_left_seconds"]) == (600, None)
            assert "after 10 min without use; something is open now" in status(again).stdout


def damage(path: Path) -> None:
    """A bit in the last byte: the tag of the last chunk."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_it_keeps_what_was_found_to_be_wrong(mounted: MountedVault) -> None:
    """Also where there is no syslog: which file, what is wrong with it, how often it was met."""
    victim = mounted.mountpoint / "unmistakable"
    victim.write_bytes(b"x" * 100)
    options = cryptfs.MountOptions(engine=engine_of(mounted))
    mounted.unmount()
    (backing,) = (path for path in mounted.vault_dir.iterdir() if not path.name.startswith("cryptfs."))
    damage(backing)
    planted = mounted.vault_dir / "no\x1b[2Jname"
    planted.touch()
    again = cryptfs.mount_vault(mounted.vault_dir, mounted.mountpoint, b"tests only", options)
    assert json.loads(status(again, "--json").stdout)["findings"] == []
    assert "No problems were found." in status(again).stdout
    before = time.time() - 1
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            victim.read_bytes()
        assert os.listdir(again.mountpoint) == ["unmistakable"]
    done = status(again, "--json")
    name, chunk = json.loads(done.stdout)["findings"]
    assert chunk["path"] == backing.name
    assert chunk["chunk"] == 0
    assert chunk["reason"] == "the record does not authenticate"
    assert chunk["count"] >= 3
    assert before < chunk["first"] <= chunk["last"] < time.time() + 1
    assert name["path"] == "no\\x1b[2Jname"
    text = status(again).stdout
    assert f"{backing.name}, chunk 0: the record does not authenticate (" in text
    assert "\x1b" not in text
    assert "unmistakable" not in text + done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_told_nothing(mounted: MountedVault) -> None:
    mount = mount_at(mounted.mountpoint)
    assert mount is not None
    assert ask_status(mount)["pid"] == mounted.pid
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(64003, 64003, 64003)
            os.setresuid(64003, 64003, 64003)
            ask_status(mount)
            os.write(writer, b"told")
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent compares its text
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert "answers only root and the user who mounted it" in said
