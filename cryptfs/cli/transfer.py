"""`cryptfs export` and `cryptfs import`: whole trees out of a vault and into it, without a mount."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ExitCode, UsageProblem
from cryptfs.cli.inside import Problems, opened_inside
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.output import console, note, say, warn
from cryptfs.cli.params import PLACE, Decorated, debug_option, shown, vault_path_argument
from cryptfs.cli.progress import progress_bar
from cryptfs.cli.vaults import is_inside

if TYPE_CHECKING:
    from cryptfs.transfer.copying import Copied
    from cryptfs.transfer.plainside import PlainDirectory


class VaultPath(click.ParamType[tuple[Path, str]]):
    """VAULT or VAULT:PATH, as (vault, path). A colon in the name of the vault is no border."""

    name = "vault"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Path, str]:
        if isinstance(value, tuple):
            return value
        text = str(value)
        places = [at for at, letter in enumerate(text) if letter == ":"]
        borders = [len(text), *places]
        border = next((at for at in borders if at and Path(text[:at]).is_dir()), (*places, len(text))[0])
        if not border:
            self.fail("the path of the vault is empty", param, ctx)
        return Path(text[:border]), text[border + 1 :]


def copy_options(function: Decorated) -> Decorated:
    """The options that both directions have."""
    for add in (
        debug_option,
        unlock_options,
        click.option("--verify", is_flag=True, help="Read again what was written, and compare."),
        click.option("--overwrite", is_flag=True, help="Replace files that are there and differ."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing if all is well."),
    ):
        function = add(function)
    return function


@command("export")
@vault_path_argument("source_path", VaultPath())
@click.argument("target", metavar="DEST", type=PLACE)
@copy_options
@click.pass_context
def export(
    ctx: click.Context,
    source_path: tuple[Path, str],
    target: Path,
    quiet: bool,
    overwrite: bool,
    verify: bool,
    source: OfferSource,
) -> ExitCode:
    """Copy PATH in VAULT, by default everything, out of it: DEST becomes the copy.

    A file goes into DEST if that is a directory. Times, modes, extended attributes, ACLs, links and holes are
    kept, and owners by root. It passes over files that are there with the same size and time: so repeat a run
    that was interrupted. It replaces no others without --overwrite.

    Damaged entries are reported and not copied; the exit code is 26 then.
    """
    vault, path = source_path
    if is_inside(vault, target):
        raise UsageProblem(f"{shown(target)} is in the vault itself, or in its mountpoint")
    problems = Problems()
    with opened_inside(ctx, vault, source) as opened, _progress() as (progress, expect):
        from cryptfs.transfer.copying import TreeCopy, work_of
        from cryptfs.transfer.fileio import errors_of
        from cryptfs.transfer.plainside import PlainSide
        from cryptfs.transfer.vaultside import VaultSide

        with errors_of(f"{vault}:{path}"):
            found = opened.places.find(path, follow=False)
            st = opened.tree.stat(*found).st
        is_directory = stat.S_ISDIR(st.st_mode)
        where, name = _plain_place(target, None if is_directory else found.name)
        plain = PlainSide(where)
        work = TreeCopy(
            VaultSide(opened, problems), plain, problems, progress, overwrite=overwrite, verify=verify
        )
        # Another side: names that do not authenticate are reported once.
        counted = VaultSide(opened, lambda *_: None)
        expect(lambda: work_of(counted, *found))
        with goes_on_with_room(target):
            work.run(*found, where, name, os.fsencode(path).strip(b"/"))
            plain.sync()
    return _end(progress, problems, "Exported", quiet=quiet, verify=verify)


@command("import")
@click.argument("origin", metavar="SRC", type=PLACE)
@vault_path_argument("target_path", VaultPath())
@copy_options
@click.pass_context
def import_(
    ctx: click.Context,
    origin: Path,
    target_path: tuple[Path, str],
    quiet: bool,
    overwrite: bool,
    verify: bool,
    source: OfferSource,
) -> ExitCode:
    """Copy SRC into VAULT: PATH, by default the root, becomes the copy.

    A file goes into PATH if that is a directory. Times, modes, owners, extended attributes, ACLs, links and
    holes are kept; the root of the vault keeps its own. It passes over files that are there with the same
    size and time: so repeat a run that was interrupted. It replaces no others without --overwrite.
    """
    vault, path = target_path
    if is_inside(vault, origin):
        raise UsageProblem(f"{shown(origin)} is in the vault itself, or in its mountpoint")
    try:
        st = origin.lstat()
    except OSError as error:
        raise CommandError(f"{shown(origin)}: {error.strerror}") from None
    problems = Problems()
    with opened_inside(ctx, vault, source, write=True) as opened, _progress() as (progress, expect):
        from cryptfs.transfer.copying import TreeCopy, work_of
        from cryptfs.transfer.fileio import errors_of
        from cryptfs.transfer.plainside import PlainDirectory, PlainSide
        from cryptfs.transfer.vaultside import VaultSide

        absolute = Path(os.path.abspath(origin))  # a symlink at its end stays one
        where = PlainDirectory.at(str(absolute.parent))
        name = os.fsencode(absolute.name) or b"."
        inside = os.fsencode(path).strip(b"/")
        if not stat.S_ISDIR(st.st_mode) and opened.is_dir(path):
            inside = os.path.join(inside, name)
        with errors_of(f"{vault}:{path}"):
            found = opened.places.find(inside, follow=stat.S_ISDIR(st.st_mode))
        side = VaultSide(opened, problems)
        work = TreeCopy(
            *(PlainSide(where), side, problems, progress),
            overwrite=overwrite, verify=verify,
        )  # fmt: skip
        expect(lambda: work_of(PlainSide(where), where, name))
        with goes_on_with_room(vault):
            work.run(where, name, *found, inside)
            side.sync()
    return _end(progress, problems, "Imported", quiet=quiet, verify=verify)


def _plain_place(target: Path, name: bytes | None) -> tuple[PlainDirectory, bytes]:
    """The directory and the name of a copy. name: of a file, which goes into a target that is a directory.

    Raises: CommandError: the directory above is missing.
    """
    from cryptfs.transfer.plainside import PlainDirectory

    absolute = Path(os.path.realpath(target)) if target.is_dir() else Path(os.path.abspath(target))
    if name is not None and target.is_dir():
        absolute = absolute / os.fsdecode(name)
    try:
        return PlainDirectory.at(str(absolute.parent)), os.fsencode(absolute.name) or b"."
    except OSError as error:
        raise CommandError(f"{shown(absolute.parent)}: {error.strerror}") from None


@contextlib.contextmanager
def goes_on_with_room(place: Path) -> Iterator[None]:
    """Around a copy. Raises: CommandError: the disk of its target is full."""
    from cryptfs.storage.libc import NO_ROOM

    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise CommandError(
            f"{shown(place)}: its disk is full. Free some space there, then repeat the command: it goes on"
        ) from None


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Copied, Callable[[Callable[[], int]], None]]]:
    """A count for the work, and a function that takes the total, for which it asks on a terminal only."""
    from cryptfs.transfer.copying import Copied

    with progress_bar(console(stderr=True), "0 entries") as bar:

        def tell(progress: Copied) -> None:
            if bar.is_due():
                bar.show(f"{progress.entries:,} entries, {progress.size / 1e6:,.0f} MB", progress.work)

        def expect(total: Callable[[], int]) -> None:
            if bar.is_drawn:
                bar.expect(total())

        yield Copied(tell), expect


def _end(progress: Copied, problems: Problems, did: str, *, quiet: bool, verify: bool) -> ExitCode:
    for attribute, count in sorted(progress.lost.items()):
        files = "1 file" if count == 1 else f"{count:,} files"
        warn(f"the attribute {shown(attribute)} of {files} cannot be kept there")
    if not quiet or problems.told:
        parts = [f"{did} {progress.entries:,} {'entry' if progress.entries == 1 else 'entries'}"]
        parts += [f"{progress.present:,} were there already"] * bool(progress.present)
        parts += [f"{progress.verified:,} files read again and compared"] * verify
        found = len(problems.told)
        parts += ["1 problem" if found == 1 else f"{found:,} problems"] * bool(found)
        (say if problems.told else note)(f"{', '.join(parts)}.")
    return problems.code()
