"""The parts of a soak: which tests, how large, and whether another seed gives something new."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Part:
    """One part. command: words after the interpreter, or a script of ours.

              `{seconds}`, `{engine}`, `{edits}` in it are what the command line says for them.
    settings: of the environment. `{kills}` in them is what the command line says for it.
    repeats:  another seed gives other work: it is run again until its share of the time is over.
    """

    name: str
    what: str
    command: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    repeats: bool = False


def _tests(*names: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "100000", *names)


PARTS = (
    Part(
        "kills",
        "kill -9 of the daemon under random programs",
        _tests("tests/crash/calls/test_kills.py"),
        {"CRYPTFS_CRASH_KILLS": "{kills}"},
    ),
    Part(
        "power",
        "power cuts during random programs, on the model of the disk",
        _tests("tests/crash/power/test_power.py"),
        {"CRYPTFS_CRASH_POWER_PROGRAMS": "40", "CRYPTFS_CRASH_POWER_IMAGES": "150"},
        repeats=True,
    ),
    Part(
        "ext4",
        "power cuts under a real ext4",
        _tests("tests/crash/power/test_power_real.py"),
        {"CRYPTFS_CRASH_CUTS": "20", "CRYPTFS_CRASH_CUT_SECONDS": "30"},
        repeats=True,
    ),
    Part(
        "states",
        "every state of the disk after each operation",
        _tests("tests/crash/power/test_power_exhaustive.py"),
        {"CRYPTFS_CRASH_EXHAUSTIVE_IMAGES": "20000"},
    ),
    Part(
        "faults",
        "each call to the disk fails in turn, in each way",
        _tests("tests/crash/calls", "tests/crash/disk", "tests/crash/replay", "-m", "not serial"),
        {"CRYPTFS_CRASH_ALL_ERRORS": "1"},
    ),
    Part(
        "limits",
        "full disks, too few descriptors, too little memory",
        _tests("tests/crash/disk/test_full_disk.py", "tests/crash/disk/test_limits.py"),
    ),
    Part(
        "copies",
        "kill -9 during copies and overwrites",
        _tests("tests/e2e/test_kill.py"),
        {"CRYPTFS_E2E_KILL_ROUNDS": "50"},
    ),
    Part(
        "rekey",
        "kill -9 of a change of the masterkey, and power cuts during one",
        _tests("tests/rekey/test_kills.py", "tests/rekey/test_power_cuts.py"),
        {"CRYPTFS_REKEY_KILLS": "200", "CRYPTFS_CRASH_POWER_IMAGES": "500"},
    ),
    Part(
        "machine",
        "random operations against a plain directory",
        _tests("tests/e2e/test_differential_machine.py", "tests/property"),
        {"CRYPTFS_E2E_EXAMPLES": "3000"},
    ),
    Part(
        "large",
        "directories of a million entries",
        _tests("tests/e2e/test_differential_names.py", "tests/e2e/test_native_listing.py"),
        {"CRYPTFS_E2E_LARGE_DIRECTORY": "1000000", "CRYPTFS_LISTED_ENTRIES": "1000000"},
    ),
    Part(
        "outside",
        "random changes of the vault behind its mount, against a model",
        ("-m", "soaklib.outside", "--seconds", "{seconds}", "--engine", "{engine}"),
        {"PYTHONPATH": "scripts:."},
        repeats=True,
    ),
    Part(
        "syncthing",
        "three machines with mounted copies of one vault, synced by Syncthing: edits, partitions, git",
        ("-m", "soaklib.syncthing", "--edits", "{edits}", "--engine", "{engine}"),
        {"PYTHONPATH": "scripts:."},
        repeats=True,
    ),
    Part(
        "hazards",
        "a directory, a long name and a git repository that two machines change apart, with Syncthing",
        ("-m", "soaklib.syncthing.hazards", "--engine", "{engine}"),
        {"PYTHONPATH": "scripts:."},
    ),
    Part(
        "memory",
        "resident memory after 20 GiB",
        _tests("tests/e2e/test_memory.py"),
        {"CRYPTFS_E2E_MEMORY_MIB": "20480"},
    ),
    Part("fuzz", "coverage-guided fuzzing of everything that is read from disk", ("scripts/fuzz", "{fuzz}")),
)
