"""`cryptfs rm`, `cp`, `mv` and `mkdir`: change a vault without a mount."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ExitCode, UsageProblem
from cryptfs.cli.inside import Chosen, Problems, chosen, opened_inside
from cryptfs.cli.interrupts import ends_in_order
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.params import debug_option, shown, vault_argument
from cryptfs.cli.transfer import goes_on
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.transfer.pathvault import PathVault
    from cryptfs.transfer.places import Found

sources_argument = click.argument("paths", metavar="PATH... TARGET", nargs=-1, required=True)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing files.")


@command()
@vault_argument
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories, with everything in them.")
@click.option("-f", "--force", is_flag=True, help="Ignore paths that do not exist.")
@click.option("--damaged", is_flag=True, help="With -r, also remove entries that do not authenticate.")
@click.option(
    "--cipher",
    "ciphers",
    multiple=True,
    metavar="CIPHERPATH",
    help="Remove the entry with this path in the vault directory.",
)
@unlock_options
@debug_option
@click.pass_context
def rm(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    recursive: bool,
    force: bool,
    damaged: bool,
    ciphers: tuple[str, ...],
    source: OfferSource,
) -> ExitCode:
    """Remove PATH from VAULT, without a mount. This works for a file with damaged content as well.

    An entry whose name does not authenticate has no PATH. Remove it with --cipher, by its path in the vault
    directory, which fsck, ls and other commands report.
    """
    if not paths and not ciphers:
        raise UsageProblem("say what to remove: give a PATH, or --cipher CIPHERPATH")
    problems = Problems()
    with opened_inside(ctx, vault, source, write=True) as opened:
        from cryptfs.transfer.ciphernames import NotAnEntryError
        from cryptfs.transfer.removing import Removal

        removal = Removal(opened, problems, recursive=recursive, damaged=damaged)
        for at in chosen(opened, paths, problems, looks=False, missing_is_fine=force):
            removal.entry(at.found, at.path)
        for cipher in ciphers:
            try:
                removal.cipher(below_vault(vault, cipher))
            except (NotAnEntryError, CryptfsError, OSError) as error:
                problems(os.fsencode(cipher), error)
    return problems.code()


def below_vault(vault: Path, cipher: str) -> str:
    """A path in the vault directory, relative to it; it may be given as it is on the disk."""
    if os.path.isabs(cipher):
        return os.path.relpath(os.path.realpath(os.path.dirname(cipher)), os.path.realpath(vault)) + (
            "/" + os.path.basename(cipher)
        )
    return cipher


@command()
@vault_argument
@sources_argument
@click.option("-r", "--recursive", is_flag=True, help="Copy directories, with everything in them.")
@overwrite_option
@unlock_options
@debug_option
@click.pass_context
def cp(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    recursive: bool,
    overwrite: bool,
    source: OfferSource,
) -> ExitCode:
    """Copy PATH to TARGET, both in VAULT, without a mount. If TARGET is a directory, the copy goes into it.

    The copy keeps times, modes, owners, extended attributes, ACLs, links and holes.
    """
    sources, target = _split(paths)
    problems = Problems()
    with ends_in_order(), opened_inside(ctx, vault, source, write=True) as opened:
        from cryptfs.transfer.copying import TreeCopy
        from cryptfs.transfer.entrycopy import Copied
        from cryptfs.transfer.vaultside import VaultSide

        side = VaultSide(opened, problems)
        work = TreeCopy(side, side, problems, Copied(), overwrite=overwrite)
        for at, new, _ in _pairs(opened, sources, target, problems):
            is_directory = stat.S_ISDIR(opened.tree.stat(*at.found).st.st_mode)
            if is_directory and not recursive:
                problems(at.path, CommandError("it is a directory; to copy it, give -r"))
            elif is_directory and _is_below(at.found, new):
                problems(at.path, CommandError("a directory cannot be copied into itself"))
            elif at.found == new:
                problems(at.path, CommandError("it cannot be copied to itself"))
            else:
                with goes_on(vault):
                    work.run(*at.found, *new, at.path)
    return problems.code()


@command()
@vault_argument
@sources_argument
@overwrite_option
@unlock_options
@debug_option
@click.pass_context
def mv(
    ctx: click.Context, vault: Path, paths: tuple[str, ...], overwrite: bool, source: OfferSource
) -> ExitCode:
    """Rename PATH to TARGET, both in VAULT, without a mount. If TARGET is a directory, PATH goes into it."""
    sources, target = _split(paths)
    problems = Problems()
    with opened_inside(ctx, vault, source, write=True) as opened:
        for at, _, path in _pairs(opened, sources, target, problems):
            try:
                opened.rename(at.path, path, replace=overwrite)
            except FileExistsError:
                problems(at.path, CommandError(f"{shown(path)} exists (--overwrite replaces it)"))
            except OSError as error:
                is_inside = error.errno == errno.EINVAL
                told = CommandError("a directory cannot be moved into itself") if is_inside else error
                problems(at.path, told)
    return problems.code()


@command()
@vault_argument
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option(
    "-p",
    "--parents",
    is_flag=True,
    help="Also make missing parent directories, and accept a PATH that exists.",
)
@unlock_options
@debug_option
@click.pass_context
def mkdir(
    ctx: click.Context, vault: Path, paths: tuple[str, ...], parents: bool, source: OfferSource
) -> ExitCode:
    """Make the directory PATH in VAULT, without a mount."""
    problems = Problems()
    with opened_inside(ctx, vault, source, write=True) as opened:
        for path in paths:
            try:
                if parents:
                    opened.makedirs(path, exist_ok=True)
                else:
                    opened.mkdir(path)
            except OSError as error:
                problems(os.fsencode(path), error)
    return problems.code()


def _split(paths: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Sources and target. Raises: UsageProblem."""
    if len(paths) < 2:
        raise UsageProblem("give a PATH and a TARGET")
    return paths[:-1], paths[-1]


def _pairs(
    opened: PathVault, sources: tuple[str, ...], target: str, problems: Problems
) -> list[tuple[Chosen, Found, bytes]]:
    """Each source, and the place and path that it goes to. Raises: UsageProblem."""
    found = list(chosen(opened, sources, problems))
    is_into = opened.is_dir(target)
    if len(found) > 1 and not is_into:
        raise UsageProblem(
            f"{shown(target)} in the vault is not a directory, so several files cannot go there"
        )
    pairs = []
    for at in found:
        path = os.fsencode(target)
        if is_into:
            path = os.path.join(path, os.path.basename(at.path.rstrip(b"/")))
        try:
            pairs.append((at, opened.places.find(path, follow=False), path))
        except (CryptfsError, OSError) as error:
            problems(path, error)
    return pairs


def _is_below(source: Found, target: Found) -> bool:
    """Whether a target is in the directory that is to be copied, at any depth, or is this directory."""
    from cryptfs.transfer.ciphernames import cipher_path_of

    return f"{cipher_path_of(target)}/".startswith(f"{cipher_path_of(source)}/".lstrip("/"))
