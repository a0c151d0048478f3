"""Repairs that the system refuses: told as failed, and nothing is worse than before."""

from __future__ import annotations

import errno
import os

import pytest

from cryptfs.fsck.check import VaultCheck
from cryptfs.fsck.findings import Finding, FindingKind, State
from cryptfs.fsck.repair import Repairer
from cryptfs.storage import backing
from tests.crash.striking import Strike
from tests.fsck.cases import DOCS, spoil_chunks
from tests.fsck.scene import bad, check, content, kinds, path_of, record_of, repair
from tests.support import BareVault


def repair_with(vault: BareVault, strike: Strike) -> list[Finding]:
    """Repair a vault on a disk that refuses from some call on."""
    repairer = Repairer(vault.tree, vault._vault_fd)
    checking = VaultCheck(vault.context, vault._vault_fd, deep=True, repairer=repairer, workers=1)
    with strike.without_syncs():
        return list(checking.run())


@pytest.mark.parametrize("call", range(12))
def test_a_full_disk(vault: BareVault, call: int) -> None:
    """What cannot be kept is not written over; with room again the repair goes on."""
    spoil_chunks(vault, 1, 4)
    damaged = path_of(vault, b"file").read_bytes()
    vault.reopen()
    found = bad(repair_with(vault, Strike(at=call, error=errno.ENOSPC, for_good=True)))
    vault.die_and_reopen()
    (finding,) = (each for each in found if each.kind is FindingKind.CHUNKS)
    after = path_of(vault, b"file").read_bytes()
    if finding.state is State.FAILED:
        assert "No space left on device" in finding.done
        assert finding.remains
    start, end = (vault.geometry.record_offset(index) for index in (2, 4))
    assert after[:256] == damaged[:256]
    assert after[start:end] == damaged[start:end]
    repair(vault)
    assert bad(check(vault)) == []


def test_the_disk_is_full_from_the_first_call_on(vault: BareVault) -> None:
    spoil_chunks(vault, 1)
    record_of(vault, DOCS).unlink()
    before = content(vault)
    vault.reopen()
    found = bad(repair_with(vault, Strike(at=0, error=errno.ENOSPC, for_good=True)))
    assert {each.state for each in found} == {State.FAILED}
    vault.reopen()
    assert content(vault) == before
    assert kinds(bad(check(vault))) == sorted([FindingKind.CHUNKS, FindingKind.DIRECTORY_RECORD])


def test_files_that_their_owner_may_not_write(vault: BareVault, monkeypatch: pytest.MonkeyPatch) -> None:
    """As git makes them: they get the right for a moment."""
    path = path_of(vault, b"file")
    path.chmod(0o444)
    spoil_chunks(vault, 1)
    vault.reopen()
    reopen = backing.reopen

    def as_owner(fd: int, flags: int) -> int:
        if not os.fstat(fd).st_mode & 0o200:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return reopen(fd, flags)

    monkeypatch.setattr(backing, "reopen", as_owner)
    (finding,) = bad(repair(vault))
    assert finding.state is State.REPAIRED
    assert path.stat().st_mode & 0o777 == 0o444
