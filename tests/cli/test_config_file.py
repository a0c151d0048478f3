"""The config file: named vaults, defaults, and everything that is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

import cryptfs
from cryptfs.cli import main as main_module
from cryptfs.cli import mount as mount_module
from cryptfs.cli.configfile import INIT_KEYS, UNLOCK_KEYS, key_of, load
from cryptfs.cli.exit_codes import ConfigFileError, ExitCode
from cryptfs.cli.offers import OfferSource
from cryptfs.cli.prompt import PassphraseSource
from cryptfs.mount.options import MountOptions
from tests.commands import Run, runner

PASSPHRASE = b"five random words"
COMMANDS = main_module.cli.commands
# A right value for each key of [mount], in TOML.
VALUES = {
    "read_only": "true",
    "allow_other": "true",
    "default_permissions": "false",
    "xattrs": "false",
    "writeback": "false",
    "exclusive": "true",
    "nonempty": "true",
    "engine": '"fusepy"',
    "durability": '"off"',
    "fast_wake": "false",
    "entry_timeout": "1.5",
    "attr_timeout": "2",
    "max_threads": "4",
    "fsname": '"shown by df"',
    "options": '["nosuid", "noatime,nodev"]',
    "quiet": "true",
    "idle": '"10m"',
    "unmount_on": '"lock"',
    "detach_busy": "true",
    "after_mount": '"true"',
    "before_unmount": '"true"',
    "log_file": '"~/log"',
    "log_size": '"1m"',
    "passfile": '"/a"',
    "passcommand": '"pass show vault"',
    "askpass": '"/usr/bin/ssh-askpass"',
    "keyfile": '"~/key"',
    "identity": '"~/identity"',
    "fido2": "true",
    "expect_identity": '"any text"',
    "no_pin": "true",
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the config file is; HOME and the vault that it names are beside it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CRYPTFS_CONFIG")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    place = tmp_path / ".config" / "cryptfs" / "config.toml"
    place.parent.mkdir(parents=True, mode=0o700)
    return place


@pytest.fixture
def photos(file: Path, tmp_path: Path) -> Path:
    """A vault by the name of photos, with its passphrase in a file."""
    cryptfs.Vault.create(tmp_path / "vault", PASSPHRASE, kdf_memory=64 << 20)
    (tmp_path / "passfile").touch(mode=0o600)
    (tmp_path / "passfile").write_bytes(PASSPHRASE)
    file.write_text(
        '[vaults.photos]\nvault = "~/vault"\nmountpoint = "~/mountpoint"\npassfile = "~/passfile"\n'
    )
    (tmp_path / "mountpoint").mkdir()
    return tmp_path / "vault"


class Mounting:
    """What mount_vault was called with, in place of a mount."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.vault, self.mountpoint = Path(), Path()
        self.options, self.source = MountOptions(), OfferSource()
        self.quiet = False
        self.log: Path | None = None
        monkeypatch.setattr(mount_module, "mount_vault", self._take)

    def _take(
        self,
        vault: Path,
        mountpoint: Path,
        options: MountOptions,
        source: OfferSource,
        target: object,
        **rest: bool,
    ) -> None:
        self.vault, self.mountpoint, self.options, self.source = vault, mountpoint, options, source
        self.quiet, self.log = rest["quiet"], getattr(target, "file", None)


@pytest.fixture
def mounting(monkeypatch: pytest.MonkeyPatch) -> Mounting:
    return Mounting(monkeypatch)


def test_a_vault_by_its_name(photos: Path, run: Run, mounting: Mounting, tmp_path: Path) -> None:
    assert run("mkdir", "photos", "letters").code == 0
    assert run("ls", "photos").out == "letters\n"
    assert run("export", "photos:letters", tmp_path / "copy").code == 0
    assert (tmp_path / "copy").is_dir()
    assert run("import", tmp_path / "copy", "photos:again").code == 0
    assert f"vault:       {photos}" in run("info", "photos").out
    assert run("key", "list", "photos").code == 0
    assert run("mount", "photos").code == 0
    assert (mounting.vault, mounting.mountpoint) == (photos, tmp_path / "mountpoint")
    assert mounting.source.passphrase.passfile == tmp_path / "passfile"
    assert run("mount", "photos", tmp_path / "elsewhere").code == 0
    assert mounting.mountpoint == tmp_path / "elsewhere"


def test_umount_and_status_know_the_name(photos: Path, run: Run, tmp_path: Path) -> None:
    for command in ("umount", "status"):
        told = run(command, "photos")
        assert told.code == ExitCode.MOUNTPOINT
        assert str(tmp_path / "mountpoint") in told.err


def test_a_path_is_no_name(photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it one with a vault of the same name in this directory: that could be meant."""
    monkeypatch.chdir(tmp_path)
    assert run("ls", "./photos").code == ExitCode.VAULT_DIR
    (tmp_path / "photos").mkdir()
    assert run("ls", "photos").code == 0, "a directory that is no vault"
    (tmp_path / "photos").rmdir()
    cryptfs.Vault.create(tmp_path / "photos", PASSPHRASE, kdf_memory=64 << 20)
    told = run("ls", "photos")
    assert told.code == ExitCode.USAGE
    assert "./photos" in told.err and str(photos) in told.err
    (tmp_path / "photos" / "cryptfs.json").unlink()
    (tmp_path / "photos").rename(tmp_path / "gone")
    (tmp_path / "photos").symlink_to(photos)
    assert run("ls", "photos").code == 0, "the same vault"


def test_the_command_line_counts_most(photos: Path, file: Path, run: Run, mounting: Mounting) -> None:
    with file.open("a") as more:
        more.write(
            'durability = "process"\nxattrs = false\nlog_file = "~/log"\noptions = "nosuid"\nno_pin = true\n'
        )
        more.write('[mount]\ndurability = "off"\nmax_threads = 3\nquiet = true\n')
    assert run("mount", "photos").code == 0
    found = mounting.options
    assert (found.durability, found.xattrs, found.max_threads) == ("process", False, 3)
    assert mounting.quiet and mounting.log == file.parents[2] / "log"
    assert found.extra == ("nosuid",)
    assert run("mount", "photos", "--durability", "power", "--xattrs", "-o", "max_threads=5,nodev").code == 0
    found = mounting.options
    assert (found.durability, found.xattrs, found.max_threads) == ("power", True, 5)
    assert found.extra == ("nosuid", "nodev"), "both lists count"
    assert run("mount", "photos", "-o", "durability=off,log_file=/tmp/x,passfile=/tmp/y").code == 0
    assert mounting.options.durability == "off"
    assert mounting.log == Path("/tmp/x")
    assert mounting.source.passphrase.passfile == Path("/tmp/y")
    assert run("mount", "photos", "--accept", "--passcommand", "true").code == 0
    assert mounting.source.identity.accept and not mounting.source.identity.is_off
    assert mounting.source.passphrase == PassphraseSource(passcommand="true")


def test_defaults_without_a_name(
    photos: Path, file: Path, run: Run, mounting: Mounting, tmp_path: Path
) -> None:
    file.write_text('[unlock]\naskpass = "/bin/ask"\n[mount]\nread_only = true\n[init]\nchunk_size = "64k"\n')
    assert run("mount", photos, tmp_path / "mountpoint").code == 0
    assert mounting.options.read_only
    assert mounting.source.passphrase.askpass == "/bin/ask"
    passfile = ("--passfile", tmp_path / "passfile")
    assert run("init", tmp_path / "new", *passfile, "--kdf-memory", "64m").code == 0
    assert "chunk size:  64 KiB" in run("info", tmp_path / "new").out
    assert run("init", tmp_path / "newer", *passfile, "--kdf-memory", "64m", "--chunk-size", "4k").code == 0
    assert "chunk size:  4 KiB" in run("info", tmp_path / "newer").out


def test_options_of_mount_are_for_mount_alone(photos: Path, file: Path, run: Run) -> None:
    with file.open("a") as more:
        more.write("quiet = true\n")
    assert run("mkdir", "photos", "a").code == 0
    assert "Removed" not in run("ls", "photos").err


def test_every_option_of_mount_has_a_place(file: Path) -> None:
    """Or it holds for one run alone."""
    keys = {key_of(each) for each in COMMANDS["mount"].params if isinstance(each, click.Option)}
    single = {
        "passfd",
        "slot",
        "words",
        "words_file",
        "shares",
        "share_file",
        "accept",
        "debug",
        "foreground",
    }
    assert keys - single == set(VALUES)
    for key, value in VALUES.items():
        file.write_text(f'[vaults.a]\nvault = "/a"\n{key} = {value}\n')
        assert load(COMMANDS).vaults["a"].options
        table = "unlock" if key in UNLOCK_KEYS else "mount"
        file.write_text(f"[{table}]\n{key} = {value}\n")
        assert getattr(load(COMMANDS), table)
    for key in single:
        file.write_text(f"[mount]\n{key} = true\n")
        with pytest.raises(ConfigFileError, match=rf"line 2: mount\.{key} is unknown"):
            load(COMMANDS)
    assert set(INIT_KEYS) <= {
        key_of(each) for each in COMMANDS["init"].params if isinstance(each, click.Option)
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[mount", "this is not TOML: .*at end of document"),
        ("\n[mount]\na = =", "this is not TOML: .*at line 3"),
        ("[mount]\noptions = 'colour=blue'", "line 2: mount.options is wrong: .*colour"),
        ("\n[mounts]\n", "line 2: mounts is unknown; there are init, mount, unlock, vaults"),
        ("mount = 3", "line 1: mount must be a table"),
        ("[mount]\nread-only = true", "line 2: mount.read-only is unknown; write read_only"),
        ("[mount]\ncolour = 'blue'", "line 2: mount.colour is unknown; there are "),
        ("[mount]\n\n# a comment\nread_only = 'yes'", "line 4: mount.read_only must be true or false"),
        ("[mount]\nread_only = 1", "line 2: mount.read_only must be true or false"),
        ("[mount]\nmax_threads = true", "line 2: mount.max_threads must be a whole number"),
        ("[mount]\nmax_threads = 65", "line 2: mount.max_threads is wrong: give a whole number from 1 to 64"),
        ("[mount]\nmax_threads = 2.5", "mount.max_threads must be a whole number"),
        ("[mount]\nentry_timeout = nan", "entry_timeout is wrong|entry_timeout must"),
        ("[mount]\nengine = 'warp'", "line 2: mount.engine is wrong"),
        ("[mount]\nengine = ['native']", "line 2: mount.engine must be a text"),
        ("[mount]\noptions = [1]", "line 2: mount.options must be a text, or a list of texts"),
        ("[mount]\npassfile = '/a'", "line 2: mount.passfile is unknown"),
        ("[unlock]\nread_only = true", "line 2: unlock.read_only is unknown"),
        ("[unlock]\npassfile = 'relative'", "line 2: unlock.passfile must begin with '/' or '~'"),
        ("[unlock]\npassfile = '~nobody-of-this-name/a'", "names the home directory of an unknown user"),
        ("[unlock]\npassfile = ''", "must begin with"),
        ("[unlock]\npassfile = '/a'\naskpass = '/b'", "line 3: unlock.askpass cannot be combined with"),
        ("[init]\nchunk_size = 'big'", "line 2: init.chunk_size is wrong: 'big' is not a size"),
        ("[init]\nlabel = 'me'", "line 2: init.label is unknown"),
        ("[vaults]\na = 3", "line 2: vaults.a must be a table"),
        ("[vaults.a]\nmountpoint = '/b'", "line 1: vaults.a does not say where the vault is"),
        ("[vaults.a]\nvault = 3", "line 2: vaults.a.vault must be a path"),
        ("[vaults.'a/b']\nvault = '/a'", "line 1: vaults.a/b cannot be the name of a vault"),
        ("[vaults.'a:b']\nvault = '/a'", "cannot be the name of a vault"),
        ("[vaults.'-a']\nvault = '/a'", "cannot be the name of a vault"),
        ('[vaults."a\\u001b[2J"]\nvault = "/a"', r"vaults\.a\\x1b\[2J cannot be the name"),
        ("[vaults]\na = {vault = '/a', colour = 1}", "vaults.a.colour is unknown"),
        ("vaults.a.vault = '/a'\nvaults.a.colour = 1", "line 2: vaults.a.colour is unknown"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, file: Path, run: Run, tmp_path: Path) -> None:
    file.write_text(text)
    with pytest.raises(ConfigFileError, match=said):
        load(COMMANDS)
    told = run("ls", tmp_path / "vault")
    assert (told.code, told.out) == (ExitCode.USAGE, "")
    assert str(file) in told.err


def test_no_utf8_and_too_much(file: Path) -> None:
    file.write_bytes(b"[mount]\n\xff")
    with pytest.raises(ConfigFileError, match="line 2: this is not UTF-8"):
        load(COMMANDS)
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigFileError, match="larger than"):
        load(COMMANDS)


def test_a_file_that_others_can_change(file: Path, tmp_path: Path) -> None:
    file.write_text("[mount]\n")
    for path, wrong, right in ((file, 0o620, 0o644), (file.parent, 0o777, 0o755)):
        path.chmod(wrong)
        with pytest.raises(ConfigFileError, match="chmod go-w"):
            load(COMMANDS)
        path.chmod(right)
    load(COMMANDS)
    elsewhere = tmp_path / "dotfiles"
    elsewhere.mkdir()
    file.rename(elsewhere / "config.toml")
    file.symlink_to(elsewhere / "config.toml")
    load(COMMANDS)
    elsewhere.chmod(0o777)
    with pytest.raises(ConfigFileError, match="dotfiles"):
        load(COMMANDS)


def test_a_file_of_another_user(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If sudo keeps HOME, root does not run the programs of the user."""
    file.write_text("[mount]\n")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        load(COMMANDS)  # what belongs to root may be read
        os.chown(file, 12345, 12345)
    with pytest.raises(ConfigFileError, match="belongs to another user"):
        load(COMMANDS)


def test_what_is_no_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(file)
    with pytest.raises(ConfigFileError, match="is not a file"):
        load(COMMANDS)
    file.unlink()
    file.mkdir()
    with pytest.raises(ConfigFileError, match="is not a file"):
        load(COMMANDS)
    file.rmdir()
    assert load(COMMANDS).vaults == {}
    monkeypatch.setenv("CRYPTFS_CONFIG", str(file))
    with pytest.raises(ConfigFileError, match="does not exist"):
        load(COMMANDS)
    monkeypatch.setenv("CRYPTFS_CONFIG", "relative")
    with pytest.raises(ConfigFileError, match="absolute"):
        load(COMMANDS)


@pytest.mark.usefixtures("photos")
def test_none_is_read(file: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an empty variable, and by mount(8)."""
    file.write_text("nonsense")
    monkeypatch.setenv("CRYPTFS_CONFIG", "")
    assert run("ls", "photos").code == ExitCode.VAULT_DIR
    monkeypatch.delenv("CRYPTFS_CONFIG")
    assert run("ls", "photos").code == ExitCode.USAGE
    assert main_module.main(["ls", "photos"], reads_config=False) == ExitCode.VAULT_DIR
    assert run("completion", "bash").code == 0


@pytest.mark.usefixtures("photos")
def test_names_are_completed(file: Path) -> None:
    from click.shell_completion import ShellComplete

    def proposed(*words: str) -> list[str]:
        completion = ShellComplete(main_module.cli, {}, "cryptfs", "_CRYPTFS_COMPLETE")
        return [each.value for each in completion.get_completions([*words[:-1]], words[-1])]

    assert proposed("mount", "ph") == ["photos"]
    assert proposed("key", "list", "ph") == ["photos"]
    file.write_text("nonsense")
    assert proposed("mount", "ph") == ["ph"], "the shell's own, for paths"
