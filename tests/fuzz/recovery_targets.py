"""The recovery record, words and shares, as targets: see targets.py."""

from __future__ import annotations

from collections.abc import Callable

from cryptfs.core.slots.recovery import RecoveryRecord
from cryptfs.errors import MistypedWordsError, RecoveryRecordError, UnsupportedFormatError
from cryptfs.unlock.carriers.shares import combine
from cryptfs.unlock.carriers.words import secret_of_words, words_of
from tests.fuzz.targets import Target
from tests.unit.test_recovery_record import BODY, MASTERKEY, RAW, SECRETS, sealed
from tests.vectors.scenarios_recovery import OTHER_SHARE, OTHER_WORDS, SHARES, SHARES_SECRET, WORDS


def record_target() -> Target:
    """Any `cryptfs.recovery`: refused, or one of those that were sealed; no secret opens anything else."""
    samples = [RAW, sealed(SECRETS[:1], seed=7)]

    def run(data: bytes) -> None:
        try:
            record = RecoveryRecord.unpack(data)
        except (RecoveryRecordError, UnsupportedFormatError):
            return
        for _, secret in SECRETS:
            try:
                assert record.secret_of(secret) is None or record.open(secret) == BODY
            except RecoveryRecordError:
                continue
        try:
            found, body = record.opened_by(MASTERKEY)
        except RecoveryRecordError:
            return
        assert data in samples
        assert (found, body) == (SECRETS[: len(found)], BODY)

    return Target("recovery-record", run, samples)


def words_target() -> Target:
    """Any text: refused, or a secret whose words are the same."""

    def run(data: bytes) -> None:
        try:
            secret = secret_of_words(data)
        except MistypedWordsError as error:
            assert len(error.hint) < 100
            return
        assert secret_of_words(words_of(secret).encode()) == secret

    return Target("recovery-words", run, [WORDS.encode(), OTHER_WORDS.upper().encode()])


def shares_target() -> Target:
    """Any texts, one on each line: refused, or the secret."""

    def run(data: bytes) -> None:
        try:
            secret = combine(data.split(b"\n"))
        except MistypedWordsError:
            return
        assert secret == SHARES_SECRET

    texts = [share.encode() for share in SHARES]
    return Target(
        "shares",
        run,
        [b"\n".join(texts[:2]), b"\n".join(texts[1:]), b"\n".join([*texts, OTHER_SHARE.encode()])],
    )


RECOVERY_TARGETS: dict[str, Callable[[], Target]] = {
    "recovery-record": record_target,
    "recovery-words": words_target,
    "shares": shares_target,
}
