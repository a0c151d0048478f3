"""`cryptfs passwd`."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.keyslots import writing_config
from cryptfs.cli.newsecret import (
    Cost,
    NewPassphrase,
    cost_options,
    cost_text,
    new_key,
    new_passphrase_options,
)
from cryptfs.cli.offers import (
    MAX_SLOT_ID,
    OfferSource,
    key_file_of,
    say_opened,
    slot_name,
    unlock_options,
    with_offer,
)
from cryptfs.cli.output import note
from cryptfs.cli.params import PLACE, Number, debug_option, shown, vault_argument
from cryptfs.cli.vaults import config_of, require_writable
from cryptfs.errors import VaultError

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.table import SlotTable

LEAKED = (
    "If the old passphrase leaked, this does not help: it still opens older copies of cryptfs.json, in "
    "backups, snapshots and clouds. To prevent that: cryptfs rekey VAULT"
)


@command()
@vault_argument
@unlock_options
@new_passphrase_options
@click.option(
    "--new-keyfile",
    type=PLACE,
    metavar="FILE",
    help="For a key slot with passphrase and key file: use FILE from now on.  [default: the same file]",
)
@click.option(
    "--change-slot",
    type=Number(0, MAX_SLOT_ID),
    metavar="ID",
    help="Change the forgotten passphrase of key slot ID; open VAULT with another key.",
)
@cost_options(memory="as it is", passes="as they are")
@debug_option
def passwd(
    vault: Path,
    source: OfferSource,
    new: NewPassphrase,
    new_keyfile: Path | None,
    change_slot: int | None,
    cost: Cost,
) -> None:
    """Change the passphrase of VAULT. This works while VAULT is mounted.

    The command replaces the passphrase with which you open VAULT. Other key slots, the masterkey and the
    files stay the same.

    If a passphrase leaked, passwd is not enough: an old copy of the vault's config still opens with the old
    passphrase, until cryptfs rekey changes the masterkey. If you open VAULT with recovery words, shares or
    another key without a passphrase, the command replaces its only passphrase.
    """
    config = config_of(vault)
    require_writable(vault)
    from cryptfs.unlock.keyfile import PASSPHRASE_KEY_FILE
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.table import changing_slots
    from cryptfs.vfs.vault import which_opens

    def change(old: Offer) -> KeySlot:
        opened = which_opens(vault.absolute(), old)
        say_opened(config, opened.slot, opened.spelling)  # before a person thinks up a new one
        target = _target(config, opened.slot, change_slot)
        costs = cost.choose(_cost_of(target))
        again = old if opened.slot is None else replace(old, slot_id=opened.slot.id)
        with contextlib.ExitStack() as stack:
            key_file = None
            if target.kind == PASSPHRASE_KEY_FILE:
                key_file = (
                    old.key_file if new_keyfile is None else stack.enter_context(key_file_of(new_keyfile))
                )
            elif new_keyfile is not None:
                raise UsageProblem(f"{slot_name(target)} takes no key file")
            passphrase = stack.enter_context(new.beside(source.passphrase).read())
            table = stack.enter_context(changing_slots(vault.absolute(), again))
            return _changed(table, target, Offer(passphrase, key_file), costs)

    with writing_config(vault, "the old passphrase still works"):
        slot = with_offer(source, config, change, "Old passphrase" if change_slot is None else "Passphrase")
    memory, passes = _cost_of(slot)
    note(
        f"The passphrase of {shown(vault)} is changed (key slot {slot.id}; a try costs "
        f"{cost_text(memory, passes)}).\n{LEAKED}"
    )


def _target(config: VaultConfig, opened: KeySlot | None, slot_id: int | None) -> KeySlot:
    """The slot to change. Raises: UsageProblem: it is not clear which, or it has no passphrase."""
    from cryptfs.unlock.table import slot_to_change

    try:
        return slot_to_change(config, opened, slot_id)
    except VaultError as error:
        raise UsageProblem(str(error)) from None


def _cost_of(slot: KeySlot) -> tuple[int, int]:
    from cryptfs.core.slots.kdf import PassphraseCost

    cost = PassphraseCost.from_params(slot.params, slot.name)
    return cost.memory, cost.passes


def _changed(table: SlotTable, target: KeySlot, new: Offer, costs: tuple[int, int]) -> KeySlot:
    """Give the slot its new secret, on disk."""
    from cryptfs.unlock.keyfile import PASSPHRASE_KEY_FILE, new_passphrase_key_file
    from cryptfs.unlock.passphrase import new_passphrase

    if target.kind == PASSPHRASE_KEY_FILE:
        if new.key_file is None:
            raise UsageProblem(f"{slot_name(target)} also takes a key file: give it with --new-keyfile")
        key = new_key(lambda: new_passphrase_key_file(new, *costs))
    else:
        assert new.passphrase is not None
        key = new_passphrase(new.passphrase, *costs)
    slot = table.replace(target.id, key)
    table.save()
    return slot
