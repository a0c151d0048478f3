"""`cryptfs snapshot` and `cryptfs verify`: a witness against old versions put back."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ExitCode, UsageProblem
from cryptfs.cli.newfile import refuse_no_file, writing
from cryptfs.cli.offers import OfferSource, say_opened, unlock_options, with_offer
from cryptfs.cli.output import SCHEMA, console, json_text, note, say, warn
from cryptfs.cli.params import (
    PLACE,
    debug_option,
    leave_to_findings,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.progress import progress_bar
from cryptfs.cli.vaults import config_of, is_inside, naming
from cryptfs.errors import ManifestError

if TYPE_CHECKING:
    from rich.console import Console

    from cryptfs.vfs.vault import Vault
    from cryptfs.witness.comparison import Change
    from cryptfs.witness.verification import Difference, Totals, Verification

_COLOURS = {"rolled-back": "bold red", "replaced": "bold red", "copied": "bold red", "damaged": "red"}
_WIDTH = 13
_COPY_SIZE = 1024 * 1024


def _look_at(ctx: click.Context, vault: Path, source: OfferSource) -> Vault:
    """The vault, unlocked without a lock and for reading only."""
    from cryptfs.mount.mounts import absolute

    config = config_of(vault)
    leave_to_findings(ctx)
    from cryptfs.vfs.vault import Vault

    with naming(vault):
        opened = with_offer(
            source, config, lambda offer: Vault.unlock(absolute(vault), offer, read_only=True, lock=False)
        )
    say_opened(opened.config, opened.slot, opened.spelling)
    return opened


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, on a terminal only."""
    with progress_bar(console(stderr=True), "0 entries", total) as bar:

        def update(count: int) -> None:
            if bar.is_due():
                bar.show(f"{count:,} entries", count)

        yield update


def _warn_of(totals: Totals, one: str, many: str) -> None:
    """one, many: what was not done with files that are being written."""
    for path, reason in totals.skipped[:10]:
        warn(f"{path}: could not be checked: {reason}")
    if len(totals.skipped) > 10:
        warn(f"{_places(len(totals.skipped) - 10, ' more')} could not be checked")
    if totals.unsettled == 1:
        say(f"1 file was being written: {one}")
    elif totals.unsettled:
        say(f"{totals.unsettled:,} files were being written: {many}")


def _places(count: int, more: str = "") -> str:
    return f"1{more} place" if count == 1 else f"{count:,}{more} places"


@command()
@vault_argument
@click.option("-o", "--output", type=PLACE, metavar="FILE", help="Write to FILE instead of stdout.")
@click.option("--replace", is_flag=True, help="If FILE is an older manifest, replace it.")
@unlock_options
@debug_option
@click.pass_context
def snapshot(
    ctx: click.Context,
    vault: Path,
    output: Path | None,
    replace: bool,
    source: OfferSource,
) -> None:
    """Write a manifest of VAULT: a record of its state now, for `cryptfs verify` later.

    Keep the manifest in a place to which an attacker on VAULT cannot write. It is encrypted, opens with the
    passphrase of VAULT, and contains no file content: about 150 bytes for each file. The command works while
    VAULT is mounted, and writes nothing there.
    """
    if output is None and sys.stdout.isatty():
        raise UsageProblem("the manifest is binary: redirect stdout to a file, or use --output FILE")
    if output is not None:
        config_of(vault)
        _check_output(vault, output, replace=replace)
    with _look_at(ctx, vault, source) as opened, contextlib.ExitStack() as stack:
        from cryptfs.witness.verification import snapshot as take

        update = stack.enter_context(_progress(None))
        to_stdout: Callable[[bytes], object] = sys.stdout.buffer.write
        write = to_stdout if output is None else stack.enter_context(writing(output))
        totals = take(opened, write, update)
        if output is None:
            sys.stdout.flush()
    entries = f"{totals.entries:,} {'entry' if totals.entries == 1 else 'entries'}"
    note(f"Wrote {'the manifest' if output is None else shown(output)}: {entries}.")
    _warn_of(
        totals,
        "the manifest records that it exists, not its content",
        "the manifest records that they exist, not their content",
    )


def _check_output(vault: Path, output: Path, *, replace: bool) -> None:
    """Refuse a place in which a manifest helps nobody, or which holds something, before the passphrase.

    Raises: UsageProblem.
    """
    from cryptfs.core.format.manifest import is_manifest
    from cryptfs.mount.mounts import absolute

    place = absolute(output)
    if is_inside(vault, output):
        raise UsageProblem(
            f"{shown(output)} is in the vault itself, so an old copy of the vault would contain an old "
            "manifest. Choose a place elsewhere"
        )
    refuse_no_file(output)
    if not place.is_file() or not place.stat().st_size:
        return
    with contextlib.suppress(OSError), place.open("rb") as file:
        if is_manifest(file.read(_COPY_SIZE)):
            if replace:
                return
            compare = f"cryptfs verify {shell_word(vault)} {shell_word(output)}"
            raise UsageProblem(
                f"{shown(output)} exists. Compare the vault with it first: {compare}\n"
                "Then replace it with --replace, or choose another name"
            )
    raise UsageProblem(f"{shown(output)} exists, and is not a manifest. Choose another name")


@command()
@vault_argument
@click.argument("manifest", type=PLACE, metavar="MANIFEST")
@click.option("--changed", is_flag=True, help="Also list the files that changed, not only their number.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unlock_options
@debug_option
@click.pass_context
def verify(
    ctx: click.Context,
    vault: Path,
    manifest: Path,
    changed: bool,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """Say how VAULT has changed since `cryptfs snapshot` wrote MANIFEST.

    "rolled-back", "replaced" and "copied" mean that somebody changed VAULT without a key; no program on a
    mount can do that. "deleted", "added", "moved" and "changed" may be your own work. Works while VAULT is
    mounted.

    Exit code 41: something was rolled back, replaced or copied; 26: something is damaged; 0: neither.
    """
    config_of(vault)
    with _opened(manifest) as file, _look_at(ctx, vault, source) as opened, _naming(manifest):
        from cryptfs.witness.verification import Verification

        with _progress(None) as update:
            verification = Verification(opened, file, update, list_changed=changed)
        with contextlib.closing(verification):
            with _progress(verification.entries_then) as update:
                verification.look(update)
            if as_json:
                _answer_json(verification)
            else:
                _answer_text(verification, has_listed=changed)
        _warn_of(
            verification.totals,
            "its current content was not compared",
            "their current content was not compared",
        )
        if verification.skipped_then:
            say(f"The snapshot could not check {_places(verification.skipped_then)}.")
    return _exit_code(verification.counts)


@contextlib.contextmanager
def _naming(manifest: Path) -> Iterator[None]:
    """Errors of a manifest say which file it is."""
    try:
        yield
    except ManifestError as error:
        raise ManifestError(f"{shown(manifest)}: {error}") from None


def _exit_code(counts: Counter[Change]) -> ExitCode:
    from cryptfs.witness.comparison import Change

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
            raise CommandError(f"{shown(manifest)}: cannot read the manifest: {error.strerror}") from None
        if not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile(prefix="cryptfs-"))
            while piece := file.read(_COPY_SIZE):
                copy.write(piece)
            file = copy
        yield file


# ---- answers


def _shown(finding: Difference) -> tuple[str, str, str]:
    """Path, path before, cipher path: as text that is fit for a terminal."""
    path = "" if finding.path is None else shown(finding.path)
    return path, "" if finding.was is None else shown(finding.was), finding.cipher_path


def _answer_text(verification: Verification, *, has_listed: bool) -> None:
    """has_listed: whether changed files are among the findings."""
    from cryptfs.witness.comparison import Change

    screen = console()
    for finding in verification.run():
        _line(screen, finding)
    counts = verification.counts
    parts = [f"{count:,} {change.value}" for change, count in sorted(counts.items(), key=_rank) if count]
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(verification.head.created))
    then, now = verification.entries_then, verification.totals.entries
    screen.print(f"Manifest of {made}. Entries: {then:,} then, {now:,} now.", soft_wrap=True)
    text = ", ".join(parts) if parts else "Nothing has changed"
    if counts[Change.CHANGED] and not has_listed:
        text += " (--changed lists what changed)"
    alarming = _exit_code(counts) is ExitCode.ROLLED_BACK
    screen.print(f"{text}.", style="bold red" if alarming else "", soft_wrap=True)
    if alarming:
        advice = (
            "No program on a mount can do that: somebody changed the vault's files, restored a backup, or "
            "repaired damage with fsck."
        )
        screen.print(advice, soft_wrap=True)


def _rank(item: tuple[Change, int]) -> int:
    return list(type(item[0])).index(item[0])


def _line(screen: Console, finding: Difference) -> None:
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
    """One document, written finding by finding: there may be more than memory holds."""
    head = {"created": verification.head.created, "entries": verification.entries_then}
    sys.stdout.write(f'{{\n  "schema": {SCHEMA},\n  "manifest": {json_text(head)},')
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
        sys.stdout.write(("" if first else ",") + "\n    " + json_text(fields))
        first = False
    totals, counts = verification.totals, verification.counts
    summary = {
        "entries": totals.entries,
        "unsettled": totals.unsettled,
        "skipped": len(totals.skipped),
        "counts": {change.value: count for change, count in sorted(counts.items(), key=_rank) if count},
    }
    sys.stdout.write(("" if first else "\n  ") + f'],\n  "summary": {json_text(summary)}\n}}\n')
