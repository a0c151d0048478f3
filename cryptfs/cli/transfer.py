"""`cryptfs export` and `cryptfs import`: whole trees out of a vault and into it, without a mount."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ExitCode, UsageProblem
from cryptfs.cli.inside import Problems, opened_inside
from cryptfs.cli.interrupts import ends_in_order
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.output import console, note, say, warn
from cryptfs.cli.params import PLACE, Decorated, PathParameter, debug_option, shown, vault_path_argument
from cryptfs.cli.progress import progress_bar
from cryptfs.cli.vaults import is_inside

if TYPE_CHECKING:
    from cryptfs.transfer.copying import TreeCopy
    from cryptfs.transfer.entrycopy import Copied
    from cryptfs.transfer.pathvault import PathVault
    from cryptfs.transfer.plainside import PlainDirectory
    from cryptfs.transfer.shares import Base
    from cryptfs.transfer.sides import From, Side, To

_ENOUGH = 64 << 20  # from this much work on processes are worth their start; as `work_of` counts


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
        border = next((at for at in borders if at and os.path.isdir(text[:at])), (*places, len(text))[0])
        if not border:
            self.fail("the path of the vault is empty", param, ctx)
        return Path(text[:border]), text[border + 1 :]


class SourcePath(PathParameter):
    """What import copies. "LINK/" is the directory behind a symlink, as for the kernel and cp.

    Raises: CommandError: there is none.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        if not str(value).endswith(("/", "/.")):
            return path
        try:
            os.stat(value)  # there, and a directory
        except OSError as error:
            raise CommandError(f"{shown(value)}: {error.strerror}") from None
        return Path(os.path.realpath(path))


def copy_options(function: Decorated) -> Decorated:
    """The options that both directions have."""
    for add in (
        debug_option,
        unlock_options,
        click.option("--verify", is_flag=True, help="Read the written files again, and compare."),
        click.option("--overwrite", is_flag=True, help="Replace existing files that differ."),
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
    """Copy PATH out of VAULT: DEST becomes the copy. Without PATH, copy everything.

    If PATH is a file and DEST a directory, the copy goes into DEST. It keeps times, modes, extended
    attributes, ACLs, links and holes, and owners if root runs the command. The command skips files that are
    already there with the same size and time, so you can repeat an interrupted run. It replaces other files
    only with --overwrite.

    The command reports damaged entries and does not copy them; the exit code is then 26.
    """
    vault, path = source_path
    if is_inside(vault, target):
        raise UsageProblem(f"{shown(target)} is in the vault itself, or in its mountpoint")
    problems = Problems()
    with ends_in_order(), opened_inside(ctx, vault, source, start=False) as opened:
        from cryptfs.transfer.copying import TreeCopy
        from cryptfs.transfer.entrycopy import Copied
        from cryptfs.transfer.fileio import errors_of
        from cryptfs.transfer.plainside import PlainSide
        from cryptfs.transfer.shares import Base
        from cryptfs.transfer.vaultside import VaultSide

        with errors_of(f"{vault}:{path}"):
            found = opened.places.find(path, follow=False)
            st = opened.tree.stat(*found).st
        is_directory = stat.S_ISDIR(st.st_mode)
        where, name = _plain_place(target, None if is_directory else found.name)
        plain, progress = PlainSide(where), Copied()
        work = TreeCopy(
            VaultSide(opened, problems), plain, problems, progress, overwrite=overwrite, verify=verify
        )
        # Another side: names that do not authenticate are reported once.
        counted = VaultSide(opened, lambda *_: None)
        with goes_on(target):
            _run(work, opened, counted, Base(*found, where, name, os.fsencode(path).strip(b"/")), progress)
            plain.sync()
    return _end(progress, problems, "Exported", quiet=quiet, verify=verify)


@command("import")
@click.argument("origin", metavar="SRC", type=SourcePath())
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
    """Copy SRC into VAULT: PATH becomes the copy. Without PATH, the root of the vault does.

    If SRC is a file and PATH a directory, the copy goes into PATH. A symlink is copied as a symlink; SRC/ is
    the directory that it points to. The copy keeps times, modes, owners, extended attributes, ACLs, links
    and holes; the root of the vault keeps its own attributes. The command skips files that are already there
    with the same size and time, so you can repeat an interrupted run. It replaces other files only with
    --overwrite.
    """
    from cryptfs.mount.mounts import absolute

    vault, path = target_path
    if is_inside(vault, origin):
        raise UsageProblem(f"{shown(origin)} is in the vault itself, or in its mountpoint")
    try:
        st = origin.lstat()
    except OSError as error:
        raise CommandError(f"{shown(origin)}: {error.strerror}") from None
    if stat.S_ISDIR(st.st_mode) and absolute(vault).is_relative_to(absolute(origin)):
        raise UsageProblem(f"{shown(vault)} is in {shown(origin)}: it would be copied into itself")
    problems = Problems()
    with ends_in_order(), opened_inside(ctx, vault, source, write=True, start=False) as opened:
        from cryptfs.transfer.copying import TreeCopy
        from cryptfs.transfer.entrycopy import Copied
        from cryptfs.transfer.fileio import errors_of
        from cryptfs.transfer.plainside import PlainDirectory, PlainSide
        from cryptfs.transfer.shares import Base
        from cryptfs.transfer.vaultside import VaultSide

        # A symlink at its end stays one; and what ".." means before that is for the kernel to say.
        where = PlainDirectory.at(str(origin.parent))
        name = os.fsencode(origin.name) or b"."
        inside = os.fsencode(path).strip(b"/")
        if not stat.S_ISDIR(st.st_mode) and opened.is_dir(path):
            inside = os.path.join(inside, name)
        with errors_of(f"{vault}:{path}"):
            found = opened.places.find(inside, follow=stat.S_ISDIR(st.st_mode))
        plain, side, progress = PlainSide(where), VaultSide(opened, problems), Copied()
        work = TreeCopy(plain, side, problems, progress, overwrite=overwrite, verify=verify)
        with goes_on(vault):
            _run(work, opened, plain, Base(where, name, *found, inside), progress)
            side.sync()
    return _end(progress, problems, "Imported", quiet=quiet, verify=verify)


def _plain_place(target: Path, name: bytes | None) -> tuple[PlainDirectory, bytes]:
    """The directory and the name of a copy. name: of a file, which goes into a target that is a directory.

    Raises: CommandError: the directory above is missing.
    """
    from cryptfs.transfer.plainside import PlainDirectory

    place = Path(os.path.realpath(target)) if target.is_dir() else target
    if name is not None and target.is_dir():
        place = place / os.fsdecode(name)
    try:
        return PlainDirectory.at(str(place.parent)), os.fsencode(place.name) or b"."
    except OSError as error:
        raise CommandError(f"{shown(place.parent)}: {error.strerror}") from None


def _run(
    work: TreeCopy[From, To], opened: PathVault, counted: Side[From], base: Base[From, To], progress: Copied
) -> None:
    """Copy, with workers if there is enough to do. counted: the source, to look how much that is."""
    from cryptfs.transfer.copying import work_of
    from cryptfs.transfer.waiting import crew_size
    from cryptfs.vfs.beside import beside, prepare
    from cryptfs.vfs.content.cipherpool import usable_cores

    with contextlib.closing(work):
        count = crew_size(usable_cores())
        if count and work_of(counted, base.source, base.name, _ENOUGH) >= _ENOUGH and prepare(opened):
            work.hire(count, base, lambda: beside(opened))
        opened.start()  # its threads come after the forks, and so does that of the progress bar
        with _progress(progress) as expect:
            expect(lambda: work_of(counted, base.source, base.name))
            work.run(*base)


@contextlib.contextmanager
def goes_on(place: Path) -> Iterator[None]:
    """Around a copy. Raises: CommandError: the disk of its target is full, or a worker died."""
    from cryptfs.storage.libc import NO_ROOM
    from cryptfs.transfer.waiting import WorkerDiedError

    try:
        yield
    except WorkerDiedError as error:
        raise CommandError(
            f"{error}. The files that it copied are complete. Repeat the command: it continues"
        ) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise CommandError(
            f"{shown(place)}: its disk is full. Free some space there, then repeat the command: it continues"
        ) from None


@contextlib.contextmanager
def _progress(progress: Copied) -> Iterator[Callable[[Callable[[], int]], None]]:
    """A bar for the work; a function that takes the total, for which it asks on a terminal only."""
    screen = console(stderr=True) if sys.stderr.isatty() else None  # else nobody needs what it loads
    with progress_bar(screen, "0 entries") as bar:

        def tell(progress: Copied) -> None:
            if bar.is_due():
                bar.show(f"{progress.entries:,} entries, {progress.size / 1e6:,.0f} MB", progress.work)

        def expect(total: Callable[[], int]) -> None:
            if bar.is_drawn:
                bar.expect(total())

        progress.tell = tell
        yield expect


def _end(progress: Copied, problems: Problems, did: str, *, quiet: bool, verify: bool) -> ExitCode:
    for attribute, count in sorted(progress.lost.items()):
        files = "1 file" if count == 1 else f"{count:,} files"
        warn(f"the target cannot keep the attribute {shown(attribute)} of {files}")
    if not quiet or problems.told:
        parts = [f"{did} {progress.entries:,} {'entry' if progress.entries == 1 else 'entries'}"]
        parts += [f"{progress.present:,} were there already"] * bool(progress.present)
        parts += [f"{progress.verified:,} files read again and compared"] * verify
        found = len(problems.told)
        parts += ["1 problem" if found == 1 else f"{found:,} problems"] * bool(found)
        (say if problems.told else note)(f"{', '.join(parts)}.")
    return problems.code()
