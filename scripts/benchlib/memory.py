"""Resident memory of the daemons, after much has gone through their mounts."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchlib.machine import drop_caches, resident_bytes
from benchlib.subjects import Subject
from benchlib.workloads import MIB, read_file, write_file


def measure(places: list[tuple[Subject, Path]], mebibytes: int, console: Console) -> dict[str, object]:
    """Write and read back so much through each; prints and returns memory in bytes."""
    table = Table(title=f"resident MiB, {mebibytes} MiB each way", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "idle", "after writing", "after reading", "highest"):
        table.add_column(heading, justify="right" if heading else "left")
    results: dict[str, object] = {}
    for subject, directory in places:
        if subject.pid is None:
            continue
        idle, _ = resident_bytes(subject.pid)
        path = directory / "large"
        write_file(path, mebibytes * MIB, MIB)
        written, _ = resident_bytes(subject.pid)
        drop_caches()
        read_file(path)
        read, highest = resident_bytes(subject.pid)
        path.unlink()
        found = {"idle": idle, "written": written, "read": read, "highest": highest}
        results[subject.name] = found
        table.add_row(subject.name, *(f"{value / MIB:.0f}" for value in found.values()))
    console.print(table)
    return results
