"""Write docs/cryptfs.1 from the commands themselves: scripts/manpage.py > docs/cryptfs.1

The options, their help and the exit codes come from the program; a test compares the page with it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cryptfs.cli.exit_codes import MEANINGS, ExitCode
from cryptfs.cli.main import cli, every_command
from cryptfs.version import VERSION

DESCRIPTION = """\
cryptfs encrypts a directory, the vault, and shows it through FUSE as an ordinary directory of readable
files, the mountpoint. Programs work there as anywhere else, and only ciphertext reaches the vault.
"""

PASSPHRASES = """\
A passphrase comes from --passfile, --passcommand, --passfd or --askpass; else from the file that the variable
CRYPTFS_PASSFILE names; else from the systemd credential cryptfs.passphrase; else from the terminal, or, if
stdin is not a terminal, from the next line of stdin. It never comes from the command line, which other users
can see. One line break at its end does not count.
"""

KEY_FILES = """\
A key file comes from --keyfile, else from the file that the variable CRYPTFS_KEYFILE names, else from the
systemd credential cryptfs.keyfile. If it opens the vault, nobody is asked for a passphrase. Nor is anybody
asked if no key slot takes one.
"""

SLOTS = """\
A command tries the key slots of all kinds for which something is there, and first the one that opened the
vault last on this machine. The file VAULT_ID.json in $XDG_STATE_HOME/cryptfs (~/.local/state/cryptfs) keeps
its number; you may delete it. If a vault has several key slots, each command says which one opened it.
"""

MOUNT8 = """\
mount(8) can mount a vault, also from a line in fstab:
"""

MOUNT8_LATER = """\
mount(8) needs a helper in /sbin to find cryptfs. This makes it, as root:
"""

EXAMPLE = """\
cryptfs init ~/vault
cryptfs mount ~/vault ~/private
cryptfs umount ~/private
"""


def all_commands(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command below a group, with its name; a group of its own before its commands."""
    for name, command in sorted(group.commands.items()):
        yield f"{above}{name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{above}{name} ")


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


def command_text(name: str, command: click.Command) -> str:
    text = f".SS \\fBcryptfs {escape(name)}\\fR [\\fIoptions\\fR]{arguments(command)}\n"
    for part in (command.help or "").split("\n\n"):
        text += example(textwrap.dedent(part.replace("\b\n", ""))) if "\b" in part else paragraph(part)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            text += option(parameter)
    return text


def page() -> str:
    """The whole page as roff."""
    parts = [
        f'.TH CRYPTFS 1 "" "cryptfs {VERSION}" "User Commands"\n',
        ".SH NAME\ncryptfs \\- an encrypted directory that mounts as an ordinary one\n",
        ".SH SYNOPSIS\n",
    ]
    commands = every_command()
    for name in sorted(commands):
        parts.append(f".B cryptfs {escape(name)}\n[\\fIoptions\\fR]{arguments(commands[name])}\n.br\n")
    parts += [".SH DESCRIPTION\n", paragraph(DESCRIPTION), example(EXAMPLE), ".SH OPTIONS\n"]
    parts += [option(parameter) for parameter in cli.params if isinstance(parameter, click.Option)]
    parts.append(".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nShow help, also for a command.\n")
    parts.append(".SH COMMANDS\n")
    parts += [command_text(name, commands[name]) for name in sorted(commands)]
    parts += [".SH PASSPHRASES AND KEY FILES\n", *map(paragraph, (PASSPHRASES, KEY_FILES, SLOTS))]
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
    parts.append(".SH SEE ALSO\n.BR mount (8),\n.BR mount.fuse3 (8),\n.BR fusermount3 (1)\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
