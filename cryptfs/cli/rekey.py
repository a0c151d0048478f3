"""`cryptfs rekey`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, ExitCode, PassphraseUnreadableError, UsageProblem
from cryptfs.cli.offers import OfferSource, key_file_of, say_opened, unlock_options, with_offer
from cryptfs.cli.output import answer_json, console, note, say, warn
from cryptfs.cli.params import PLACE, debug_option, leave_to_findings, shell_word, shown, vault_argument
from cryptfs.cli.progress import progress_bar
from cryptfs.cli.prompt import PassphraseSource, passphrase_of
from cryptfs.cli.terminal import stdin_is_terminal
from cryptfs.cli.vaults import config_of, naming, refuse_locked, require_writable
from cryptfs.errors import RecoveryRecordError, UnsupportedFormatError, VaultError

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig
    from cryptfs.core.slots.recovery import RecoverySecret
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.rekey.begin import SlotPlan
    from cryptfs.rekey.report import Report
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.vault import Vault

_SHOWN = 20
_BLOCKING = ("stray", "unfinished-adoption")  # what a repair saves by the old masterkey alone


@command()
@vault_argument
@click.option(
    "--slot-passfile",
    "slot_passfiles",
    type=PLACE,
    metavar="FILE",
    multiple=True,
    help="Read from FILE the passphrase of another key slot to keep. Repeatable.",
)
@click.option(
    "--slot-keyfile",
    "slot_keyfiles",
    type=PLACE,
    metavar="FILE",
    multiple=True,
    help="Use FILE as the key file of key slots to keep. Repeatable.",
)
@click.option("--drop-slots", is_flag=True, help="Remove other key slots without asking.")
@click.option(
    "--set-aside", is_flag=True, help="Continue if VAULT has damage, and set damaged entries aside."
)
@click.option(
    "--take-over", is_flag=True, help="Continue a change that another machine began and will not finish."
)
@click.option(
    "--no-recovery",
    is_flag=True,
    help="Make no recovery words or shares in place of the old ones. Without a terminal, rekey makes none "
    "anyway.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@unlock_options
@debug_option
@click.pass_context
def rekey(
    ctx: click.Context,
    vault: Path,
    slot_passfiles: tuple[Path, ...],
    slot_keyfiles: tuple[Path, ...],
    drop_slots: bool,
    set_aside: bool,
    take_over: bool,
    no_recovery: bool,
    as_json: bool,
    source: OfferSource,
) -> ExitCode:
    """Change the masterkey of VAULT: encrypt everything in it again.

    Do this if a passphrase, a key file or the masterkey leaked together with a copy of VAULT. In this case,
    cryptfs passwd and cryptfs key remove do not help. The old keys still open copies of VAULT that were made
    before.

    Unmount VAULT first, on every machine that has it, and let sync clients finish. The command keeps only key
    slots whose passphrase or file you give; it lists the others and asks. Old recovery words and shares stop
    working; at a terminal you get new ones. The command replaces files one by one, and needs free space for
    the largest file. You can stop this at any time. Then no other command opens VAULT until you run this
    again and it finishes.

    Exit code 26: something did not authenticate, and was not encrypted again.
    """
    from cryptfs.mount.mounts import absolute
    from cryptfs.mount.resources import claim_resources
    from cryptfs.rekey.begin import refuse_unready

    config = config_of(vault, rekeying=True)
    refuse_locked(vault)
    require_writable(vault)
    leave_to_findings(ctx)
    claim_resources()
    place = absolute(vault)
    if config.is_rekeying:
        note(f"A change of the masterkey of {shown(vault)} was interrupted; it continues now.")
    else:
        refuse_unready(config)
    others = [PassphraseSource(passfile=each) for each in slot_passfiles]
    told: dict[str, Any] = {"resumed": config.is_rekeying}
    gives_words = not no_recovery and not as_json and sys.stdout.isatty()
    ended = _secrets_of(vault, config)

    def use(first: Offer) -> tuple[VaultConfig, Report]:
        if first.takes_record:
            raise UsageProblem(
                "open the vault with a key slot to keep: recovery words and shares stop working"
            )
        if not config.is_rekeying:
            with contextlib.ExitStack() as stack:
                more = [stack.enter_context(passphrase_of(each)) for each in others]
                files = [stack.enter_context(key_file_of(each)) for each in slot_keyfiles]
                offers = [first, *_offers(first, more, files)]
                told.update(_begin(place, first, offers, drop_slots=drop_slots, set_aside=set_aside))
        following, report = _go_on(place, first, take_over=take_over, as_json=as_json)
        assert first.pin is not None and first.pin.met is not None
        told["identity"] = first.pin.met.code
        if not as_json:
            _say(vault, report, first.pin.met.code)
            _give_anew(vault, first, ended if gives_words else [], asks=gives_words and config.is_rekeying)
        return following, report

    with naming(vault):
        following, report = with_offer(source, config, use)
    if as_json:
        answer_json({"vault": shown(place), **told, **_as_json(following, report)})
    return ExitCode.DAMAGE if report.damages else ExitCode.OK


def _secrets_of(vault: Path, config: VaultConfig) -> Sequence[RecoverySecret]:
    """The words and shares that the vault has before the change, as far as its record says.

    During the change the config lists none, and the record goes soon after its beginning.
    """
    from cryptfs.cli.recovery import record_of

    with contextlib.suppress(RecoveryRecordError, UnsupportedFormatError):
        record = record_of(vault)
        if record is not None and record.vault_id.hex() == config.vault_id:
            return record.secrets if config.is_rekeying or record.ids == config.recovery else ()
    return ()


def _give_anew(vault: Path, offer: Offer, ended: Sequence[RecoverySecret], *, asks: bool) -> None:
    """New recovery words and shares, or how to make them. The change of the masterkey is through by now.

    Args: asks: whether a person tells if the vault had any. An interrupted change may not know it.
    """
    from cryptfs.cli.recovery import give_anew
    from cryptfs.unlock.recovering import some_words

    if not ended and asks and stdin_is_terminal():
        question = "If the vault had recovery words or shares, they no longer work. Make new words now?"
        ended = [some_words()] if click.confirm(question, default=True, err=True) else []
    hint = f"To make some, while you can still open the vault: cryptfs recovery words {shell_word(vault)}"
    if not ended:
        note(f"The vault has no recovery words now. {hint}")
        return
    shown_ids: list[str] = []
    try:
        give_anew(vault, offer, ended, shown_ids)
    except (PassphraseUnreadableError, KeyboardInterrupt, click.Abort) as error:
        if not set(shown_ids[-1:]) & set(config_of(vault).recovery):  # an interrupt may come once they work
            warn(f"the masterkey is changed, but the recovery words or shares shown last do not work. {hint}")
        if not isinstance(error, PassphraseUnreadableError):
            raise


def _offers(first: Offer, passphrases: list[bytes], files: list[bytes]) -> list[Offer]:
    """Each passphrase and each file alone, and each pair; also of those that opened the vault."""
    from cryptfs.unlock.offer import Offer

    words = [*([] if first.passphrase is None else [first.passphrase]), *passphrases]
    keys = [*([] if first.key_file is None else [first.key_file]), *files]
    alone = [Offer(passphrase=each) for each in words] + [Offer(key_file=each) for each in keys]
    return alone + [Offer(passphrase=word, key_file=file) for word in words for file in keys]


def _begin(
    place: Path, first: Offer, offers: list[Offer], *, drop_slots: bool, set_aside: bool
) -> dict[str, Any]:
    """Up to the new config. Returns fields of the answer."""
    from cryptfs.rekey.begin import begin, plan_slots
    from cryptfs.vfs.content.redo import Durability
    from cryptfs.vfs.vault import Vault

    with Vault.unlock(place, first, durability=Durability.OFF) as opened:
        say_opened(opened.config, opened.slot, opened.spelling)
        if not set_aside:
            _refuse_damage(place, opened)
        plan = plan_slots(opened.config, offers)
        try:
            _confirm(plan, len(opened.config.recovery), drop_slots=drop_slots)
            begin(opened, plan)
        finally:
            plan.wipe()
        return {
            "kept": [_slot_fields(each.slot) for each in plan.kept],
            "dropped": [_slot_fields(slot) for slot in plan.dropped],
        }


def _slot_fields(slot: KeySlot) -> dict[str, Any]:
    return {"id": slot.id, "kind": slot.kind, "label": slot.label}


def _refuse_damage(place: Path, opened: Vault) -> None:
    """A repair saves much of what is damaged, but by the old masterkey alone.

    Raises: VaultError: the vault has such damage.
    """
    from cryptfs.fsck.check import check_vault

    found = [
        finding
        for finding in check_vault(opened).run()
        if finding.severity == "error" or finding.kind.value in _BLOCKING
    ]
    if not found:
        return
    for finding in found[:_SHOWN]:
        say(f"{finding.cipher_path} [{finding.kind.value}]")
    if len(found) > _SHOWN:
        say(f"and {len(found) - _SHOWN} more")
    raise VaultError(
        f"{shown(place)} has damage. A repair can fix it only before the masterkey changes. First run: "
        f"cryptfs fsck --repair --deep {shell_word(place)}. Or set the damaged entries aside with "
        "--set-aside; a later repair cannot fix them"
    )


def _confirm(plan: SlotPlan, recovery: int, *, drop_slots: bool) -> None:
    """List the slots that nobody can keep, and ask.

    Args:   recovery: how many sets of recovery words and shares end as well.
    Raises: UsageProblem: nobody is there to ask.   VaultError: the answer is no.
    """
    if recovery:
        say(
            "The recovery words and shares of the vault will no longer open it. At a terminal, cryptfs makes "
            "new ones at the end, unless --no-recovery."
        )
    if not plan.dropped:
        return
    say("cryptfs will remove these key slots, because you did not give their keys:")
    for slot in plan.dropped:
        label = f" {slot.label!r}" if slot.label else ""
        say(f"  {slot.id}  {slot.kind}{label}")
    if drop_slots:
        return
    if not (sys.stdin is not None and sys.stdin.isatty()):
        raise UsageProblem(
            "give their keys with --slot-passfile or --slot-keyfile, or remove them with --drop-slots; "
            "nothing was changed"
        )
    if not click.confirm("Continue without them?", err=True):
        raise VaultError("nothing was changed")


def _go_on(place: Path, offer: Offer, *, take_over: bool, as_json: bool) -> tuple[VaultConfig, Report]:
    from cryptfs.rekey.change import go_on
    from cryptfs.rekey.report import Report
    from cryptfs.storage.libc import NO_ROOM
    from cryptfs.storage.vaultdir import no_room

    screen = console(stderr=True)
    with progress_bar(None if as_json and sys.stdout.isatty() else screen, "") as bar:

        def update(report: Report) -> None:
            if bar.is_due():
                bar.expect(max(report.total_size, 1))
                words = f"{report.files:,} of {report.total_files:,} files, {report.size / 10**6:,.0f} MB"
                bar.show(words, report.size)

        report = Report(on_progress=update)
        try:
            return go_on(place, offer, report, take_over=take_over), report
        except OSError as error:
            if error.errno in NO_ROOM:
                raise CommandError(f"{no_room(place)}, and run this again: it then continues") from None
            raise
        except KeyboardInterrupt:
            say(f"Nothing is lost. To continue: cryptfs rekey {shell_word(place)}")
            raise


def _as_json(config: VaultConfig, report: Report) -> dict[str, Any]:
    return {
        "generation": config.generation,
        "slots": [_slot_fields(slot) for slot in config.slots],
        "directories": report.directories,
        "files": report.files,
        "symlinks": report.symlinks,
        "others": report.others,
        "bytes": report.size,
        "damaged": [
            {"cipher_path": each.cipher_path, "reason": each.reason, "set_aside": each.aside or None}
            for each in report.damages
        ],
    }


def _counted(files: int) -> str:
    return "1 file" if files == 1 else f"{files:,} files"


def _say(vault: Path, report: Report, code: str) -> None:
    from cryptfs.core.names.names import SET_ASIDE_NAME

    for each in report.damages[:_SHOWN]:
        where = f"; set aside as {SET_ASIDE_NAME}/{each.aside}" if each.aside else "; damaged as before"
        warn(f"{each.cipher_path}: {each.reason}{where}")
    if len(report.damages) > _SHOWN:
        warn(f"and {len(report.damages) - _SHOWN} more. To list all: cryptfs fsck --deep {shell_word(vault)}")
    note(
        f"The masterkey of {shown(vault)} is changed. Encrypted with the new one: {_counted(report.files)}, "
        f"{report.size / 10**6:,.1f} MB."
    )
    note(
        f"The identity of the vault is {code} now. Other machines refuse the vault until you give --accept "
        "there once."
    )
    note(
        "Copies of the vault from before (backups, snapshots, old versions in a cloud) still open with the "
        "old keys: delete those that you do not need."
    )
    note(
        "You cannot compare the vault with an older manifest. To make a new one: cryptfs snapshot "
        f"{shell_word(vault)} FILE"
    )
