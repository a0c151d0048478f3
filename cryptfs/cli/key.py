"""`cryptfs key`: the key slots of a vault, listed, removed, named and tried. keyadd.py adds one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import group
from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.info import slot_fields, slot_text
from cryptfs.cli.keyadd import add
from cryptfs.cli.keyslots import (
    SLOT_ID,
    change_slots,
    check_label_text,
    find_slot,
    json_option,
    slot_answer,
)
from cryptfs.cli.offers import OfferSource, say_opened, slot_name, unlock_options, with_offer
from cryptfs.cli.output import answer_json, note
from cryptfs.cli.params import debug_option, help_if_alone, shown, vault_argument
from cryptfs.cli.vaults import config_of

if TYPE_CHECKING:
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.unlock.table import SlotTable

STILL_OPENS = (
    "It still opens older copies of cryptfs.json: in backups, in snapshots, and in old versions in a "
    "cloud. To prevent that: cryptfs rekey VAULT"
)


@group(invoke_without_command=True)
@debug_option
@click.pass_context
def key(ctx: click.Context) -> None:
    """List, add, remove, name and test the key slots of a vault.

    A key slot is one way to open the vault: a passphrase, a key file, both together, a FIDO2 token, or an age
    identity. Each slot opens the whole vault. These commands work while the vault is mounted.
    """
    help_if_alone(ctx)


key.add_command(add)

_slot_argument = click.argument("slot_id", type=SLOT_ID, metavar="ID")


@key.command(name="list")
@vault_argument
@json_option
@debug_option
def list_slots(vault: Path, as_json: bool) -> None:
    """List the key slots of VAULT.

    The command needs no passphrase, so it cannot authenticate the list.
    """
    from cryptfs.mount.mounts import absolute
    from cryptfs.storage.userstate import recall

    config = config_of(vault)
    last = recall(config.vault_id).slot
    if as_json:
        slots = [slot_fields(slot) | {"opened_last": slot.id == last} for slot in config.slots]
        answer_json({"vault": shown(absolute(vault)), "slots": slots})
        return
    for slot in config.slots:
        mark = "; opened last on this machine" if slot.id == last else ""
        click.echo(f"{slot.id:>3}  {slot_text(slot_fields(slot))}{mark}")


@key.command()
@vault_argument
@_slot_argument
@click.option("--force", is_flag=True, help="Remove the slot even if you opened VAULT with it.")
@json_option
@unlock_options
@debug_option
def remove(vault: Path, slot_id: int, force: bool, as_json: bool, source: OfferSource) -> None:
    """Remove key slot ID from VAULT.

    Open VAULT with another key slot, so that you can still open it afterwards. You cannot remove the last
    slot.

    The removed slot still opens older copies of the vault's config: in backups, in snapshots, and in old
    versions in a cloud. Only cryptfs rekey prevents that.
    """
    config = config_of(vault)
    find_slot(config, slot_id)

    def take_away(table: SlotTable) -> KeySlot:
        if table.opened_id == slot_id and not force and len(config.slots) > 1:
            raise UsageProblem(
                f"you opened the vault with key slot {slot_id} itself. Open it with another slot, for "
                "example with --slot, so that you can still open it afterwards; or use --force"
            )
        return table.remove(slot_id)

    gone = change_slots(vault, config, source, take_away, avoided=slot_id)
    if as_json:
        answer_json(slot_answer(vault, gone))
    note(f"Removed {slot_name(gone)} from {shown(vault)}. {STILL_OPENS}")


@key.command()
@vault_argument
@_slot_argument
@click.argument("text", metavar="TEXT")
@json_option
@unlock_options
@debug_option
def label(vault: Path, slot_id: int, text: str, as_json: bool, source: OfferSource) -> None:
    """Give key slot ID of VAULT the label TEXT; an empty TEXT removes the label."""
    config = config_of(vault)
    find_slot(config, slot_id)
    check_label_text(text)
    slot = change_slots(vault, config, source, lambda table: table.relabel(slot_id, text))
    if as_json:
        answer_json(slot_answer(vault, slot))
    note(f"Changed the label: {slot_name(slot)}.")


@key.command()
@vault_argument
@click.argument("slot_id", type=SLOT_ID, metavar="[ID]", required=False)
@json_option
@unlock_options
@debug_option
def test(vault: Path, slot_id: int | None, as_json: bool, source: OfferSource) -> None:
    """Say which key slot opens VAULT, or whether key slot ID opens it. The command changes nothing.

    Exit code 12: no slot opens it.
    """
    from cryptfs.vfs.vault import which_opens

    config = config_of(vault)
    if slot_id is not None:
        find_slot(config, slot_id)
    opened = with_offer(source.trying(slot_id), config, lambda offer: which_opens(vault.absolute(), offer))
    say_opened(config, None, opened.spelling)
    slot = opened.slot
    if slot is None:
        assert opened.recovery is not None
        if as_json:
            answer = {"vault": shown(vault.absolute()), "recovery": opened.recovery.recovery_id.hex()}
            answer_json(answer | {"identity": opened.mark.code})
        else:
            click.echo(f"{opened.by[0].upper()}{opened.by[1:]} opens {shown(vault)}.")
    elif as_json:
        answer_json(slot_answer(vault, slot) | {"identity": opened.mark.code})
    else:
        name = slot_name(slot)
        click.echo(f"{name[0].upper()}{name[1:]} opens {shown(vault)}.")
        click.echo(f"The identity of the vault is {opened.mark.code}.")
