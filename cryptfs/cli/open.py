"""`cryptfs open`."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, NothingTypedError, UsageProblem
from cryptfs.cli.knownvaults import KnownVault, forget_vault, found_vault, known_vaults, remember_vault
from cryptfs.cli.mount import mount_vault
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.output import answer_json, note, warn
from cryptfs.cli.params import PLACE, Settings, debug_option, shell_word, shown
from cryptfs.cli.terminal import has_terminal
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.cli.dialogs import Dialogs

_OTHER = "Another vault ..."


def place_for(vault_dir: Path) -> Path:
    """Where a vault is mounted if nobody says: ~/Vaults/NAME, which file managers show in their side bar.

    NAME is that of the vault, with a number if that is taken.

    Raises: UsageProblem: there is no home directory.
    """
    from cryptfs.mount.mounts import absolute, mount_at

    home = os.path.expanduser("~")
    if not home.startswith("/") or not os.path.isdir(home):
        raise UsageProblem("there is no home directory for the mountpoint; choose one with --at")
    name = absolute(vault_dir).name.lstrip(".") or "vault"  # file managers hide names with a dot
    for number in itertools.count(1):
        place = Path(home, "Vaults", name if number == 1 else f"{name} {number}")
        if mount_at(place) is not None:
            continue
        if not os.path.lexists(place):
            return place
        with contextlib.suppress(OSError):
            if not os.listdir(place):
                return place
            if absolute(place) != absolute(vault_dir):
                warn(f"{shown(place)} has files that are not encrypted; the vault goes to another place")
    raise AssertionError


def mounted_at(vault_dir: Path) -> Path | None:
    """Where a vault is mounted now."""
    from cryptfs.mount.closing import mountpoint_of
    from cryptfs.mount.mounts import is_stale, mounts_of
    from cryptfs.vfs.vault import lock_holder

    holder = lock_holder(vault_dir)
    if holder is not None:
        place = mountpoint_of(vault_dir, holder)
        return None if place is None else Path(place)
    places = [Path(mount.mountpoint) for mount in mounts_of(vault_dir)]
    return next((place for place in places if not is_stale(place)), None)


@command()
@click.argument("vault", type=KnownVault(), metavar="[VAULT]", required=False)
@click.option("--at", type=PLACE, metavar="MOUNTPOINT", help="Mount there.  [default: ~/Vaults/NAME]")
@click.option("-r", "--read-only", is_flag=True, help="Refuse every change.")
@click.option(
    "--window/--no-window", default=None, help="Ask in a window.  [default: only without a terminal]"
)
@click.option(
    "--browse/--no-browse",
    "browses",
    default=None,
    help="Show the files in the file manager.  [default: with --window]",
)
@click.option("--list", "lists", is_flag=True, help="List the vaults that were opened before.")
@click.option("--json", "as_json", is_flag=True, help="With --list: print JSON.")
@click.option("--forget", is_flag=True, help="Take VAULT from that list; nothing else happens to it.")
@unlock_options
@debug_option
@click.pass_context
def open(
    ctx: click.Context,
    vault: Path | None,
    at: Path | None,
    read_only: bool,
    window: bool | None,
    browses: bool | None,
    lists: bool,
    as_json: bool,
    forget: bool,
    source: OfferSource,
) -> None:
    """Open VAULT as a desktop does: mount it at a good place, and remember it.

    VAULT is a directory, the file cryptfs.json in it, or the name of a vault that was opened before. If it is
    mounted already, this only says where.

    Without VAULT it lists the vaults that were opened before; with --window you choose one of them. The
    passphrase is asked for in a window (zenity or kdialog) if there is no terminal.

    To close it: cryptfs umount MOUNTPOINT, or the eject button of the file manager.
    """
    if lists or (vault is None and (forget or not _wants_window(window))):
        if forget:
            raise click.UsageError("--forget needs a VAULT", ctx)
        _list(as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--json works only with --list", ctx)
    if forget and vault is not None:
        _forget(vault)
        return
    dialogs = _dialogs() if _wants_window(window) else None
    try:
        chosen = _chosen(dialogs) if vault is None else found_vault(vault)
        if chosen is None:
            return
        settings = ctx.ensure_object(Settings)
        settings.vault = chosen
        place = _open(chosen, at, source, dialogs, read_only=read_only, debug=settings.debug)
    except NothingTypedError:
        raise
    except (CryptfsError, CommandError, OSError) as error:
        if dialogs is not None:
            dialogs.error(_text_of(error))
        raise
    if browses or (browses is None and dialogs is not None):
        from cryptfs.cli.dialogs import browse

        browse(place)


def _wants_window(window: bool | None) -> bool:
    from cryptfs.cli.dialogs import has_display

    return (has_display() and not has_terminal()) if window is None else window


def _dialogs() -> Dialogs:
    from cryptfs.cli.dialogs import Dialogs

    return Dialogs()


def _text_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str) else ""
        return f"{shown(name)}: {error.strerror}" if name else error.strerror
    return str(error)


def _chosen(dialogs: Dialogs | None) -> Path | None:
    """The vault that a person chooses in windows."""
    assert dialogs is not None
    vaults = [each for each in known_vaults() if each.is_dir()]
    number = dialogs.choose(vaults, _OTHER) if vaults else 0
    if number is None:
        return None
    return vaults[number] if number < len(vaults) else dialogs.directory()


def _open(
    vault: Path,
    at: Path | None,
    source: OfferSource,
    dialogs: Dialogs | None,
    *,
    read_only: bool,
    debug: bool,
) -> Path:
    """Mount a vault, if it is not mounted yet; returns the mountpoint. Raises: what mount_vault raises."""
    from cryptfs.cli.vaults import config_of
    from cryptfs.mount.daemon import LogTarget
    from cryptfs.mount.options import MountOptions

    config_of(vault)  # it is a vault, or the person hears now what it is
    there = mounted_at(vault)
    if there is not None:
        remember_vault(vault)
        note(f"{shown(vault)} is open already, at {shown(there)}.")
        return there
    if dialogs is not None and source.passphrase.is_empty and source.passphrase.askpass is None:
        source = replace(
            source, passphrase=replace(source.passphrase, window=dialogs.passphrase(vault.absolute()))
        )
    place = place_for(vault) if at is None else at.absolute()
    made = _made(place.parent)
    try:
        mount_vault(
            vault,
            place,
            MountOptions(read_only=read_only),
            source,
            LogTarget(None, debug),
            foreground=False,
            quiet=dialogs is not None,
        )
    except BaseException:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise
    remember_vault(vault)
    return place


def _made(place: Path) -> list[Path]:
    """Make a directory and those above it; returns the new ones, the deepest first. Raises: OSError."""
    new = list(itertools.takewhile(lambda each: not os.path.lexists(each), (place, *place.parents)))
    for directory in reversed(new):
        directory.mkdir(mode=0o700)
    return new


def _list(*, as_json: bool) -> None:
    found = [(each, mounted_at(each) if each.is_dir() else None, each.is_dir()) for each in known_vaults()]
    if as_json:
        fields = [
            {"vault": shown(vault), "mountpoint": None if place is None else shown(place), "found": is_there}
            for vault, place, is_there in found
        ]
        answer_json({"vaults": fields})
        return
    if not found:
        note("No vault was opened yet. Open one with: cryptfs open DIRECTORY")
    for vault, place, is_there in found:
        state = "" if place is None else f" on {shown(place)}"
        click.echo(f"{shown(vault)}{state}" if is_there else f"{shown(vault)} (not found)")


def _forget(vault: Path) -> None:
    given = found_vault(vault)
    if not forget_vault(given):
        raise UsageProblem(f"{shown(given)} is not in the list; `cryptfs open --list` shows it")
    note(f"{shown(given)} is forgotten. Open it again with: cryptfs open {shell_word(given)}")
