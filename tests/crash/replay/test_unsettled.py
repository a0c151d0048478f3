"""After a crash nobody is told a wrong size, and once all files were looked at, the crash is over."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.errors import HeaderError
from cryptfs.fsck.findings import FindingKind
from cryptfs.storage.sessions import UNSETTLED_NAME
from cryptfs.vfs.content.filestate import FileState
from cryptfs.vfs.content.redo import Durability
from tests.fsck.scene import bad, check, kinds, repair
from tests.support import KIB, BareVault, pattern

CHUNK = 4 * KIB
CONTENT = pattern(3 * CHUNK + 100)


@pytest.fixture
def vault(tmp_path: Path) -> BareVault:
    """With a directory, and a session that has changed something."""
    vault = BareVault(tmp_path / "vault", durability=Durability.POWER)
    vault.put(b"other", CONTENT)
    vault.make_directory(b"docs")
    return vault


def tear(vault: BareVault, name: bytes) -> None:
    """What a crash leaves of a file whose last chunk was on its way: half of that record."""
    path = vault.backing(name)
    os.truncate(path, path.stat().st_size - 50)


def sweep(vault: BareVault) -> None:
    assert vault.workers.unsettled is not None
    vault.workers.unsettled.sweep()
    assert vault.workers.unsettled.over


def is_marked(vault: BareVault) -> bool:
    return (vault.vault_dir / UNSETTLED_NAME).exists()


def test_the_size_of_a_torn_file_is_right_before_it_is_opened(vault: BareVault) -> None:
    file = vault.tree.create(vault.root, b"torn", os.O_RDWR, 0o600)
    file.write(0, CONTENT)
    tear(vault, b"torn")
    vault.die_and_reopen()
    assert is_marked(vault)
    before = vault.backing(b"torn").read_bytes()
    assert vault.tree.stat(vault.root, b"torn").size == 3 * CHUNK
    assert vault.get(b"torn") == CONTENT[: 3 * CHUNK]
    assert vault.backing(b"torn").read_bytes() == before
    sweep(vault)
    assert vault.header(b"torn").is_clean
    assert vault.plain_size(b"torn") == 3 * CHUNK
    vault.close()


def test_a_sweep_settles_under_an_open_reader(vault: BareVault) -> None:
    vault.tree.create(vault.root, b"torn", os.O_RDWR, 0o600).write(0, CONTENT)
    tear(vault, b"torn")
    vault.die_and_reopen()
    with vault.opened(b"torn", os.O_RDONLY) as reader:
        assert reader.read(0, len(CONTENT)) == CONTENT[: 3 * CHUNK]
        sweep(vault)
        assert vault.header(b"torn").is_clean
        assert reader.read(0, len(CONTENT)) == CONTENT[: 3 * CHUNK]
        with vault.opened(b"torn") as writer:
            writer.write(3 * CHUNK, b"more")
        assert reader.read(3 * CHUNK, 100) == b"more"
    vault.close()


def test_a_sweep_leaves_files_alone_that_other_sessions_left_open(vault: BareVault) -> None:
    """As a sync client brings them, from a machine that is writing them now."""
    vault.tree.create(vault.root, b"ours", os.O_RDWR, 0o600).write(0, CONTENT)
    vault.tree.create(vault.root, b"theirs", os.O_RDWR, 0o600).write(0, CONTENT)
    for name in (b"ours", b"theirs"):
        tear(vault, name)
    path = vault.backing(b"theirs")
    header = vault.header(b"theirs").changed(journal_id=b"another machine!", journal_floor=1)
    path.write_bytes(vault.context.pack_header(header) + path.read_bytes()[HEADER_SIZE:])
    before = path.read_bytes()
    vault.die_and_reopen()
    sweep(vault)
    assert vault.header(b"ours").is_clean
    assert vault.get(b"theirs") == CONTENT[: 3 * CHUNK]
    assert path.read_bytes() == before
    vault.close()


def test_a_session_whose_files_nobody_here_may_write_stays_in_the_list(
    vault: BareVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its journal, which was replayed, would be called missing."""
    for name in (b"torn", b"another user's"):
        vault.tree.create(vault.root, name, os.O_RDWR, 0o600).write(0, CONTENT)
        tear(vault, name)
    journal_id = vault.header(b"torn").journal_id
    vault.die_and_reopen()
    entry, writing_fd = vault.entry(b"another user's"), FileState.writing_fd
    with monkeypatch.context() as patch:
        patch.setattr(
            FileState,
            "writing_fd",
            lambda state: contextlib.nullcontext() if state.cipher_path == entry else writing_fd(state),
        )
        sweep(vault)
    assert not is_marked(vault)
    for _ in range(2):
        assert vault.header(b"torn").is_clean
        assert kinds(check(vault)) == [FindingKind.NOT_SETTLED]
        assert vault.context.crashed == {journal_id}
        vault.put(b"of a session that ends", CONTENT)
        vault.reopen()
    assert kinds(bad(repair(vault))) == [FindingKind.NOT_SETTLED]
    assert check(vault) == []
    vault.close()


def test_so_it_is_by_a_descriptor(vault: BareVault) -> None:
    vault.tree.create(vault.root, b"torn", os.O_RDWR, 0o600).write(0, CONTENT)
    tear(vault, b"torn")
    vault.die_and_reopen()
    fd = os.open(vault.backing(b"torn"), os.O_PATH)
    assert vault.tree.stat_descriptor(fd).size == 3 * CHUNK
    os.close(fd)
    vault.close()


def test_a_read_only_look_knows_the_size_and_writes_nothing(vault: BareVault) -> None:
    vault.tree.create(vault.root, b"torn", os.O_RDWR, 0o600).write(0, CONTENT)
    tear(vault, b"torn")
    vault.die_and_reopen(read_only=True)
    before = vault.backing(b"torn").read_bytes()
    assert vault.tree.stat(vault.root, b"torn").size == 3 * CHUNK
    assert vault.get(b"torn") == CONTENT[: 3 * CHUNK]
    assert vault.backing(b"torn").read_bytes() == before
    vault.close()
    assert is_marked(vault)


def test_a_sweep_settles_all_files_and_takes_the_mark_away(vault: BareVault) -> None:
    docs = vault.tree.directory(vault.root, b"docs")
    for where, name in ((vault.root, b"a"), (docs, b"b" * 200)):
        vault.tree.create(where, name, os.O_RDWR, 0o600).write(0, CONTENT)
    torn = vault.backing(b"b" * 200, docs)
    os.truncate(torn, torn.stat().st_size - 50)
    vault.die_and_reopen()
    sweep(vault)
    assert not is_marked(vault)
    assert vault.header(b"a").is_clean
    assert torn.stat().st_size == vault.geometry.cipher_size(3 * CHUNK)
    vault.reopen()
    assert vault.workers.unsettled is None
    assert not vault.context.crashed
    vault.close()


def test_the_mark_stays_until_a_sweep_has_seen_everything(vault: BareVault) -> None:
    vault.tree.create(vault.root, b"a", os.O_RDWR, 0o600).write(0, CONTENT)
    vault.die_and_reopen()
    assert vault.workers.unsettled is not None
    vault.workers.unsettled.stop()
    vault.workers.unsettled.sweep()
    assert is_marked(vault)
    vault.put(b"more", CONTENT)
    vault.reopen()
    assert is_marked(vault)
    assert vault.context.crashed
    sweep(vault)
    vault.reopen()
    assert not is_marked(vault)
    vault.close()


def test_a_file_closed_before_the_crash_may_be_short_until_the_sweep_and_not_after(vault: BareVault) -> None:
    vault.put(b"closed", CONTENT)  # never synced: CLEAN, naming the session
    vault.put(b"cut", CONTENT)
    vault.die_and_reopen()
    os.truncate(vault.backing(b"cut"), vault.geometry.cipher_size(CHUNK))
    assert vault.get(b"cut") == CONTENT[:CHUNK]
    sweep(vault)
    os.truncate(vault.backing(b"closed"), vault.geometry.cipher_size(CHUNK))
    with pytest.raises(HeaderError):
        vault.get(b"closed")
    vault.reopen()
    with pytest.raises(HeaderError):
        vault.get(b"closed")
    vault.close()


def test_damaged_and_foreign_files_do_not_stop_the_sweep(vault: BareVault) -> None:
    vault.put(b"damaged", CONTENT)
    vault.tree.create(vault.root, b"open", os.O_RDWR, 0o600).write(0, CONTENT)
    vault.backing(b"damaged").write_bytes(b"x" * 1000)
    (vault.vault_dir / "foreign").write_bytes(b"not ours")
    os.mkfifo(vault.vault_dir / vault.root.entry_name(b"fifo"))
    vault.die_and_reopen()
    sweep(vault)
    assert vault.header(b"open").is_clean
    assert vault.tree.stat(vault.root, b"damaged").size == vault.geometry.plain_size_floor(1000)
    vault.close()


def test_a_kept_time_of_change(vault: BareVault) -> None:
    vault.put(b"closed", CONTENT)
    os.utime(vault.backing(b"closed"), ns=(10**18, 10**18))
    vault.die_and_reopen()
    sweep(vault)
    assert vault.backing(b"closed").stat().st_mtime_ns == 10**18
    vault.close()


def test_a_directory_in_place_of_the_mark_is_no_mark(vault: BareVault) -> None:
    vault.close()
    (vault.vault_dir / UNSETTLED_NAME).mkdir()
    vault._start(read_only=False)
    assert vault.workers.unsettled is None
    vault.close()
