"""`cryptfs recovery`: words and shares that open a vault, and a config that comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import group
from cryptfs.cli.exit_codes import CommandError, ConfigUnwritableError, UsageProblem
from cryptfs.cli.newfile import refuse_no_file, writing
from cryptfs.cli.offers import OfferSource, say_opened, unlock_options, with_offer
from cryptfs.cli.output import answer_json, note, warn
from cryptfs.cli.params import PLACE, Number, debug_option, help_if_alone, shell_word, shown, vault_argument
from cryptfs.cli.recoverywords import give_shares, give_words, require_place
from cryptfs.cli.restoreconfig import restore_config
from cryptfs.cli.vaults import config_of, is_inside, require_writable
from cryptfs.errors import RecoveryRecordError, UnsupportedFormatError, VaultError

if TYPE_CHECKING:
    from cryptfs.core.slots.recovery import RecoveryRecord, RecoverySecret
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.recovering import HeldSecret, RecoveryTable


@group(invoke_without_command=True)
@debug_option
@click.pass_context
def recovery(ctx: click.Context) -> None:
    """Open a vault without its passphrase: with words or shares on paper.

    They also rebuild a lost vault config, from the file cryptfs.recovery in the vault or a copy of it.
    """
    help_if_alone(ctx)


def _change(vault: Path, offer: Offer, change: Callable[[RecoveryTable], None]) -> None:
    """Open the vault, change its recovery secrets, and save them."""
    from cryptfs.unlock.recovering import opened_recovery

    with opened_recovery(vault.absolute(), offer) as table:
        say_opened(table.config, table.opened.slot, table.opened.spelling)
        if table.lost:
            warn("the vault lists words and shares that no recovery record has; they open nothing")
        change(table)
        try:
            table.save()
        except OSError as error:
            raise ConfigUnwritableError(
                f"{shown(vault)}: cannot be written: {error.strerror}; either the old or the new ones work. "
                f"To see which: cryptfs recovery list {shell_word(vault)}"
            ) from None


def _replace(table: RecoveryTable, held: HeldSecret, *, keep: bool) -> list[str]:
    """Put a new secret in the place of those of its kind; returns the names of those that end."""
    ended = [each for each in table.secrets if each.kind is held.about.kind and not keep]
    names = [table.remove(each.recovery_id.hex()) for each in ended]
    table.add(held)
    return names


def give_anew(vault: Path, offer: Offer, ended: Sequence[RecoverySecret], shown_ids: list[str]) -> None:
    """After a change of the masterkey: new words for old words, and new shares for old shares, at a terminal.

    Args:   offer: opens the vault.   ended: what the vault had before.
            shown_ids: gets the id of each new secret, in hex, before a person sees the secret.
    Raises: PassphraseUnreadableError: a person did not repeat them; those before it are in force.
    """
    from cryptfs.core.slots.recovery import RecoveryKind
    from cryptfs.unlock.recovering import draw_secret, opened_recovery

    for about in ended:
        held = draw_secret(about.kind, about.needed, about.shares)
        with opened_recovery(vault.absolute(), offer) as table:
            table.add(held)
            shown_ids.append(held.about.recovery_id.hex())
            give = give_words if about.kind is RecoveryKind.WORDS else give_shares
            give(held, vault, None)
            table.save()
        note(f"{shown(vault)} now opens with {held.about.name}.")


def _say_done(vault: Path, held: HeldSecret, ended: list[str]) -> None:
    note(f"{shown(vault)} now opens with {held.about.name}.")
    _say_ended(ended)
    note(
        "They need the file cryptfs.recovery of the vault. Keep a copy of it: "
        f"cryptfs recovery export {shell_word(vault)} FILE"
    )


def _say_ended(ended: list[str]) -> None:
    if ended:
        names = ", ".join(ended)
        note(
            f"{names[0].upper()}{names[1:]} no longer open it. They still open older copies of the vault. "
            "To prevent that: cryptfs rekey VAULT"
        )


_output_option = click.option(
    "--output",
    type=PLACE,
    metavar="FILE",
    help="Write them to a new file (shares: to a new directory) instead of showing them.",
)
_keep_option = click.option("--keep", is_flag=True, help="Let the old ones work as well.")


@recovery.command()
@vault_argument
@_output_option
@_keep_option
@unlock_options
@debug_option
def words(vault: Path, output: Path | None, keep: bool, source: OfferSource) -> None:
    """Make new recovery words for VAULT. This works while VAULT is mounted.

    The command shows the 24 words once, at a terminal. They open VAULT, and rebuild its config. Old words
    stop working.
    """
    require_place(vault, output)
    config = config_of(vault)
    require_writable(vault)
    from cryptfs.core.slots.recovery import RecoveryKind
    from cryptfs.unlock.recovering import draw_secret

    def make(offer: Offer) -> None:
        held, ended = draw_secret(RecoveryKind.WORDS), []

        def change(table: RecoveryTable) -> None:
            ended.extend(_replace(table, held, keep=keep))
            give_words(held, vault, output)

        _change(vault, offer, change)
        _say_done(vault, held, ended)

    with_offer(source, config, make)


@recovery.command()
@vault_argument
@click.option(
    "--needed",
    type=Number(2, 16),
    required=True,
    metavar="K",
    help="The number of shares that together open VAULT.",
)
@click.option(
    "--of", "count", type=Number(2, 16), required=True, metavar="N", help="The number of shares to make."
)
@_output_option
@_keep_option
@unlock_options
@debug_option
def shares(
    vault: Path, needed: int, count: int, output: Path | None, keep: bool, source: OfferSource
) -> None:
    """Make N shares for VAULT. Any K of them open it. This works while VAULT is mounted.

    Give the shares to different people or places. Fewer than K shares reveal nothing. Old shares stop
    working.
    """
    if needed > count:
        raise UsageProblem("--needed cannot be larger than --of")
    require_place(vault, output, is_directory=True)
    config = config_of(vault)
    require_writable(vault)
    from cryptfs.core.slots.recovery import RecoveryKind
    from cryptfs.unlock.recovering import draw_secret

    def make(offer: Offer) -> None:
        held, ended = draw_secret(RecoveryKind.SHARES, needed, count), []

        def change(table: RecoveryTable) -> None:
            ended.extend(_replace(table, held, keep=keep))
            give_shares(held, vault, output)

        _change(vault, offer, change)
        _say_done(vault, held, ended)

    with_offer(source, config, make)


def record_of(vault: Path) -> RecoveryRecord | None:
    """The vault's record, not authenticated; None if there is none. Raises: RecoveryRecordError."""
    import os

    from cryptfs.core.slots.checks import RECOVERY_NAME
    from cryptfs.core.slots.recovery import RecoveryRecord
    from cryptfs.storage.recovery import read_record_file
    from cryptfs.storage.vaultdir import open_vault_dir

    vault_fd = open_vault_dir(vault)
    try:
        raw = read_record_file(vault_fd, RECOVERY_NAME)
    finally:
        os.close(vault_fd)
    return None if raw is None else RecoveryRecord.unpack(raw)


def _describe(vault: Path) -> dict[str, Any]:
    """All that a vault shows of its words and shares; the shape of `recovery list --json`."""
    from cryptfs.core.slots.recovery import RecoveryKind

    config = config_of(vault)
    state, known = "missing", []
    try:
        record = record_of(vault)
        if record is not None:
            known = list(record.secrets)
            is_ours = record.vault_id.hex() == config.vault_id
            fits = is_ours and (config.version == 1 or record.ids == config.recovery)
            state = "present" if fits else "other"
    except (RecoveryRecordError, UnsupportedFormatError):
        state = "damaged"
    by_id = {each.recovery_id.hex(): each for each in known if state == "present"}
    secrets = []
    for recovery_id in by_id if config.version == 1 else config.recovery:
        about = by_id.get(recovery_id)
        found: dict[str, Any] = {
            "id": recovery_id,
            "kind": None if about is None else about.kind.name.lower(),
        }
        if about is not None and about.kind is RecoveryKind.SHARES:
            found |= {"needed": about.needed, "shares": about.shares}
        secrets.append(found)
    return {
        "vault": shown(vault.absolute()),
        "record": state if secrets or known else "none",
        "secrets": secrets,
    }


@recovery.command("list")
@vault_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def list_(vault: Path, as_json: bool) -> None:
    """List the recovery words and shares of VAULT, by their ids.

    The command needs no passphrase, so it cannot authenticate the list.
    """
    found = _describe(vault)
    if as_json:
        answer_json(found)
        return
    for each in found["secrets"]:
        kind = each["kind"] or "words or shares that are in no record"
        numbers = f", {each['needed']} of {each['shares']}" if "needed" in each else ""
        click.echo(f"{each['id'][:8]}  {kind}{numbers}")
    if not found["secrets"]:
        note(
            f"{shown(vault)} has no recovery words or shares. To make some: "
            f"cryptfs recovery words {shell_word(vault)}"
        )
    elif found["record"] != "present":
        warn(
            f"the file cryptfs.recovery in {shown(vault)} is {found['record']}: these open nothing. Put a "
            "copy of it back, or make new ones"
        )


@recovery.command()
@vault_argument
@click.argument("recovery_id", metavar="ID")
@click.option("--force", is_flag=True, help="Remove them even if you opened VAULT with them.")
@unlock_options
@debug_option
def remove(vault: Path, recovery_id: str, force: bool, source: OfferSource) -> None:
    """Remove recovery words or shares from VAULT. ID is the beginning of their id.

    If you remove the last ones, the file cryptfs.recovery goes as well, and you cannot rebuild a lost config.
    """
    if not recovery_id:
        raise UsageProblem("the ID is empty. To list the ids: cryptfs recovery list VAULT")
    config = config_of(vault)
    require_writable(vault)

    def take_out(offer: Offer) -> None:
        names = []

        def change(table: RecoveryTable) -> None:
            names.append(table.remove(recovery_id))
            if table.opened.recovery is not None and table.opened.recovery.name == names[0] and not force:
                raise VaultError(
                    f"you opened the vault by {names[0]}. Open it with another key, so that you can still "
                    "open it afterwards, or use --force"
                )

        _change(vault, offer, change)
        _say_ended(names)

    with_offer(source, config, take_out)


@recovery.command()
@vault_argument
@click.argument("file", type=PLACE, metavar="FILE")
@debug_option
def export(vault: Path, file: Path) -> None:
    """Copy the recovery record of VAULT to FILE, to keep it away from VAULT.

    Together with the words or enough shares, it opens VAULT and rebuilds its config. Alone, it opens nothing.
    Make a new copy after new words, new shares or an upgrade. FILE may be an older copy, but no other
    existing file.
    """
    from cryptfs.core.slots.checks import RECOVERY_NAME

    if is_inside(vault, file):
        raise UsageProblem(
            f"{shown(file)} is in the vault itself, and would be lost with it. Choose a place elsewhere"
        )
    found = _describe(vault)
    refuse_no_file(file)
    if found["record"] != "present":
        state = found["record"].replace("none", "missing")
        raise CommandError(
            f"{shown(vault)}: its {RECOVERY_NAME} is {state}; make words first: "
            f"cryptfs recovery words {shell_word(vault)}"
        )
    try:
        raw = (vault / RECOVERY_NAME).read_bytes()
    except OSError as error:
        raise CommandError(f"{shown(vault / RECOVERY_NAME)}: {error.strerror}") from None
    _refuse_other_file(file, raw)
    with writing(file) as write:
        write(raw)
    note(f"{shown(file)} is a copy of the recovery record of {shown(vault)}.")


def _refuse_other_file(file: Path, record: bytes) -> None:
    """A newer copy replaces an older one, and nothing else. Raises: UsageProblem: something else is there."""
    from cryptfs.core.slots.recovery import MAX_RECORD_SIZE, RecoveryRecord

    if not file.is_file() or not file.stat().st_size:
        return
    with contextlib.suppress(OSError, RecoveryRecordError, UnsupportedFormatError):
        with file.open("rb") as old:
            there = RecoveryRecord.unpack(old.read(MAX_RECORD_SIZE + 1))
        if there.vault_id == RecoveryRecord.unpack(record).vault_id:
            return
    raise UsageProblem(
        f"{shown(file)} exists, and is not a copy of the recovery record of this vault. Choose another name"
    )


recovery.add_command(restore_config)
