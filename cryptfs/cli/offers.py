"""What a person offers to unlock a vault. Every command has the same options, and asks in the same order.

A new kind of key adds its option to `unlock_options`, a field to `OfferSource`, and a line in
`OfferSource.without_passphrase`; the commands stay as they are. Nobody is asked for a passphrase before it is
clear that a key slot of the vault takes one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from cryptfs.cli.exit_codes import PassphraseUnreadableError, UsageProblem
from cryptfs.cli.output import note, say, warn
from cryptfs.cli.params import PLACE, Decorated, Number
from cryptfs.cli.pinning import PIN_ADDERS, PIN_FLAGS, PIN_OPTIONS, PIN_VALUES, PinChoice
from cryptfs.cli.prompt import (
    PassphraseSource,
    forget,
    harden,
    read_secret_file,
    read_secret_text,
    with_passphrase,
)
from cryptfs.cli.recoverywords import (
    RECOVERY_ADDERS,
    RECOVERY_OPTIONS,
    RecoverySource,
    recovery_source,
    with_recovery,
)
from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import NoKeyError, WrongPassphraseError

if TYPE_CHECKING:
    from cryptfs.core.slots.config import VaultConfig
    from cryptfs.core.slots.slot import KeySlot
    from cryptfs.unlock.carriers.asker import TokenAsker
    from cryptfs.unlock.offer import Offer

MAX_SLOT_ID = 2**32 - 1
MAX_DESCRIPTOR = 2**31 - 1
PASSPHRASE_OPTIONS = ("passfile", "passcommand", "passfd", "askpass")
MORE_OPTIONS = ("keyfile", "identity", "fido2", "slot")
UNLOCK_OPTIONS = (*PASSPHRASE_OPTIONS, *MORE_OPTIONS, *RECOVERY_OPTIONS, *PIN_OPTIONS)
MOUNT_VALUES = (*PASSPHRASE_OPTIONS, "keyfile", "identity", "slot", "words_file", *PIN_VALUES)
MOUNT_FLAGS = ("fido2", *PIN_FLAGS)
"""Of these options `mount -o` takes as well: those with a value, and those without."""

# A kind of slot, and the option with which a person offers what it takes.
_OPTION_OF = {
    "fido2": "--fido2",
    "hpke": "--identity FILE",
    "key-file": "--keyfile FILE",
    "passphrase-key-file": "--keyfile FILE",
}

_Used = TypeVar("_Used")


@dataclass(frozen=True, slots=True)
class OfferSource:
    """Where all comes from that is offered to a vault.

    Args: passphrase: where from; asked for only if a slot takes it.
          key_file: a file.   key_file_named_by: '' if an option did, else a variable or credential.
          identity_file: of age, with the identities of public keys.   fido2: ask the tokens.
          tokens: who asks for them; None is the terminal.
          recovery: words and shares, in place of all the others.
          slot_id: try this slot alone.
          identity: which vault it may be.
    """

    passphrase: PassphraseSource = field(default_factory=PassphraseSource)
    key_file: Path | None = None
    key_file_named_by: str = ""
    identity_file: Path | None = None
    fido2: bool = False
    recovery: RecoverySource = field(default_factory=RecoverySource)
    slot_id: int | None = None
    identity: PinChoice = field(default_factory=PinChoice)
    tokens: TokenAsker | None = None

    def without_passphrase(self, config: VaultConfig) -> Offer:
        """All that can be offered without asking a person. Reads files; to be wiped.

        Raises: PassphraseUnreadableError: a file cannot be read.
        """
        from cryptfs.cli.tokens import TerminalTokens
        from cryptfs.storage.userstate import recall
        from cryptfs.unlock.offer import Offer

        return Offer(
            key_file=None if self.key_file is None else read_key_file(self.key_file),
            identities=() if self.identity_file is None else _read_identities(self.identity_file),
            tokens=(self.tokens or TerminalTokens()) if self.fido2 else None,
            slot_id=self.slot_id,
            first=recall(config.vault_id).slot,
            pin=self.identity.pin(),
        )

    @property
    def has_more(self) -> bool:
        """Whether an option offers anything besides a passphrase."""
        by_option = self.key_file is not None and not self.key_file_named_by
        return by_option or self.identity_file is not None or self.fido2

    def names(self, offer: Offer) -> str:
        """Where the offer comes from, for messages; '' if a person typed all of it."""
        found = [self.passphrase.name] if offer.passphrase is not None else []
        if offer.key_file is not None and self.key_file is not None:
            named_by = f", named by {self.key_file_named_by}" if self.key_file_named_by else ""
            found.append(f"{shown(self.key_file)}{named_by}")
        if offer.identities and self.identity_file is not None:
            found.append(shown(self.identity_file))
        return "; ".join(filter(None, found))

    def trying(self, slot_id: int | None) -> OfferSource:
        """The same for one slot; as it is for None. Raises: UsageProblem: --slot names another one."""
        if slot_id is None or self.slot_id == slot_id:
            return self
        if self.slot_id is not None:
            raise UsageProblem(f"--slot {self.slot_id} and slot {slot_id} contradict each other")
        return replace(self, slot_id=slot_id)


# ---- options


def unlock_options(function: Decorated) -> Decorated:
    """Give a command the options that unlock a vault; it gets them as `source`."""

    @functools.wraps(function)
    def with_source(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in UNLOCK_OPTIONS}
        return function(*args, source=offer_source(given), **kwargs)

    options: tuple[_Add, ...] = (*_PASSPHRASE_SOURCES, *_MORE_SOURCES, *RECOVERY_ADDERS, *PIN_ADDERS)
    return cast("Decorated", _decorated(with_source, options))


def new_vault_options(function: Decorated) -> Decorated:
    """The options for the passphrase of a new vault; the command gets them as `source`."""

    @functools.wraps(function)
    def with_source(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in PASSPHRASE_OPTIONS}
        return function(*args, source=_passphrase_source(given), **kwargs)

    return cast("Decorated", _decorated(with_source, _PASSPHRASE_SOURCES))


_Add = Callable[[Callable[..., Any]], Callable[..., Any]]


def _decorated(command: Callable[..., Any], options: tuple[_Add, ...]) -> Callable[..., Any]:
    """With options, which help shows in this order."""
    for add in reversed(options):
        command = add(command)
    return command


_PASSPHRASE_SOURCES: tuple[_Add, ...] = (
    click.option(
        "--passfile",
        type=PLACE,
        metavar="FILE",
        help="Read the passphrase from the first line of FILE; '-' is stdin.",
    ),
    click.option(
        "--passcommand",
        metavar="COMMAND",
        help="Run COMMAND (split into words, no shell) and read the passphrase from its output.",
    ),
    click.option(
        "--passfd",
        type=Number(0, MAX_DESCRIPTOR),
        metavar="N",
        help="Read the passphrase from the next line of the open file descriptor N.",
    ),
    click.option(
        "--askpass",
        metavar="PROGRAM",
        help="Ask for the passphrase with PROGRAM, which gets the question and prints the answer.",
    ),
)
_MORE_SOURCES: tuple[_Add, ...] = (
    click.option(
        "--keyfile",
        type=PLACE,
        metavar="FILE",
        help="Offer the key file FILE: alone, or together with a passphrase.",
    ),
    click.option(
        "--identity",
        type=PLACE,
        metavar="FILE",
        help="Offer the identities in FILE, an age identity file.",
    ),
    click.option("--fido2", is_flag=True, help="Offer the FIDO2 tokens that are plugged in."),
    click.option(
        "--slot",
        type=Number(0, MAX_SLOT_ID),
        metavar="ID",
        help="Try only this key slot; `cryptfs key list` shows all.",
    ),
)


def offer_source(given: Mapping[str, Any]) -> OfferSource:
    """From the options, and from what the environment names where there is no option.

    Args:   given: by the names in UNLOCK_OPTIONS; None or missing is not given.
    Raises: UsageProblem: they contradict each other.
    """
    key_file, named_by = given.get("keyfile"), ""
    if key_file is None:
        key_file, named_by = _named_file("CRYPTFS_KEYFILE", "cryptfs.keyfile")
    return OfferSource(
        passphrase=_passphrase_source(given),
        key_file=key_file,
        key_file_named_by=named_by,
        identity_file=given.get("identity"),
        fido2=bool(given.get("fido2")),
        recovery=recovery_source(given),
        slot_id=given.get("slot"),
        identity=PinChoice.of(given),
    )


def mount_source(given: OfferSource, texts: Mapping[str, str]) -> OfferSource:
    """The same with options from `mount -o`; those of the command line go first.

    Args:   texts: by the names in MOUNT_VALUES and MOUNT_FLAGS.
    Raises: UsageProblem.
    """
    found: dict[str, Any] = {name: text for name, text in texts.items() if name in MOUNT_VALUES}
    found |= {name: True for name in MOUNT_FLAGS if name in texts}
    for name, highest in (("slot", MAX_SLOT_ID), ("passfd", MAX_DESCRIPTOR)):
        if name in found:
            text = found[name]
            if not (text.isascii() and text.isdigit() and int(text) <= highest):
                raise UsageProblem(f"mount option {name} needs a number, not {shown(text)}")
            found[name] = int(text)
    for name in ("passfile", "keyfile", "identity", "words_file"):
        if name in found:
            found[name] = Path(found[name])
    fresh = offer_source(found)
    passphrase, keyfile = given.passphrase, (given.key_file, given.key_file_named_by)
    if not (passphrase.is_option or passphrase.askpass is not None):
        passphrase = fresh.passphrase
    if keyfile[0] is None or keyfile[1]:
        keyfile = (fresh.key_file, fresh.key_file_named_by)
    slot_id = fresh.slot_id if given.slot_id is None else given.slot_id
    return OfferSource(
        passphrase,
        *keyfile,
        fresh.identity_file if given.identity_file is None else given.identity_file,
        given.fido2 or fresh.fido2,
        given.recovery if given.recovery.is_given else fresh.recovery,
        slot_id,
        given.identity.over(fresh.identity),
    )


def _passphrase_source(given: Mapping[str, Any]) -> PassphraseSource:
    try:
        source = PassphraseSource(
            given.get("passfile"), given.get("passcommand"), given.get("passfd"), given.get("askpass")
        )
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from None
    if source.passfd is not None:
        try:
            os.fstat(source.passfd)
        except OSError:
            raise UsageProblem(f"--passfd {source.passfd}: no such file descriptor is open") from None
    if source.is_empty:
        passfile, named_by = _named_file("CRYPTFS_PASSFILE", "cryptfs.passphrase")
        source = PassphraseSource(passfile, named_by=named_by)
    return source


def _named_file(variable: str, credential: str) -> tuple[Path | None, str]:
    """A file that a variable names, else a credential of systemd: and its name for messages."""
    place = os.environ.get(variable)
    if place:
        return Path(place), variable
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and (Path(directory) / credential).is_file():
        return Path(directory) / credential, f"the credential {credential}"
    return None, ""


# ---- use


def with_offer(
    source: OfferSource, config: VaultConfig, use: Callable[[Offer], _Used], prompt: str = "Passphrase"
) -> _Used:
    """Collect what is offered and use it. A person has a few tries for a passphrase, if one is taken at all.

    The process is hardened before it reads a secret, and all secrets are overwritten in the end.

    Args:   config: of the vault; it need not be authentic.
    Raises: NoKeyError: nothing is offered that the vault takes.   What reading raises, and what `use` raises.
    """
    from cryptfs.unlock.unlocking import takes_passphrase

    harden()
    if source.recovery.is_given:
        pin = source.identity.pin()
        return with_recovery(source.recovery, lambda offer: use(replace(offer, pin=pin)))
    offer = source.without_passphrase(config)

    def attempt(passphrase: bytes | None) -> _Used:
        whole = replace(offer, passphrase=passphrase)
        try:
            return use(whole)
        except WrongPassphraseError as error:
            names = source.names(whole)
            raise WrongPassphraseError(f"{error} (from {names})" if names else str(error)) from None

    try:
        if not source.passphrase.is_option:
            is_worth_asking = takes_passphrase(config, offer, beside=source.has_more)
            if offer.takes_slot or not is_worth_asking:
                try:
                    return attempt(None)
                except (WrongPassphraseError, NoKeyError) as error:
                    if not is_worth_asking:
                        raise _with_hint(error, source, config, offer) from None
        return with_passphrase(source.passphrase, attempt, prompt)
    finally:
        offer.wipe()


def _with_hint(error: Exception, source: OfferSource, config: VaultConfig, offer: Offer) -> Exception:
    """The same error, with the options that help where nothing fitted was offered."""
    from cryptfs.unlock.keyfile import KEY_FILE, is_made_here

    if not isinstance(error, NoKeyError):
        return error
    kinds = {slot.kind for slot in config.slots if source.slot_id in (None, slot.id)}
    if offer.key_file is not None and KEY_FILE in kinds and not is_made_here(offer.key_file):
        return NoKeyError(f"{source.names(offer)} is not a key file that cryptfs made, or it is damaged")
    options = sorted({_OPTION_OF[kind] for kind in kinds if kind in _OPTION_OF})
    return NoKeyError(f"{error} ({', '.join(options)})") if options else error


@contextlib.contextmanager
def key_file_of(place: Path) -> Iterator[bytes]:
    """The bytes of a key file for as long as a command needs them; then they are overwritten.

    Raises: PassphraseUnreadableError.
    """
    harden()
    content = read_key_file(place)
    try:
        yield content
    finally:
        forget(content)


def _read_identities(place: Path) -> tuple[bytes, ...]:
    """The identities in an identity file of age; to be wiped.

    Raises: PassphraseUnreadableError: it cannot be read, or has no identity.
    """
    from cryptfs.core.slots.agekeys import identities_of

    content = read_secret_text(place, "identity file")
    try:
        return identities_of(content)
    except ValueError as error:
        raise PassphraseUnreadableError(f"{shown(place)}: {error}") from None
    finally:
        forget(content)


def read_key_file(place: Path) -> bytes:
    """All bytes of a key file; to be wiped.

    Raises: PassphraseUnreadableError: it cannot be read, or is empty, or too large for a key file.
    """
    from cryptfs.unlock.keyfile import MAX_FILE_SIZE

    content, mode = read_secret_file(place, "key file", MAX_FILE_SIZE)
    if not content:
        raise PassphraseUnreadableError(f"{shown(place)}: the key file is empty")
    if stat.S_ISREG(mode) and mode & stat.S_IROTH and content.startswith(b"cryptfs-key-"):
        warn(f"{shown(place)} can be read by other users; fix it with: chmod 600 {shell_word(place)}")
    return content


def say_opened(
    config: VaultConfig, slot: KeySlot | None, spelling: str, *, quiet: bool = False, remembers: bool = True
) -> None:
    """Say which slot opened a vault that has several, and in which spelling; and remember the slot.

    Args: quiet: say no more than the spelling.
    """
    if spelling:
        say(f"The passphrase did not open the vault as it was read; this did: {spelling}.")
    if slot is None or len(config.slots) < 2:
        return
    if not quiet:
        note(f"Opened with {slot_name(slot)}.")
    if remembers:
        from cryptfs.storage.userstate import remember

        remember(config.vault_id, slot=slot.id)


def slot_name(slot: KeySlot) -> str:
    """'key slot 2 (passphrase, ana)'."""
    label = f", {slot.label}" if slot.label else ""
    return f"key slot {slot.id} ({slot.kind}{label})"
