"""All targets by name. A codec that parses what stands in a vault, or comes from a person, belongs here."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.journal_targets import JOURNAL_TARGETS
from tests.fuzz.key_targets import KEY_TARGETS
from tests.fuzz.manifest_targets import MANIFEST_TARGETS
from tests.fuzz.recovery_targets import RECOVERY_TARGETS
from tests.fuzz.targets import CORE_TARGETS, Target
from tests.fuzz.vault_targets import VAULT_TARGETS

TARGETS: dict[str, Callable[[], Target]] = {
    **CORE_TARGETS,
    **JOURNAL_TARGETS,
    **KEY_TARGETS,
    **MANIFEST_TARGETS,
    **RECOVERY_TARGETS,
    **VAULT_TARGETS,
}
