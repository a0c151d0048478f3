"""`cryptfs snapshot` and `cryptfs verify`: a witness against old versions put back."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import rich_click as click

from cryptfs.cli.exit_codes import ExitCode, UsageProblem
from cryptfs.cli.output import console, note, warn
from cryptfs.cli.params import (
    PLACE,
    Settings,
    debug_option,
    passphrase_options,
    passphrase_source,
    vault_argument,
)
from cryptfs.cli.prompt import PassphraseSource, forget, harden_process, read_passphrase
from cryptfs.cli.vaults import config_of

if TYPE_CHECKING:
    from rich.console import Console

    from cryptfs.vfs.comparison import Change
    from cryptfs.vfs.vault import Vault
    from cryptfs.vfs.witness import Finding, Totals, Verification

_COLOURS = {"rolled-back": "bold red", "replaced": "bold red", "copied": "bold red", "damaged": "red"}
_WIDTH = 13
_REDRAW = 0.1  # seconds between changes of the progress bar
_COPY_SIZE = 1024 * 1024


def _look_at(ctx: click.Context, vault: Path, source: PassphraseSource) -> Vault:
    """The vault, unlocked for a look that takes no lock and writes nothing."""
    from cryptfs.mount.mounts import absolute

    config_of(vault)
    if not ctx.ensure_object(Settings).debug:
        logging.getLogger("cryptfs").addHandler(logging.NullHandler())  # what it says, the findings say
    harden_process()
    passphrase = read_passphrase(source)
    from cryptfs.vfs.vault import Vault

    try:
        return Vault.unlock(absolute(vault), passphrase, read_only=True, lock=False)
    finally:
        forget(passphrase)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on a terminal only."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TextColumn("{task.completed:,} entries"), TimeRemainingColumn())
    drawn = 0.0
    with Progress(*columns, console=screen, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)

        def update(count: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn >= _REDRAW:
                drawn = now
                bar.update(task, completed=count)

        yield update


def _warn_of(totals: Totals, unsettled: str) -> None:
    for path, reason in totals.skipped[:10]:
        warn(f"{path}: could not be looked at: {reason}")
    if len(totals.skipped) > 10:
        warn(f"{len(totals.skipped) - 10} more places could not be looked at")
    if totals.unsettled:
        note(f"{totals.unsettled:,} files were being written: {unsettled}")


@click.command()
@vault_argument
@click.option("-o", "--output", type=PLACE, metavar="FILE", help="Write to FILE instead of stdout.")
@passphrase_options
@debug_option
@click.pass_context
def snapshot(
    ctx: click.Context, vault: Path, output: Path | None, passfile: Path | None, passcommand: str | None
) -> None:
    """Write a manifest of VAULT: what stands in it now, for `cryptfs verify` later.

    Keep it where nobody can reach who can write to VAULT. It is encrypted, needs the passphrase of VAULT, and
    holds no content: some 150 bytes for each file. Works while VAULT is mounted, and writes nothing there.
    """
    source = passphrase_source(ctx, passfile, passcommand)
    if output is None and sys.stdout.isatty():
        raise UsageProblem("a manifest is no text: redirect stdout to a file, or use --output FILE")
    with _look_at(ctx, vault, source) as opened:
        from cryptfs.vfs.witness import snapshot as take

        with contextlib.ExitStack() as stack:
            update = stack.enter_context(_progress(None))
            if output is None:
                totals = take(opened, sys.stdout.buffer.write, update)
            else:
                totals = take(opened, stack.enter_context(output.open("wb")).write, update)
    note(f"{totals.entries:,} entries are in the manifest.")
    _warn_of(totals, "of these it holds that they were, not what was in them")


@click.command()
@vault_argument
@click.argument("manifest", type=PLACE, metavar="MANIFEST")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@passphrase_options
@debug_option
@click.pass_context
def verify(
    ctx: click.Context,
    vault: Path,
    manifest: Path,
    as_json: bool,
    passfile: Path | None,
    passcommand: str | None,
) -> ExitCode:
    """Say what became of VAULT since `cryptfs snapshot` wrote MANIFEST.

    What was rolled back, replaced or copied, somebody did who can write to VAULT but has no key: no program
    on a mount can. What was deleted, added, moved or changed may be honest work. Works while VAULT is
    mounted.

    Exit code 41: something was rolled back, replaced or copied; 26: something is damaged; 0: neither.
    """
    source = passphrase_source(ctx, passfile, passcommand)
    with _opened(manifest) as file, _look_at(ctx, vault, source) as opened:
        from cryptfs.vfs.witness import Verification

        with _progress(None) as update:
            verification = Verification(opened, file, update)
        with contextlib.closing(verification):
            with _progress(verification.entries_then) as update:
                verification.look(update)
            if as_json:
                _answer_json(verification)
            else:
                _answer_text(verification)
        _warn_of(verification.totals, "what is in them now is not compared")
        if verification.skipped_then:
            note(f"When the manifest was made, {verification.skipped_then} places could not be looked at.")
    return _exit_code(verification.counts)


def _exit_code(counts: Counter[Change]) -> ExitCode:
    from cryptfs.vfs.comparison import Change

    if any(change.alarms and counts[change] for change in Change):
        return ExitCode.ROLLED_BACK
    return ExitCode.DAMAGE if counts[Change.DAMAGED] else ExitCode.OK


@contextlib.contextmanager
def _opened(manifest: Path) -> Iterator[IO[bytes]]:
    """The manifest, so that it can be read twice: what comes out of a pipe is copied."""
    with contextlib.ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(manifest.open("rb"))
        except OSError as error:
            raise UsageProblem(f"{manifest}: cannot read the manifest: {error.strerror}") from None
        if not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile(prefix="cryptfs-"))
            while piece := file.read(_COPY_SIZE):
                copy.write(piece)
            file = copy
        yield file


# ---- answers


def _shown(finding: Finding) -> tuple[str, str, str]:
    """Path, path before, cipher path: as text that is fit for a terminal."""
    from cryptfs.vfs.findings import escaped

    path = "" if finding.path is None else escaped(finding.path)
    return path, "" if finding.was is None else escaped(finding.was), finding.cipher_path


def _answer_text(verification: Verification) -> None:
    screen = console()
    for finding in verification.run():
        _line(screen, finding)
    counts = verification.counts
    parts = [f"{count:,} {change.value}" for change, count in sorted(counts.items(), key=_rank) if count]
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(verification.head.created))
    then, now = verification.entries_then, verification.totals.entries
    screen.print(f"Manifest of {made}: {then:,} entries then, {now:,} now.", soft_wrap=True)
    text = ", ".join(parts) if parts else "Nothing has changed"
    alarming = _exit_code(counts) is ExitCode.ROLLED_BACK
    screen.print(f"{text}.", style="bold red" if alarming else "", soft_wrap=True)
    if alarming:
        advice = "No program on a mount does that: somebody changed the vault's files, or put a backup back."
        screen.print(advice, soft_wrap=True)


def _rank(item: tuple[Change, int]) -> int:
    return list(type(item[0])).index(item[0])


def _line(screen: Console, finding: Finding) -> None:
    from rich.text import Text

    path, was, cipher_path = _shown(finding)
    name = finding.change.value
    line = Text(f"{name:<{_WIDTH}}", _COLOURS.get(name, ""))
    if was:
        line.append(f"{was} -> ")
    line.append(path or f"{cipher_path or '?'} (in the vault)", "bold")
    if finding.detail:
        line.append(f"  ({finding.detail})", "dim")
    screen.print(line, soft_wrap=True)


def _answer_json(verification: Verification) -> None:
    """One document, written as it comes: there may be more findings than memory holds."""
    created = verification.head.created
    sys.stdout.write(f'{{\n  "manifest": {{"created": {created}, "entries": {verification.entries_then}}},')
    sys.stdout.write('\n  "findings": [')
    first = True
    for finding in verification.run():
        path, was, cipher_path = _shown(finding)
        fields: dict[str, Any] = {
            "change": finding.change.value,
            "alarm": finding.change.alarms,
            "path": path or None,
            "was": was or None,
            "cipher_path": cipher_path or None,
            "detail": finding.detail,
        }
        sys.stdout.write(("" if first else ",") + "\n    " + json.dumps(fields, ensure_ascii=False))
        first = False
    totals, counts = verification.totals, verification.counts
    summary = {
        "entries": totals.entries,
        "unsettled": totals.unsettled,
        "skipped": len(totals.skipped),
        "counts": {change.value: count for change, count in sorted(counts.items(), key=_rank) if count},
    }
    sys.stdout.write(("" if first else "\n  ") + f'],\n  "summary": {json.dumps(summary)}\n}}\n')
