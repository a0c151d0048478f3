"""`cryptfs info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from cryptfs.cli.output import answer_json, size_text
from cryptfs.cli.params import debug_option, shell_word, vault_argument
from cryptfs.cli.vaults import config_of


def describe(vault_dir: Path) -> dict[str, Any]:
    """What can be told about a vault without its passphrase; the shape of `info --json`."""
    from cryptfs.mount.mounts import absolute, is_stale, mounts_of
    from cryptfs.vfs.vault import lock_holder

    config = config_of(vault_dir)
    holder = lock_holder(vault_dir)
    return {
        "vault": str(absolute(vault_dir)),
        "vault_id": config.vault_id,
        "format_version": config.version,
        "cipher": config.cipher,
        "chunk_size": config.chunk_size,
        "features": list(config.features),
        "generation": config.generation,
        "slots": [
            {
                "id": slot.id,
                "kind": slot.kind,
                "label": slot.label,
                "kdf": {"name": slot.kdf.name, "memory": slot.kdf.memory, "passes": slot.kdf.passes},
            }
            for slot in config.slots
        ],
        "mounts": [
            {
                "mountpoint": mount.mountpoint,
                "read_only": mount.read_only,
                # Asked only where no daemon holds the vault: a busy one would keep us waiting.
                "stale": holder is None and is_stale(Path(mount.mountpoint)),
            }
            for mount in mounts_of(vault_dir)
        ],
        "held_by": None if holder is None else {"pid": holder.pid, "mountpoint": holder.mountpoint},
    }


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("vault", found["vault"]),
        ("vault id", found["vault_id"]),
        ("format", str(found["format_version"])),
        ("cipher", found["cipher"]),
        ("chunk size", size_text(found["chunk_size"])),
        ("features", ", ".join(found["features"]) or "none"),
    ]
    for slot in found["slots"]:
        label = f" {slot['label']!r}" if slot["label"] else ""
        kdf = slot["kdf"]
        cost = f"{kdf['name']}, {size_text(kdf['memory'])}, {kdf['passes']} passes"
        lines.append((f"key slot {slot['id']}", f"{slot['kind']}{label} ({cost})"))
    for mount in found["mounts"]:
        state = " (read-only)" if mount["read_only"] else ""
        if mount["stale"]:
            state = f" (its daemon died; remove it with: cryptfs umount {shell_word(mount['mountpoint'])})"
        lines.append(("mounted on", mount["mountpoint"] + state))
    if not found["mounts"]:
        lines.append(("mounted on", "not mounted"))
    if found["held_by"] is not None:
        lines.append(("held by", f"process {found['held_by']['pid']}"))
    return lines


@click.command()
@vault_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def info(vault: Path, as_json: bool) -> None:
    """Show what VAULT is: format, cipher, key slots, and where it is mounted.

    Needs no passphrase; the config is therefore shown as it stands, not authenticated.
    """
    found = describe(vault)
    if as_json:
        answer_json(found)
        return
    for name, value in _lines(found):
        click.echo(f"{name + ':':<13}{value}")
