"""Random damage to a vault: fsck never crashes or hangs, a dry run writes nothing, a repair repairs."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cryptfs.core.aead import SUITES
from cryptfs.fsck.findings import FindingKind
from tests.fsck.scene import bad, check, content, furnish, repair, snapshot
from tests.fsck.vandal import vandalise
from tests.support import BareVault

# What no repair touches: things of others in a place of ours, which a person has to judge.
LEFT_ALONE = {FindingKind.ORPHANED_JOURNAL, FindingKind.SPECIAL_FILE}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 6), cipher=st.sampled_from(sorted(SUITES)))
def test_random_damage(seed: int, times: int, cipher: str) -> None:
    base = Path(tempfile.mkdtemp())
    try:
        vault = BareVault(base / "vault", cipher=cipher)
        furnish(vault)
        vault.reopen()
        done = vandalise(random.Random(seed), vault.vault_dir, times)
        vault.reopen(read_only=True)
        readable = {path: value for path, value in content(vault).items() if isinstance(value, bytes)}
        vault.reopen()
        state = snapshot(vault.vault_dir)
        check(vault)
        assert snapshot(vault.vault_dir) == state, done
        repair(vault)
        assert [each for each in bad(check(vault)) if each.kind not in LEFT_ALONE] == [], done
        assert readable.items() <= content(vault).items(), done
        vault.close()
    finally:
        shutil.rmtree(base)
