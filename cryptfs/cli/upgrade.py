"""`cryptfs upgrade`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from cryptfs.cli.exit_codes import ConfigUnwritableError
from cryptfs.cli.output import answer_json, note
from cryptfs.cli.params import PLACE, debug_option, passphrase_options, passphrase_source, vault_argument
from cryptfs.cli.prompt import PassphraseSource, forget, harden_process, read_passphrase
from cryptfs.cli.vaults import config_of, refuse_locked


@click.command()
@vault_argument
@click.option(
    "--slot-passfile",
    "slot_passfiles",
    type=PLACE,
    metavar="FILE",
    multiple=True,
    help="Where VAULT has several key slots: read the passphrase of another one from FILE. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@passphrase_options
@debug_option
@click.pass_context
def upgrade(
    ctx: click.Context,
    vault: Path,
    slot_passfiles: tuple[Path, ...],
    as_json: bool,
    passfile: Path | None,
    passcommand: str | None,
) -> None:
    """Give VAULT, made by an earlier version, what new vaults have.

    From then on earlier versions of cryptfs refuse it. Unmount VAULT first, on every machine that has it, and
    let sync clients finish. Only the config and the list of sessions change; files stay as they are. An
    upgrade that was interrupted can be run again, and on a vault that is up to date it does nothing.

    The new feature is machine-state: journal and lock carry the name of their machine, so that a sync client
    that brings those of another one does no harm.
    """
    from cryptfs.mount.mounts import absolute

    source = passphrase_source(ctx, passfile, passcommand)
    config_of(vault)
    refuse_locked(vault, read_only=False)
    harden_process()
    passphrases = [read_passphrase(source)]
    passphrases += [read_passphrase(PassphraseSource(passfile=place)) for place in slot_passfiles]
    from cryptfs.vfs.upgrade import upgrade as give_features

    try:
        done = give_features(absolute(vault), passphrases)
    except OSError as error:
        raise ConfigUnwritableError(
            f"{error.filename or vault}: the upgrade failed: {error.strerror}; the vault can be used "
            "as before, and the upgrade run again"
        ) from None
    finally:
        forget(*passphrases)
    if as_json:
        features, generation = list(done.config.features), done.config.generation
        answer_json(
            {
                "vault": str(absolute(vault)),
                "added": list(done.added),
                "features": features,
                "generation": generation,
            }
        )
    elif done.added:
        note(f"{vault} has new features now: {', '.join(done.added)}.")
    else:
        note(f"{vault} is up to date.")
