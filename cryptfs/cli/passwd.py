"""`cryptfs passwd`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from cryptfs.cli.exit_codes import ConfigUnwritableError
from cryptfs.cli.output import note
from cryptfs.cli.params import (
    PLACE,
    debug_option,
    kdf_costs,
    kdf_options,
    passphrase_options,
    passphrase_source,
    vault_argument,
)
from cryptfs.cli.prompt import forget, harden_process, read_passphrase
from cryptfs.cli.vaults import config_of


@click.command()
@vault_argument
@passphrase_options
@click.option(
    "--new-passfile",
    type=PLACE,
    metavar="FILE",
    help="Read the new passphrase from the first line of FILE.",
)
@click.option(
    "--new-passcommand", metavar="COMMAND", help="Run COMMAND and take what it prints as the new one."
)
@kdf_options
@debug_option
@click.pass_context
def passwd(
    ctx: click.Context,
    vault: Path,
    passfile: Path | None,
    passcommand: str | None,
    new_passfile: Path | None,
    new_passcommand: str | None,
    kdf_memory: int | None,
    kdf_passes: int | None,
) -> None:
    """Change the passphrase of VAULT; works while it is mounted.

    The files stay as they are: what changes is the wrapping of their masterkey. Somebody who has an old
    copy of the vault's config can still open it with the old passphrase.
    """
    source = passphrase_source(ctx, passfile, passcommand)
    new_source = passphrase_source(ctx, new_passfile, new_passcommand)
    memory, passes = kdf_costs(ctx, kdf_memory, kdf_passes)
    config_of(vault)
    harden_process()
    old = read_passphrase(source, "Old passphrase")
    new = read_passphrase(new_source, "New passphrase", confirm=True)
    from cryptfs.vfs.vault import change_passphrase

    try:
        slot = change_passphrase(vault.absolute(), old, new, kdf_memory=memory, kdf_passes=passes)
    except OSError as error:
        raise ConfigUnwritableError(
            f"{error.filename or vault}: cannot write the vault config: {error.strerror}; "
            "the old passphrase still holds"
        ) from None
    finally:
        forget(old, new)
    note(f"The passphrase of {vault} is changed (key slot {slot}).")
