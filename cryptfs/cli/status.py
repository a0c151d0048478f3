"""`cryptfs status`: what a mount has done, and what it found to be wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.mounted import MOUNTPOINT, only_mountpoint
from cryptfs.cli.output import answer_json, console, show
from cryptfs.cli.params import Seconds, debug_option, shown

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST = 12  # kinds of operations that are shown to a person
_WATCHED = 8  # findings that --watch shows


def ask(mountpoint: Path) -> dict[str, Any]:
    """What the daemon of a mount says of itself; the shape of `status --json`, with paths as they are.

    Raises: MountError: no vault is mounted there, or its daemon does not answer.
    """
    from cryptfs.mount.mounts import cryptfs_mount_at
    from cryptfs.mount.statistics import ask_status

    return ask_status(cryptfs_mount_at(mountpoint, "status"))


def _with_shown_paths(found: dict[str, Any]) -> dict[str, Any]:
    """What ask found, fit for JSON: a path may have bytes that are not text."""
    return found | {name: shown(found[name]) for name in ("mountpoint", "vault")}


def bytes_text(size: float) -> str:
    """'812 B', '4.2 KiB', '1.3 GiB': three figures are enough for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def duration_text(seconds: float) -> str:
    """'42 s', '3 min 5 s', '10 min', '2 h 10 min', '4 d 1 h'."""
    whole = int(seconds)
    for size, unit, small, small_size in (
        (86_400, "d", "h", 3600),
        (3600, "h", "min", 60),
        (60, "min", "s", 1),
    ):
        if whole >= size:
            rest = whole % size // small_size
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def counted(count: int, names: str) -> str:
    """'1 file', '2 files', '0 directories'. names: in the plural."""
    one = f"{names.removesuffix('ies')}y" if names.endswith("ies") else names.removesuffix("s")
    return f"{count:,} {one if count == 1 else names}"


def _rate(now: float, before: float | None, seconds: float, *, size: bool = False) -> str:
    """The increase per second since the last look; '' at the first look."""
    if before is None or seconds <= 0:
        return ""
    rate = (now - before) / seconds
    return f"{bytes_text(rate)}/s" if size else f"{rate:,.0f}/s"


def _rows(found: dict[str, Any], before: dict[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """(what, how much since the mount began, how much a second now)."""
    past = before or {"operations": {}, "errors": {}, "bytes": {}}
    seconds = found["uptime_seconds"] - past.get("uptime_seconds", 0.0)

    def rate(group: str, name: str, *, size: bool = False) -> str:
        known = None if before is None else past[group].get(name, 0)
        return _rate(found[group][name], known, seconds, size=size)

    for name in ("read", "written"):
        yield f"bytes {name}", bytes_text(found["bytes"][name]), rate("bytes", name, size=True)
    for name, count in list(found["operations"].items())[:_MOST]:
        yield shown(name), f"{count:,}", rate("operations", name)
    if (rest := sum(list(found["operations"].values())[_MOST:])) > 0:
        yield "other operations", f"{rest:,}", ""
    for name, count in found["errors"].items():
        yield f"error {shown(name)}", f"{count:,}", rate("errors", name)


def _heading(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    state = " (read-only)" if found["read_only"] else ""
    yield "mounted on", shown(found["mountpoint"]) + state
    yield "vault", shown(found["vault"])
    program = f"engine {shown(found['engine'])}, cryptfs {shown(found['version'])}"
    yield "daemon", f"process {found['pid']}, {program}"
    processor = f"{found['processor_seconds']:.1f} s of processor time"
    if "python" in found:  # a daemon of an older cryptfs does not say
        python = found["python"]
        yield (
            "Python",
            shown(python["version"]) + ("" if python["pgo"] else ", built without PGO: it is slower"),
        )
    yield "up for", f"{duration_text(found['uptime_seconds'])}, {processor}"
    if unmounts := _unmounts(found.get("unmounts", {})):
        yield "unmounts", unmounts
    if memory := found["memory"]:
        now, highest = (bytes_text(memory.get(name, 0)) for name in ("resident", "highest"))
        yield "memory", f"{now} resident, {highest} at its highest"
    yield "open", ", ".join(counted(count, shown(name)) for name, count in found["open"].items())
    cache = found.get("directory_cache", {})
    if looked := sum(cache.values()):
        yield "directory cache", f"{cache['hits']:,} of {counted(looked, 'lookups')} hit"


def _unmounts(told: dict[str, Any]) -> str:
    """When the mount goes by itself; '' if nobody asked for that, or the daemon is of an older cryptfs."""
    parts = []
    if (seconds := told.get("idle_seconds")) is not None:
        left = told["idle_left_seconds"]
        when = "; something is open now" if left is None else f": in {duration_text(left)}"
        parts.append(f"after {duration_text(seconds)} without use{when}")
    if reasons := told.get("on"):
        text = f"on {', '.join(map(shown, reasons))}"
        if told["waiting"]:
            text += ": as soon as no program uses it"
        elif told["detach_busy"]:
            text += ", even if programs use it"
        parts.append(text)
    return "; ".join(parts)


def finding_lines(found: dict[str, Any], most: int | None = None) -> Iterator[str]:
    """What the mount found to be wrong, the newest first; a line for each, by cipher path.

    Args: most: show so many; None is all.
    """
    findings = found.get("findings", [])  # a daemon of an older cryptfs has none
    if not findings:
        yield "No problems were found."
        return
    dropped = found.get("findings_dropped", 0)
    older = f"; {dropped:,} older ones are not kept" if dropped else ""
    yield f"Problems, the newest first (paths in the vault directory{older}):"
    for each in findings[:most]:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["last"]))
        where = shown(each["path"]) if each["path"] else ""
        where += f", chunk {each['chunk']}" if each["chunk"] is not None else ""
        times = f" ({each['count']:,} times)" if each["count"] > 1 else ""
        yield f"  {when}  {where}{': ' if where else ''}{shown(each['reason'])}{times}"
    if most is not None and len(findings) > most:
        yield f"  and {len(findings) - most} more"


def render(found: dict[str, Any], before: dict[str, Any] | None = None) -> RenderableType:
    """For a person. before: the look before this one, for what happens now."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    heading = Table.grid(padding=(0, 2))
    for name, value in _heading(found):
        heading.add_row(f"{name}:", Text(value))  # no markup: a path may have brackets
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=before is not None)
    table.add_column("")
    table.add_column("in all", justify="right")
    table.add_column("now", justify="right")
    for row in _rows(found, before):
        table.add_row(*map(Text, row))
    return Group(heading, "", table)


def watch(mountpoint: Path, interval: float, *, as_json: bool) -> None:
    """Look again and again until the mount is gone or somebody presses Ctrl-C.

    On a terminal each look takes the place of the one before; elsewhere each is text of its own.
    """
    found, before = ask(mountpoint), None
    if as_json or not console().is_terminal:
        while True:
            if as_json:
                answer_json(_with_shown_paths(found), indent=None)
            else:
                show_all(found, before)
            time.sleep(interval)
            found, before = ask(mountpoint), found
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(render(found), console=console(), auto_refresh=False) as live:
        while True:
            wrong = Text("\n".join(finding_lines(found, _WATCHED)), no_wrap=True, overflow="ellipsis")
            live.update(Group(render(found, before), "", wrong), refresh=True)
            time.sleep(interval)
            found, before = ask(mountpoint), found


def show_all(found: dict[str, Any], before: dict[str, Any] | None = None) -> None:
    """The numbers and all findings, as text; with `before`, an empty line ahead of them."""
    if before is not None:
        click.echo()
    show(render(found, before))
    click.echo()
    for line in finding_lines(found):
        click.echo(line)


@command()
@click.argument("mountpoint", type=MOUNTPOINT, metavar="[MOUNTPOINT]", required=False)
@click.option("-w", "--watch", "watching", is_flag=True, help="Show it live, until Ctrl-C.")
@click.option(
    "--interval",
    type=Seconds(0.1, 3600),
    metavar="SECONDS",
    help="Time between two looks of --watch.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; with --watch, a line for each look.")
@debug_option
@click.pass_context
def status(
    ctx: click.Context, mountpoint: Path | None, watching: bool, interval: float | None, as_json: bool
) -> None:
    """Show the work of the mount at MOUNTPOINT, and the damage that it found in the vault.

    Without MOUNTPOINT, the command shows the only mount, or lists all mounts. In place of MOUNTPOINT, you can
    give the name of a vault: one from the config file, or of a vault that was opened before.

    The command shows operations, bytes, errors, open files, memory, when cryptfs unmounts the vault by
    itself, and the last 64 findings, with their paths in the vault directory. It shows no readable file
    names. Only root and the user who mounted the vault can see this.
    """
    if interval is not None and not watching:
        raise click.UsageError("--interval works only with --watch", ctx)
    if mountpoint is None:
        mountpoint = only_mountpoint("status")
    if watching:
        with contextlib.suppress(KeyboardInterrupt):  # how it is meant to end
            watch(mountpoint, 1.0 if interval is None else interval, as_json=as_json)
    elif as_json:
        answer_json(_with_shown_paths(ask(mountpoint)))
    else:
        show_all(ask(mountpoint))
