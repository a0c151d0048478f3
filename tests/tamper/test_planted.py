"""Things that are no regular files, planted where one belongs: EIO, no hang, no way out of the vault."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.errors import CryptfsError, IntegrityError, VaultConfigError, VaultError
from cryptfs.storage.vaultdir import LOCK_NAME, VaultLock, lock_holder, open_vault_dir
from cryptfs.vfs.vault import read_config
from tests.support import BareVault, assert_detected

pytestmark = pytest.mark.timeout(30)  # a hang is what these cases are about

Plant = Callable[[Path], None]
SECRET = b"outside of the vault"


def plant_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path may be too long for a socket's address
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def plant_device(kind: int, major: int, minor: int) -> Plant:
    def plant(path: Path) -> None:
        try:
            os.mknod(path, kind | 0o666, os.makedev(major, minor))
        except PermissionError:
            pytest.skip("only root may make devices")

    return plant


PLANTS: dict[str, Plant] = {
    "fifo": os.mkfifo,
    "socket": plant_socket,
    "zero device": plant_device(stat.S_IFCHR, 1, 5),
    "device without driver": plant_device(stat.S_IFCHR, 240, 77),
    "block device without driver": plant_device(stat.S_IFBLK, 240, 77),
    "link out": lambda path: path.symlink_to(path.parents[2] / "outside"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "directory": Path.mkdir,
}


@pytest.fixture(params=PLANTS)
def plant(request: pytest.FixtureRequest) -> Plant:
    """Removes what stands at a path, and plants something else there."""

    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        PLANTS[request.param](path)

    return replace


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[BareVault]:
    """A vault with a file in a directory, both with long names, and a file outside of it."""
    outside = tmp_path / "outside"
    outside.write_bytes(SECRET)
    (tmp_path / "base").mkdir()
    vault = BareVault(tmp_path / "base" / "vault")
    vault.put(b"bystander", b"fine")
    yield vault
    assert outside.read_bytes() == SECRET
    assert vault.get(b"bystander") == b"fine"
    vault.close()


def refused(action: Callable[[], object]) -> Exception:
    """The action fails with damage found, or as the operating system has it for that kind of file."""
    with pytest.raises((CryptfsError, OSError)) as raised:
        action()
    return raised.value


def test_in_place_of_a_file(vault: BareVault, plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    vault.put(b"x", b"content")
    entry, path = vault.entry(b"x"), vault.backing(b"x")
    plant(path)
    is_directory = path.is_dir() and not path.is_symlink()
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
        if is_directory and flags != os.O_RDONLY:
            with pytest.raises(IsADirectoryError):
                vault.tree.open(vault.root, b"x", flags)
        else:
            assert_detected(lambda flags=flags: vault.tree.open(vault.root, b"x", flags), caplog, entry)  # type: ignore[misc]
    for action in (
        lambda: vault.tree.create(vault.root, b"x", os.O_RDWR, 0o600),
        lambda: vault.tree.truncate(vault.root, b"x", 0),
        lambda: vault.tree.directory(vault.root, b"x"),
        lambda: vault.tree.symlinks.read(vault.root, b"x"),
        lambda: vault.tree.xattrs.get(vault.root, b"x", b"user.a"),
        lambda: vault.tree.xattrs.set(vault.root, b"x", b"user.a", b"1", 0),
    ):
        refused(action)
    assert vault.tree.stat(vault.root, b"x").size >= 0
    assert vault.names() == [b"bystander", b"x"]
    if is_directory:
        vault.tree.remove_directory(vault.root, b"x")
    else:
        vault.tree.unlink(vault.root, b"x")
    assert vault.names() == [b"bystander"]


def test_in_place_of_a_directory(vault: BareVault, plant: Plant) -> None:
    directory = vault.make_directory(b"d")
    path = vault.vault_dir / directory.cipher_path
    vault.put(b"x", b"content", directory)
    del directory
    shutil.rmtree(path)
    plant(path)
    if path.is_dir() and not path.is_symlink():
        with pytest.raises(IntegrityError):
            vault.tree.directory(vault.root, b"d")
    else:
        with pytest.raises(NotADirectoryError):
            vault.tree.directory(vault.root, b"d")
    with pytest.raises((NotADirectoryError, FileNotFoundError, IntegrityError)):
        vault.put(b"x", b"", vault.tree.directory(vault.root, b"d"))


def test_link_to_a_directory_outside_is_not_entered(vault: BareVault) -> None:
    outside = vault.vault_dir.parent / "outside directory"
    outside.mkdir()
    vault.backing(b"d").symlink_to(outside)
    with pytest.raises(NotADirectoryError):
        vault.tree.directory(vault.root, b"d")
    with pytest.raises(NotADirectoryError):
        vault.tree.remove_directory(vault.root, b"d")
    vault.tree.unlink(vault.root, b"d")
    assert list(outside.iterdir()) == []


def test_in_place_of_a_directory_record(
    vault: BareVault, plant: Plant, caplog: pytest.LogCaptureFixture
) -> None:
    entry = vault.make_directory(b"d").cipher_path
    plant(vault.vault_dir / entry / RECORD_NAME)
    assert_detected(lambda: vault.tree.directory(vault.root, b"d"), caplog, entry)
    vault.tree.remove_directory(vault.root, b"d")
    assert vault.names() == [b"bystander"]
    assert vault.internal_names() == []


def test_in_place_of_a_sidecar(vault: BareVault, plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    directory = vault.make_directory(b"d")
    vault.put(b"l" * 200, b"long", directory)
    sidecar = Path(f"{vault.backing(b'l' * 200, directory)}{SIDECAR_SUFFIX}")
    plant(sidecar)
    with caplog.at_level(logging.WARNING):
        assert vault.names(directory) == []
    (record,) = caplog.records
    assert record.getMessage().startswith(vault.entry(b"l" * 200, directory))
    assert vault.get(b"l" * 200, directory) == b"long"
    vault.tree.unlink(directory, b"l" * 200)
    vault.tree.remove_directory(vault.root, b"d")


def test_in_place_of_the_config(vault: BareVault, plant: Plant) -> None:
    plant(vault.vault_dir / CONFIG_NAME)
    with pytest.raises(VaultConfigError):
        read_config(vault.vault_dir)


@pytest.mark.parametrize("shared", [False, True], ids=["exclusive", "shared"])
def test_in_place_of_the_lock(vault: BareVault, plant: Plant, shared: bool) -> None:
    """Refused with a message; taking a lock on a thing that is no file would lock nobody out."""
    plant(vault.vault_dir / LOCK_NAME)
    vault_fd = open_vault_dir(vault.vault_dir)
    try:
        with pytest.raises(VaultError):
            VaultLock(vault_fd, vault.vault_dir, shared=shared)
        assert lock_holder(vault.vault_dir) is None
    finally:
        os.close(vault_fd)
