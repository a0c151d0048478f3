"""A repair that is killed at any moment can be run again, and nothing that could be read is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cryptfs.fsck.check import VaultCheck
from cryptfs.fsck.repair import Repairer
from cryptfs.storage.libc import RENAME_EXCHANGE, renameat2
from tests.crash.striking import ProcessDeath, Strike
from tests.fsck.cases import (
    cut_file,
    exchange_records,
    interrupt_adoption,
    make_pair,
    move_entry,
    spoil_chunks,
    spoil_xattr,
    zero_and_cut,
)
from tests.fsck.scene import LONG, Tree, bad, check, content, flip, path_of, record_of, repair, sidecar_of
from tests.support import BareVault


def lose_record(vault: BareVault) -> None:
    record_of(vault, b"docs").unlink()


def scatter(vault: BareVault) -> None:
    """Things that have to be moved to lost+found."""
    move_entry(vault)
    sidecar_of(vault, b"docs", LONG).unlink()
    link = path_of(vault, b"docs", b"link")
    link.rename(vault.vault_dir / link.name)
    below = path_of(vault, b"docs", b"deep", b"below")
    os.link(below, below.parent / "below (copy)")
    (vault.vault_dir / "cryptfs.tmp.x").mkdir()


def exchange(vault: BareVault) -> None:
    make_pair(vault)
    vault.reopen()
    exchange_records(vault)


def spoil_content(vault: BareVault) -> None:
    spoil_chunks(vault, 1, 5)
    spoil_xattr(vault, b"docs")
    flip(path_of(vault, b"docs", b"deep", b"beside"), 60, 100)


def cut(vault: BareVault) -> None:
    zero_and_cut(vault)
    os.truncate(path_of(vault, b"docs", b"deep", b"below"), 200)


def cut_to_header(vault: BareVault) -> None:
    cut_file(vault, 300)


def misplace(vault: BareVault) -> None:
    make_pair(vault)
    one, two = path_of(vault, b"pair a"), path_of(vault, b"pair b")
    renameat2(-1, str(one), -1, str(two), RENAME_EXCHANGE)


NEW = [lose_record, interrupt_adoption, scatter, exchange, misplace]
OF_0_1 = [lose_record, exchange, spoil_content, cut, cut_to_header]
DAMAGES = [*((True, damage) for damage in NEW), *((False, damage) for damage in OF_0_1)]


def died(vault: BareVault, strike: Strike) -> bool:
    """Repair, with this strike; whether the process died on the way."""
    repairer = Repairer(vault.tree, vault._vault_fd)
    checking = VaultCheck(vault.context, vault._vault_fd, deep=True, repairer=repairer, workers=1)
    with strike.without_syncs():
        try:
            for _ in checking.run():
                pass
        except ProcessDeath:
            return True
    return False


def outside(tree: Tree) -> Tree:
    return {path: value for path, value in tree.items() if not path.startswith(b"lost+found")}


def values(tree: Tree) -> set[object]:
    """All contents, wherever they are; not those of the reports, which tell of each run."""
    return {value for path, value in tree.items() if b"fsck-report" not in path}


@pytest.mark.parametrize(("vault", "damage"), DAMAGES, indirect=["vault"])
def test_death_at_every_call(vault: BareVault, damage: Callable[[BareVault], None], tmp_path: Path) -> None:
    damage(vault)
    vault.close()
    pristine = tmp_path / "pristine"
    subprocess.run(["cp", "-a", vault.vault_dir, pristine], check=True)
    counting = Strike()
    vault._start(read_only=False)
    assert not died(vault, counting)
    vault.reopen()
    assert bad(check(vault)) == []
    expected = content(vault)
    assert len(counting.calls) >= 3
    for call in range(len(counting.calls)):
        vault.close()
        shutil.rmtree(vault.vault_dir)
        subprocess.run(["cp", "-a", pristine, vault.vault_dir], check=True)
        vault._start(read_only=False)
        assert died(vault, Strike(at=call)), call
        vault.die_and_reopen()
        with Strike().without_syncs():
            repair(vault)
        assert bad(check(vault)) == [], call
        found = content(vault)
        assert outside(found) == outside(expected), call
        assert values(expected) <= values(found), call
