"""`cryptfs info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.mounted import own_mounts, vault_of
from cryptfs.cli.output import answer_json, note, size_text
from cryptfs.cli.params import debug_option, optional_vault_argument, shell_word, shown
from cryptfs.cli.vaults import config_of

if TYPE_CHECKING:
    from cryptfs.core.slots.slot import KeySlot


def describe(vault_dir: Path) -> dict[str, Any]:
    """All that a vault shows without its passphrase; the shape of `info --json`, with paths as they are."""
    from cryptfs.mount.closing import mountpoint_of
    from cryptfs.mount.mounts import absolute, is_stale, mount_at, mounts_of
    from cryptfs.storage.pins import pinned
    from cryptfs.vfs.vault import lock_holder

    config = config_of(vault_dir, rekeying=True)
    seen = pinned(vault_dir)
    holder = lock_holder(vault_dir)
    mounts = mounts_of(vault_dir)
    place = None if holder is None else mountpoint_of(vault_dir, holder)
    if place is not None and place not in [mount.mountpoint for mount in mounts]:
        mounts += [mount for mount in [mount_at(Path(place))] if mount is not None]  # it has another --fsname
    return {
        "vault": str(absolute(vault_dir)),
        "vault_id": config.vault_id,
        "format_version": config.version,
        "cipher": config.cipher,
        "chunk_size": config.chunk_size,
        "features": list(config.features),
        "generation": config.generation,
        "identity": None if seen is None or seen.vault_id != config.vault_id else seen.code,
        "slots": [slot_fields(slot) for slot in config.slots],
        "mounts": [
            {
                "mountpoint": mount.mountpoint,
                "read_only": mount.read_only,
                # Only if no daemon holds the vault: a busy daemon would keep us waiting.
                "stale": holder is None and is_stale(Path(mount.mountpoint)),
            }
            for mount in mounts
        ],
        "held_by": None if holder is None else {"pid": holder.pid, "mountpoint": holder.mountpoint},
    }


def slot_fields(slot: KeySlot) -> dict[str, Any]:
    """A key slot in JSON; `kdf` is the cost of a try of its passphrase, if it has one."""
    fields: dict[str, Any] = {"id": slot.id, "kind": slot.kind, "label": slot.label}
    params = slot.params
    if {"kdf", "memory", "passes"} <= params.keys():
        fields["kdf"] = {"name": params["kdf"], "memory": params["memory"], "passes": params["passes"]}
    return fields


def slot_text(fields: dict[str, Any]) -> str:
    """A key slot for a person, from its fields in JSON."""
    label = f" {fields['label']!r}" if fields["label"] else ""
    kdf = fields.get("kdf")
    cost = f" ({kdf['name']}, {_size(kdf['memory'])}, {kdf['passes']} passes)" if kdf else ""
    return f"{fields['kind']}{label}{cost}"


def _size(value: object) -> str:
    """Of a slot of an unknown kind a memory may be anything."""
    return size_text(value) if isinstance(value, int) else str(value)


def _with_shown_paths(found: dict[str, Any]) -> dict[str, Any]:
    """What describe found, fit for JSON: a path may have bytes that are not text."""
    mounts = [mount | {"mountpoint": shown(mount["mountpoint"])} for mount in found["mounts"]]
    holder = found["held_by"]
    if holder is not None:
        holder |= {"mountpoint": shown(holder["mountpoint"])}
    return found | {"vault": shown(found["vault"]), "mounts": mounts, "held_by": holder}


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("vault", shown(found["vault"])),
        ("vault id", found["vault_id"]),
        ("format", str(found["format_version"])),
        ("cipher", found["cipher"]),
        ("chunk size", size_text(found["chunk_size"])),
        ("features", ", ".join(found["features"]) or "none"),
    ]
    if found["identity"] is not None:
        lines.append(("identity", f"{found['identity']} (when this machine last opened it)"))
    for slot in found["slots"]:
        lines.append((f"key slot {slot['id']}", slot_text(slot)))
    for mount in found["mounts"]:
        state = " (read-only)" if mount["read_only"] else ""
        if mount["stale"]:
            state = f" (its daemon died; remove it with: cryptfs umount {shell_word(mount['mountpoint'])})"
        lines.append(("mounted on", shown(mount["mountpoint"]) + state))
    if not found["mounts"]:
        lines.append(("mounted on", "not mounted"))
    if found["held_by"] is not None:
        pid = found["held_by"]["pid"]
        lines.append(("held by", f"process {pid}" if pid else "an unknown process"))
    return lines


def _list_mounts(*, as_json: bool) -> None:
    found = [(vault_of(mount), mount) for mount in own_mounts()]
    if as_json:
        mounts = [
            {"vault": shown(vault), "mountpoint": shown(mount.mountpoint), "read_only": mount.read_only}
            for vault, mount in found
        ]
        answer_json({"mounts": mounts})
        return
    if not found:
        note("No vault of yours is mounted.")
    for vault, mount in found:
        click.echo(f"{shown(vault)} on {shown(mount.mountpoint)}{' (read-only)' if mount.read_only else ''}")


@command()
@optional_vault_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@debug_option
def info(vault: Path | None, as_json: bool) -> None:
    """Show facts about VAULT: format, cipher, key slots, and where it is mounted.

    Without VAULT, list the mounted vaults.

    The command needs no passphrase, so it cannot authenticate the config that it shows.
    """
    if vault is None:
        _list_mounts(as_json=as_json)
        return
    found = describe(vault)
    if as_json:
        answer_json(_with_shown_paths(found))
        return
    for name, value in _lines(found):
        click.echo(f"{name + ':':<13}{value}")
