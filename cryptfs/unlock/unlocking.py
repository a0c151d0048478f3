"""From what a person offers to the masterkey: which slot it opens, and in which spelling."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptfs.core.keys import Subkeys
from cryptfs.core.printable import shell_word, shown
from cryptfs.core.slots.config import VaultConfig, verify_config
from cryptfs.core.slots.identity import Mark, identity_of
from cryptfs.core.slots.recovery import RecoverySecret
from cryptfs.core.slots.slot import KeySlot, open_slot
from cryptfs.errors import (
    NoKeyError,
    RecoveryRecordError,
    TokenError,
    VaultConfigError,
    VaultError,
    WrongPassphraseError,
)
from cryptfs.storage.libc import wipe
from cryptfs.storage.pins import Pin
from cryptfs.unlock.kind import SlotKind
from cryptfs.unlock.kinds import KINDS, kind_of
from cryptfs.unlock.offer import Offer

_ANY = b"any passphrase"  # only whether there is one counts


@dataclass(frozen=True, slots=True)
class Unlocked:
    """The result of unlocking.

    slot: the slot that opened; None if it was the recovery record.   recovery: which secret of the record.
    spelling: '' if the passphrase opened the slot as it was read, else the spelling that did, in words.
    mark: what the vault is, for its pin.
    """

    masterkey: bytes = field(repr=False)
    slot: KeySlot | None
    spelling: str
    mark: Mark
    recovery: RecoverySecret | None = None

    @property
    def by(self) -> str:
        """What opened the vault, for people."""
        if self.slot is None:
            assert self.recovery is not None
            return self.recovery.name
        return f"key slot {self.slot.id}" + (f" ({self.slot.label})" if self.slot.label else "")


def refuse_rekeying(config: VaultConfig, vault_dir: Path | None = None) -> None:
    """Raises: VaultError: the masterkey is being changed, and nothing else may open the vault meanwhile."""
    if config.is_rekeying:
        which, word = (
            ("this vault", "VAULT") if vault_dir is None else (shown(vault_dir), shell_word(vault_dir))
        )
        raise VaultError(
            f"a change of the masterkey of {which} was interrupted, or is still running. To finish it: "
            f"cryptfs rekey {word}"
        )


def open_vault(
    config: VaultConfig,
    secret: bytes | Offer,
    max_memory: int,
    records: Sequence[bytes] = (),
    *,
    vault_dir: Path | None = None,
    for_rekey: bool = False,
) -> Unlocked:
    """Find the slot that an offer opens: as it was read, and only then in other spellings of its passphrase.

    A passphrase costs each slot at most three derivations of a key, and one if it is a line of ASCII.
    Recovery words and shares cost nothing, and come first.

    Once the config is authentic, the vault must be the one that the offer's pin asks for.

    Args:   max_memory: bytes that deriving a key may take.
            records: what is in the vault under the names of the recovery record, if the offer needs it.
            vault_dir: where it is; a pin needs it.
            for_rekey: also while the masterkey is being changed; the new one comes out.
    Raises: UnexpectedVaultError: it is not that one; the masterkey is wiped.
            WrongPassphraseError: no slot accepts it.   NoKeyError: no slot takes what was offered.
            TokenError: a FIDO2 token was offered, and nothing opened the vault.
            MistypedWordsError: recovery words, or a share, with a mistake in them.
            VaultConfigError: a slot or the recovery record is damaged, or none that it may open can be used
                              here; or the config was changed.
            VaultError: the masterkey is being changed.
    """
    offer = Offer.of(secret)
    if not for_rekey:
        refuse_rekeying(config, vault_dir)
    if offer.takes_record and offer.slot_id is None:
        from cryptfs.unlock.recoverykey import open_by_record

        try:
            opened, recovery = open_by_record(config, offer, records)
        except (WrongPassphraseError, NoKeyError, RecoveryRecordError):
            if not offer.takes_slot:
                raise
        else:
            return Unlocked(opened, None, "", _checked(config, opened, offer.pin, vault_dir), recovery)
    table = _Usable(config, offer, max_memory)
    with contextlib.closing(offer.spellings()) as spellings:
        for spelling, words in spellings:
            for slot, slot_key in table.keys(spelling):
                try:
                    masterkey = open_slot(config.slot_context, slot, slot_key)
                finally:
                    wipe(slot_key)
                if masterkey is not None:
                    return Unlocked(masterkey, slot, words, _checked(config, masterkey, offer.pin, vault_dir))
    raise table.refusal()


def _checked(config: VaultConfig, masterkey: bytes, pin: Pin | None, vault_dir: Path | None) -> Mark:
    """The mark of a vault whose config is authentic and that its pin, if there is one, takes."""
    try:
        verify_config(config, Subkeys.from_masterkey(masterkey))
        mark = Mark(config.vault_id, identity_of(masterkey), config.generation)
        if pin is not None:
            if vault_dir is None:
                raise ValueError("a pin is of a place: it needs the vault's directory")
            pin.check(vault_dir, mark)
        return mark
    except BaseException:
        wipe(masterkey)
        raise


class _Usable:
    """The slots that an offer may open here, and why others cannot be used."""

    def __init__(self, config: VaultConfig, offer: Offer, max_memory: int) -> None:
        self._config = config
        self._offer = offer
        self._slots: dict[str, list[KeySlot]] = {}
        self._unusable: list[str] = []
        self._token_error: TokenError | None = None
        offered = {kind.name for kind in KINDS if kind.is_offered(offer)}
        for slot in sorted(config.slots, key=lambda slot: slot.id != offer.first):
            kind = kind_of(slot)
            if offer.slot_id not in (None, slot.id) or kind is None or kind.name not in offered:
                continue
            try:
                kind.check(slot, max_memory)
            except VaultConfigError as error:
                self._unusable.append(str(error))
            else:
                self._slots.setdefault(kind.name, []).append(slot)

    def keys(self, offer: Offer) -> Iterator[tuple[KeySlot, bytes]]:
        """The slot keys to try, cheap kinds first, but the kind of the slot that opened last before them."""
        kinds = [kind for kind in KINDS if kind.name in self._slots and kind.is_offered(offer)]
        for kind in sorted(kinds, key=lambda kind: self._offer.first not in self._ids(kind)):
            try:
                yield from kind.slot_keys(self._slots[kind.name], offer, self._config.slot_context.vault_id)
            except TokenError as error:  # the others need no token
                self._token_error = error

    def _ids(self, kind: SlotKind) -> Sequence[int | None]:
        return [slot.id for slot in self._slots[kind.name]]

    def refusal(self) -> Exception:
        """What to raise when no slot opened."""
        if self._unusable and not self._slots:
            return VaultConfigError(self._unusable[0])
        if not self._slots:
            return NoKeyError(self._nothing_to_try())
        if self._token_error is not None:
            if len(self._slots) == 1:
                return self._token_error
            return TokenError(f"{self._what_is_wrong()}; {self._token_error}")
        more = f". Not tried: {'; '.join(self._unusable)}" if self._unusable else ""
        return WrongPassphraseError(f"{self._what_is_wrong()}{more}")

    def _what_is_wrong(self) -> str:
        offered = self._offer.parts
        if offered == ["passphrase"]:
            return "the passphrase is wrong"
        if len(offered) == 1:
            return f"the {offered[0]} opens no key slot of this vault"
        return f"{', '.join(offered[:-1])} and {offered[-1]} open no key slot of this vault"

    def _nothing_to_try(self) -> str:
        if self._offer.slot_id is not None:
            if all(slot.id != self._offer.slot_id for slot in self._config.slots):
                return (
                    f"the vault has no key slot {self._offer.slot_id}. To list them: cryptfs key list VAULT"
                )
            return f"key slot {self._offer.slot_id} takes {taken_by(self._config, self._offer.slot_id)}"
        return f"nothing was offered that this vault takes; it takes {taken_by(self._config)}"


def taken_by(config: VaultConfig, slot_id: int | None = None) -> str:
    """What the slots of a vault take, or one of them, in words; its config need not be authentic."""
    found: list[str] = []
    for slot in config.slots:
        if slot_id in (None, slot.id):
            kind = kind_of(slot)
            words = f"an unknown kind of key ({slot.kind})" if kind is None else kind.about
            if words not in found:
                found.append(words)
    if slot_id is None and config.recovery:
        found.append("recovery words or shares")
    return ", or ".join(found)


def takes_passphrase(config: VaultConfig, offer: Offer, *, beside: bool) -> bool:
    """Whether a passphrase would let slots be tried that the offer cannot be tried on; nothing is tried.

    Args: beside: only those that take it beside something that is in the offer.
    """
    alone = Offer(passphrase=_ANY)
    both = dataclasses.replace(offer, passphrase=_ANY)
    for slot in config.slots:
        kind = kind_of(slot)
        if kind is None or offer.slot_id not in (None, slot.id):
            continue
        gains = kind.is_offered(both) and not kind.is_offered(offer)
        if gains and not (beside and kind.is_offered(alone)):
            return True
    return False


def memory_limit() -> int:
    """Bytes that deriving a key may take: half of what is available now."""
    return available_memory() // 2


def available_memory() -> int:
    """Bytes that are free, or would be at once."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = next(line for line in text.splitlines() if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
