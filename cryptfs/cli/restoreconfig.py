"""`cryptfs recovery restore-config`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ConfigUnwritableError, UsageProblem
from cryptfs.cli.keyslots import check_label_text
from cryptfs.cli.newsecret import Cost, NewPassphrase, cost_options, new_passphrase_options
from cryptfs.cli.output import note, say, warn
from cryptfs.cli.params import PLACE, debug_option, shown, vault_argument
from cryptfs.cli.recoverywords import RecoverySource, recovery_options, recovery_source, with_recovery
from cryptfs.cli.terminal import stdin_is_terminal
from cryptfs.cli.vaults import require_writable
from cryptfs.errors import NoKeyError, RecoveryRecordError, VaultError

if TYPE_CHECKING:
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.restore import Restorable


@command("restore-config")
@vault_argument
@click.option(
    "--record", type=PLACE, metavar="FILE", help="Use this copy if VAULT has no usable recovery record."
)
@click.option("--force", is_flag=True, help="Replace an existing config, whatever its state.")
@click.option("--label", default="", metavar="TEXT", help="A name for the new passphrase's key slot.")
@recovery_options
@new_passphrase_options
@cost_options(memory="256m", passes="3")
@debug_option
def restore_config(
    vault: Path,
    record: Path | None,
    force: bool,
    label: str,
    new: NewPassphrase,
    cost: Cost,
    **given: Any,
) -> None:
    """Make a lost or damaged config of VAULT again, with recovery words or shares.

    The command needs the file cryptfs.recovery in VAULT, or a copy of it, and sets a new passphrase. Key
    slots of the lost config are gone. Without an option it asks for the words.
    """
    source = recovery_source(given)
    if not source.is_given:
        source = RecoverySource(words=True)
    from cryptfs.storage.vaultdir import open_vault_dir

    check_label_text(label)
    memory, passes = cost.choose()
    os.close(open_vault_dir(vault))
    require_writable(vault)
    copy = _read_copy(record)
    if copy is None:
        _require_record(vault)
    from cryptfs.vfs.restore import restorable

    def restore(offer: Offer) -> None:
        with restorable(vault, offer, copy=copy, force=force) as found:
            _say_found(vault, found, force=force)
            with new.read() as passphrase:
                try:
                    found.write(passphrase, label=label, kdf_memory=memory, kdf_passes=passes)
                except ValueError as error:
                    raise UsageProblem(str(error)) from None
                except OSError as error:
                    raise ConfigUnwritableError(
                        f"{shown(vault)}: cannot write the vault config: {error.strerror}"
                    ) from None
            names = ", ".join(held.about.name for held in found.secrets)
            note(
                f"The config of {shown(vault)} is back. The vault opens with the new passphrase, and with "
                f"{names}."
            )

    with_recovery(source, restore)


def _read_copy(record: Path | None) -> bytes | None:
    """The bytes of a copy that a person kept. Raises: CommandError; RecoveryRecordError: of other content."""
    from cryptfs.core.slots.recovery import MAX_RECORD_SIZE, RecoveryRecord

    if record is None:
        return None
    try:
        with record.open("rb") as file:
            content = file.read(MAX_RECORD_SIZE + 1)
        RecoveryRecord.unpack(content)
    except OSError as error:
        raise CommandError(f"{shown(record)}: cannot be read: {error.strerror}") from None
    except RecoveryRecordError:
        raise RecoveryRecordError(f"{shown(record)} is damaged, or is no recovery record") from None
    return content


def _require_record(vault: Path) -> None:
    """Before somebody types words for nothing. Raises: NoKeyError: the vault has no record."""
    from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME

    if not any(os.path.lexists(vault / name) for name in (RECOVERY_NAME, NEXT_RECOVERY_NAME)):
        raise NoKeyError(
            f"{shown(vault)} has no {RECOVERY_NAME}, and without it recovery words and shares open nothing. "
            "If you have a copy of that file, give it with --record FILE"
        )


def _say_found(vault: Path, found: Restorable, *, force: bool) -> None:
    """Say what was found, and let a person decide where not all of it belongs to the record.

    Raises: VaultError: off a terminal, without --force; or the person declines.
    """
    if found.added:
        warn(
            f"the recovery record is older than the vault, so these features were added: "
            f"{', '.join(found.added)}"
        )
    if not found.is_mixed or force:
        return
    text = (
        f"{found.unverified} of {found.verified + found.unverified} names in {shown(vault)} are not sealed "
        "with the masterkey of the record. They are damaged, or the masterkey was being changed, and these "
        "words are from before"
    )
    if not stdin_is_terminal():
        raise VaultError(f"{text}. Nothing was written; to restore the config anyway, give --force")
    say(f"{text}.")
    if not click.confirm("Restore the config from this record?", err=True):
        raise VaultError("nothing was written")
