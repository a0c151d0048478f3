"""All workloads, in the order of the tables: what people do most stands first."""

from __future__ import annotations

from benchlib import work_amplification, work_data, work_files, work_mount, work_transfer, work_trees
from benchlib.quantities import Workload

_SMALL, _TREE, _HUGE, _CLIENTS = work_files.WORKLOADS
_SOURCES, _GIT, _SQLITE = work_trees.WORKLOADS
_LARGE, _RANDOM, _PAGES = work_data.WORKLOADS
(_AMPLIFICATION,) = work_amplification.WORKLOADS
(_MOUNT,) = work_mount.WORKLOADS
(_TRANSFER,) = work_transfer.WORKLOADS

WORKLOADS: tuple[Workload, ...] = (
    _SMALL, _TREE, _SOURCES, _GIT, _HUGE, _CLIENTS, _LARGE, _RANDOM, _PAGES, _SQLITE, _TRANSFER,
    _AMPLIFICATION, _MOUNT,
)  # fmt: skip
BY_NAME = {workload.name: workload for workload in WORKLOADS}
