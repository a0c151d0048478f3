"""From recovery words or shares to the masterkey, by way of the recovery record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptfs.core.slots.checks import RECOVERY_NAME
from cryptfs.core.slots.config import VaultConfig
from cryptfs.core.slots.recovery import RecoveryBody, RecoveryRecord, RecoverySecret
from cryptfs.errors import (
    NoKeyError,
    RecoveryRecordError,
    UnsupportedFormatError,
    WrongPassphraseError,
)
from cryptfs.storage.libc import wipe
from cryptfs.unlock.carriers.shares import combine
from cryptfs.unlock.carriers.words import secret_of_words
from cryptfs.unlock.offer import Offer


def offered_secrets(offer: Offer) -> list[bytes]:
    """The recovery secrets, 32 bytes each, of what an offer has. Wipe them after use.

    Raises: MistypedWordsError.
    """
    found = [] if offer.words is None else [secret_of_words(offer.words)]
    return [*found, combine(offer.shares)] if offer.shares else found


def open_by_record(
    config: VaultConfig, offer: Offer, records: Sequence[bytes]
) -> tuple[bytes, RecoverySecret]:
    """The masterkey, and which secret of the record it was.

    The caller verifies the config with that masterkey.

    Args:   records: the bytes of the record, and of one that is to follow it.
    Raises: MistypedWordsError, NoKeyError, WrongPassphraseError, RecoveryRecordError, UnsupportedFormatError.
    """
    found = opened_record(offer, records, bytes.fromhex(config.vault_id))
    if config.version == 2 and found.secret.recovery_id.hex() not in config.recovery:
        wipe(found.body.masterkey)
        raise WrongPassphraseError(
            f"{found.secret.name} were removed from this vault: its {RECOVERY_NAME} is an older one"
        )
    return found.body.masterkey, found.secret


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """A record that words or shares opened. raw: its bytes.   secret: the one that did."""

    raw: bytes
    record: RecoveryRecord
    secret: RecoverySecret
    body: RecoveryBody


def opened_record(offer: Offer, records: Sequence[bytes], vault_id: bytes | None) -> OpenedRecord:
    """The first record that an offer opens.

    Args:   vault_id: of the vault; None if nobody knows it.
    Raises: as open_by_record.
    """
    secrets = offered_secrets(offer)
    try:
        if not records:
            raise NoKeyError(
                f"the vault has no {RECOVERY_NAME}; without it recovery words and shares open nothing"
            )
        return _opened(secrets, records, vault_id)
    finally:
        for secret in secrets:
            wipe(secret)


def _opened(secrets: Sequence[bytes], records: Sequence[bytes], vault_id: bytes | None) -> OpenedRecord:
    known: list[str] = []
    problem: RecoveryRecordError | UnsupportedFormatError | None = None
    for raw in records:
        try:
            record = RecoveryRecord.unpack(raw)
            if vault_id not in (None, record.vault_id):
                raise RecoveryRecordError(f"{RECOVERY_NAME} belongs to another vault")
            for secret in secrets:
                about = record.secret_of(secret)
                if about is not None:
                    return OpenedRecord(raw, record, about, record.open(secret))
            known += [about.name for about in record.secrets if about.name not in known]
        except (RecoveryRecordError, UnsupportedFormatError) as error:
            problem = problem or error
    if problem is not None and not known:
        raise problem
    raise WrongPassphraseError(
        f"these words or shares are not those of this vault; it takes {', or '.join(known)}"
    )
