"""Write the files in share/ that follow from the commands: man pages, and completion for shells.

    scripts/manpage.py             writes them, and removes those of commands that are gone
    scripts/manpage.py --check     names those that are not up to date

The options, their help and the exit codes come from the program; a test runs this with --check.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cryptfs.cli.completion import script_of
from cryptfs.cli.exit_codes import MEANINGS, ExitCode
from cryptfs.cli.main import cli, every_command
from cryptfs.version import VERSION

SHARE = Path(__file__).resolve().parent.parent / "share"  # the wheel installs it as it is: see pyproject.toml

MARK = '.\\" Written by scripts/manpage.py from the help.\n'
# Where each shell looks below a prefix.
COMPLETIONS = {
    "bash": "bash-completion/completions/cryptfs",
    "zsh": "zsh/site-functions/_cryptfs",
    "fish": "fish/vendor_completions.d/cryptfs.fish",
}

DESCRIPTION = """\
cryptfs encrypts a directory, the vault, and shows it through FUSE as an ordinary directory of readable
files, the mountpoint. Programs use it like any other directory, and only ciphertext reaches the vault.
"""

PASSPHRASES = """\
A passphrase comes from --passfile, --passcommand, --passfd or --askpass; else from the file that the variable
CRYPTFS_PASSFILE names; else from the systemd credential cryptfs.passphrase; else from the terminal. If stdin
is not a terminal, it comes from the next line of stdin. It never comes from the command line, which other
users can see. cryptfs ignores one line break at its end.
"""

KEY_FILES = """\
A key file comes from --keyfile, else from the file that the variable CRYPTFS_KEYFILE names, else from the
systemd credential cryptfs.keyfile. If it opens the vault, cryptfs does not ask for a passphrase. Nor does it
ask if no key slot takes one.
"""

SLOTS = """\
A command tries only key slots for which you offer something. It begins with the slot that opened the vault
last on this machine. The file VAULT_ID.json in $XDG_STATE_HOME/cryptfs (~/.local/state/cryptfs) keeps the
number of that slot; you may delete the file. If a vault has several key slots, each command says which one
opened it.
"""

MOUNT8 = """\
mount(8) can mount a vault, also from a line in fstab:
"""

MOUNT8_LATER = """\
mount(8) needs a helper in /sbin to find cryptfs. Make it as root:
"""

CONFIG_FILE = """\
The file config.toml in $XDG_CONFIG_HOME/cryptfs (~/.config/cryptfs), or the one that the variable
CRYPTFS_CONFIG names, has tables of defaults: unlock, mount and init, and vaults.NAME for a vault with a NAME.
A key is the name of an option, with '_' for '-'; vault and mountpoint are the places of a vault. The command
line overrides the file. cryptfs refuses a file that other users can change. If CRYPTFS_CONFIG is empty,
cryptfs reads no file.
"""

CONFIG_EXAMPLE = """\
[vaults.photos]
vault = "~/Sync/photos"
mountpoint = "~/Photos"
"""

EXAMPLE = """\
cryptfs init ~/vault
cryptfs mount ~/vault ~/private
cryptfs umount ~/private
"""


def escape(text: str) -> str:
    """Text that troff prints as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"(?m)^([.'])", r"\\&\1", text)


def paragraph(text: str) -> str:
    return ".PP\n" + escape(" ".join(text.split())) + "\n"


def example(text: str) -> str:
    return ".PP\n.nf\n.RS\n" + escape(text.strip()) + "\n.RE\n.fi\n"


def option(parameter: click.Option) -> str:
    names = ", ".join(f"\\fB{escape(name)}\\fR" for name in [*parameter.opts, *parameter.secondary_opts])
    if not parameter.is_flag and not parameter.count:
        metavar = parameter.metavar or parameter.type.name.upper()
        if isinstance(parameter.type, click.Choice):
            metavar = "|".join(str(choice) for choice in parameter.type.choices)
        names += f" \\fI{escape(metavar)}\\fR"
    text = " ".join((parameter.help or "").split())
    if parameter.show_default and parameter.default is not None:
        text += f"  [default: {parameter.default}]"
    return f".TP\n{names}\n{escape(text)}\n"


def arguments(command: click.Command) -> str:
    """The arguments of a command; for a group of commands, that one follows."""
    words = [
        parameter.metavar or (parameter.name or "").upper()
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    ]
    words += ["COMMAND ..."] if isinstance(command, click.Group) else []
    return "".join(f" \\fI{escape(word)}\\fR" for word in words)


def header(name: str, summary: str) -> str:
    """The title and the sections NAME and SYNOPSIS of the page of a command; '' is cryptfs itself."""
    page_name = "-".join(["cryptfs", *name.split()])
    return (
        MARK
        + f'.TH {page_name.upper()} 1 "" "cryptfs {VERSION}" "User Commands"\n'
        + (f".SH NAME\n{page_name} \\- {escape(summary)}\n.SH SYNOPSIS\n")
    )


def summary_of(command: click.Command) -> str:
    """The first sentence of a command's help, as the section NAME has it."""
    first = " ".join((command.help or "").split("\n\n")[0].split())
    first = re.split(r"\.(?: |$)", first)[0]
    return first[:1].lower() + first[1:]


def options(command: click.Command) -> str:
    own = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return "".join(option(each) for each in own) + ".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nShow help.\n"


def command_page(name: str, command: click.Command, commands: dict[str, click.Command]) -> str:
    """The page of one command, or of a group of commands."""
    text = header(name, summary_of(command))
    text += f".B cryptfs {escape(name)}\n[\\fIoptions\\fR]{arguments(command)}\n.SH DESCRIPTION\n"
    for part in (command.help or "").split("\n\n"):
        text += example(textwrap.dedent(part.replace("\b\n", ""))) if "\b" in part else paragraph(part)
    text += ".SH OPTIONS\n" + options(command)
    below = {each: commands[each] for each in sorted(commands) if each.startswith(f"{name} ")}
    if below:
        text += ".SH COMMANDS\n" + "".join(listed(each, found) for each, found in below.items())
    text += ".SH EXIT STATUS\n" + paragraph(
        "0 is success. cryptfs(1) has the other codes, and says where passphrases and key files come from."
    )
    others = ["cryptfs", *(each for each in _around(name, commands) if each != name)]
    return text + see_also(others)


def _around(name: str, commands: dict[str, click.Command]) -> list[str]:
    """The group of a command, or the commands of a group."""
    above = name.rpartition(" ")[0]
    return [each for each in sorted(commands) if each == above or each.rpartition(" ")[0] == name]


def listed(name: str, command: click.Command) -> str:
    """A command in a list of commands."""
    return f".TP\n\\fBcryptfs {escape(name)}\\fR{arguments(command)}\n{escape(summary_of(command))}\n"


def see_also(names: list[str], *others: str) -> str:
    pages = [f"{'-'.join(['cryptfs', *each.split()]) if each != 'cryptfs' else each} (1)" for each in names]
    lines = [f".BR {escape(each)}" for each in [*pages, *others]]
    return ".SH SEE ALSO\n" + ",\n".join(lines) + "\n"


def main_page(commands: dict[str, click.Command]) -> str:
    """The page of cryptfs itself: what all commands have in common."""
    parts = [header("", "an encrypted directory that mounts as an ordinary one")]
    parts += [".B cryptfs\n[\\fIoptions\\fR] \\fICOMMAND\\fR ...\n", ".SH DESCRIPTION\n"]
    parts += [paragraph(DESCRIPTION), example(EXAMPLE), ".SH OPTIONS\n", options(cli), ".SH COMMANDS\n"]
    parts.append(paragraph("Each command has a page: for cryptfs key add, it is cryptfs-key-add(1)."))
    parts += [listed(name, commands[name]) for name in sorted(commands)]
    parts += [".SH PASSPHRASES AND KEY FILES\n", *map(paragraph, (PASSPHRASES, KEY_FILES, SLOTS))]
    parts += [".SH CONFIG FILE\n", paragraph(CONFIG_FILE), example(CONFIG_EXAMPLE)]
    parts += [
        ".SH FSTAB AND MOUNT(8)\n",
        paragraph(MOUNT8),
        example("/srv/vault  /srv/plain  fuse.cryptfs  noauto,passfile=/root/vault.pass,allow_other  0  0"),
        paragraph(MOUNT8_LATER),
        example(
            'printf \'#!/bin/sh\\nunset PYTHONPATH PYTHONHOME\\nexec "%s" "$@"\\n\' \\\n'
            '    "$(command -v mount.fuse.cryptfs)" > /sbin/mount.fuse.cryptfs\n'
            "chmod 755 /sbin/mount.fuse.cryptfs"
        ),
    ]
    parts.append(".SH EXIT STATUS\n")
    parts += [f".TP\n.B {int(code)}\n{escape(MEANINGS[code])}\n" for code in ExitCode]
    top = [name for name in sorted(commands) if " " not in name]
    parts.append(see_also(top, "mount (8)", "mount.fuse3 (8)", "fusermount3 (1)"))
    return "".join(parts)


def files() -> dict[str, str]:
    """All generated files, by their paths below share/."""
    commands = every_command()
    made = {"man/man1/cryptfs.1": main_page(commands)}
    for name, command in commands.items():
        made[f"man/man1/cryptfs-{name.replace(' ', '-')}.1"] = command_page(name, command, commands)
    made["man/man8/mount.fuse.cryptfs.8"] = ".so man1/cryptfs.1\n"  # its section FSTAB AND MOUNT(8)
    for shell, place in COMPLETIONS.items():
        made[place] = script_of(shell) + "\n"
    return made


def main(arguments: list[str]) -> int:
    made = files()
    found = [path for path in (SHARE / "man").rglob("*.*") if path.read_text().startswith(MARK)]
    pages = {path.relative_to(SHARE).as_posix() for path in found}
    stale = pages - made.keys()
    for name, text in made.items():
        path = SHARE / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.add(name)
    if "--check" in arguments:
        print(*sorted(stale), sep="\n", end="\n" if stale else "")
        return 1 if stale else 0
    for name in stale:
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in made:
            path.write_text(made[name], encoding="utf-8")
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
