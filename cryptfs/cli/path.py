"""`cryptfs path`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from cryptfs.cli.changing import below_vault
from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.inside import Problems, name_writer, opened_inside
from cryptfs.cli.ls import zero_option
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.output import answer_json
from cryptfs.cli.params import debug_option, shown, vault_argument
from cryptfs.errors import CryptfsError


@command()
@vault_argument
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--plain", is_flag=True, help="Turn paths in the vault directory into those that people see.")
@zero_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unlock_options
@debug_option
@click.pass_context
def path(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    plain: bool,
    zero: bool,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """Print the path that PATH has in the vault directory; with --plain, the other way round.

    Without PATH, the command reads paths from stdin, one on each line. With -0, a zero byte follows each
    path, in the input and the output. The command works while VAULT is mounted.
    """
    problems = Problems()
    answers = []
    write = name_writer(zero=zero)
    with opened_inside(ctx, vault, source, lock=False) as opened:
        from cryptfs.transfer.ciphernames import NotAnEntryError, cipher_path, plain_path

        for each in map(os.fsencode, paths) if paths else _from_stdin(zero=zero):
            try:
                if b"\0" in each:
                    raise NotAnEntryError("it has a zero byte; for paths that end in zero bytes, give -0")
                if plain:
                    found = plain_path(opened, below_vault(vault, os.fsdecode(each)))
                else:
                    found = os.fsencode(cipher_path(opened, each))
            except (NotAnEntryError, CryptfsError, OSError) as error:
                problems(each, error)
                continue
            if as_json:
                fields = (each, found) if not plain else (found, each)
                answers.append({"path": shown(fields[0]), "cipher_path": shown(fields[1])})
            else:
                write(found or b"." if plain else _no_option(found))
    if as_json:
        answer_json({"entries": answers, "problems": problems.told})
    return problems.code()


def _no_option(cipher: bytes) -> bytes:
    """A cipher path that no program takes for an option: one name in 64 begins with a dash."""
    return b"./" + cipher if cipher.startswith(b"-") else cipher or b"."


def _from_stdin(*, zero: bool) -> Iterator[bytes]:
    """Paths as they come, so that a program can ask and read the answer before it asks again."""
    end = b"\0" if zero else b"\n"
    rest = b""
    while piece := os.read(sys.stdin.fileno(), 65536):
        *whole, rest = (rest + piece).split(end)
        yield from whole
    if rest:
        yield rest
