"""Old secrets, with copies of the vault from before, during and after a change, open nothing that is new."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.names import REKEY_NAME
from cryptfs.core.slots.checks import RECOVERY_NAME
from cryptfs.core.slots.config import VaultConfig, config_mac, decode_config
from cryptfs.core.slots.recovery import RecoveryKind
from cryptfs.core.slots.rekeying import Rekey, open_old_masterkey
from cryptfs.errors import IntegrityError, VaultConfigError, VaultError, WrongPassphraseError
from cryptfs.rekey.begin import begin, plan_slots
from cryptfs.rekey.tree import TreePass
from cryptfs.unlock.carriers.words import words_of
from cryptfs.unlock.keyfile import generate_key_file, new_key_file, new_passphrase_key_file
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.recovering import HeldSecret, draw_secret, opened_recovery
from cryptfs.unlock.table import changing_slots
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.scan.walk import Walker
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.vault import Vault, change_passphrase, read_config
from tests.rekey.material import (
    PASSPHRASE,
    change_masterkey,
    copy_of,
    finish,
    furnish_small,
    make_directory,
    make_vault,
    put,
    shown,
)
from tests.support import MIB, everything_below, pattern

LEAKED = b"of a slot that leaked"
KEY_FILE = generate_key_file(bytes(range(32)))
PHOTO = pattern(1000)


class _Stop(Exception):
    pass


class Copies(NamedTuple):
    """Copies of one vault, and what the attacker has: the old masterkey."""

    before: Path
    during: Path
    after: Path
    masterkey: bytes


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copies:
    """The copy from the middle has old and new entries side by side."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir)
    furnish_small(vault_dir)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        for number in range(16):
            put(vault, vault.tree.root, b"more %d" % number, b"content")
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_passphrase(LEAKED, 64 * MIB), "leaked")
        table.save()
    masterkey = open_vault(read_config(vault_dir), LEAKED, 1 << 40).masterkey
    before = copy_of(vault_dir, tmp_path / "before")
    entry, left = TreePass._entry, iter(range(12))

    def some(one: TreePass, directory: object, name: str) -> object:
        if directory.is_root and not name.startswith("cryptfs.") and next(left, None) is None:  # type: ignore[attr-defined]
            one._pipeline.drain()
            raise _Stop
        return entry(one, directory, name)  # type: ignore[arg-type]

    monkeypatch.setattr(TreePass, "_entry", some)
    with pytest.raises(_Stop):
        change_masterkey(vault_dir)
    monkeypatch.setattr(TreePass, "_entry", entry)
    during = copy_of(vault_dir, tmp_path / "during")
    finish(vault_dir)
    return Copies(before, during, copy_of(vault_dir, tmp_path / "after"), masterkey)


def opened_by(masterkey: bytes, vault_dir: Path) -> tuple[int, int]:
    """How many names in the root verify under a masterkey, and how many do not."""
    config = read_config(vault_dir)
    context = FileContext(Subkeys.from_masterkey(masterkey), config, read_only=True)
    fd = os.open(vault_dir, os.O_RDONLY)
    verified = others = 0
    try:
        walker = Walker(context, fd)
        for directory in walker.directories():
            for entry in walker.entries(directory):
                if entry.role == "entry" and directory.is_root:
                    verified += entry.damage is None
                    others += entry.damage is not None
    finally:
        os.close(fd)
        context.cipher.close()
    return verified, others


def test_the_old_masterkey_opens_nothing_new(copies: Copies) -> None:
    names = [name for name in os.listdir(copies.before) if not name.startswith("cryptfs.") or "long" in name]
    total = len([name for name in names if not name.endswith(".name")])
    assert opened_by(copies.masterkey, copies.before) == (total, 0)
    verified, others = opened_by(copies.masterkey, copies.during)
    assert verified and others
    assert opened_by(copies.masterkey, copies.after) == (0, total)
    keys = Subkeys.from_masterkey(copies.masterkey)
    context = FileContext(keys, read_config(copies.after), read_only=True)
    looked = 0
    for vault_dir in (copies.during, copies.after):
        was = {path.name for path in everything_below(copies.before)}
        for path in everything_below(vault_dir):
            if path.name in was or not path.is_file() or path.is_symlink() or path.stat().st_size < 256:
                continue
            with path.open("rb") as file, pytest.raises(IntegrityError):
                context.unpack_header(file.read(256))
            looked += 1
    context.cipher.close()
    assert looked > 4


def test_nothing_in_the_config_leads_from_the_old_masterkey_to_the_new_one(copies: Copies) -> None:
    for vault_dir in (copies.during, copies.after):
        config = read_config(vault_dir)
        assert [slot.label for slot in config.slots] == [""]
        assert config_mac(config, Subkeys.from_masterkey(copies.masterkey)).hex() != config.mac
        with pytest.raises(WrongPassphraseError):
            open_vault(config, LEAKED, 1 << 40, for_rekey=True)
    rekey = read_config(copies.during).rekey
    assert isinstance(rekey, Rekey)
    vault_id = bytes.fromhex(read_config(copies.during).vault_id)
    with pytest.raises(VaultConfigError):
        open_old_masterkey(rekey, copies.masterkey, vault_id)
    new = open_vault(read_config(copies.during), PASSPHRASE, 1 << 40, for_rekey=True).masterkey
    assert open_old_masterkey(rekey, new, vault_id) == copies.masterkey
    raw = [path.read_bytes() for path in everything_below(copies.during) if path.is_file()]
    assert not [each for each in raw if new in each or new.hex().encode() in each]


@pytest.mark.parametrize("passphrase", [PASSPHRASE, LEAKED])
def test_an_old_config_put_back_is_refused(copies: Copies, passphrase: bytes) -> None:
    old = (copies.before / "cryptfs.json").read_bytes()
    for vault_dir, why in (
        (copies.during, "before a change of the masterkey"),
        (copies.after, "does not belong"),
    ):
        (vault_dir / "cryptfs.json").write_bytes(old)
        for read_only, lock in ((False, True), (True, True), (True, False)):
            with pytest.raises(VaultConfigError, match=why):
                Vault.unlock(vault_dir, passphrase, read_only=read_only, lock=lock)


def test_an_old_config_in_the_middle_shows_old_entries_alone(copies: Copies) -> None:
    """Also where somebody removes what shows that a change is under way."""
    (copies.during / "cryptfs.json").write_bytes((copies.before / "cryptfs.json").read_bytes())
    shutil.rmtree(copies.during / REKEY_NAME)
    found, before = shown(copies.during, LEAKED), shown(copies.before, LEAKED)
    assert len(found) < len(before)
    assert {path: fields[-1] for path, fields in found.items()}.items() <= {
        path: fields[-1] for path, fields in before.items()
    }.items()


def test_changes_after_it_are_out_of_reach(copies: Copies) -> None:
    """All of the old vault's files together with the newer ones: the newer ones stay closed."""
    with Vault.unlock(copies.after, PASSPHRASE) as vault:
        put(vault, vault.tree.root, b"new", b"after the change")
        put(vault, make_directory(vault, vault.tree.root, b"newer"), b"inside", b"after the change")
    for path in copies.after.iterdir():
        target = copies.before / path.name
        if not target.exists() and not target.is_symlink():
            copy_of(path, target)
    found = shown(copies.before, LEAKED)
    assert not [path for path in found if b"new" in path]
    assert b"/file" in found


def forge(vault_dir: Path, masterkey: bytes, name: bytes, said: bytes) -> None:
    """A holder of the old masterkey makes a file, as a mount with the old config would."""
    fd = os.open(vault_dir, os.O_RDONLY)
    try:
        config = decode_config((vault_dir / "cryptfs.json").read_bytes())
        context = FileContext(Subkeys.from_masterkey(masterkey), config, read_only=False)
        tree = VaultTree(context, fd)
        file = tree.create(tree.root, name, os.O_RDWR | os.O_CREAT, 0o600)
        file.write(0, said)
        tree.release(file)
        tree.close()
        context.cipher.close()
    finally:
        os.close(fd)


def test_what_is_forged_meanwhile_is_taken_over(copies: Copies) -> None:
    """Not detected: by the old masterkey, the old part of the vault is as good as ever."""
    forge(copies.during, copies.masterkey, b"forged", b"not by its owner")
    finish(copies.during, take_over=True)
    assert shown(copies.during)[b"/forged"][-1] == [(0, b"not by its owner")]


def test_the_config_from_the_middle_put_back(copies: Copies) -> None:
    """Every command refuses the vault; to run the change again takes over what was forged, not detected."""
    before = shown(copies.after)
    newest = read_config(copies.after).generation
    (copies.after / "cryptfs.json").write_bytes((copies.during / "cryptfs.json").read_bytes())
    with pytest.raises(VaultError, match="cryptfs rekey"):
        Vault.unlock(copies.after, PASSPHRASE)
    assert read_config(copies.after).generation < newest
    forge(copies.after, copies.masterkey, b"forged", b"not by its owner")
    finish(copies.after, take_over=True)
    after = shown(copies.after)
    assert after.keys() - before.keys() == {b"/forged"}


def test_every_command_refuses_a_vault_in_the_middle(copies: Copies) -> None:
    for action in (
        lambda: Vault.unlock(copies.during, PASSPHRASE),
        lambda: Vault.unlock(copies.during, PASSPHRASE, read_only=True),
        lambda: Vault.unlock(copies.during, PASSPHRASE, read_only=True, lock=False),
        lambda: change_passphrase(copies.during, PASSPHRASE, b"another"),
    ):
        with pytest.raises(VaultError, match="cryptfs rekey"):
            action()


def with_slots(vault_dir: Path) -> VaultConfig:
    """A vault with a slot of each kind."""
    make_vault(vault_dir)
    both = Offer(passphrase=b"with a photo", key_file=PHOTO)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_passphrase(LEAKED, 64 * MIB), "leaked")
        table.add(new_key_file(KEY_FILE), "file")
        table.add(new_passphrase_key_file(both, 64 * MIB), "both")
        table.save()
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        put(vault, vault.tree.root, b"file", b"content")
    return read_config(vault_dir)


def test_slots_stay_if_their_secret_is_given(tmp_path: Path) -> None:
    vault_dir = tmp_path / "vault"
    before = with_slots(vault_dir)
    offers = [
        Offer(passphrase=PASSPHRASE),
        Offer(key_file=KEY_FILE),
        Offer(passphrase=b"with a photo", key_file=PHOTO),
    ]
    plan = plan_slots(before, offers)
    assert [slot.label for slot in plan.dropped] == ["leaked"]
    change_masterkey(vault_dir, offers)
    after = read_config(vault_dir)
    assert [(slot.id, slot.kind, slot.label) for slot in after.slots] == [
        (slot.id, slot.kind, slot.label) for slot in before.slots if slot.label != "leaked"
    ]
    for slot in after.slots:  # other salts: a slot key that leaked opens nothing
        old = next(each for each in before.slots if each.id == slot.id)
        assert slot.params["salt"] != old.params["salt"]
        assert slot.commitment != old.commitment
    for offer in offers:
        with Vault.unlock(vault_dir, offer, read_only=True) as vault:
            assert [entry.name for entry in vault.tree.list(vault.tree.root)] == [b"file"]
    with pytest.raises(WrongPassphraseError):
        Vault.unlock(vault_dir, LEAKED)


def test_a_new_slot_that_does_not_open_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is tried before the old config goes."""
    vault_dir = tmp_path / "vault"
    config = with_slots(vault_dir)
    raw = (vault_dir / "cryptfs.json").read_bytes()
    real = open_vault

    def fails(*args: object, for_rekey: bool = False) -> object:
        if for_rekey:
            raise WrongPassphraseError("it does not open")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("cryptfs.rekey.begin.open_vault", fails)
    with Vault.unlock(vault_dir, PASSPHRASE, durability=Durability.OFF) as vault:
        plan = plan_slots(config, [Offer(passphrase=PASSPHRASE)])
        with pytest.raises(WrongPassphraseError):
            begin(vault, plan)
    assert (vault_dir / "cryptfs.json").read_bytes() == raw


def test_a_kind_may_renew_its_slots_without_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As public keys can: the config's mac vouches for the recipient."""
    from cryptfs.unlock.keyfile import KeyFileKind
    from cryptfs.unlock.kind import NewKey

    vault_dir = tmp_path / "vault"
    config = with_slots(vault_dir)
    asked: list[tuple[int, bytes]] = []

    def renew(_: KeyFileKind, slot: object, vault_id: bytes) -> NewKey:
        asked.append((slot.id, vault_id))  # type: ignore[attr-defined]
        return new_key_file(KEY_FILE)

    monkeypatch.setattr(KeyFileKind, "renew", renew, raising=False)
    plan = plan_slots(config, [Offer(passphrase=PASSPHRASE)])
    assert asked == [(2, bytes.fromhex(config.vault_id))]
    assert [each.slot.label for each in plan.kept] == ["", "file"]
    assert [slot.label for slot in plan.dropped] == ["leaked", "both"]
    with Vault.unlock(vault_dir, PASSPHRASE, durability=Durability.OFF) as vault:
        begin(vault, plan)
    finish(vault_dir, Offer(key_file=KEY_FILE))
    assert decode_config((vault_dir / "cryptfs.json").read_bytes()).generation == config.generation + 2


def test_recovery_words_end_with_the_old_masterkey(tmp_path: Path) -> None:
    """Their record holds it; new words, made afterwards, open the vault as it is now."""
    vault_dir = tmp_path / "vault"
    make_vault(vault_dir)
    furnish_small(vault_dir)
    old = draw_secret(RecoveryKind.WORDS)
    words = words_of(old.secret).encode()
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        table.add(HeldSecret(old.about, bytes(bytearray(old.secret))))
        table.save()
    record = (vault_dir / RECOVERY_NAME).read_bytes()
    with Vault.unlock(vault_dir, Offer(words=bytes(bytearray(words)))):
        pass
    change_masterkey(vault_dir)
    assert read_config(vault_dir).recovery == []
    assert not (vault_dir / RECOVERY_NAME).exists()
    with pytest.raises(VaultError):
        Vault.unlock(vault_dir, Offer(words=bytes(bytearray(words))))
    (vault_dir / RECOVERY_NAME).write_bytes(record)
    with pytest.raises(VaultError):
        Vault.unlock(vault_dir, Offer(words=bytes(bytearray(words))))
    new = draw_secret(RecoveryKind.WORDS)
    fresh = words_of(new.secret).encode()
    with opened_recovery(vault_dir, PASSPHRASE) as table:
        table.add(new)
        table.save()
    with Vault.unlock(vault_dir, Offer(words=fresh)) as vault:
        assert vault.tree.root.entry_name(b"x")
