"""Makes every vector anew, and the examples in docs/FORMAT.md: `python -m tests.vectors.generate`.

Only hashlib, json, struct, base64 and PyNaCl's public functions stand behind the vectors: not a line of
cryptfs, so that its mistakes cannot be in both. Nothing is random, so a second run changes no byte.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.vectors import (
    examples,
    scenarios_config,
    scenarios_deltas,
    scenarios_files,
    scenarios_hybrid,
    scenarios_journal,
    scenarios_lengths,
    scenarios_manifest,
    scenarios_recovery,
    scenarios_rekeying,
    scenarios_replays,
    scenarios_slots,
    scenarios_tree,
)

VECTORS_DIR = Path(__file__).parent
DOCUMENT = VECTORS_DIR.parents[1] / "docs" / "FORMAT.md"


def all_vectors() -> dict[str, str]:
    """The text of every vector file by its path below VECTORS_DIR."""
    folders = {
        "keys": scenarios_files.key_scenarios(),
        "small": scenarios_files.small_scenarios(),
        "chunks": scenarios_files.chunk_scenarios(),
        "headers": scenarios_files.header_scenarios(),
        "files": scenarios_lengths.file_scenarios(),
        "names": scenarios_tree.name_scenarios(),
        "directories": scenarios_tree.directory_scenarios() | scenarios_tree.bound_directory_scenarios(),
        "links": scenarios_tree.link_scenarios(),
        "xattrs": scenarios_tree.xattr_scenarios(),
        "config": scenarios_config.config_scenarios() | scenarios_rekeying.rekeying_scenarios(),
        "slots": scenarios_slots.slots_scenarios() | scenarios_hybrid.hybrid_scenarios(),
        "recovery": scenarios_recovery.recovery_scenarios(),
        "hosts": scenarios_journal.host_scenarios(),
        "journal": scenarios_journal.journal_scenarios() | scenarios_deltas.delta_scenarios(),
        "sessions": scenarios_journal.sessions_scenarios(),
        "replays": scenarios_replays.replay_scenarios(),
        "manifest": scenarios_manifest.manifest_scenarios(),
    }
    return {
        f"{folder}/{name}.json": json.dumps(vector.as_json(), indent=1, ensure_ascii=False) + "\n"
        for folder, scenarios in folders.items()
        for name, vector in scenarios.items()
    }


def main() -> None:
    """Write them all, and remove what no scenario makes any more."""
    vectors = all_vectors()
    for path in VECTORS_DIR.glob("*/*.json"):
        if path.relative_to(VECTORS_DIR).as_posix() not in vectors:
            path.unlink()
    for name, text in vectors.items():
        path = VECTORS_DIR / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    document = examples.with_examples(DOCUMENT.read_text(encoding="utf-8"), vectors)
    DOCUMENT.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
