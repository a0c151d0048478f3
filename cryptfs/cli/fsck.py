"""`cryptfs fsck`."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from cryptfs.cli.exit_codes import ExitCode
from cryptfs.cli.output import console, note
from cryptfs.cli.params import (
    Settings,
    debug_option,
    passphrase_options,
    passphrase_source,
    shell_word,
    vault_argument,
)
from cryptfs.cli.prompt import harden_process, read_passphrase
from cryptfs.cli.vaults import config_of, refuse_locked

if TYPE_CHECKING:
    from rich.console import Console

    from cryptfs.vfs.check import VaultCheck
    from cryptfs.vfs.findings import Counts, Finding
    from cryptfs.vfs.vault import Vault

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_INDENT = 9
_REDRAW = 0.1  # seconds between changes of the progress bar


class Tally:
    """Counts findings by severity and by what became of them."""

    def __init__(self) -> None:
        self.by_severity: Counter[str] = Counter()
        self.repaired = self.remaining = self.repairable = self.set_aside = 0

    def add(self, finding: Finding) -> None:
        """Count one."""
        self.by_severity[finding.severity.value] += 1
        self.repaired += finding.state == "repaired"
        self.remaining += finding.remains
        self.repairable += bool(finding.remedy)
        self.set_aside += finding.kind == "set-aside"

    def as_json(self) -> dict[str, int]:
        """The field `summary` of `fsck --json`."""
        severities = {severity: self.by_severity[severity] for severity in _COLOURS}
        return {**severities, "repaired": self.repaired, "remaining_errors": self.remaining}


class _Text:
    """Tells a person: what a kind means is said once, with its first finding."""

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
        from rich.padding import Padding
        from rich.text import Text

        self._screen.print(Padding(Text(text, style), (0, 0, 0, _INDENT)))

    def finding(self, finding: Finding) -> None:
        from rich.text import Text

        from cryptfs.vfs.findings import escaped

        severity = finding.severity.value
        path = f"{finding.cipher_path} (in the vault)"
        if self._names and finding.plain_path is not None:
            path = escaped(finding.plain_path) or "/"
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

    def end(self, vault: Path, counts: Counts, tally: Tally, *, deep: bool) -> None:
        if sum(tally.by_severity.values()):
            self._line("")
        self._line(f"Checked {_counts_text(counts, deep=deep)}.")
        found = tally.by_severity
        if not found["error"] and not found["warning"]:
            aside = tally.set_aside
            self._line("No errors." if aside else "Everything is in order.", "green")
            if aside:
                self._line(f"{_number(aside, 'damaged thing')} from before, set aside in lost+found.")
        elif self._repair:
            verb = "remains" if tally.remaining == 1 else "remain"
            left = f"{_number(tally.remaining, 'error')} {verb}." if tally.remaining else "No errors remain."
            style = "bold red" if tally.remaining else "green"
            self._line(f"{_findings_text(found)}; {tally.repaired} repaired. {left}", style)
            if tally.repaired:
                self._line("What was set aside, and a report, are in lost+found in the vault.")
        else:
            style = "bold red" if found["error"] else "yellow"
            self._line(f"{_findings_text(found)}. Nothing was changed.", style)
            if tally.repairable:
                options = "--repair --deep" if deep else "--repair"
                self._line(f"To repair what can be repaired: cryptfs fsck {options} {shell_word(vault)}")
        if not deep:
            self._line("The content of files was not read through; --deep does that.", "dim")


class _Json:
    """One JSON document, written as it comes: a vault may have more findings than memory."""

    def __init__(self, *, names: bool) -> None:
        self._names = names
        self._first = True

    def begin(self, **fields: object) -> None:
        head = json.dumps(fields, indent=2, ensure_ascii=False).removesuffix("\n}")
        sys.stdout.write(head + ',\n  "findings": [')

    def finding(self, finding: Finding) -> None:
        from cryptfs.vfs.findings import escaped

        fields: dict[str, Any] = {
            "severity": finding.severity.value,
            "kind": finding.kind.value,
            "state": finding.state.value,
            "cipher_path": finding.cipher_path,
        }
        if self._names:
            path = finding.plain_path
            fields["plain_path"] = None if path is None else escaped(path)
        fields |= {"meaning": finding.meaning, "detail": finding.detail, "remedy": finding.remedy}
        if self._names or finding.state == "failed":
            fields["done"] = finding.done
        sys.stdout.write(("" if self._first else ",") + "\n    " + json.dumps(fields, ensure_ascii=False))
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
        tail = json.dumps({"checked": checked, "summary": tally.as_json()}, indent=2)
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
    """A bar on stderr, on a terminal only; gives what has to be called as counts change.

    Where the answer goes to a terminal, too, it is drawn there, below what is printed; not into JSON.
    """
    screen = console(stderr=True)
    if not screen.is_terminal or (as_json and answer.is_terminal):
        yield lambda _: None
        return
    if answer.is_terminal:
        screen = answer
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from cryptfs.vfs.check import count_content

    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(elapsed_when_finished=True))
    bar = Progress(*columns, console=screen, transient=True, redirect_stdout=False)
    drawn = 0.0
    with bar:
        task = bar.add_task("looking how much there is" if deep else "", total=None)
        if deep:
            bar.update(task, total=max(count_content(vault), 1))

        def update(counts: Counts) -> None:
            nonlocal drawn
            now = time.monotonic()
            if now - drawn < _REDRAW:
                return
            drawn = now
            words = _number(counts.entries, "entry").replace("entrys", "entries")
            if deep:
                words += f", {counts.size_checked / 10**6:,.0f} MB"
            bar.update(task, description=words, completed=counts.size_checked if deep else None)

        yield update


def _run(check: VaultCheck, show: Callable[[Finding], None]) -> Tally:
    tally = Tally()
    with contextlib.closing(check.run()) as findings:
        for finding in findings:
            tally.add(finding)
            show(finding)
    return tally


@click.command()
@vault_argument
@click.option("--repair", is_flag=True, help="Mend what can be mended; VAULT must not be mounted.")
@click.option(
    "--other-machines",
    is_flag=True,
    help="With --repair: first save what machines that will not come back had synced before they crashed.",
)
@click.option("--deep", is_flag=True, help="Read and verify the whole content of every file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--no-names", is_flag=True, help="Show no plaintext names, only those in the vault.")
@passphrase_options
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
    passfile: Path | None,
    passcommand: str | None,
) -> ExitCode:
    """Check VAULT: every record, name, header and length, and with --deep every byte.

    Writes nothing, and works while VAULT is mounted. With --repair it finishes or undoes what was
    interrupted, and saves what can be read of what is damaged; what has no place any more goes to the
    directory lost+found in the vault, with a report. Make a copy of a damaged vault first, if you can.

    A journal that another machine left is information only: the vault may be mounted there. Where it is not,
    and never will be again, such as after a disk moved from one computer to another, --repair
    --other-machines replays it.

    Exit code 0: no errors, or all are repaired; 26: errors remain.
    """
    from cryptfs.mount.mounts import absolute

    source = passphrase_source(ctx, passfile, passcommand)
    if other_machines and not repair:
        raise click.UsageError("--other-machines only goes with --repair", ctx)
    config_of(vault)
    if repair:
        refuse_locked(vault, read_only=False)
    if not ctx.ensure_object(Settings).debug:
        logging.getLogger("cryptfs").addHandler(logging.NullHandler())  # what it says, the findings say
    harden_process()
    passphrase = read_passphrase(source)
    from cryptfs.vfs.check import check_vault
    from cryptfs.vfs.journals import forget_others, replay_others
    from cryptfs.vfs.redo import Durability
    from cryptfs.vfs.vault import Vault, lock_holder

    unlocked = Vault.unlock(
        absolute(vault), passphrase, read_only=not repair, lock=repair, durability=Durability.OFF
    )
    with unlocked as opened:
        del passphrase
        others = replay_others(opened.context, opened.descriptor) if other_machines else []
        mounted = not repair and lock_holder(opened.vault_dir) is not None
        screen = console()
        with _progress(opened, screen, deep=deep, as_json=as_json) as on_progress:
            check = check_vault(opened, deep=deep, repair=repair, on_progress=on_progress)
            if as_json:
                answer = _Json(names=not no_names)
                answer.begin(vault=str(absolute(vault)), repair=repair, deep=deep, mounted=mounted)
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
                note("The vault is mounted: files that are being written were not judged by their length.")
            text.end(vault, check.counts, tally, deep=deep)
    return ExitCode.DAMAGE if tally.remaining else ExitCode.OK
