"""The config file of a person: named vaults, and defaults of options.

    [unlock]                        # options of every command that opens a vault
    [mount]                         # options of `cryptfs mount`, and of `cryptfs open`
    [init]                          # options of `cryptfs init`
    [vaults.photos]                 # a vault by its name: its place, and options of [unlock] and [mount]
    vault = "~/Sync/photos"
    mountpoint = "~/Photos"

A key is an option with '_' for '-'. Everything in the file is checked whenever it is read. It may name
programs that cryptfs runs, so it must be a file that nobody else can change.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import click

from cryptfs.cli.exit_codes import ConfigFileError
from cryptfs.core.printable import shell_word, shown
from cryptfs.mount.options import MountOptions, apply_options, split_options

VARIABLE = "CRYPTFS_CONFIG"
MAX_SIZE = 1024 * 1024
UNLOCK_KEYS = (
    *("passfile", "passcommand", "askpass", "keyfile", "identity", "fido2"),
    *("expect_identity", "no_pin"),
)
ONE_OF = ("passfile", "passcommand", "passfd", "askpass")
"""Of these options one counts: what is given nearer puts the others aside."""
_INSTEAD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ONE_OF, ONE_OF),
    "accept": ("no_pin",),
    "calibrate": ("kdf_memory", "kdf_passes"),
    **dict.fromkeys(("kdf_memory", "kdf_passes"), ("calibrate",)),
}
INIT_KEYS = ("cipher", "chunk_size", "delta_journal", "kdf_memory", "kdf_passes", "calibrate", "no_recovery")
_NOT_MOUNT = (
    *("passfd", "slot", "words", "words_file", "shares", "share_file", "accept"),
    *("debug", "foreground", "help"),
)
"""Options of mount that hold for one run alone."""
_PLACES = ("vault", "mountpoint")
_NAME = re.compile(r"[^/:\x00-\x1f\x7f]+")

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NamedVault:
    """A vault of the config file. options: values by key, fit for click."""

    name: str
    vault: Path
    mountpoint: Path | None
    options: Options


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What the file says; empty if there is none."""

    unlock: Options = field(default_factory=dict)
    mount: Options = field(default_factory=dict)
    init: Options = field(default_factory=dict)
    vaults: dict[str, NamedVault] = field(default_factory=dict)

    def named(self, text: str) -> NamedVault | None:
        """The vault of this name, if it is one and no path."""
        return self.vaults.get(text)

    def at(self, place: Path) -> NamedVault | None:
        """The vault of a place, if one name alone has it: several may want different options."""
        found = []
        for each in self.vaults.values():
            with contextlib.suppress(OSError):
                if os.path.samefile(each.vault, place):
                    found.append(each)
        return found[0] if len(found) == 1 else None

    def options_for(self, command: str, vault: NamedVault | None) -> Options:
        """All defaults of a command, those of the vault on top."""
        found = {**self.unlock, **{"mount": self.mount, "init": self.init}.get(command, {})}
        own = {} if vault is None else vault.options
        if command != "mount":
            own = {key: value for key, value in own.items() if key in UNLOCK_KEYS}
        return weaker(found, own) | own


def weaker(options: Options, nearer: Mapping[str, Any]) -> Options:
    """Options without those that nearer ones put aside."""
    gone = set(nearer)
    for given, others in _INSTEAD.items():
        if given in nearer:
            gone.update(others)
    return {key: value for key, value in options.items() if key not in gone}


def key_of(option: click.Option) -> str:
    """The key of an option: its long name."""
    names = [name for name in option.opts if name.startswith("--")]
    return (names or option.opts)[0].removeprefix("--").replace("-", "_")


def place() -> Path | None:
    """Where the file is, if there is one; None if the variable is empty.

    Raises: ConfigFileError: the variable has no absolute path.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        base = os.environ.get("XDG_CONFIG_HOME", "")
        home = Path(base) if os.path.isabs(base) else Path.home() / ".config"
        return home / "cryptfs" / "config.toml"
    if not given:
        return None
    if not os.path.isabs(given):
        raise ConfigFileError(f"{VARIABLE} must be an absolute path, not {shown(given)}")
    return Path(given)


def load(commands: Mapping[str, click.Command]) -> ConfigFile:
    """Read and check the file.

    Args:   commands: with `mount` and `init`, whose options the file may have.
    Raises: ConfigFileError: it is not as it should be, or others can change it.
    """
    file = place()
    text = None if file is None else _read(file)
    if file is None or text is None:
        return ConfigFile()
    import tomllib

    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigFileError(f"{shown(file)}: this is not TOML: {error}") from None
    return _Check(file, text, commands).whole(found)


def _read(file: Path) -> str | None:
    """The text of the file; None if there is none."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        if VARIABLE in os.environ:
            raise ConfigFileError(f"{shown(file)}, named by {VARIABLE}, does not exist") from None
        return None
    except OSError as error:
        raise ConfigFileError(f"{shown(file)}: cannot be read: {error.strerror}") from None
    st = os.fstat(descriptor)
    if not stat.S_ISREG(st.st_mode):
        os.close(descriptor)
        raise ConfigFileError(f"{shown(file)} is not a file")
    with os.fdopen(descriptor, "rb") as opened:
        _refuse_others(file, st)
        for directory in {file.parent, Path(os.path.realpath(file)).parent}:
            _refuse_others(directory, directory.stat())
        raw = opened.read(MAX_SIZE + 1)
    if len(raw) > MAX_SIZE:
        raise ConfigFileError(f"{shown(file)} is larger than {MAX_SIZE} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigFileError(f"{shown(file)}, line {line}: this is not UTF-8") from None


def _refuse_others(path: Path, st: os.stat_result) -> None:
    """Raises: ConfigFileError: somebody else can change it, and so choose programs that cryptfs runs."""
    if st.st_uid not in (0, os.geteuid()):
        raise ConfigFileError(
            f"{shown(path)} belongs to another user ({st.st_uid}), who could make cryptfs run programs. "
            f"To use no config file: {VARIABLE}= cryptfs ..."
        )
    shared = stat.S_ISDIR(st.st_mode) and st.st_mode & stat.S_ISVTX
    if st.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not shared:
        raise ConfigFileError(
            f"{shown(path)} can be changed by other users, who could make cryptfs run programs. "
            f"Fix it with: chmod go-w {shell_word(path)}"
        )


class _Check:
    """Checks what TOML gave, against the options of the commands."""

    def __init__(self, file: Path, text: str, commands: Mapping[str, click.Command]) -> None:
        self._file = file
        self._lines = text.splitlines()
        options = {name: _options(commands[name]) for name in ("mount", "init")}
        self._init = {key: options["init"][key] for key in INIT_KEYS}
        self._unlock = {key: options["mount"][key] for key in UNLOCK_KEYS}
        self._mount = {key: each for key, each in options["mount"].items() if key not in _NOT_MOUNT}

    def whole(self, found: Mapping[str, Any]) -> ConfigFile:
        """Raises: ConfigFileError."""
        only_mount = {key: each for key, each in self._mount.items() if key not in self._unlock}
        tables = {"unlock": self._unlock, "mount": only_mount, "init": self._init}
        for name in found:
            if name not in (*tables, "vaults"):
                self._fail((name,), f"is unknown; there are {_listed([*tables, 'vaults'])}")
        read = {name: self._options((name,), found.get(name, {}), known) for name, known in tables.items()}
        vaults = found.get("vaults", {})
        self._require_table(("vaults",), vaults)
        return ConfigFile(**read, vaults={name: self._vault(name, table) for name, table in vaults.items()})

    def _vault(self, name: str, table: Any) -> NamedVault:
        where = ("vaults", name)
        if not _NAME.fullmatch(name) or name.startswith("-"):
            self._fail(
                where, "cannot be the name of a vault: a name has no '/' or ':', and does not begin with '-'"
            )
        self._require_table(where, table)
        if "vault" not in table:
            self._fail(where, 'does not say where the vault is: vault = "/path"')
        places = {key: self._path((*where, key), table[key]) for key in _PLACES if key in table}
        rest = {key: value for key, value in table.items() if key not in _PLACES}
        known = self._mount
        return NamedVault(name, places["vault"], places.get("mountpoint"), self._options(where, rest, known))

    def _options(self, where: tuple[str, ...], table: Any, known: Mapping[str, click.Option]) -> Options:
        self._require_table(where, table)
        found = {}
        for key, value in table.items():
            if key not in known:
                other = key.replace("-", "_")
                hint = f"write {other}" if other in known else f"there are {_listed(known)}"
                self._fail((*where, key), f"is unknown; {hint}")
            found[known[key].name or key] = self._value((*where, key), value, known[key])
        given = [key for key in ONE_OF if key in found]
        if len(given) > 1:
            self._fail((*where, given[1]), f"cannot be combined with {given[0]}")
        return found

    def _value(self, where: tuple[str, ...], value: Any, option: click.Option) -> Any:
        """The value as click takes it, once it has converted it on trial."""
        kinds, wanted = _types_of(option)
        if option.multiple:
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(each, str) for each in values):
                self._fail(where, "must be a text, or a list of texts")
            try:
                apply_options(MountOptions(), [item for each in values for item in split_options(each)])
            except ValueError as error:
                self._fail(where, f"is wrong: {error}")
            return values
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self._fail(where, f"must be {wanted}")
        if isinstance(option.type, click.Path):
            return self._path(where, value)
        try:
            option.type.convert(value, option, None)
        except click.ClickException as error:
            self._fail(where, f"is wrong: {error.message}")
        return value

    def _path(self, where: tuple[str, ...], value: Any) -> Path:
        if not isinstance(value, str) or "\0" in value:
            self._fail(where, "must be a path, in quotes")
        try:
            found = Path(value).expanduser()
        except RuntimeError:
            self._fail(where, f"names the home directory of an unknown user: {shown(value)}")
        if not found.is_absolute():
            self._fail(where, f"must begin with '/' or '~', not {shown(value)}")
        return found

    def _require_table(self, where: tuple[str, ...], value: Any) -> None:
        if not isinstance(value, dict):
            self._fail(where, f"must be a table: [{'.'.join(where)}]")

    def _fail(self, where: tuple[str, ...], problem: str) -> NoReturn:
        line = _line_of(self._lines, where)
        at = f", line {line}" if line else ""
        raise ConfigFileError(f"{shown(self._file)}{at}: {shown('.'.join(where))} {problem}")


def _options(command: click.Command) -> dict[str, click.Option]:
    return {key_of(each): each for each in command.params if isinstance(each, click.Option)}


def _types_of(option: click.Option) -> tuple[tuple[type, ...], str]:
    """The types of TOML for an option, and their name in a message."""
    if option.is_flag:
        return (bool,), "true or false"
    if isinstance(option.type, click.IntRange):
        return (int,), "a whole number"
    if isinstance(option.type, click.FloatRange):
        return (int, float), "a number"
    if option.type.name == "size":
        return (int, str), 'a size: a number, or a text such as "16k"'
    return (str,), "a text, in quotes"


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(sorted(names))


def _line_of(lines: list[str], where: tuple[str, ...]) -> int:
    """The line of a key or a table, from 1; 0 if it is written in a way that this does not find."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(lines, 1):
        words = line.strip()
        if header := re.match(r"\[\s*([^\[\]]+?)\s*\]", words):
            table = _parts(header[1])
        elif assigned := re.match(r"((?:\"[^\"]*\"|'[^']*'|[\w.\s-])+?)\s*=", words):
            if table + _parts(assigned[1]) == where:
                return number
            continue
        if table == where and words.startswith("["):
            return number
    return 0


def _parts(key: str) -> tuple[str, ...]:
    """A dotted key, without quotes."""
    return tuple(each.strip().strip("\"'") for each in re.findall(r"\"[^\"]*\"|'[^']*'|[^.]+", key))
