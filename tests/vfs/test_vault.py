"""The vault as a whole: create, unlock, lock, change of passphrase, wiping."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.kdf import MIN_KDF_MEMORY
from cryptfs.errors import (
    NotAVaultError,
    ReadOnlyVaultError,
    VaultConfigError,
    VaultLockedError,
    WrongPassphraseError,
)
from cryptfs.storage.libc import wipe
from cryptfs.storage.vaultdir import LOCK_NAME, LOOK_SECONDS, VaultLock, lock_holder, open_vault_dir
from cryptfs.vfs.vault import Vault, change_passphrase, read_config
from tests.support import KIB, BareVault, child_environment, open_descriptors

PASSPHRASE = b"open sesame"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault made once; each test works on a copy."""
    vault_dir = tmp_path_factory.mktemp("made") / "vault"
    Vault.create(vault_dir, PASSPHRASE, label="first", kdf_memory=MIN_KDF_MEMORY)
    return vault_dir


@pytest.fixture
def vault_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "vault"))


# ---- create and unlock


@pytest.mark.parametrize("cipher", ["aegis-256", "xchacha20-poly1305"])
def test_create_unlock_use_and_unlock_again(tmp_path: Path, cipher: str) -> None:
    vault_dir = tmp_path / "vault"
    made = Vault.create(vault_dir, PASSPHRASE, cipher=cipher, chunk_size=64 * KIB, kdf_memory=MIN_KDF_MEMORY)
    assert os.listdir(vault_dir) == [CONFIG_NAME]
    assert read_config(vault_dir) == made
    before = open_descriptors()
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        file = vault.tree.create(vault.tree.root, b"f", os.O_RDWR, 0o600)
        file.write(0, b"plain")
        vault.tree.release(file)
    del vault, file
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        assert vault.read_only
        file = vault.tree.open(vault.tree.root, b"f", os.O_RDONLY)
        assert file.read(0, 10) == b"plain"
        with pytest.raises(ReadOnlyVaultError):
            vault.tree.create(vault.tree.root, b"g", os.O_RDWR, 0o600)
        vault.tree.release(file)
    del vault, file
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"chunk_size": 5000}, "chunk_size"),
        ({"chunk_size": 2 * KIB}, "chunk_size"),
        ({"kdf_memory": MIN_KDF_MEMORY - 1024}, "memory"),
        ({"kdf_memory": MIN_KDF_MEMORY + 1}, "memory"),
        ({"kdf_passes": 2}, "passes"),
        ({"label": "x" * 65}, "label"),
        ({"label": "two\nlines"}, "label"),
    ],
)
def test_create_with_parameters_out_of_bounds(
    tmp_path: Path, arguments: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Vault.create(tmp_path / "vault", PASSPHRASE, **{"kdf_memory": MIN_KDF_MEMORY, **arguments})  # type: ignore[arg-type]
    assert not (tmp_path / "vault").exists()


def test_create_where_something_is(tmp_path: Path, vault_dir: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for place, complaint in (
        (vault_dir, "is already a vault"),
        (tmp_path / "full", "not empty"),
        (tmp_path / "file", "File exists"),
        (tmp_path / "missing" / "vault", "No such file"),
    ):
        with pytest.raises(NotAVaultError, match=complaint):
            Vault.create(place, PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)
    assert os.listdir(tmp_path / "full") == ["file"]


def test_unlock_failures_take_no_lock_and_no_descriptor(vault_dir: Path, tmp_path: Path) -> None:
    before = open_descriptors()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "missing", tmp_path / "file", tmp_path / "empty"):
        with pytest.raises(NotAVaultError):
            Vault.unlock(place, PASSPHRASE)
    for passphrase in (b"", b"Open sesame", PASSPHRASE + b"\0", PASSPHRASE + b" "):
        with pytest.raises(WrongPassphraseError):
            Vault.unlock(vault_dir, passphrase)
    assert open_descriptors() == before
    Vault.unlock(vault_dir, PASSPHRASE).close()


def test_close_twice_and_with_files_open(vault_dir: Path) -> None:
    vault = Vault.unlock(vault_dir, PASSPHRASE)
    file = vault.tree.create(vault.tree.root, b"f", os.O_RDWR, 0o600)
    file.write(0, b"still open")
    vault.close()
    vault.close()
    vault.tree.release(file)  # the kernel may send this late
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        file = vault.tree.open(vault.tree.root, b"f", os.O_RDONLY)
        assert file.read(0, 20) == b"still open"
        vault.tree.release(file)


def test_kdf_memory_beyond_this_machine_is_refused_first(
    vault_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cryptfs.vfs.vault.memory_limit", lambda: MIN_KDF_MEMORY - 1)
    with pytest.raises(VaultConfigError, match="64 MiB"):
        Vault.unlock(vault_dir, PASSPHRASE)


# ---- the lock


def test_second_writer_is_refused_and_told_who_has_it(vault_dir: Path) -> None:
    assert lock_holder(vault_dir) is None
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.announce("/mnt/somewhere")
        for read_only in (False, True):
            with pytest.raises(VaultLockedError, match=rf"process {os.getpid()}, at /mnt/somewhere"):
                Vault.unlock(vault_dir, PASSPHRASE, read_only=read_only)
        holder = lock_holder(vault_dir)
        assert holder is not None
        assert (holder.pid, holder.mountpoint) == (os.getpid(), "/mnt/somewhere")
    assert lock_holder(vault_dir) is None
    Vault.unlock(vault_dir, PASSPHRASE).close()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": "x", "mountpoint": 1}', b"\xff" * 9000])
def test_unreadable_holder_is_still_a_holder(vault_dir: Path, text: bytes) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE):
        (vault_dir / LOCK_NAME).write_bytes(text)
        with pytest.raises(VaultLockedError, match="another process"):
            Vault.unlock(vault_dir, PASSPHRASE)


def test_readers_share_the_lock_and_keep_writers_out(vault_dir: Path) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as first:  # a vault that nobody had open before
        with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as second:
            first.announce("/mnt/one")
            second.announce("/mnt/two")
            with pytest.raises(VaultLockedError):
                Vault.unlock(vault_dir, PASSPHRASE)
        with pytest.raises(VaultLockedError):
            Vault.unlock(vault_dir, PASSPHRASE)
    assert (vault_dir / LOCK_NAME).read_bytes() == b""
    Vault.unlock(vault_dir, PASSPHRASE).close()


def test_who_only_looks_keeps_nobody_out(vault_dir: Path) -> None:
    """`cryptfs info` and others ask for the lock, and have it for a moment."""
    looking = os.open(vault_dir / LOCK_NAME, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(LOOK_SECONDS / 4, os.close, (looking,))
    timer.start()
    Vault.unlock(vault_dir, PASSPHRASE).close()
    timer.join()


HOLD = """
import os, sys
from pathlib import Path
from cryptfs.storage.vaultdir import VaultLock, open_vault_dir

vault_dir = Path(sys.argv[1])
lock = VaultLock(open_vault_dir(vault_dir), vault_dir, shared=False)
reader, writer = os.pipe()
if os.fork():
    os._exit(0)  # as daemonising does
lock.announce("/mnt/child")
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_lock_survives_fork_and_falls_with_the_process(vault_dir: Path) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(vault_dir)],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert held.stdin is not None and held.stdout is not None
    child = int(held.stdout.readline())
    assert held.wait(20) == 0
    vault_fd = open_vault_dir(vault_dir)
    with pytest.raises(VaultLockedError, match=rf"process {child}, at /mnt/child"):
        VaultLock(vault_fd, vault_dir, shared=False)
    held.stdin.close()  # ends it, without a release
    assert held.stdout.read() == b""  # its end of the pipe is closed: it is gone
    held.stdout.close()
    lock = VaultLock(vault_fd, vault_dir, shared=False)
    lock.release()
    lock.release()
    os.close(vault_fd)


# ---- passphrases


def test_change_of_passphrase(vault_dir: Path) -> None:
    before = read_config(vault_dir)
    with pytest.raises(WrongPassphraseError):
        change_passphrase(vault_dir, b"wrong", b"new", kdf_memory=MIN_KDF_MEMORY)
    with pytest.raises(ValueError, match="memory"):
        change_passphrase(vault_dir, PASSPHRASE, b"new", kdf_memory=1024)
    assert read_config(vault_dir) == before
    assert change_passphrase(vault_dir, PASSPHRASE, b"new", kdf_memory=MIN_KDF_MEMORY) == 0
    after = read_config(vault_dir)
    assert (after.generation, after.vault_id) == (before.generation + 1, before.vault_id)
    assert after.slots[0].label == "first"
    assert after.slots[0].wrapped != before.slots[0].wrapped
    assert sorted(os.listdir(vault_dir)) == [CONFIG_NAME]
    with pytest.raises(WrongPassphraseError):
        Vault.unlock(vault_dir, PASSPHRASE)
    Vault.unlock(vault_dir, b"new").close()


def test_change_of_passphrase_while_in_use(vault_dir: Path) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE):
        change_passphrase(vault_dir, PASSPHRASE, b"new", kdf_memory=MIN_KDF_MEMORY)
    Vault.unlock(vault_dir, b"new").close()


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_failed_change_leaves_the_old_config(
    vault_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError):
            change_passphrase(vault_dir, PASSPHRASE, b"new", kdf_memory=MIN_KDF_MEMORY)
    assert os.listdir(vault_dir) == [CONFIG_NAME]
    Vault.unlock(vault_dir, PASSPHRASE).close()


# ---- wiping and descriptors


def test_wipe_overwrites_in_place() -> None:
    secret = os.urandom(32)
    alias = secret
    wipe(secret)
    assert alias == bytes(32)
    wipe(b"")
    wipe(bytes((120,)))  # Python has one object for each single byte, which everybody shares
    assert bytes((120,)) == b"x"


def test_closing_wipes_every_subkey(vault_dir: Path) -> None:
    vault = Vault.unlock(vault_dir, PASSPHRASE)
    keys = vault.context.keys
    fields = list(keys.__dataclass_fields__)
    assert all(any(getattr(keys, name)) for name in fields)
    vault.close()
    assert not any(any(getattr(keys, name)) for name in fields)


def test_no_secret_in_reprs(vault_dir: Path) -> None:
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        shown = repr(vault) + repr(vault.context) + repr(vault.context.keys) + repr(vault.config)
        for name in vault.context.keys.__dataclass_fields__:
            secret = getattr(vault.context.keys, name)
            assert repr(secret) not in shown
            assert secret.hex() not in shown
        assert json.loads((vault_dir / CONFIG_NAME).read_text())["vault_id"] in shown


def test_directories_close_with_their_last_reference(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault")
    before = open_descriptors()
    directory = vault.make_directory(b"d")
    inner = vault.make_directory(b"e", directory)
    assert open_descriptors() == before + 4  # two directories, and two records that wait for a sync
    vault.tree.sync_directory(inner)
    assert open_descriptors() == before + 2
    vault.tree.rename(directory, b"e", vault.root, b"moved")
    vault.put(b"x", b"through the old descriptor", inner)
    assert vault.get(b"x", vault.tree.directory(vault.root, b"moved")) == b"through the old descriptor"
    listing = vault.tree.list(inner)
    assert next(listing).name == b"x"
    listing.close()  # type: ignore[attr-defined]
    del directory, inner, listing
    assert open_descriptors() == before
    with pytest.raises(FileNotFoundError):
        vault.tree.directory(vault.root, b"missing")
    with pytest.raises(NotADirectoryError):
        vault.put(b"f", b"1")
        vault.tree.directory(vault.root, b"f")
    assert open_descriptors() == before
    vault.close()


def test_changes_at_once_follow_one_another(tmp_path: Path) -> None:
    """Each of two changes that start together must see what the other wrote, or lose to it openly."""
    vault_dir = tmp_path / "vault"
    Vault.create(vault_dir, PASSPHRASE, kdf_memory=MIN_KDF_MEMORY)
    outcomes: dict[bytes, bool] = {}

    def change(new: bytes) -> None:
        try:
            change_passphrase(vault_dir, PASSPHRASE, new, kdf_memory=MIN_KDF_MEMORY)
            outcomes[new] = True
        except WrongPassphraseError:
            outcomes[new] = False

    threads = [threading.Thread(target=change, args=(new,)) for new in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes.values()) == [False, True]
    (winner,) = [new for new, done in outcomes.items() if done]
    Vault.unlock(vault_dir, winner).close()
    assert read_config(vault_dir).generation == 2
