"""One vault, many filesystems: threads, pickles, other processes; and what opens it."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.core import url_to_fs

import cryptfs
from cryptfs.fsspec.filesystem import CryptfsFileSystem
from cryptfs.unlock.keyfile import generate_key_file, new_key_file
from cryptfs.unlock.table import changing_slots
from cryptfs.vfs.vault import lock_holder
from tests.transfer.conftest import PASSPHRASE

ROOT = Path(__file__).parents[2]


def test_the_protocol_is_registered(options: dict[str, Any]) -> None:
    assert fsspec.get_filesystem_class("cryptfs") is CryptfsFileSystem
    with fsspec.filesystem("cryptfs", **options) as fs:
        assert isinstance(fs, CryptfsFileSystem)


@pytest.mark.parametrize(
    "name", ["plain", "with blank", "a:b", "ä€", "100%20", "#fragment", "q?x=1", "a&b", "[brackets]"]
)
@pytest.mark.parametrize("form", ["cryptfs://{0}/in {0}::{1}", "cryptfs:///{0}/in {0}::file://{1}"])
def test_a_path_names_its_vault(vault_dir: Path, passfile: Path, name: str, form: str) -> None:
    place = vault_dir.rename(vault_dir.parent / f"vault {name}")
    url = form.format(name, place)
    with fsspec.open(url, "w", passfile=str(passfile)) as file:
        file.write("text")
    with fsspec.open(url, "r", cryptfs={"passfile": str(passfile)}) as file:
        assert file.read() == "text"
    fs, path = url_to_fs(url, passfile=str(passfile))
    assert (path, fs.vault_dir) == (f"{name}/in {name}", place)
    CryptfsFileSystem.clear_instance_cache()
    fs.close()


def test_relative_places_and_the_home_directory(
    vault_dir: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setenv("HOME", str(vault_dir.parent))
    monkeypatch.chdir(vault_dir.parent)
    for place in ("~/vault", "vault", vault_dir):
        fs = CryptfsFileSystem(place, passfile="~/passfile", skip_instance_cache=True)
        assert fs.vault_dir == vault_dir
        assert fs.storage_options.get("vault", str(vault_dir)) == str(vault_dir)
        assert fs.ls("") == []
        fs.close()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "which vault"),
        ({"vault": ""}, "which vault"),
        ({"vault": "/v", "fo": "/v"}, "named twice"),
        ({"fo": "bucket/vault", "target_protocol": "s3"}, "behind s3://"),
        ({"vault": "/v", "passfile": "/f", "passphrase": "p"}, "choose one of passphrase and passfile"),
        ({"vault": "/v", "passphrase": ""}, "the passphrase is empty"),
        ({"vault": "/v", "passfile": "-"}, "stdin"),
        ({"vault": "/v", "passphrase": 5}, "text or bytes, not int"),
        ({"vault": "/v", "slot": "1"}, "slot is the number"),
        ({"vault": "/v", "pasfile": "x"}, "no storage option 'pasfile'"),
    ],
)
def test_options_that_make_no_sense(given: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        fsspec.filesystem("cryptfs", **given)


def test_what_cannot_be_opened(vault_dir: Path, tmp_path: Path, passfile: Path) -> None:
    place = str(vault_dir)
    for options, error, told in (
        ({"vault": str(tmp_path / "none")}, cryptfs.NotAVaultError, "none"),
        ({"vault": place}, cryptfs.NoKeyError, "CRYPTFS_PASSFILE"),
        ({"vault": place, "passphrase": "wrong"}, cryptfs.WrongPassphraseError, "wrong"),
        ({"vault": place, "passfile": str(tmp_path / "none")}, cryptfs.VaultError, "cannot read"),
        ({"vault": place, "passcommand": "false"}, cryptfs.VaultError, "passcommand: .*exit code 1"),
        ({"vault": place, "keyfile": str(tmp_path / "none")}, cryptfs.VaultError, "cannot read"),
        ({"vault": place, "passfile": str(passfile), "slot": 7}, cryptfs.VaultError, "7"),
        ({"vault": place, "passfile": str(passfile), "expect_identity": "x"}, ValueError, "expect_identity"),
    ):
        fs = fsspec.filesystem("cryptfs", skip_instance_cache=True, **options)
        for call in (fs.exists, fs.ls, fs.isdir, fs.isfile, lambda path, fs=fs: fs.open(path, "rb")):
            with pytest.raises(error, match=told):
                call("a")
    assert lock_holder(vault_dir) is None


def test_each_way_to_open(vault_dir: Path, passfile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file = passfile.with_name("key")
    content = generate_key_file(os.urandom(32))
    key_file.touch(mode=0o600)
    key_file.write_bytes(content)
    with changing_slots(vault_dir, PASSPHRASE) as table:
        table.add(new_key_file(content))
        table.save()
    ways: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("passphrase", {"passfile": str(passfile)}, {}),
        ("passphrase", {"passcommand": f"cat '{passfile}'"}, {}),
        ("passphrase", {"passphrase": PASSPHRASE}, {}),
        ("key-file", {"keyfile": str(key_file)}, {}),
        ("key-file", {"keyfile": str(key_file), "slot": 1}, {}),
        ("passphrase", {}, {"CRYPTFS_PASSFILE": str(passfile)}),
        ("key-file", {}, {"CRYPTFS_KEYFILE": str(key_file)}),
    ]
    for kind, way, variables in ways:
        with monkeypatch.context() as context:
            for name, value in variables.items():
                context.setenv(name, value)
            with fsspec.filesystem("cryptfs", vault=str(vault_dir), **way) as fs:
                assert fs.ls("") == []
                assert fs.opened.slot.kind == kind
    monkeypatch.setitem(fsspec.config.conf, "cryptfs", {"vault": str(vault_dir), "passfile": str(passfile)})
    with fsspec.filesystem("cryptfs") as fs:  # from ~/.config/fsspec, or FSSPEC_CRYPTFS_VAULT
        assert fs.ls("") == []


def test_filesystems_of_one_process_share_the_vault(vault_dir: Path, passfile: Path) -> None:
    first = CryptfsFileSystem(vault_dir, passfile=str(passfile))
    second = CryptfsFileSystem(vault_dir, passphrase=PASSPHRASE)
    third = CryptfsFileSystem(vault_dir, read_only=True)  # nothing opens it by itself
    assert len({id(each) for each in (first, second, third)}) == 3
    first.pipe_file("a", b"1")
    assert second.cat_file("a") == third.cat_file("a") == b"1"
    assert first.opened is second.opened is third.opened
    with pytest.raises(cryptfs.WrongPassphraseError):
        CryptfsFileSystem(vault_dir, passphrase="wrong").ls("")
    with pytest.raises(cryptfs.UnexpectedVaultError):
        CryptfsFileSystem(vault_dir, passfile=str(passfile), expect_identity="AAAA-" * 5 + "AAAA").ls("")
    for each in (first, second):
        each.close()
        assert lock_holder(vault_dir) is not None
    third.close()
    assert lock_holder(vault_dir) is None
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert vault.listdir("") == ["a"]


def test_a_read_only_one_changes_nothing(vault_dir: Path, passfile: Path) -> None:
    with CryptfsFileSystem(vault_dir, passfile=str(passfile)) as fs:
        fs.pipe_file("a", b"1")
        other = CryptfsFileSystem(vault_dir, passfile=str(passfile), read_only=True)
        for change in CHANGES:  # while the vault is open for writing
            with pytest.raises(OSError, match="Read-only"):
                change(other)
        assert fs.cat("a") == b"1"
        other.close()
    with CryptfsFileSystem(vault_dir, passfile=str(passfile), read_only=True) as fs:
        for change in CHANGES:
            with pytest.raises(OSError, match="Read-only"):
                change(fs)
        assert fs.cat("a") == b"1"
        with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as beside:
            assert beside.listdir("") == ["a"]


CHANGES: tuple[Callable[[Any], Any], ...] = (
    lambda fs: fs.pipe_file("a", b"2"),
    lambda fs: fs.pipe_file("new/b", b"2"),
    lambda fs: fs.open("a", "ab"),
    lambda fs: fs.open("a", "r+b"),
    lambda fs: fs.touch("a"),
    lambda fs: fs.touch("a", truncate=False),
    lambda fs: fs.mkdir("d"),
    lambda fs: fs.makedirs("d/e"),
    lambda fs: fs.rmdir("a"),
    lambda fs: fs.rm("a"),
    lambda fs: fs.rm_file("a"),
    lambda fs: fs.cp_file("a", "b"),
    lambda fs: fs.mv("a", "b"),
    lambda fs: fs.link("a", "b"),
    lambda fs: fs.symlink("a", "b"),
    lambda fs: fs.chmod("a", 0o600),
)


def test_close_flushes_and_ends(vault_dir: Path, options: dict[str, Any]) -> None:
    fs = fsspec.filesystem("cryptfs", **options)
    assert fsspec.filesystem("cryptfs", **options) is fs
    file = fs.open("a", "wb")
    file.write(b"buffered")
    fs.close()
    fs.close()
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        fs.ls("")
    again = fsspec.filesystem("cryptfs", **options)
    assert again is not fs
    assert again.cat("a") == b"buffered"
    again.close()
    assert lock_holder(vault_dir) is None


def test_the_last_reference_closes(vault_dir: Path, options: dict[str, Any]) -> None:
    fs = CryptfsFileSystem(**options, skip_instance_cache=True)
    file = fs.open("a", "wb")
    file.write(b"x")
    gone = weakref.ref(fs)
    del fs
    gc.collect()
    assert gone() is not None  # the file has it
    file.close()
    del file
    gc.collect()
    assert gone() is None
    assert lock_holder(vault_dir) is None


def test_the_end_of_a_process_closes(vault_dir: Path, options: dict[str, Any]) -> None:
    code = (
        "import fsspec, sys\n"
        f"fs = fsspec.filesystem('cryptfs', **{options!r})\n"
        "file = fs.open('a', 'wb')\n"
        "file.write(b'unflushed')\n"
        "globals()['kept'] = fs\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        assert vault.open("a", "rb").read() == b"unflushed"


def test_no_passphrase_leaves_the_process(vault_dir: Path, passfile: Path) -> None:
    with CryptfsFileSystem(vault_dir, passphrase=PASSPHRASE) as fs:
        fs.pipe_file("a", b"12345")
        assert fs._access._options["passphrase"] is None
        said = [pickle.dumps(fs), fs.to_json().encode(), repr(fs).encode(), repr(fs._access.named).encode()]
        assert not any(PASSPHRASE in each for each in said)
        with CryptfsFileSystem(vault_dir, passfile=str(passfile)) as other:
            assert (fs == other, hash(fs) == hash(other)) == (False, False)
        with fs.open("a", "rb") as file:
            file.seek(2)
            with pickle.loads(pickle.dumps(file)) as copy:
                assert copy.read() == b"345"
        with fs.open("a", "ab") as file, pytest.raises(TypeError, match="pickled"):
            pickle.dumps(file)
        copied = pickle.loads(pickle.dumps(fs))
        assert copied.cat("a") == b"12345"
        copied.close()
    unlocked = pickle.loads(pickle.dumps(fs))
    with pytest.raises(cryptfs.NoKeyError, match="passphrase"):
        unlocked.ls("")


def test_the_token_says_nothing_of_the_passphrase(vault_dir: Path) -> None:
    """dask shows it. Else somebody could try passphrases against it, much faster than against the vault."""
    one, other = (CryptfsFileSystem(vault_dir, passphrase=each) for each in ("one", "other"))
    assert one is not other
    assert one._fs_token == other._fs_token


def test_a_pickle_opens_the_vault_in_another_process(vault_dir: Path, options: dict[str, Any]) -> None:
    with CryptfsFileSystem(**options) as fs:
        fs.pipe_file("a", b"12345")
    with CryptfsFileSystem(**options, read_only=True) as fs:
        blob = pickle.dumps(fs)
        code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).cat('a'))"
        done = subprocess.run(
            [sys.executable, "-c", code], input=blob, cwd=ROOT, capture_output=True, check=True
        )
        assert done.stdout == b"b'12345'\n"
        assert fs.cat("a") == b"12345"


def test_another_process_is_refused_while_this_one_writes(options: dict[str, Any]) -> None:
    code = f"import fsspec; fsspec.filesystem('cryptfs', **{options!r}).ls('')"
    with CryptfsFileSystem(**options) as fs:
        fs.pipe_file("a", b"1")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"process {os.getpid()}" in done.stderr
        assert "VaultLockedError" in done.stderr
        assert "read_only=True" in done.stderr


@pytest.mark.serial
def test_after_a_fork_the_child_opens_its_own(options: dict[str, Any]) -> None:
    fs = CryptfsFileSystem(**options, read_only=True)
    assert fs.ls("") == []
    parent = fs.opened
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if fs.opened is not parent and fs.ls("") == []:
                fs.close()
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert fs.opened is parent
    assert fs.ls("") == []
    fs.close()
    with CryptfsFileSystem(**options) as writing:
        writing.touch("a")


def test_json_opens_the_vault_again(options: dict[str, Any]) -> None:
    with CryptfsFileSystem(**options) as fs:
        fs.pipe_file("a", b"1")
        again = fsspec.AbstractFileSystem.from_json(fs.to_json())
        assert (again.cat("a"), again == fs) == (b"1", True)
        again.close()


def test_without_fsspec_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['fsspec'] = None; import cryptfs.fsspec.filesystem"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        "ImportError: this needs the package fsspec; install it with: pip install 'cryptfs[fsspec]'"
        in done.stderr
    )
