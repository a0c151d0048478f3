"""Words and shares come and go; what a vault does with a record that does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cryptfs.core.slots.checks import NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.core.slots.config import MAX_RECOVERY_SECRETS
from cryptfs.core.slots.recovery import RecoveryKind, RecoveryRecord
from cryptfs.errors import (
    NoKeyError,
    RecoveryRecordError,
    VaultConfigError,
    VaultError,
    WrongPassphraseError,
)
from cryptfs.unlock import recovering
from cryptfs.unlock.keyfile import new_passphrase_key_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import HeldSecret, draw_secret, opened_recovery
from cryptfs.unlock.table import changing_slots
from cryptfs.unlock.unlocking import Unlocked, open_vault
from cryptfs.vfs.vault import Vault, change_passphrase, read_config
from tests.unlock.vaults import (
    CONTENT,
    PASSPHRASE,
    add,
    age,
    content,
    make_vault,
    new_shares,
    new_words,
    record_files,
    record_of,
    remove,
    shares_offer,
    wiped_later,
    words_offer,
)


def warnings_of(vault_dir: Path, caplog: pytest.LogCaptureFixture, *, read_only: bool = False) -> list[str]:
    caplog.clear()
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=read_only):
        return [line for line in caplog.messages if RECOVERY_NAME in line]


def assert_lost(vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture) -> None:
    for read_only in (False, True):
        (line,) = warnings_of(vault_dir, caplog, read_only=read_only)
        assert "cryptfs recovery words" in line
    with pytest.raises((WrongPassphraseError, NoKeyError, RecoveryRecordError)):
        content(vault_dir, words_offer(words))


def test_a_vault_is_made_with_words(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    assert record_files(vault_dir) == {RECOVERY_NAME}
    assert (vault_dir / RECOVERY_NAME).stat().st_mode & 0o777 == 0o600
    assert read_config(vault_dir).recovery == [words.about.recovery_id.hex()]
    assert content(vault_dir, words_offer(words)) == CONTENT
    assert content(vault_dir) == CONTENT
    assert warnings_of(vault_dir, caplog) == []


def test_a_vault_that_cannot_be_made_leaves_no_record(
    tmp_path: Path, words: HeldSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptfs.vfs.vault.write_config_file", full)
    with pytest.raises(OSError, match="No space"):
        make_vault(tmp_path / "new", words)
    assert not (tmp_path / "new").exists()


def test_what_was_not_offered_is_named(vault_dir: Path) -> None:
    with pytest.raises(NoKeyError, match="takes; it takes a passphrase, or recovery words or shares"):
        content(vault_dir, Offer())


def test_words_and_shares_each_open_alone_and_not_after_their_removal(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    shares, more = new_shares(3, 5), new_words()
    add(vault_dir, shares, more)
    offers = {words: words_offer(words), shares: shares_offer(shares), more: words_offer(more)}
    for offer in offers.values():
        assert content(vault_dir, offer) == CONTENT
    old_records = []
    for held, offer in offers.items():
        old_records.append(record_of(vault_dir))
        remove(vault_dir, held)
        with pytest.raises((WrongPassphraseError, NoKeyError)):
            content(vault_dir, offer)
        assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == set()
    assert read_config(vault_dir).recovery == []
    for raw in old_records:  # the config says that they left
        (vault_dir / RECOVERY_NAME).write_bytes(raw)
        for offer in offers.values():
            with pytest.raises(WrongPassphraseError):
                content(vault_dir, offer)


def test_a_vault_of_version_0_1_gets_a_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vault_dir, words, shares = tmp_path / "vault", new_words(), new_shares()
    make_vault(vault_dir, features=())
    raw = (vault_dir / "cryptfs.json").read_bytes()
    assert warnings_of(vault_dir, caplog) == []
    add(vault_dir, words, shares)
    assert (vault_dir / "cryptfs.json").read_bytes() == raw
    for offer in (words_offer(words), shares_offer(shares)):
        assert content(vault_dir, offer) == CONTENT
    assert warnings_of(vault_dir, caplog) == []
    remove(vault_dir, words)
    with pytest.raises(WrongPassphraseError):
        content(vault_dir, words_offer(words))
    remove(vault_dir, shares)
    assert record_files(vault_dir) == set()


def test_words_open_what_passphrases_open(vault_dir: Path, words: HeldSecret) -> None:
    with changing_slots(vault_dir, words_offer(words)) as table:
        assert table.opened.slot is None
        assert table.opened.by == f"recovery words {words.about.short_id}"
    more = new_words()
    add(vault_dir, more, by=words_offer(words))
    remove(vault_dir, words, by=words_offer(more))
    assert content(vault_dir, words_offer(more)) == CONTENT


def test_a_forgotten_passphrase_is_replaced_by_words(vault_dir: Path, words: HeldSecret) -> None:
    assert change_passphrase(vault_dir, words_offer(words), b"a new one") == 0
    assert content(vault_dir, b"a new one") == CONTENT
    with pytest.raises(WrongPassphraseError):
        content(vault_dir)


def test_of_several_passphrases_one_has_to_be_named(vault_dir: Path, words: HeldSecret) -> None:
    from cryptfs.unlock.passphrase import new_passphrase

    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_passphrase(b"another", 64 << 20), "spare")
        table.save()
    with pytest.raises(VaultError, match="has 2 passphrases; say which one"):
        change_passphrase(vault_dir, words_offer(words), b"a new one")
    with pytest.raises(VaultError, match="no key slot 7"):
        change_passphrase(vault_dir, words_offer(words), b"a new one", slot_id=7)
    assert change_passphrase(vault_dir, words_offer(words), b"a new one", slot_id=1) == 1
    for passphrase in (PASSPHRASE, b"a new one"):
        assert content(vault_dir, passphrase) == CONTENT


def test_a_slot_with_a_file_keeps_needing_it(vault_dir: Path) -> None:
    """A passphrase in its place would open the vault alone."""

    def both() -> Offer:
        return Offer(passphrase=b"beside it", key_file=b"a photo" * 20)

    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_passphrase_key_file(both(), 64 << 20))
        table.save()
    before = read_config(vault_dir)
    for slot_id in (None, 1):
        with pytest.raises(VaultError, match="key slot 1 takes a key file beside its passphrase"):
            change_passphrase(vault_dir, both(), b"a new one", slot_id=slot_id)
    assert read_config(vault_dir) == before


def test_other_words_and_words_without_a_record(vault_dir: Path, words: HeldSecret) -> None:
    with pytest.raises(WrongPassphraseError, match=f"takes recovery words {words.about.short_id}"):
        content(vault_dir, words_offer(new_words()))
    with pytest.raises(WrongPassphraseError, match="takes"):
        content(vault_dir, shares_offer(new_shares()))
    both = Offer(passphrase=PASSPHRASE, words=words_offer(new_words()).words)
    assert content(vault_dir, both) == CONTENT
    (vault_dir / RECOVERY_NAME).unlink()
    with pytest.raises(NoKeyError, match=RECOVERY_NAME):
        content(vault_dir, words_offer(words))


def test_a_slot_that_is_named_is_not_the_record(vault_dir: Path, words: HeldSecret) -> None:
    offer = Offer(words=words_offer(words).words, slot_id=0)
    with pytest.raises(NoKeyError, match="takes a passphrase"):
        content(vault_dir, offer)


def test_a_record_that_is_gone_is_told_and_new_words_heal(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    (vault_dir / RECOVERY_NAME).unlink()
    assert_lost(vault_dir, words, caplog)
    more = new_words()
    add(vault_dir, more)
    assert read_config(vault_dir).recovery == [more.about.recovery_id.hex()]
    assert warnings_of(vault_dir, caplog) == []
    assert content(vault_dir, words_offer(more)) == CONTENT


def test_words_that_are_lost_can_be_taken_out(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    more = new_words()
    add(vault_dir, more)
    (vault_dir / RECOVERY_NAME).unlink()
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        assert table.lost
        assert table.secrets == ()
    remove(vault_dir, words)
    assert len(warnings_of(vault_dir, caplog)) == 1
    remove(vault_dir, more)
    assert read_config(vault_dir).recovery == []
    assert warnings_of(vault_dir, caplog) == []


def test_an_older_record_put_back_is_told(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    raw, more = record_of(vault_dir), new_words()
    add(vault_dir, more)
    (vault_dir / RECOVERY_NAME).write_bytes(raw)
    for read_only in (False, True):
        assert "not the one" in warnings_of(vault_dir, caplog, read_only=read_only)[0]
    assert record_of(vault_dir) == raw
    with pytest.raises(WrongPassphraseError):
        content(vault_dir, words_offer(more))


def test_any_byte_of_the_record_that_changes_is_told(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    raw = record_of(vault_dir)
    for place in (*range(0, len(raw), 29), len(raw) - 1):
        (vault_dir / RECOVERY_NAME).write_bytes(raw[:place] + bytes((raw[place] ^ 4,)) + raw[place + 1 :])
        assert len(warnings_of(vault_dir, caplog)) == 1, place
    (vault_dir / RECOVERY_NAME).write_bytes(raw)
    assert warnings_of(vault_dir, caplog) == []


@pytest.mark.parametrize("plant", ["directory", "fifo", "link", "large"])
def test_what_is_planted_in_its_place_hinders_nobody(
    plant: str, vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    place = vault_dir / RECOVERY_NAME
    place.unlink()
    if plant == "directory":
        place.mkdir()
        (place / "full").touch()
    elif plant == "fifo":
        os.mkfifo(place)
    elif plant == "link":
        place.symlink_to("/etc/hostname")
    else:
        place.write_bytes(bytes(1 << 20))
    assert_lost(vault_dir, words, caplog)
    more = new_words()
    add(vault_dir, more)
    assert content(vault_dir, words_offer(more)) == CONTENT
    remove(vault_dir, more)
    assert RECOVERY_NAME not in os.listdir(vault_dir)


def test_the_record_of_another_vault_is_refused(
    vault_dir: Path, tmp_path: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    other, others_words = tmp_path / "other", new_words()
    make_vault(other, others_words)
    (vault_dir / RECOVERY_NAME).write_bytes(record_of(other))
    assert len(warnings_of(vault_dir, caplog)) == 1
    with pytest.raises(RecoveryRecordError, match="another vault"):
        content(vault_dir, words_offer(others_words))


def test_a_changed_config_is_noticed_with_words(vault_dir: Path, words: HeldSecret) -> None:
    path = vault_dir / "cryptfs.json"
    path.write_text(path.read_text().replace('"generation": 1', '"generation": 2'))
    with pytest.raises(VaultConfigError, match="was changed by somebody"):
        content(vault_dir, words_offer(words))


def test_what_a_sync_client_brings_before_the_config_has_a_day(
    vault_dir: Path, tmp_path: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    old_config, old_record = (vault_dir / "cryptfs.json").read_bytes(), record_of(vault_dir)
    more = new_words()
    add(vault_dir, more)
    new_config, new_record = (vault_dir / "cryptfs.json").read_bytes(), record_of(vault_dir)

    def arrives(config: bytes, record: bytes | None, following: bytes | None) -> None:
        (vault_dir / "cryptfs.json").write_bytes(config)
        for name, raw in ((RECOVERY_NAME, record), (NEXT_RECOVERY_NAME, following)):
            (vault_dir / name).unlink(missing_ok=True)
            if raw is not None:
                (vault_dir / name).write_bytes(raw)

    arrives(old_config, old_record, new_record)  # the other machine's next record first
    assert warnings_of(vault_dir, caplog) == []
    assert content(vault_dir, words_offer(words)) == CONTENT
    assert record_files(vault_dir) == {RECOVERY_NAME, NEXT_RECOVERY_NAME}
    arrives(new_config, old_record, new_record)  # then the config: it fits
    assert content(vault_dir, words_offer(more)) == CONTENT
    assert warnings_of(vault_dir, caplog, read_only=True) == []
    assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == {RECOVERY_NAME}
    assert record_of(vault_dir) == new_record
    arrives(old_config, old_record, new_record)  # or nothing comes for a day
    age(vault_dir / NEXT_RECOVERY_NAME)
    assert warnings_of(vault_dir, caplog, read_only=True) == []
    assert record_files(vault_dir) == {RECOVERY_NAME, NEXT_RECOVERY_NAME}
    assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == {RECOVERY_NAME}


def test_a_record_that_no_config_lists_has_a_day(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    raw = record_of(vault_dir)
    remove(vault_dir, words)
    (vault_dir / RECOVERY_NAME).write_bytes(raw)
    (vault_dir / NEXT_RECOVERY_NAME).write_bytes(raw)
    assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == {RECOVERY_NAME, NEXT_RECOVERY_NAME}
    for name in record_files(vault_dir):
        age(vault_dir / name)
    assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == set()


def test_while_another_change_goes_on_nobody_waits(
    vault_dir: Path, words: HeldSecret, caplog: pytest.LogCaptureFixture
) -> None:
    (vault_dir / RECOVERY_NAME).rename(vault_dir / NEXT_RECOVERY_NAME)
    with changing_slots(vault_dir, PASSPHRASE):
        assert warnings_of(vault_dir, caplog) == []
        assert record_files(vault_dir) == {NEXT_RECOVERY_NAME}
    assert warnings_of(vault_dir, caplog) == []
    assert record_files(vault_dir) == {RECOVERY_NAME}


def test_a_change_of_the_config_meanwhile_is_noticed(vault_dir: Path, words: HeldSecret) -> None:
    raw = record_of(vault_dir)
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        table.add(new_words())
        change_passphrase(vault_dir, PASSPHRASE, b"meanwhile")
        with pytest.raises(VaultError, match="meanwhile"):
            table.save()
    assert record_of(vault_dir) == raw
    assert content(vault_dir, words_offer(words)) == CONTENT


def test_as_many_as_can_be(vault_dir: Path) -> None:
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        for _ in range(MAX_RECOVERY_SECRETS - 1):
            table.add(draw_secret(RecoveryKind.WORDS))
        with pytest.raises(VaultError, match="can have no more"):
            table.add(draw_secret(RecoveryKind.WORDS))
        table.save()
    assert len(RecoveryRecord.unpack(record_of(vault_dir)).secrets) == MAX_RECOVERY_SECRETS


def test_which_one_is_removed_has_to_be_clear(vault_dir: Path, words: HeldSecret) -> None:
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        for beginning in ("", "zz", words.about.recovery_id.hex() + "00"):
            with pytest.raises(VaultError, match="no recovery words or shares"):
                table.remove(beginning)
        table.add(HeldSecret(words.about, bytes(32)))
        with pytest.raises(VaultError, match="several"):
            table.remove(words.about.short_id[:2])


def test_the_table_wipes_its_secrets(vault_dir: Path, words: HeldSecret) -> None:
    fresh = wiped_later(new_words())
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        table.add(fresh)
        masterkey = table.opened.masterkey
        assert any(masterkey)
    assert not any(masterkey)
    assert not any(fresh.secret)


def test_the_masterkey_is_wiped_if_the_record_cannot_be_read(
    vault_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Unlocked] = []

    def unreadable(*_: object) -> bytes:
        raise PermissionError("not now")

    def noting(*args: Any, **kwargs: Any) -> Unlocked:
        opened.append(open_vault(*args, **kwargs))
        monkeypatch.setattr(recovering, "read_record_file", unreadable)
        return opened[0]

    monkeypatch.setattr(recovering, "open_vault", noting)
    with pytest.raises(PermissionError), opened_recovery(vault_dir, PASSPHRASE):
        pass
    assert not any(opened[0].masterkey)
