"""`cryptfs upgrade`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import ConfigUnwritableError
from cryptfs.cli.offers import OfferSource, say_opened, unlock_options, with_offer
from cryptfs.cli.output import answer_json, note, say
from cryptfs.cli.params import (
    PLACE,
    debug_option,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.prompt import PassphraseSource, passphrase_of
from cryptfs.cli.vaults import config_of, refuse_locked

if TYPE_CHECKING:
    from cryptfs.unlock.offer import Offer


@command()
@vault_argument
@click.option(
    "--slot-passfile",
    "slot_passfiles",
    type=PLACE,
    metavar="FILE",
    multiple=True,
    help="If VAULT has several key slots: read from FILE the passphrase of another slot. Repeatable.",
)
@click.option(
    "--delta-journal",
    is_flag=True,
    help="Also write only the changed part of a chunk to the journal: for databases and logs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unlock_options
@debug_option
def upgrade(
    vault: Path,
    slot_passfiles: tuple[Path, ...],
    delta_journal: bool,
    as_json: bool,
    source: OfferSource,
) -> None:
    """Give an older VAULT the features of new vaults.

    After that, earlier versions of cryptfs refuse VAULT. Unmount VAULT first, on every machine that has it,
    and let sync clients finish. The upgrade changes the config, the list of sessions, and a small record in
    each directory, but no files. If it is interrupted, you can use VAULT, and run the upgrade again later. On
    an up-to-date vault, it does nothing.

    The new features are machine-state: each machine has its own journal and lock, so that a sync client can
    copy those of other machines without harm; bound-dirs: a directory that somebody moves, exchanges or
    restores elsewhere in VAULT is an error; and slots: besides passphrases, other keys can open VAULT.
    """
    from cryptfs.mount.mounts import absolute

    config = config_of(vault)
    refuse_locked(vault)
    others = [PassphraseSource(passfile=place) for place in slot_passfiles]
    from cryptfs.vfs.upgrade import Upgraded
    from cryptfs.vfs.upgrade import upgrade as give_features

    def give(offer: Offer) -> Upgraded:
        with contextlib.ExitStack() as stack:
            more = [stack.enter_context(passphrase_of(each)) for each in others]
            return give_features(absolute(vault), [offer, *more], deltas=delta_journal)

    try:
        done = with_offer(source, config, give)
    except OSError as error:
        raise ConfigUnwritableError(
            f"{shown(vault)}: the upgrade failed: {error.strerror}; the vault still works as before, and you "
            "can run the upgrade again"
        ) from None
    say_opened(done.config, done.slot, done.spelling)
    for path in done.left:
        say(
            f"{shown(path)} in {shown(vault)} is damaged, and no program can reach it. To repair it: "
            f"cryptfs fsck --repair {shell_word(vault)}"
        )
    if as_json:
        features, generation = list(done.config.features), done.config.generation
        answer_json(
            {
                "vault": shown(absolute(vault)),
                "added": list(done.added),
                "features": features,
                "generation": generation,
                "left": [shown(path) for path in done.left],
                "recovery": list(done.recovery),
            }
        )
    elif done.added:
        note(f"{shown(vault)} has new features now: {', '.join(done.added)}.")
        if done.recovery:
            note(
                f"These open it as well: {', '.join(done.recovery)}. Make a new copy of the recovery "
                f"record: cryptfs recovery export {shell_word(vault)} FILE"
            )
    else:
        note(f"{shown(vault)} is up to date.")
