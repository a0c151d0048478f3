"""Real mounts by every kind of key: each by the options that a person or a service gives, and by it alone.

FIDO2 tokens are software (with_tokens.py): everything but the list of devices is what a real token meets.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import wait_until
from cryptfs.vfs.vault import Vault
from tests.all_keys import AllKeys
from tests.cli.test_cli_processes import ENVIRONMENT, Terminal
from tests.e2e.mounting import assert_log_file_quiet, detach

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

CONTENT = b"what all keys lead to"
PROGRAM = (sys.executable, "-m", "cryptfs")
LAST = "a key file"
KEYS = (
    *("a passphrase", "another passphrase", LAST, "a passphrase and a file", "an age identity"),
    *("a token", "another token", "recovery words", "two of three shares"),
)


class Scene:
    """A vault with all keys, a mountpoint, and mounts that end."""

    def __init__(self, keys: AllKeys) -> None:
        self.keys = keys
        self.mountpoint = keys.base / "mountpoint"
        self.mountpoint.mkdir(exist_ok=True)
        self.log_file = keys.base / "log"

    def command(self, way: list[str], key: str = "", engine: str = "native") -> list[str]:
        """`mount` in the foreground. key: whose token is plugged in, if it is one."""
        program = [*PROGRAM]
        if key in self.keys.plugged:
            program = [sys.executable, "-m", "tests.e2e.with_tokens", str(self.keys.plugged[key])]
        place = [str(self.keys.vault), str(self.mountpoint), "-o", f"engine={engine}"]
        return [*program, "mount", "-f", *place, "--log-file", str(self.log_file), *way]

    def reads(self) -> None:
        """The file in the vault, through the mount that is there now."""
        assert (self.mountpoint / "file").read_bytes() == CONTENT

    def mounts_by(
        self, way: list[str], key: str = "", engine: str = "native", text: bytes = b"", **more: str
    ) -> str:
        """Mount, read, unmount; returns what the command said.

        Args: text: what stdin has.   more: environment.
        """
        with subprocess.Popen(
            self.command(way, key, engine),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT | more,
            start_new_session=True,  # no terminal to ask on
            pass_fds=[int(way[1])] if "--passfd" in way else [],
        ) as process:
            assert process.stdin is not None and process.stderr is not None
            process.stdin.write(text)
            process.stdin.close()
            try:
                assert wait_until(lambda: self.is_mounted or process.poll() is not None, 30)
                assert process.poll() is None, process.stderr.read().decode()
                self.reads()
            finally:
                detach(self.mountpoint)
                code = process.wait(30)
            said = process.stderr.read().decode()
        assert code == 0, said
        return said

    def refuses(self, way: list[str], key: str) -> str:
        """That it does not mount; returns why not."""
        done = subprocess.run(
            self.command(way, key),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,
            check=False,
        )
        said = done.stderr.decode()
        assert done.returncode in (12, 31), said
        assert "Traceback" not in said
        assert not self.is_mounted
        return said

    @property
    def is_mounted(self) -> bool:
        return os.path.ismount(self.mountpoint)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> AllKeys:
    keys = AllKeys(tmp_path_factory.mktemp("keys"))
    keys.make()
    with Vault.unlock(keys.vault, (keys.base / "first").read_bytes()) as vault:
        file = vault.tree.create(vault.tree.root, b"file", os.O_RDWR, 0o600)
        file.write(0, CONTENT)
        vault.tree.release(file)
    return keys


@pytest.fixture
def scene(shared: AllKeys) -> Iterator[Scene]:
    made = Scene(shared)
    yield made
    detach(made.mountpoint)
    assert_log_file_quiet(made.log_file)


def test_all_kinds_are_here(shared: AllKeys) -> None:
    assert set(shared.ways) == set(KEYS)
    assert len(shared.listed()) == 7


# ---- ways to offer a key


def passfd(scene: Scene) -> str:
    reader, writer = os.pipe()
    os.write(writer, (scene.keys.base / "second").read_bytes() + b"\nthe next line belongs to others\n")
    os.close(writer)
    try:
        return scene.mounts_by(["--passfd", str(reader)])
    finally:
        os.close(reader)


def askpass(scene: Scene) -> str:
    script = scene.keys.base / "askpass"
    script.write_text(f"#!/bin/sh\ncat {scene.keys.base}/second\n")
    script.chmod(0o700)
    return scene.mounts_by(["--askpass", str(script)])


def credentials(scene: Scene) -> str:
    """As systemd has them for a service with LoadCredential=."""
    directory = scene.keys.base / "credentials"
    directory.mkdir(mode=0o700)
    for credential, name in (("cryptfs.passphrase", "beside"), ("cryptfs.keyfile", "photo")):
        (directory / credential).write_bytes((scene.keys.base / name).read_bytes())
        (directory / credential).chmod(0o400)
    return scene.mounts_by([], CREDENTIALS_DIRECTORY=str(directory))


def _in(scene: Scene, name: str) -> str:
    return str(scene.keys.base / name)


WAYS: dict[str, tuple[int | str, Callable[[Scene], str]]] = {
    "passcommand": (1, lambda scene: scene.mounts_by(["--passcommand", f"cat {_in(scene, 'second')}"])),
    "stdin": (1, lambda scene: scene.mounts_by([], text=(scene.keys.base / "second").read_bytes())),
    "passfile -": (1, lambda scene: scene.mounts_by(["--passfile", "-"], text=b"Qx7 a second passphrase\n")),
    "passfd": (1, passfd),
    "askpass": (1, askpass),
    "CRYPTFS_PASSFILE": (1, lambda scene: scene.mounts_by([], CRYPTFS_PASSFILE=_in(scene, "second"))),
    "CRYPTFS_KEYFILE": (2, lambda scene: scene.mounts_by([], CRYPTFS_KEYFILE=_in(scene, "key"))),
    "credentials": (3, credentials),
    "mount -o": (4, lambda scene: scene.mounts_by(["-o", f"identity={_in(scene, 'identity')}"])),
    "mount -o fido2": (5, lambda scene: scene.mounts_by(["-o", "fido2"], "a token")),
    "--slot": (1, lambda scene: scene.mounts_by(["--slot", "1", "--passfile", _in(scene, "second")])),
    "words on stdin": (
        "",
        lambda scene: scene.mounts_by(["--words-file", "-"], text=(scene.keys.base / "words").read_bytes()),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_key_is_offered(scene: Scene, way: str) -> None:
    slot, mounts = WAYS[way]
    said = mounts(scene)
    assert (f"Opened with key slot {slot} (" in said) is (slot != "")
    assert "Qx7" not in said


@pytest.mark.parametrize("what", ["--words", "--shares"])
def test_a_person_types_words_to_mount(scene: Scene, what: str) -> None:
    files = [_in(scene, "words")] if what == "--words" else scene.keys.ways["two of three shares"][1::2]
    typed = [Path(each).read_bytes() for each in files]
    arguments = scene.command([what])
    terminal = Terminal([], {}, program=arguments)
    for words in typed:
        terminal.expect(b"From word 1: ")
        terminal.output = b""
        terminal.type(words)
    assert wait_until(lambda: scene.is_mounted, 30)
    scene.reads()
    detach(scene.mountpoint)
    assert terminal.finish() == 0


# ---- each key alone, and not after its removal


def test_each_mounts_alone_and_not_after_its_removal(scene: Scene) -> None:
    """One after the other, on one vault, with both engines in turn; the last one cannot be removed."""
    keys = scene.keys
    order = [name for name in KEYS if name != LAST] + [LAST]
    for number, name in enumerate(order):
        scene.mounts_by(keys.ways[name], name, ("native", "fusepy")[number % 2])
        if name == LAST:
            break
        keys.remove(name, by=LAST)
        scene.refuses(keys.ways[name], name)
    assert keys.listed() == [keys.slots[LAST]]
    keys.run("key", "remove", keys.vault, keys.slots[LAST], "--force", *keys.ways[LAST], code=11)
    scene.mounts_by(keys.ways[LAST])
