"""`cryptfs recovery restore-config`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ConfigUnwritableError, UsageProblem
from cryptfs.cli.newsecret import Cost, NewPassphrase, cost_options, new_passphrase_options
from cryptfs.cli.output import note, say, warn
from cryptfs.cli.params import PLACE, debug_option, shown, vault_argument
from cryptfs.cli.recoverywords import RecoverySource, recovery_options, recovery_source, with_recovery
from cryptfs.cli.terminal import stdin_is_terminal
from cryptfs.cli.vaults import require_writable
from cryptfs.errors import VaultError

if TYPE_CHECKING:
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.restore import Restorable


@command("restore-config")
@vault_argument
@click.option("--record", type=PLACE, metavar="FILE", help="Use this copy if VAULT has no record that opens.")
@click.option("--force", is_flag=True, help="Replace a config that is there, whatever it is.")
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
    """Make a lost or damaged config of VAULT again, from recovery words or shares.

    The command needs the file cryptfs.recovery in VAULT, or a copy of it, and sets a new passphrase. Key
    slots of the lost config are gone. Without an option it asks for the words.
    """
    source = recovery_source(given)
    if not source.is_given:
        source = RecoverySource(words=True)
    memory, passes = cost.choose()
    require_writable(vault)
    copy = _read_copy(record)
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
            note(f"The config of {shown(vault)} is back. It opens by the new passphrase, and by {names}.")

    with_recovery(source, restore)


def _read_copy(record: Path | None) -> bytes | None:
    """The bytes of a copy that a person kept. Raises: CommandError."""
    from cryptfs.core.slots.recovery import MAX_RECORD_SIZE

    if record is None:
        return None
    try:
        with record.open("rb") as file:
            return file.read(MAX_RECORD_SIZE + 1)
    except OSError as error:
        raise CommandError(f"{shown(record)}: cannot be read: {error.strerror}") from None


def _say_found(vault: Path, found: Restorable, *, force: bool) -> None:
    """Say what was found, and let a person decide where not all of it belongs to the record.

    Raises: VaultError: off a terminal, without --force; or the person declines.
    """
    if found.added:
        warn(
            f"the recovery record is older than the vault: these features were added, which it needs: "
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
        raise VaultError(f"{text}. Nothing was written; with --force the config is restored all the same")
    say(f"{text}.")
    if not click.confirm("Restore the config from this record?", err=True):
        raise VaultError("nothing was written")
