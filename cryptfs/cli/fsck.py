"""`cryptfs fsck`."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.offers import OfferSource, say_opened, unlock_options, with_offer
from cryptfs.cli.output import SCHEMA, console, json_text, say, with_paths
from cryptfs.cli.params import (
    debug_option,
    leave_to_findings,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.progress import progress_bar
from cryptfs.cli.vaults import config_of, naming, refuse_locked

if TYPE_CHECKING:
    from rich.console import Console

    from cryptfs.fsck.check import VaultCheck
    from cryptfs.fsck.findings import Counts, Finding
    from cryptfs.fsck.lost_found import LostAndFound
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.vault import Vault

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_INDENT = 9


class Tally:
    """Counts findings by severity and by what became of them."""

    def __init__(self) -> None:
        self.by_severity: Counter[str] = Counter()
        self.repaired = self.remaining = self.repairable = self.set_aside = self.kept_by_mounts = 0

    def add(self, finding: Finding) -> None:
        """Count one."""
        self.by_severity[finding.severity.value] += 1
        self.repaired += finding.state == "repaired"
        self.remaining += finding.remains
        self.repairable += bool(finding.remedy)
        in_lost_found = (finding.plain_path or b"").startswith(b"lost+found/")
        self.set_aside += finding.kind == "set-aside" and in_lost_found
        self.kept_by_mounts += finding.kind == "set-aside" and not in_lost_found

    def as_json(self) -> dict[str, int]:
        """The field `summary` of `fsck --json`."""
        severities = {severity: self.by_severity[severity] for severity in _COLOURS}
        return {**severities, "repaired": self.repaired, "remaining_errors": self.remaining}


class _Text:
    """Text for a person. Explains each kind once, with its first finding."""

    def __init__(self, screen: Console, *, names: bool, repair: bool) -> None:
        self._screen = screen
        self._names = names
        self._repair = repair
        self._explained: set[str] = set()

    def _line(self, text: str, style: str = "") -> None:
        from rich.text import Text

        self._screen.print(Text(text, style), soft_wrap=True)

    def _below(self, text: str, style: str = "") -> None:
        """A line that belongs to a finding, in lines as long as the terminal is wide."""
        from rich.text import Text

        for line in Text(with_paths(text), style).wrap(
            self._screen, max(self._screen.width - _INDENT, _INDENT)
        ):
            line.rstrip()
            self._screen.print(Text(" " * _INDENT).append_text(line), soft_wrap=True)

    def finding(self, finding: Finding) -> None:
        from rich.text import Text

        severity = finding.severity.value
        path = f"{finding.cipher_path} (in the vault)"
        if self._names and finding.plain_path is not None:
            path = shown(finding.plain_path) or "/"
        head = Text(f"{severity:<9}", _COLOURS[severity])
        head.append(path, "bold")
        head.append(f"  [{finding.kind.value}]", "dim")
        self._screen.print(head, soft_wrap=True)
        if finding.kind not in self._explained:
            self._explained.add(finding.kind)
            self._below(finding.meaning)
            if finding.remedy and not self._repair:
                self._below(f"--repair: {finding.remedy}", "dim")
        if finding.detail:
            self._below(finding.detail, "dim")
        if finding.done and (self._names or finding.state == "failed"):
            self._below(finding.done, "green" if finding.state == "repaired" else "bold red")
        elif finding.done:
            self._below("repaired", "green")
        if self._names and finding.plain_path and severity != "info":
            self._screen.print(
                Text(f"{'':<{_INDENT}}in the vault: {finding.cipher_path}", "dim"), soft_wrap=True
            )

    def end(
        self, vault: Path, counts: Counts, tally: Tally, lost_found: LostAndFound | None, *, deep: bool
    ) -> None:
        if sum(tally.by_severity.values()):
            self._line("")
        self._line(f"Checked {_counts_text(counts, deep=deep)}.")
        found = tally.by_severity
        if not found["error"] and not found["warning"]:
            aside, kept = tally.set_aside, tally.kept_by_mounts
            self._line("No errors." if aside or kept else "Everything is in order.", "green")
            verb = "is" if aside == 1 else "are"
            if aside:
                items = _number(aside, "damaged item")
                self._line(f"{items} set aside by an earlier repair {verb} in lost+found in the vault.")
            if kept:
                self._line(f"{_number(kept, 'damaged file')} of earlier mounts: see above.")
        elif self._repair:
            verb = "remains" if tally.remaining == 1 else "remain"
            left = f"{_number(tally.remaining, 'error')} {verb}." if tally.remaining else "No errors remain."
            style = "bold red" if tally.remaining else "green"
            self._line(f"{_findings_text(found)}; {tally.repaired} repaired. {left}", style)
            if lost_found is not None and (lost_found.has_report or lost_found.has_entries):
                parts = (
                    (lost_found.has_report, "a report"),
                    (lost_found.has_entries, "all that was set aside"),
                )
                there = " and ".join(words for is_there, words in parts if is_there)
                self._line(f"lost+found in the vault has {there}.")
        else:
            style = "bold red" if found["error"] else "yellow"
            self._line(f"{_findings_text(found)}. Nothing was changed.", style)
            if tally.repairable:
                options = "--repair --deep" if deep else "--repair"
                self._line(f"To repair as much as possible: cryptfs fsck {options} {shell_word(vault)}")
        if not deep:
            self._line("File contents were not checked; --deep checks them.", "dim")


class _Json:
    """One JSON document, written as it comes: a vault may have more findings than memory."""

    def __init__(self, *, names: bool) -> None:
        self._names = names
        self._first = True

    def begin(self, **fields: object) -> None:
        head = json_text(fields, indent=2).removesuffix("\n}")
        sys.stdout.write(head + ',\n  "findings": [')

    def finding(self, finding: Finding) -> None:
        fields: dict[str, Any] = {
            "severity": finding.severity.value,
            "kind": finding.kind.value,
            "state": finding.state.value,
            "cipher_path": finding.cipher_path,
        }
        if self._names:
            path = finding.plain_path
            fields["plain_path"] = None if path is None else shown(path)
        fields |= {"meaning": finding.meaning, "detail": finding.detail, "remedy": finding.remedy}
        if self._names or finding.state == "failed":
            fields["done"] = finding.done
        sys.stdout.write(("" if self._first else ",") + "\n    " + json_text(fields))
        self._first = False

    def end(self, counts: Counts, tally: Tally) -> None:
        checked = {
            "directories": counts.directories,
            "files": counts.files,
            "symlinks": counts.symlinks,
            "others": counts.others,
            "bytes": counts.size,
            "bytes_opened": counts.size_checked,
        }
        tail = json_text({"checked": checked, "summary": tally.as_json()}, indent=2)
        sys.stdout.write(("" if self._first else "\n  ") + "]," + tail.removeprefix("{") + "\n")


def _number(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def _findings_text(found: Counter[str]) -> str:
    words = (("error", "error"), ("warning", "warning"), ("info", "remark"))
    return ", ".join(_number(found[severity], word) for severity, word in words if found[severity])


def _counts_text(counts: Counts, *, deep: bool) -> str:
    parts = [
        f"{counts.directories:,} director{'y' if counts.directories == 1 else 'ies'}",
        _number(counts.files, "file"),
    ]
    if counts.symlinks:
        parts.append(_number(counts.symlinks, "symlink"))
    if counts.others:
        parts.append(_number(counts.others, "other"))
    size = f"{counts.size / 10**6:,.1f} MB" if counts.size < 10**9 else f"{counts.size / 10**9:,.1f} GB"
    return f"{', '.join(parts)} ({size}{', every chunk' if deep else ''})"


@contextlib.contextmanager
def _progress(
    vault: Vault, answer: Console, *, deep: bool, as_json: bool
) -> Iterator[Callable[[Counts], None]]:
    """A bar on stderr, on a terminal only; yields a function to call when counts change.

    If the answer also goes to a terminal, the bar is there, below the printed lines; never in JSON.
    """
    screen = console(stderr=True)
    drawn = screen.is_terminal and not (as_json and answer.is_terminal)
    where = answer if answer.is_terminal else screen
    with progress_bar(where if drawn else None, "counting" if deep else "") as bar:
        if drawn and deep:
            from cryptfs.fsck.check import count_content

            bar.expect(max(count_content(vault), 1))

        def update(counts: Counts) -> None:
            if bar.is_due():
                words = _number(counts.entries, "entry").replace("entrys", "entries")
                if deep:
                    words += f", {counts.size_checked / 10**6:,.0f} MB"
                bar.show(words, counts.size_checked if deep else None)

        yield update


def _run(check: VaultCheck, show: Callable[[Finding], None]) -> Tally:
    tally = Tally()
    with contextlib.closing(check.run()) as findings:
        for finding in findings:
            tally.add(finding)
            show(finding)
    return tally


@command()
@vault_argument
@click.option(
    "--repair", is_flag=True, help="Repair the damage, as far as possible; VAULT must not be mounted."
)
@click.option(
    "--other-machines",
    is_flag=True,
    help="With --repair: first save the synced data of crashed machines that will never mount VAULT again.",
)
@click.option("--deep", is_flag=True, help="Read and verify the whole content of every file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--no-names", is_flag=True, help="Show no readable names, only the names in the vault directory."
)
@unlock_options
@debug_option
@click.pass_context
def fsck(
    ctx: click.Context,
    vault: Path,
    repair: bool,
    other_machines: bool,
    deep: bool,
    as_json: bool,
    no_names: bool,
    source: OfferSource,
) -> ExitCode:
    """Check VAULT: every record, name, header and length, and with --deep every byte.

    Without --repair, fsck writes nothing, and works while VAULT is mounted. With --repair, it finishes or
    undoes interrupted operations and makes damaged files readable again. It moves entries without a place to
    the directory lost+found in the vault, and writes a report there. Copy a damaged vault before you repair
    it, if you can.

    A journal of another machine is not an error, because that machine may have the vault mounted. If it will
    never mount the vault again (for example, you moved the disk to a new computer), --repair --other-machines
    replays the journal.

    Exit code 0: no errors, or all repaired; 26: errors remain.
    """
    from cryptfs.mount.mounts import absolute

    if other_machines and not repair:
        raise click.UsageError("--other-machines works only with --repair", ctx)
    config = config_of(vault)
    if repair:
        refuse_locked(vault)
    leave_to_findings(ctx)
    from cryptfs.fsck.check import check_vault
    from cryptfs.vfs.content.redo import Durability
    from cryptfs.vfs.recovery.journals import forget_others, replay_others
    from cryptfs.vfs.vault import Vault, lock_holder

    def unlock(offer: Offer) -> Vault:
        return Vault.unlock(
            absolute(vault), offer, read_only=not repair, lock=repair, durability=Durability.OFF
        )

    with naming(vault):
        unlocked = with_offer(source, config, unlock)
    with unlocked as opened:
        say_opened(opened.config, opened.slot, opened.spelling)
        with naming(vault):
            others = replay_others(opened.context, opened.descriptor) if other_machines else []
        mounted = not repair and lock_holder(opened.vault_dir) is not None
        screen = console()
        with _progress(opened, screen, deep=deep, as_json=as_json) as on_progress:
            check = check_vault(
                opened, deep=deep, repair=repair, other_machines=other_machines, on_progress=on_progress
            )
            if as_json:
                answer = _Json(names=not no_names)
                answer.begin(
                    schema=SCHEMA, vault=shown(absolute(vault)), repair=repair, deep=deep, mounted=mounted
                )
                tally = _run(check, answer.finding)
            else:
                text = _Text(screen, names=not no_names, repair=repair)
                tally = _run(check, text.finding)
        if others:
            forget_others(opened.descriptor, others)
        if as_json:
            answer.end(check.counts, tally)
        else:
            if mounted:
                say("The vault is mounted: the length of files still being written was not checked.")
            text.end(vault, check.counts, tally, check.lost_found, deep=deep)
    return ExitCode.DAMAGE if tally.remaining else ExitCode.OK
