"""`cryptfs key add`: one command for each kind of key slot."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import group
from cryptfs.cli.exit_codes import CommandError, UsageProblem
from cryptfs.cli.keyslots import check_label_text, json_option, slot_answer, writing_config
from cryptfs.cli.newfile import refuse_no_file, write_secret
from cryptfs.cli.newsecret import (
    Cost,
    NewPassphrase,
    cost_options,
    new_key,
    new_passphrase_options,
    new_passphrase_sources,
)
from cryptfs.cli.offers import OfferSource, key_file_of, say_opened, slot_name, unlock_options, with_offer
from cryptfs.cli.output import answer_json, note
from cryptfs.cli.params import PLACE, debug_option, help_if_alone, shell_word, shown, vault_argument
from cryptfs.cli.prompt import forget, harden
from cryptfs.cli.vaults import config_of, is_inside, require_writable
from cryptfs.errors import CryptfsError

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.unlock.kind import NewKey
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.table import SlotTable

_Make = Callable[["SlotTable"], "NewKey"]

_label_option = click.option("--label", default="", metavar="TEXT", help="A name for the new key slot.")


@group(invoke_without_command=True)
@debug_option
@click.pass_context
def add(ctx: click.Context) -> None:
    """Let another person or another key open a vault.

    Open the vault with a key that it has, and give the new key. The new slot works on another machine as soon
    as that machine has the new file cryptfs.json.
    """
    help_if_alone(ctx)


@add.command()
@vault_argument
@_label_option
@json_option
@unlock_options
@new_passphrase_options
@cost_options(memory="256m", passes="3")
@debug_option
def passphrase(
    vault: Path, label: str, as_json: bool, source: OfferSource, new: NewPassphrase, cost: Cost
) -> None:
    """Add a passphrase to VAULT."""
    config = _checked(vault, label, "passphrase")

    @contextlib.contextmanager
    def ask() -> Iterator[_Make]:
        from cryptfs.unlock.passphrase import new_passphrase

        costs = cost.choose()
        with new.beside(source.passphrase).read() as fresh:
            yield lambda _: new_passphrase(fresh, *costs)

    slot = _add(vault, config, source, label, ask)
    if not config.has_slots_of_all_kinds:
        note("This vault is of an earlier version. Its upgrade will need both passphrases.")
    _say_added(vault, slot, as_json=as_json)


@add.command()
@vault_argument
@click.argument("file", type=PLACE, metavar="FILE")
@click.option("--generate", "makes_file", is_flag=True, help="Make FILE: 32 random bytes and a checksum.")
@click.option(
    "--with-passphrase",
    is_flag=True,
    help="Require a new passphrase together with FILE, which may then be any file of 32 bytes to 1 MiB.",
)
@_label_option
@json_option
@unlock_options
@new_passphrase_sources
@cost_options(memory="256m", passes="3")
@debug_option
def keyfile(
    vault: Path,
    file: Path,
    makes_file: bool,
    with_passphrase: bool,
    label: str,
    as_json: bool,
    source: OfferSource,
    new: NewPassphrase,
    cost: Cost,
) -> None:
    """Add the key file FILE to VAULT: alone, or together with a passphrase.

    To open VAULT alone, FILE must be a file that --generate made. With it, a server can open VAULT
    unattended. Keep it away from VAULT and its copies: anybody with both can open VAULT.
    """
    from cryptfs.unlock.keyfile import KEY_FILE, PASSPHRASE_KEY_FILE

    config = _checked(vault, label, PASSPHRASE_KEY_FILE if with_passphrase else KEY_FILE)
    if not with_passphrase and not new.source.is_empty:
        raise UsageProblem("a new passphrase needs --with-passphrase")
    if not with_passphrase and cost.is_given:
        raise UsageProblem("a key file alone has no cost of a try; --with-passphrase has one")
    _check_place(vault, file, makes_file=makes_file)

    @contextlib.contextmanager
    def ask() -> Iterator[_Make]:
        from cryptfs.unlock.keyfile import new_key_file, new_passphrase_key_file
        from cryptfs.unlock.offer import Offer

        with contextlib.ExitStack() as stack:
            costs = cost.choose() if with_passphrase else None
            content = stack.enter_context(
                _made(vault, config, file) if makes_file else _existing(file, with_passphrase)
            )
            if costs is None:
                yield lambda _: new_key_file(content)
                return
            fresh = stack.enter_context(new.beside(source.passphrase).read())
            both = Offer(passphrase=fresh, key_file=content)
            yield lambda _: new_passphrase_key_file(both, *costs)

    slot = _add(vault, config, source, label, ask)
    _say_added(vault, slot, as_json=as_json)
    if makes_file:
        note(f"Made the key file {shown(file)}. Keep a copy of it, away from the vault and its copies.")


@add.command()
@vault_argument
@click.argument("recipient", metavar="RECIPIENT")
@_label_option
@json_option
@unlock_options
@debug_option
def recipient(vault: Path, recipient: str, label: str, as_json: bool, source: OfferSource) -> None:
    """Let the owner of an age identity open VAULT, by its public key RECIPIENT (age1pq1...).

    `age-keygen -pq` makes an identity and prints its recipient. You need nothing secret from the owner, who
    opens VAULT with --identity.
    """
    from cryptfs.core.slots.agekeys import recipient_of
    from cryptfs.unlock.hybrid import HPKE

    config = _checked(vault, label, HPKE)
    try:
        public_key = recipient_of(recipient)
    except ValueError as error:
        raise UsageProblem(str(error)) from None

    @contextlib.contextmanager
    def ask() -> Iterator[_Make]:
        from cryptfs.unlock.hybrid import new_hybrid

        yield lambda table: new_hybrid(public_key, bytes.fromhex(table.config.vault_id), table.next_id)

    _say_added(vault, _add(vault, config, source, label, ask), as_json=as_json)


@add.command()
@vault_argument
@click.option("--pin", is_flag=True, help="The token asks for its PIN, or a fingerprint, at each unlock.")
@_label_option
@json_option
@unlock_options
@debug_option
def fido2(vault: Path, pin: bool, label: str, as_json: bool, source: OfferSource) -> None:
    """Let the FIDO2 token that is plugged in open VAULT. It must support hmac-secret, as most tokens do.

    Plug in only one token. You touch it three times now, and once at each unlock.
    """
    from cryptfs.unlock.token import FIDO2

    config = _checked(vault, label, FIDO2)

    @contextlib.contextmanager
    def ask() -> Iterator[_Make]:
        from cryptfs.cli.tokens import TerminalTokens
        from cryptfs.unlock.token import enrol_fido2

        account = f"cryptfs {vault.absolute().name}"
        made = enrol_fido2(TerminalTokens(), uv=pin, account=account)  # before the config is locked
        yield lambda _: made

    _say_added(vault, _add(vault, config, source, label, ask), as_json=as_json)


def _checked(vault: Path, label: str, kind: str) -> VaultConfig:
    """The vault's config, if it can get such a slot: before anybody types anything.

    Raises: UnsupportedFormatError: it is of an earlier version.   UsageProblem, ConfigUnwritableError.
    """
    from cryptfs.core.slots.config import MAX_SLOTS
    from cryptfs.unlock.table import require_kind

    config = config_of(vault)
    check_label_text(label)
    require_kind(config, kind)
    if len(config.slots) >= MAX_SLOTS:
        raise CommandError(
            f"{shown(vault)} has {MAX_SLOTS} key slots, and can have no more; remove one first"
        )
    require_writable(vault)
    return config


def _check_place(vault: Path, file: Path, *, makes_file: bool) -> None:
    """Raises: UsageProblem: the file would be in the vault, is there already, or is missing."""
    if is_inside(vault, file):
        raise UsageProblem(
            f"{shown(file)} is in the vault itself, so a copy of the vault would have its own key. Choose a "
            "place elsewhere"
        )
    if makes_file and os.path.lexists(file):
        raise UsageProblem(f"{shown(file)} exists. Choose another name, or add that file without --generate")
    if makes_file:
        refuse_no_file(file)
    if not makes_file and not file.exists():
        again = f"--generate {shell_word(file)}"
        raise UsageProblem(
            f"{shown(file)} does not exist. To make it: cryptfs key add keyfile {shell_word(vault)} {again}"
        )


def _add(
    vault: Path,
    config: VaultConfig,
    source: OfferSource,
    label: str,
    ask: Callable[[], contextlib.AbstractContextManager[_Make]],
) -> KeySlot:
    """Unlock, ask for the new key only then, and write the new slot.

    Args: ask: reads the new secret, and yields what makes a key of it for a slot of this table.
    """
    from cryptfs.unlock.table import changing_slots
    from cryptfs.vfs.vault import which_opens

    def work(offer: Offer) -> KeySlot:
        opened = which_opens(vault.absolute(), offer)
        say_opened(config, opened.slot, opened.spelling)
        again = offer if opened.slot is None else replace(offer, slot_id=opened.slot.id)
        with ask() as make, writing_config(vault), changing_slots(vault.absolute(), again) as table:
            slot = table.add(new_key(lambda: make(table)), label)
            table.save()
            return slot

    return with_offer(source, config, work)


@contextlib.contextmanager
def _made(vault: Path, config: VaultConfig, file: Path) -> Iterator[bytes]:
    """The content of a new key file, on disk. It goes again if no slot comes of it, also at Ctrl-C.

    Args: config: before the command. If the disk has another one at the end, the file stays: it may open it.
    """
    from cryptfs.unlock.keyfile import generate_key_file
    from cryptfs.vfs.vault import read_config

    harden()
    secret = os.urandom(32)
    content = generate_key_file(secret)
    try:
        write_secret(file, content)
        try:
            yield content
        except BaseException:
            with contextlib.suppress(OSError, CryptfsError):
                if read_config(vault).slots == config.slots:
                    file.unlink()
            raise
    finally:
        forget(secret, content)


@contextlib.contextmanager
def _existing(file: Path, with_passphrase: bool) -> Iterator[bytes]:
    """The content of a file that may be a key. Raises: UsageProblem: alone it may not."""
    from cryptfs.unlock.keyfile import is_made_here

    with key_file_of(file) as content:
        if not with_passphrase and not is_made_here(content):
            raise UsageProblem(
                f"{shown(file)} is not a key file that cryptfs made, or it is damaged. Make one with "
                "--generate, or use this file together with a passphrase: --with-passphrase"
            )
        yield content


def _say_added(vault: Path, slot: KeySlot, *, as_json: bool) -> None:
    if as_json:
        answer_json(slot_answer(vault, slot))
    note(f"Added {slot_name(slot)} to {shown(vault)}.")
