"""The pin of a vault's path: what commands refuse, what lets them go on, and what they never fail for."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.cli.wishes import collect_options
from cryptfs.storage.pins import pinned
from cryptfs.vfs.vault import Vault
from tests.commands import Outcome, Run, runner

CHEAP = ("--kdf-memory", "64m")
REFUSED = 43


@dataclass(frozen=True)
class Scene:
    """A vault that this machine has seen. old: its config from before a change of the passphrase."""

    base: Path
    vault: Path
    passfile: Path
    run_command: Run
    old: bytes

    def run(self, command: str, *args: object, at: Path | None = None) -> Outcome:
        return self.run_command(command, at or self.vault, "--passfile", self.passfile, *args)

    def check(self, *args: object, at: Path | None = None, code: int = 0) -> str:
        """`cryptfs fsck`; what it says on stderr."""
        done = self.run("fsck", *args, at=at)
        assert done.code == code, done
        assert done.err.replace("\n", "").isprintable()
        return done.err

    def init(self, name: str) -> Path:
        """Another vault with the same passphrase."""
        assert self.run("init", *CHEAP, at=self.base / name).code == 0
        return self.base / name

    def code(self, at: Path | None = None) -> str:
        found = json.loads(self.run_command("info", "--json", at or self.vault).out)["identity"]
        assert isinstance(found, str)
        return found

    def put_back(self) -> None:
        """An older config in the place of the present one."""
        (self.vault / "cryptfs.json").write_bytes(self.old)

    def exchange(self) -> Path:
        """Another vault in its place; returns where it is now."""
        other = self.init("other")
        self.vault.rename(self.base / "aside")
        other.rename(self.vault)
        return self.base / "aside"

    @property
    def pin_file(self) -> Path:
        return next(
            path
            for path in (self.base / "state" / "cryptfs" / "pins").iterdir()
            if json.loads(path.read_bytes())["path"] == str(self.vault)
        )


@pytest.fixture
def scene(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run = runner(capsys)
    vault, passfile = tmp_path / "vault", tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("right\n")
    assert run("init", vault, "--passfile", passfile, *CHEAP).code == 0
    old = (vault / "cryptfs.json").read_bytes()
    assert run("passwd", vault, "--passfile", passfile, "--new-passfile", passfile, *CHEAP).code == 0
    return Scene(tmp_path, vault, passfile, run, old)


def test_what_commands_change_is_pinned_at_once(scene: Scene) -> None:
    seen = pinned(scene.vault)
    assert seen is not None
    assert seen.generation == 2
    assert seen.code == scene.code()
    assert (
        f"identity:    {seen.code} (when this machine last opened it)\n"
        in scene.run_command("info", scene.vault).out
    )
    assert scene.check() == ""


@pytest.mark.parametrize("command", ["fsck", "snapshot", "passwd", "upgrade", "mount", "verify"])
def test_every_command_refuses_an_older_config(scene: Scene, command: str) -> None:
    manifest = scene.base / "manifest"
    if command == "verify":
        assert scene.run("snapshot", "-o", manifest).code == 0
    (scene.base / "mountpoint").mkdir()
    more: dict[str, list[object]] = {
        "passwd": ["--new-passfile", scene.passfile, *CHEAP],
        "mount": [scene.base / "mountpoint"],
        "verify": [manifest],
    }
    scene.put_back()
    before = {path.name: path.read_bytes() for path in scene.vault.iterdir()}
    done = scene.run(command, *more.get(command, []))
    assert done.code == REFUSED, done
    assert "is older than the one that this machine has seen (generation 1 instead of 2)" in done.err
    assert "--accept" in done.err
    after = {path.name: path.read_bytes() for path in scene.vault.iterdir() if "lock" not in path.name}
    assert after == {name: content for name, content in before.items() if "lock" not in name}


def test_an_older_config_is_accepted_once_for_all(scene: Scene) -> None:
    scene.put_back()
    scene.check(code=REFUSED)
    scene.check("--no-pin")
    scene.check(code=REFUSED)
    scene.check("--accept")
    scene.check()


def test_an_exchanged_vault_is_refused(scene: Scene) -> None:
    before = scene.code()
    aside = scene.exchange()
    after = pinned(scene.base / "other")
    assert after is not None
    told = scene.check(code=REFUSED)
    assert "is not the vault that this machine opened there before" in told
    assert f"Its identity is {after.code}; it was {before} before." in told
    assert scene.run_command("info", "--json", scene.vault).code == 0
    assert json.loads(scene.run_command("info", "--json", scene.vault).out)["identity"] is None
    scene.check("--accept")
    scene.check()
    assert scene.code() == after.code
    scene.check(at=aside)


def test_an_exchanged_vault_is_refused_before_its_journal_is_replayed(scene: Scene) -> None:
    """The API is what writes first: nothing but the lock is there afterwards."""
    scene.exchange()
    names = {path.name for path in scene.vault.iterdir()}
    scene.check("--repair", code=REFUSED)
    assert {path.name for path in scene.vault.iterdir() if "lock" not in path.name} <= names


def test_the_python_api_pins_nothing(scene: Scene) -> None:
    scene.put_back()
    before = scene.pin_file.read_bytes()
    Vault.unlock(scene.vault, b"right").close()
    assert scene.pin_file.read_bytes() == before


def test_a_new_vault_in_the_place_of_one_that_is_gone(scene: Scene) -> None:
    before = scene.code()
    shutil.rmtree(scene.vault)
    scene.init("vault")
    assert scene.code() != before
    scene.check()


def test_two_copies_and_a_moved_vault_do_not_alarm(scene: Scene) -> None:
    copy = scene.base / "copy"
    shutil.copytree(scene.vault, copy)
    scene.check(at=copy)
    assert scene.run("passwd", "--new-passfile", scene.passfile, *CHEAP).code == 0
    scene.check(at=copy)
    scene.check()
    assert scene.code(copy) == scene.code()
    moved = scene.vault.rename(scene.base / "moved")
    scene.check(at=moved)


def test_a_damaged_pin_and_no_place_for_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.put_back()
    scene.pin_file.write_bytes(b"\xff no pin")
    scene.check()
    (scene.base / "a file").write_bytes(b"")
    monkeypatch.setenv("XDG_STATE_HOME", str(scene.base / "a file"))
    scene.check()
    scene.check("--accept")
    assert json.loads(scene.run_command("info", "--json", scene.vault).out)["identity"] is None


def test_the_environment_turns_pins_off(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.put_back()
    before = scene.pin_file.read_bytes()
    for value, code in (("", REFUSED), ("0", REFUSED), ("1", 0)):
        monkeypatch.setenv("CRYPTFS_NO_PIN", value)
        scene.check(code=code)
    assert scene.pin_file.read_bytes() == before


def test_an_expected_identity(scene: Scene) -> None:
    right = scene.code()
    scene.check("--expect-identity", right)
    aside = scene.exchange()
    for more in ((), ("--accept",), ("--no-pin",)):
        told = scene.check("--expect-identity", right, *more, code=REFUSED)
        assert "and not the expected one" in told
    spelled = right.lower().replace("-", " ")
    shutil.rmtree(scene.base / "state")
    scene.check("--expect-identity", right, code=REFUSED)
    scene.check("--expect-identity", spelled, "--no-pin", at=aside)
    assert not (scene.base / "state").exists()
    assert "an identity has 24" in scene.check("--expect-identity", right[:-1], code=1)


def test_a_confirmed_identity_needs_no_accept(scene: Scene) -> None:
    """After a change of the masterkey elsewhere: the code says that it is the right one."""
    other = pinned(scene.init("another"))
    assert other is not None
    shutil.rmtree(scene.vault)
    (scene.base / "another").rename(scene.vault)
    scene.check(code=REFUSED)
    scene.check("--expect-identity", other.code)
    scene.check()


def test_a_change_of_the_masterkey_elsewhere_is_shown_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine refuses, with the code that the other machine has shown; --accept takes it for all."""
    here, before = scene.base / "state", scene.code()
    monkeypatch.setenv("XDG_STATE_HOME", str(scene.base / "state elsewhere"))
    told = scene.run("rekey")
    code = scene.code()
    assert f"The identity of the vault is {code} now" in told.err
    assert code != before
    monkeypatch.setenv("XDG_STATE_HOME", str(here))
    for _ in range(2):  # nothing is pinned by a refusal
        said = scene.check(code=REFUSED)
        assert "has a different masterkey than when this machine opened it before" in said
        assert f"Its identity is {code}; it was {before} before" in said
    scene.check("--accept")
    assert scene.check() == ""
    assert scene.code() == code
    again = json.loads(scene.run("rekey", "--json").out)["identity"]
    assert again == scene.code() != code


def test_flags_that_contradict_each_other(scene: Scene) -> None:
    assert "choose one of them" in scene.check("--accept", "--no-pin", code=1)


def test_mount_options_have_the_same_names() -> None:
    code = "ABCD-EFGH-IJKL-MNOP-QRST-UVWX"
    _, ours = collect_options([f"accept,expect_identity={code}", "no_pin"], {})
    assert ours == {"accept": "", "no_pin": "", "expect_identity": code}
    for text in ("accept=1", "no_pin=1", "expect_identity"):
        with pytest.raises(ValueError, match="value"):
            collect_options([text], {})


def test_options_of_mount_reach_the_pin(scene: Scene) -> None:
    mountpoint = scene.base / "mountpoint"
    mountpoint.mkdir()
    scene.put_back()
    wrong = "ABCD-EFGH-IJKL-MNOP-QRST-UVWX"
    for options in ("ro", f"accept,expect_identity={wrong}", f"no_pin,expect_identity={wrong}"):
        assert scene.run("mount", mountpoint, "-o", options).code == REFUSED
    assert scene.run("mount", mountpoint, "-o", "accept,no_pin").code == 1
    done = scene.run("mount", mountpoint, "--expect-identity", wrong, "-o", f"expect_identity={scene.code()}")
    assert (done.code, "two different identity codes" in done.err) == (1, True)


def test_key_test_shows_the_code(scene: Scene) -> None:
    """By a second slot as well: the identity is that of the masterkey, not of a key."""
    key_file = scene.base / "key"
    assert (
        scene.run_command(
            "key", "add", "keyfile", scene.vault, "--generate", key_file, "--passfile", scene.passfile
        ).code
        == 0
    )
    code = scene.code()
    for more in (("--passfile", scene.passfile), ("--keyfile", key_file)):
        assert (
            f"The identity of the vault is {code}.\n"
            in scene.run_command("key", "test", scene.vault, *more).out
        )
        said = json.loads(scene.run_command("key", "test", "--json", scene.vault, *more).out)
        assert said["identity"] == code
    seen = pinned(scene.vault)
    assert seen is not None
    assert seen.generation == 3
