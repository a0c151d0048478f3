"""`cryptfs ls`, `tree`, `find` and `cat`: look into a vault without a mount."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.entries import fields, json_list, long_line, target_of
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.inside import Chosen, Problems, chosen, name_writer, opened_inside
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.params import ByteSize, Number, debug_option, shown, vault_argument
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.transfer.fileio import VaultFile
    from cryptfs.transfer.pathvault import PathVault
    from cryptfs.transfer.walking import Walked

_PIECE = 4 << 20
_LETTERS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}

paths_argument = click.argument("paths", metavar="[PATH]...", nargs=-1)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
zero_option = click.option(
    "-0", "--null", "zero", is_flag=True, help="Print names unchanged, with a zero byte after each."
)


def _walk(
    opened: PathVault, at: Chosen, problems: Problems, depth: int | None, hidden: bool
) -> Iterator[Walked]:
    """The entries below a place, down to a depth, by default without hidden ones."""
    from cryptfs.transfer.walking import walk

    def is_shown(seen: Walked) -> bool:
        return hidden or not seen.depth or not seen.found.name.startswith(b".")

    def enters(seen: Walked) -> bool:
        return is_shown(seen) and (depth is None or seen.depth < depth)

    return filter(is_shown, walk(opened.tree, at.found, at.path, problems, enters=enters))


@command()
@vault_argument
@paths_argument
@click.option("-a", "--all", "hidden", is_flag=True, help="Also show names that begin with a dot.")
@click.option(
    "-d", "--directory", "itself", is_flag=True, help="List directories themselves, not their content."
)
@click.option(
    "-l", "--long", "as_long", is_flag=True, help="Show mode, owner, size, time and target of each entry."
)
@click.option("-R", "--recursive", is_flag=True, help="Also list the content of subdirectories.")
@zero_option
@json_option
@unlock_options
@debug_option
@click.pass_context
def ls(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    hidden: bool,
    itself: bool,
    as_long: bool,
    recursive: bool,
    zero: bool,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """List PATH in VAULT, by default its root, without a mount.

    Paths may have wildcards in quotes: *, ?, [a-z], and ** for any number of directories. The command reports
    names that do not authenticate on stderr, and its exit code is then 26.
    """
    problems = Problems()
    with opened_inside(ctx, vault, source) as opened:
        groups = _groups(opened, paths, problems, hidden, itself, recursive)
        if as_json:
            with json_list(problems) as document:
                for _, group in groups:
                    for seen in group:
                        document.add(fields(seen, target_of(opened, seen, problems)))
            return problems.code()
        write = name_writer(zero=zero)
        between = ""
        for top, group in groups:
            if top is not None and (recursive or len(paths) > 1) and not zero:
                click.echo(f"{between}{shown(top) or '/'}:")
            between = "\n"
            for seen in group:
                name = seen.path if zero or top is None else seen.found.name
                if as_long and not zero:
                    click.echo(long_line(seen, shown(name) or "/", target_of(opened, seen, problems)))
                else:
                    write(name or b"/")
    return problems.code()


def _groups(
    opened: PathVault, paths: tuple[str, ...], problems: Problems, hidden: bool, itself: bool, recursive: bool
) -> Iterator[tuple[bytes | None, Iterable[Walked]]]:
    """The entries as ls groups them: first those that are no directories, then (path, content) of each."""
    from cryptfs.transfer.walking import Walked

    alone: list[Walked] = []
    waiting: list[Chosen] = []
    for at in chosen(opened, paths or ("",), problems, follow=not itself):
        seen = Walked(at.path, at.found, opened.tree.stat(*at.found), 0)
        if itself or seen.kind != stat.S_IFDIR:
            alone.append(seen)
        else:
            waiting.append(at)
    if alone:
        yield None, alone
    waiting.reverse()
    while waiting:
        at = waiting.pop()
        below: list[Chosen] = []

        def content(at: Chosen = at, below: list[Chosen] = below) -> Iterator[Walked]:
            for seen in _walk(opened, at, problems, 1, hidden):
                if not seen.depth:
                    continue
                yield seen
                if recursive and seen.kind == stat.S_IFDIR:
                    below.append(Chosen(seen.path, seen.found))

        yield at.path, content()
        waiting += reversed(below)


@command()
@vault_argument
@paths_argument
@click.option("-a", "--all", "hidden", is_flag=True, help="Also show names that begin with a dot.")
@click.option("-d", "--directories", is_flag=True, help="Show only directories.")
@click.option("-L", "--level", type=Number(1), metavar="N", help="Go down at most N levels.")
@json_option
@unlock_options
@debug_option
@click.pass_context
def tree(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    hidden: bool,
    directories: bool,
    level: int | None,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """Draw the tree below PATH in VAULT, by default the whole vault, without a mount."""
    problems = Problems()
    with opened_inside(ctx, vault, source) as opened:
        if as_json:
            with json_list(problems) as document:
                for at in chosen(opened, paths or ("",), problems, follow=True):
                    for seen in _walk(opened, at, problems, level, hidden):
                        if not directories or seen.kind == stat.S_IFDIR:
                            document.add(fields(seen, target_of(opened, seen, problems)))
            return problems.code()
        counts = [0, 0]
        for at in chosen(opened, paths or ("",), problems, follow=True):
            click.echo(shown(at.path) or "/")
            held: list[tuple[int, str]] = []  # no directory in it, which would stay open
            for seen in _walk(opened, at, problems, level, hidden):
                if not seen.depth or (directories and seen.kind != stat.S_IFDIR):
                    continue
                counts[seen.kind != stat.S_IFDIR] += 1
                target = target_of(opened, seen, problems)
                arrow = "" if target is None else f" -> {shown(target)}"
                held.append((seen.depth, f"{shown(seen.found.name)}{arrow}"))
            for line in _drawn(held):
                click.echo(line)
        others = "" if directories else f", {counts[1]:,} other {'entry' if counts[1] == 1 else 'entries'}"
        click.echo(f"\n{counts[0]:,} {'directory' if counts[0] == 1 else 'directories'}{others}")
    return problems.code()


def _drawn(held: list[tuple[int, str]]) -> Iterator[str]:
    """The lines of a tree. held: depth from 1 and text of each entry, a directory before what is in it."""
    lasts = [False] * len(held)
    ended: set[int] = set()  # the depths at which no entry of the same directory follows, from the end up
    for index in range(len(held) - 1, -1, -1):
        depth = held[index][0]
        lasts[index] = depth not in ended
        ended = {each for each in ended if each < depth} | {depth}
    above: list[bool] = []  # whether the entry of each level was the last one
    for (depth, text), is_last in zip(held, lasts, strict=True):
        del above[depth - 1 :]
        bars = "".join("    " if was_last else "│   " for was_last in above)
        yield f"{bars}{'└── ' if is_last else '├── '}{text}"
        above.append(is_last)


@command()
@vault_argument
@paths_argument
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="PATTERN",
    help="Only entries whose name matches PATTERN, as in `find -name`.",
)
@click.option(
    "--iname",
    "any_case",
    multiple=True,
    metavar="PATTERN",
    help="The same, but upper and lower case match each other.",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(list(_LETTERS)),
    help="Only files, only directories, or only symlinks.",
)
@click.option("--larger", type=ByteSize(), metavar="SIZE", help="Only files of more than SIZE bytes.")
@click.option("--smaller", type=ByteSize(), metavar="SIZE", help="Only files of less than SIZE bytes.")
@click.option("--level", type=Number(0), metavar="N", help="Go down at most N levels.")
@zero_option
@json_option
@unlock_options
@debug_option
@click.pass_context
def find(
    ctx: click.Context,
    vault: Path,
    paths: tuple[str, ...],
    names: tuple[str, ...],
    any_case: tuple[str, ...],
    kind: str | None,
    larger: int | None,
    smaller: int | None,
    level: int | None,
    zero: bool,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """Print the entries below PATH in VAULT that the options choose. Without PATH, search the whole vault.

    If you give several --name and --iname, a name has to match only one of them.
    """
    from cryptfs.transfer.walking import matcher

    fits = [matcher(each) for each in names] + [matcher(each, ignore_case=True) for each in any_case]
    problems = Problems()

    def is_wanted(seen: Walked) -> bool:
        size = seen.attributes.size
        is_file = seen.kind == stat.S_IFREG
        return (
            (not fits or any(each(seen.found.name) for each in fits))
            and (kind is None or seen.kind == _LETTERS[kind])
            and (larger is None or (is_file and size > larger))
            and (smaller is None or (is_file and size < smaller))
        )

    with opened_inside(ctx, vault, source) as opened:
        found = (
            seen
            for at in chosen(opened, paths or ("",), problems, follow=True)
            for seen in _walk(opened, at, problems, level, True)
            if is_wanted(seen)
        )
        if as_json:
            with json_list(problems) as document:
                for seen in found:
                    document.add(fields(seen, target_of(opened, seen, problems)))
            return problems.code()
        write = name_writer(zero=zero)
        for seen in found:
            write(seen.path or b"/")
    return problems.code()


@command()
@vault_argument
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@unlock_options
@debug_option
@click.pass_context
def cat(ctx: click.Context, vault: Path, paths: tuple[str, ...], source: OfferSource) -> ExitCode:
    """Write the content of the files PATH in VAULT to stdout, without a mount.

    The command writes only authentic bytes. It ends a damaged file before the damage, and its exit code is
    then 26.
    """
    problems = Problems()
    with opened_inside(ctx, vault, source) as opened:
        sys.stdout.flush()
        out: Any = sys.stdout.buffer
        for at in chosen(opened, paths, problems, follow=True):
            for piece in _content(opened, at, problems):
                out.write(piece)  # what fails here is no problem of the file
        out.flush()
    return problems.code()


def _content(opened: PathVault, at: Chosen, problems: Problems) -> Iterator[bytes]:
    """The content of a file, up to the first damage, which is a problem."""
    try:
        with opened.open_found(at.found, at.path) as file:
            yield from _pieces(file, opened.config.chunk_size)
    except (CryptfsError, OSError) as error:
        problems(at.path, error)


def _pieces(file: VaultFile, chunk_size: int) -> Iterator[bytes]:
    """The content of a file, up to the first damage."""
    size = _PIECE
    while True:
        try:
            piece = file.read(size)
        except OSError:
            if size == chunk_size:
                raise
            size = chunk_size  # all chunks before the damaged one
            continue
        if not piece:
            return
        yield piece
