"""What the commands of `cryptfs key` share: finding, changing and showing key slots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.exit_codes import ConfigUnwritableError, UsageProblem
from cryptfs.cli.info import slot_fields
from cryptfs.cli.offers import MAX_SLOT_ID, OfferSource, say_opened, with_offer
from cryptfs.cli.params import Number, shown
from cryptfs.cli.vaults import require_writable

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.table import SlotTable

SLOT_ID = Number(0, MAX_SLOT_ID)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def change_slots(
    vault: Path,
    config: VaultConfig,
    source: OfferSource,
    change: Callable[[SlotTable], KeySlot],
    *,
    avoided: int | None = None,
) -> KeySlot:
    """Unlock a vault, change its slots, and write them; returns what `change` returns.

    Args:   avoided: try this slot after the others.
    Raises: ConfigUnwritableError: nothing was changed.   The errors of with_offer and of `change`.
    """
    from cryptfs.unlock.table import changing_slots

    require_writable(vault)

    def work(offer: Offer) -> KeySlot:
        if avoided is not None and offer.first in (None, avoided):
            others = [slot.id for slot in config.slots if slot.id != avoided]
            offer = replace(offer, first=others[0] if others else None)
        with changing_slots(vault.absolute(), offer) as table:
            say_opened(table.config, table.opened.slot, table.opened.spelling)
            changed = change(table)
            table.save()
            return changed

    with writing_config(vault):
        return with_offer(source, config, work)


@contextlib.contextmanager
def writing_config(vault: Path, unchanged: str = "nothing was changed") -> Iterator[None]:
    """Errors of the disk while the config is replaced. unchanged: what it means that the old one is there.

    Raises: ConfigUnwritableError.
    """
    from cryptfs.storage.vaultdir import NotDurableError

    try:
        yield
    except NotDurableError as error:
        raise ConfigUnwritableError(
            f"{shown(vault)}: the vault config is changed, but the disk reported an error after that: "
            f"{error.strerror}. After a loss of power the old config may be there again"
        ) from None
    except OSError as error:
        raise ConfigUnwritableError(
            f"{shown(vault)}: cannot write the vault config: {error.strerror}; {unchanged}"
        ) from None


def find_slot(config: VaultConfig, slot_id: int) -> KeySlot:
    """Raises: UsageProblem: the vault has no such slot."""
    for slot in config.slots:
        if slot.id == slot_id:
            return slot
    raise UsageProblem(f"the vault has no key slot {slot_id}. To list them: cryptfs key list VAULT")


def check_label_text(text: str) -> None:
    """Raises: UsageProblem: a key slot cannot have such a label."""
    from cryptfs.core.slots.checks import MAX_LABEL_SIZE, check_label
    from cryptfs.errors import VaultConfigError

    try:
        check_label(text, "the key slot")
    except (VaultConfigError, UnicodeEncodeError):
        raise UsageProblem(
            f"a label has at most {MAX_LABEL_SIZE} bytes of UTF-8, and no control characters"
        ) from None


def slot_answer(vault: Path, slot: KeySlot) -> dict[str, Any]:
    """The fields of an answer in JSON about one slot."""
    from cryptfs.mount.mounts import absolute

    return {"vault": shown(absolute(vault)), "slot": slot_fields(slot)}
