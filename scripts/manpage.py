"""Write docs/cryptfs.1 from the commands themselves: scripts/manpage.py > docs/cryptfs.1

The options, their help and the exit codes come from the program; a test compares the page with it.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cryptfs.cli.exit_codes import MEANINGS, ExitCode
from cryptfs.cli.main import cli
from cryptfs.version import VERSION

DESCRIPTION = """\
cryptfs keeps a directory of ciphertext, the vault, and shows it through FUSE as an ordinary directory of
plaintext, the mountpoint. Programs work there as anywhere; only ciphertext reaches the disk.
"""

PASSPHRASES = """\
A passphrase comes from --passfile, from --passcommand, from the terminal, or, where stdin is no terminal,
from the next line of stdin; never from the command line, which other users can see. One line break at its
end does not count.
"""

MOUNT8 = """\
A vault can stand in fstab, and be mounted by mount(8):
"""

MOUNT8_LATER = """\
mount(8) finds cryptfs through mount.fuse3(8) where cryptfs is in the PATH of root, or through a link of the
name mount.fuse.cryptfs in /sbin:
"""

EXAMPLE = """\
cryptfs init ~/vault
mkdir ~/private
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


def command_text(name: str, command: click.Command) -> str:
    arguments = "".join(
        f" \\fI{escape(parameter.metavar or (parameter.name or '').upper())}\\fR"
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    )
    text = f".SS \\fBcryptfs {escape(name)}\\fR [\\fIoptions\\fR]{arguments}\n"
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
    for name in sorted(cli.commands):
        parts.append(f".B cryptfs {escape(name)}\n[\\fIoptions\\fR] ...\n.br\n")
    parts += [".SH DESCRIPTION\n", paragraph(DESCRIPTION), example(EXAMPLE), ".SH OPTIONS\n"]
    parts += [option(parameter) for parameter in cli.params if isinstance(parameter, click.Option)]
    parts.append(".TP\n\\fB\\-h\\fR, \\fB\\-\\-help\\fR\nOn its own or with a command: show what there is.\n")
    parts.append(".SH COMMANDS\n")
    parts += [command_text(name, cli.commands[name]) for name in sorted(cli.commands)]
    parts += [".SH PASSPHRASES\n", paragraph(PASSPHRASES)]
    parts += [
        ".SH FSTAB AND MOUNT(8)\n",
        paragraph(MOUNT8),
        example("/srv/vault  /srv/plain  fuse.cryptfs  noauto,passfile=/root/vault.pass,allow_other  0  0"),
        paragraph(MOUNT8_LATER),
        example('ln -s "$(command -v mount.fuse.cryptfs)" /sbin/mount.fuse.cryptfs'),
    ]
    parts.append(".SH EXIT STATUS\n")
    parts += [f".TP\n.B {int(code)}\n{escape(MEANINGS[code])}\n" for code in ExitCode]
    parts.append(".SH SEE ALSO\n.BR mount (8),\n.BR mount.fuse3 (8),\n.BR fusermount3 (1)\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
