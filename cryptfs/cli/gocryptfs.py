"""The program `cryptfs-gocryptfs`: vaults of cryptfs by the command line and the exit codes of gocryptfs.

Front ends that drive gocryptfs can so drive cryptfs. It translates a command line and runs the command of
cryptfs. Source: the man page of gocryptfs 2.3, its CLI ABI, and trials of that version.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.goflags import FlagError, GoFlags, duration_seconds, parse_flags, set_switch
from cryptfs.cli.interrupts import heeds_interrupts
from cryptfs.cli.main import main, prepare_streams
from cryptfs.cli.output import note
from cryptfs.cli.prompt import joined_secrets
from cryptfs.cli.terminal import stdin_is_terminal
from cryptfs.core.names.litter import FRONT_END_NAME
from cryptfs.core.printable import shown
from cryptfs.mount.options import IGNORED_OPTIONS, KERNEL_OPTIONS, split_options
from cryptfs.version import VERSION

PROGRAM = "cryptfs-gocryptfs"
OTHER_NAME = "gocryptfs"
SPOKEN = "2.3"
"""The version of gocryptfs whose command line this is; front ends ask for 1.8 or newer."""
_PASSED_ON = "CRYPTFS_GOCRYPTFS_PASSED_ON"

ACTIONS = ("init", "passwd", "info", "fsck")
_TEXTS = ("version", "h", "help", "hh")
_HONOURED = ("ro", "rw", "fg", "q", "nonempty", "allow_other", "debug", "xchacha")
_OF_THE_KERNEL = ("dev", "nodev", "suid", "nosuid", "exec", "noexec")
# cryptfs does what these ask for, or lacks the part that they tune.
_WITHOUT_EFFECT = (
    *("acl", "sharedstorage", "nosyslog", "fusedebug", "kernel_cache", "noprealloc", "serialize_reads"),
    *("hkdf", "longnames", "raw64", "devrandom", "forcedecode", "nofail", "wpanic"),
)
_VALUES_WITHOUT_EFFECT = ("scryptn", "openssl", "badname")
# Nothing in cryptfs does the same as these.
_REFUSED = (
    "aessiv",
    "reverse",
    "plaintextnames",
    "deterministic-names",
    "zerokey",
    "speed",
    "one-file-system",
)
_VALUES_REFUSED = (
    *("config", "masterkey", "fido2", "force_owner", "ctlsock", "longnamemax", "notifypid"),
    *("exclude", "exclude-wildcard", "exclude-from", "cpuprofile", "memprofile", "trace"),
)
_SWITCHES = frozenset({*ACTIONS, *_TEXTS, *_HONOURED, *_OF_THE_KERNEL, *_WITHOUT_EFFECT, *_REFUSED})
_VALUED = frozenset(
    {"o", "ko", "extpass", "passfile", "idle", "fsname", *_VALUES_WITHOUT_EFFECT, *_VALUES_REFUSED}
)
_ALIASES = {
    "f": "fg", "quiet": "q", "i": "idle", "d": "debug", "e": "exclude", "ew": "exclude-wildcard",
}  # fmt: skip

HELP = f"""\
Vaults of cryptfs, by the command line of gocryptfs {SPOKEN}: for programs that run gocryptfs.

Usage: {PROGRAM} -init|-passwd|-info|-fsck [OPTIONS] VAULT
       {PROGRAM} [OPTIONS] VAULT MOUNTPOINT [-o A,B,C=D]

  -init              Make a new vault in the empty directory VAULT
  -passwd            Change the passphrase
  -info              Show facts about a vault
  -fsck              Check a vault, every byte of it
  -version           Print versions
  -allow_other       Let other users enter the mount
  -extpass CMD       Read the passphrase from the output of CMD; repeat it for each argument
  -fg                Stay in the foreground
  -fsname TEXT       The source shown by mount and df
  -i, -idle TIME     Unmount after TIME without use: 500s, 10m, 2h45m
  -ko OPTIONS        Options for the kernel
  -nonempty          Mount over a directory that is not empty
  -o OPTIONS         Options as in fstab
  -passfile FILE     Read the passphrase from FILE; several files are joined
  -q, -quiet         Say nothing if all is well
  -ro, -rw           Refuse every change, or not
  -dev, -suid, -noexec ...  What the kernel allows on the mount; the default is nodev and nosuid
  -xchacha           With -init: the cipher xchacha20-poly1305
  --                 End of the options

Options have one dash or two. {PROGRAM} accepts other options of gocryptfs only if they change nothing.
All options are in the man page. For anything else, use cryptfs.
"""


def understand(words: Sequence[str]) -> GoFlags:
    """Take a command line of gocryptfs apart; options in -o become flags, or stay for the kernel in "o".

    Raises: FlagError: it is wrong, or asks for something that cryptfs does not have.
    """
    flags = parse_flags(words, _SWITCHES, _VALUED, _ALIASES)
    kernel = [each for text in flags.values.pop("ko", []) for each in text.split(",") if each]
    for text in flags.values.pop("o", []):
        try:
            items = split_options(text)
        except ValueError as error:
            raise FlagError(str(error)) from None
        for given, value in items:
            name = _ALIASES.get(given, given)
            if name in _VALUED - {"o", "ko"}:
                if value is None:
                    raise FlagError(f"the option {name} needs a value: -o {name}=...")
                flags.values.setdefault(name, []).append(value)
            elif name in _SWITCHES:
                set_switch(flags, name, value)
            elif value is None or name in ("subtype", "comment") or name.startswith("x-"):
                kernel.append(name)
            else:
                raise FlagError(f"unknown option: -o {name}")
    known = KERNEL_OPTIONS | IGNORED_OPTIONS | {"subtype", "comment", "ro", "rw"}
    unknown = [name for name in kernel if name not in known and not name.startswith("x-")]
    if unknown:
        raise FlagError(f"unknown option: -o {unknown[0]}")
    flags.values["o"] = [name for name in kernel if name in KERNEL_OPTIONS]
    flags.switches |= {"ro"} & set(kernel)
    refused = [name for name in (*_REFUSED, *_VALUES_REFUSED) if name in flags.switches | flags.values.keys()]
    if refused:
        raise FlagError(f"cryptfs does not have the option -{refused[0]} of gocryptfs")
    if len(flags.switches & set(ACTIONS)) > 1:
        raise FlagError("at most one of -info, -init, -passwd and -fsck is allowed")
    if "extpass" in flags.values and "passfile" in flags.values:
        raise FlagError("the options -extpass and -passfile cannot be used at the same time")
    for text in flags.values.get("idle", []):
        duration_seconds(text)
    return flags


def action_of(flags: GoFlags) -> str:
    """ "init", "passwd", "info", "fsck" or "mount", with the right number of places.

    Raises: FlagError: it is another number.
    """
    action = next((name for name in ACTIONS if name in flags.switches), "mount")
    wanted = 2 if action == "mount" else 1
    if len(flags.places) != wanted:
        names = "VAULT MOUNTPOINT" if wanted == 2 else f"-{action} VAULT"
        raise FlagError(f"usage: {PROGRAM} {names}; {len(flags.places)} places are given, not {wanted}")
    return action


def translate(flags: GoFlags, passphrases: Sequence[str], new: Sequence[str]) -> list[str]:
    """The command line of cryptfs that does the same.

    Args: passphrases, new: options that say where the passphrase, and a new one, come from.
    """
    action, on = action_of(flags), flags.switches
    debug = ["--debug"] if "debug" in on else []
    if action == "init":
        chosen = ["--cipher", "xchacha20-poly1305"] if "xchacha" in on else []
        return ["init", "--no-recovery", "--quiet", *chosen, *debug, *passphrases, "--", *flags.places]
    if action == "passwd":
        return ["passwd", *debug, *passphrases, *new, "--", *flags.places]
    if action == "info":
        return ["info", *debug, "--", *flags.places]
    if action == "fsck":
        return ["fsck", "--deep", *debug, *passphrases, "--", *flags.places]
    words = ["mount", *debug, *passphrases]
    words += [option for name, option in (("q", "--quiet"), ("fg", "--foreground")) if name in on]
    words += ["--read-only"] if "ro" in on else []
    words += [f"--{name.replace('_', '-')}" for name in ("nonempty", "allow_other") if name in on]
    fsname = flags.last("fsname")
    words += [] if fsname is None else ["--fsname", fsname]
    idle = flags.last("idle")
    words += (
        ["--idle", f"{max(round(duration_seconds(idle)), 1)}s"] if idle and duration_seconds(idle) else []
    )
    words += ["-o", ",".join(_mount_options(flags))]
    return [*words, "--", *flags.places]


def _mount_options(flags: GoFlags) -> list[str]:
    """For -o. Of an option and its contrary the one with no... counts; without either, nodev and nosuid."""
    given = [*flags.values["o"], *(name for name in _OF_THE_KERNEL if name in flags.switches)]
    options = [name for name in dict.fromkeys(given) if name not in _OF_THE_KERNEL]
    for name, at_first in (("dev", "nodev"), ("suid", "nosuid"), ("exec", "exec")):
        options.append(f"no{name}" if f"no{name}" in given else name if name in given else at_first)
    return options


# ---- passphrases


def passphrase_options(flags: GoFlags) -> tuple[list[str], list[str]]:
    """Options of cryptfs for the passphrase, and for the new one of -passwd.

    Without -extpass and -passfile a person at the terminal is asked, and else each is a line of stdin.

    Raises: CommandError: a file cannot be read.
    """
    programs, files = flags.values.get("extpass", []), flags.values.get("passfile", [])
    if programs:
        words = programs[0].split(" ") if len(programs) == 1 else programs
        command = shlex.join(word for word in words if word or len(programs) > 1)
        return ["--passcommand", command], ["--new-passcommand", command]
    new = [] if stdin_is_terminal() else ["--new-passfile", "-"]
    if len(files) == 1:
        return ["--passfile", files[0]], new
    if files:
        return ["--passfd", str(joined_secrets(list(map(Path, files))))], new
    return ([], []) if stdin_is_terminal() else (["--passfile", "-"], new)


# ---- the file that front ends look for


def write_front_end_file(vault_dir: Path) -> None:
    """Put `gocryptfs.conf` into a new vault. Plasma Vault takes a directory with it for one to open.

    gocryptfs itself refuses the directory by it. Raises: OSError.
    """
    fields = {
        "Creator": f"cryptfs {VERSION}",
        "Comment": "This is a vault of cryptfs; cryptfs.json has its config. Front ends look for this file.",
        "EncryptedKey": "A" * 88,
        "ScryptObject": {"Salt": "A" * 44, "N": 65536, "R": 8, "P": 1, "KeyLen": 32},
        "Version": 2,
        "FeatureFlags": ["cryptfs"],
    }
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(vault_dir / FRONT_END_NAME, flags, 0o444)
    try:
        os.write(descriptor, json.dumps(fields, indent=2).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- the program


def pass_on(flags: GoFlags, words: Sequence[str]) -> None:
    """Under the name gocryptfs: start the next program of this name in PATH for a vault of gocryptfs.

    Does nothing for a vault of cryptfs, or if there is no such program.
    """
    vault = Path(flags.places[0]) if flags.places else None
    if (
        Path(sys.argv[0]).name != OTHER_NAME
        or vault is None
        or _PASSED_ON in os.environ
        or os.path.lexists(vault / "cryptfs.json")
        or not os.path.lexists(vault / FRONT_END_NAME)
    ):
        return
    own = {os.path.realpath(sys.argv[0])}
    for directory in os.get_exec_path():
        place = os.path.join(directory, OTHER_NAME)
        if os.path.realpath(place) not in own and os.access(place, os.X_OK):
            os.execve(place, [OTHER_NAME, *words], {**os.environ, _PASSED_ON: "1"})


def speak(words: Sequence[str]) -> int:
    """Run one command line of gocryptfs; returns the exit code."""
    try:
        flags = understand(words)
        if "version" in flags.switches:
            sys.stdout.write(
                f"gocryptfs {SPOKEN}; cryptfs {VERSION}; python{platform.python_version()} "
                f"{sys.platform}/{platform.machine()}\n"
            )
            return ExitCode.OK
        if flags.switches & set(_TEXTS) or not words:
            sys.stdout.write(HELP)
            return ExitCode.OK if words else ExitCode.USAGE
        pass_on(flags, words)
        action = action_of(flags)
        return _run(action, flags)
    except FlagError as error:
        note(f"{PROGRAM}: {error}. Try: {PROGRAM} -help")
        return ExitCode.USAGE


def _run(action: str, flags: GoFlags) -> int:
    from cryptfs.cli.exit_codes import CommandError, exit_code_of

    passphrases: list[str] = []
    new: list[str] = []
    quiet = "q" in flags.switches
    if action != "info":
        try:
            passphrases, new = passphrase_options(flags)
        except CommandError as error:
            note(f"{PROGRAM}: {error}")
            return exit_code_of(error) or ExitCode.OTHER
    else:
        sys.stdout.write(f"Creator:     cryptfs {VERSION}\n")
    if action == "mount":
        vault, mountpoint = map(Path, flags.places)
        is_vault = os.path.lexists(vault / "cryptfs.json")
        if is_vault and not os.path.lexists(mountpoint):  # gocryptfs never makes one
            note(f"{PROGRAM}: {shown(mountpoint)}: no such directory")
            return ExitCode.MOUNTPOINT
    said = io.StringIO()
    with contextlib.redirect_stdout(said) if quiet and action == "fsck" else contextlib.nullcontext():
        code = main(translate(flags, passphrases, new))
    if code:
        sys.stdout.write(said.getvalue())
    return _ended(action, flags, code)


def _ended(action: str, flags: GoFlags, code: int) -> int:
    """What gocryptfs says and returns in the end."""
    quiet, vault = "q" in flags.switches, Path(flags.places[0])
    if code == ExitCode.WRONG_PASSPHRASE:
        note("Password incorrect.")
    elif code == ExitCode.EMPTY_PASSPHRASE and action != "init":
        return ExitCode.PASSPHRASE_UNREADABLE
    elif code == ExitCode.MOUNTPOINT and _holds_something(Path(flags.places[1])):
        note("To mount over it use the 'nonempty' option.")  # front ends look for the word in quotes
    elif action == "fsck" and code == ExitCode.DAMAGE:
        note("fsck summary: corruption found")
    if code:
        return code
    if action == "init":
        try:
            write_front_end_file(vault)
        except OSError as error:
            place = shown(vault / FRONT_END_NAME)
            note(f"{PROGRAM}: the vault is made, but {place} cannot be written: {error.strerror}")
            return ExitCode.CONFIG_UNWRITABLE
    if not quiet:
        done = {
            "init": f"The vault has been created successfully.\nYou can now mount it using: {PROGRAM} "
            f"{shown(vault)} MOUNTPOINT",
            "passwd": "Password changed.",
            "fsck": "fsck summary: no problems found",
        }
        sys.stdout.write(f"{done[action]}\n" if action in done else "")
    return code


def _holds_something(directory: Path) -> bool:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return next(entries, None) is not None
    return False


def run() -> NoReturn:
    """The program, from its arguments to its exit code."""
    prepare_streams()
    code: int = ExitCode.INTERRUPTED
    with contextlib.suppress(KeyboardInterrupt), heeds_interrupts():
        code = speak(sys.argv[1:])
    sys.exit(code)


if __name__ == "__main__":
    run()
