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
from cryptfs.cli.exit_codes import CommandError, NothingTypedError, NoWindowError, UsageProblem
from cryptfs.cli.knownvaults import KnownVault, forget_vault, found_vault, known_vaults, remember_vault
from cryptfs.cli.mount import mount_vault
from cryptfs.cli.mounted import places_of
from cryptfs.cli.offers import OfferSource, unlock_options
from cryptfs.cli.openwith import leave_directories
from cryptfs.cli.output import answer_json, note, warn
from cryptfs.cli.params import (
    PLACE,
    Settings,
    config_file,
    debug_option,
    named_vault,
    shell_word,
    shown,
)
from cryptfs.cli.terminal import has_terminal
from cryptfs.cli.vaults import config_of
from cryptfs.cli.wishes import Wish, wish_from_config
from cryptfs.errors import CryptfsError, NotAVaultError

if TYPE_CHECKING:
    from cryptfs.cli.configfile import NamedVault
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
                warn(f"{shown(place)} has files that are not encrypted, so the vault is mounted elsewhere")
    raise AssertionError


def mounted_at(vault_dir: Path) -> Path | None:
    """Where a vault is mounted now."""
    from cryptfs.mount.closing import mountpoint_of
    from cryptfs.mount.mounts import is_stale
    from cryptfs.vfs.vault import lock_holder

    holder = lock_holder(vault_dir)
    if holder is not None:
        place = mountpoint_of(vault_dir, holder)
        return None if place is None else Path(place)
    return next((place for place in places_of(vault_dir) if not is_stale(place)), None)


@command()
@click.argument("vault", type=KnownVault(), metavar="[VAULT]", required=False)
@click.option("--at", type=PLACE, metavar="MOUNTPOINT", help="Mount VAULT there.  [default: ~/Vaults/NAME]")
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
@click.option("--forget", is_flag=True, help="Remove VAULT from that list; the vault itself does not change.")
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
    """Open VAULT as a desktop does: mount it where file managers show it, and remember it.

    VAULT is a directory, the file cryptfs.json in it, a name from the config file, or the name of a vault
    that was opened before. The options in the config file count as for cryptfs mount. If VAULT is already
    mounted, the command only says where.

    Without VAULT, the command lists the vaults that were opened before; with --window, you choose one of
    them. If there is no terminal, a window (zenity or kdialog) asks for the passphrase.

    To close VAULT, run cryptfs umount MOUNTPOINT, or use the eject button of the file manager.
    """
    if lists or (vault is None and (forget or not _wants_window(window))):
        if vault is not None:
            raise click.UsageError("--list takes no VAULT: it lists all vaults", ctx)
        if forget:
            raise click.UsageError("--forget needs a VAULT", ctx)
        _list(as_json=as_json)
        return
    if as_json:
        raise click.UsageError("--json works only with --list", ctx)
    if forget and vault is not None:
        _forget(_meant(ctx, vault))
        return
    in_windows, dialogs = _wants_window(window), None
    try:
        dialogs = _dialogs() if in_windows else None
        chosen = _chosen(ctx, dialogs) if vault is None else _meant(ctx, vault)
        if chosen is None:
            return
        ctx.ensure_object(Settings).vault = chosen
        _require_vault(chosen)
        named = config_file(ctx).at(chosen) if vault is None else _named(ctx, vault, chosen)
        if at is None and named is not None:
            at = named.mountpoint
        place = _open(chosen, at, wish_from_config(ctx, source, named), dialogs)
    except (NothingTypedError, NoWindowError):
        raise
    except (CryptfsError, CommandError, OSError, click.ClickException) as error:
        if dialogs is not None:
            dialogs.error(_text_of(error))
        raise
    finally:
        if in_windows:
            leave_directories()
    if browses or (browses is None and dialogs is not None):
        from cryptfs.cli.dialogs import browse

        browse(place)


def _wants_window(window: bool | None) -> bool:
    from cryptfs.cli.dialogs import has_display

    return (has_display() and not has_terminal()) if window is None else window


def _dialogs() -> Dialogs:
    from cryptfs.cli.dialogs import Dialogs, notify

    try:
        return Dialogs()
    except NoWindowError as error:
        if not has_terminal():  # a double click: nobody reads stderr
            notify(str(error))
        raise


def _text_of(error: Exception) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, OSError) and error.strerror:
        name = error.filename if isinstance(error.filename, str) else ""
        return f"{shown(name)}: {error.strerror}" if name else error.strerror
    return str(error)


def _meant(ctx: click.Context, given: Path) -> Path:
    """The vault that a word of the command line means. Raises: UsageProblem: several could be meant."""
    named = named_vault(ctx, str(given))
    return found_vault(given) if named is None else named.vault


def _require_vault(vault: Path) -> None:
    """It is a vault, or the person hears now what it is. Raises: NotAVaultError; what config_of raises."""
    if len(vault.parts) == 1 and not os.path.lexists(vault):  # a word, which may be meant as a name
        raise NotAVaultError(
            f"{shown(vault)} is neither a directory here nor the name of a vault that was opened before; "
            "`cryptfs open --list` shows those"
        )
    config_of(vault)


def _named(ctx: click.Context, given: Path, vault: Path) -> NamedVault | None:
    """What the config file says of a vault, which a person has given by that name, or by its path."""
    return named_vault(ctx, str(given)) or config_file(ctx).at(vault)


def _chosen(ctx: click.Context, dialogs: Dialogs | None) -> Path | None:
    """The vault that a person chooses in windows: a known one, one of the config file, or another."""
    assert dialogs is not None
    named = [each.vault for each in config_file(ctx).vaults.values()]
    vaults = [each for each in dict.fromkeys([*known_vaults(), *named]) if each.is_dir()]
    number = dialogs.choose(vaults, _OTHER) if vaults else 0
    if number is None:
        return None
    return vaults[number] if number < len(vaults) else dialogs.directory()


def _open(vault: Path, at: Path | None, wish: Wish, dialogs: Dialogs | None) -> Path:
    """Mount a vault, if it is not mounted yet; returns the mountpoint. Raises: what mount_vault raises."""
    there = mounted_at(vault)
    if there is not None:
        remember_vault(vault)
        note(f"{shown(vault)} is already open, at {shown(there)}.")
        return there
    source = wish.source if dialogs is None else _in_windows(wish.source, vault, dialogs)
    place = place_for(vault) if at is None else at.absolute()
    made = _made(place.parent)
    try:
        mount_vault(
            vault,
            place,
            wish.options,
            source,
            wish.target,
            foreground=False,
            quiet=wish.quiet or dialogs is not None,
        )
    except BaseException as error:
        for directory in made:
            with contextlib.suppress(OSError):
                directory.rmdir()
        if isinstance(error, CommandError) and mounted_at(vault) is not None:  # what ran after it has failed
            remember_vault(vault)
        raise
    remember_vault(vault)
    return place


def _in_windows(source: OfferSource, vault: Path, dialogs: Dialogs) -> OfferSource:
    """The same, with windows that ask. If only tokens open the vault, they are asked without an option."""
    from cryptfs.cli.tokens import WindowTokens
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.token import FIDO2
    from cryptfs.unlock.unlocking import takes_passphrase

    config = config_of(vault)
    if not source.has_more and any(slot.kind == FIDO2 for slot in config.slots):
        alone = not takes_passphrase(config, Offer(), beside=False)
        source = replace(source, fido2=alone)
    if source.passphrase.is_empty and source.passphrase.askpass is None:
        asks = dialogs.secret(f"The vault {shown(vault.absolute())}:")
        source = replace(source, passphrase=replace(source.passphrase, window=asks))
    return replace(source, tokens=WindowTokens(dialogs))


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
        how = "Open one with: cryptfs open DIRECTORY. Make one with: cryptfs init DIRECTORY"
        note(f"No vault has been opened yet. {how}")
    for vault, place, is_there in found:
        state = "" if place is None else f" on {shown(place)}"
        click.echo(f"{shown(vault)}{state}" if is_there else f"{shown(vault)} (not found)")


def _forget(given: Path) -> None:
    if not forget_vault(given):
        raise UsageProblem(f"{shown(given)} is not in the list of vaults. To show it: cryptfs open --list")
    note(f"{shown(given)} is no longer in the list. To open it again: cryptfs open {shell_word(given)}")
