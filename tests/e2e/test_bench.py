"""scripts/bench on real mounts, with next to nothing to do."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from benchlib import results
from benchlib.work_amplification import HITS, title
from cryptfs.mount.mounts import read_mounts
from tests.e2e.mounting import PROJECT
from tests.e2e.test_users import NOBODY

pytestmark = [
    pytest.mark.serial,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

LITTLE = ("--scale", "0.001", "--limit", "0.2", "--rounds", "2", "--peer", "plain")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(PROJECT / "scripts"), str(PROJECT)))}


def command(directory: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "benchlib", *LITTLE, "--dir", str(directory), *words]


def mounts_below(directory: Path) -> list[str]:
    return [mount.mountpoint for mount in read_mounts() if mount.mountpoint.startswith(str(directory))]


def test_a_run_measures_saves_judges_and_cleans_up(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    json = tmp_path / "found.json"
    words = ("--workload", "sqlite", "--workload", "mount", "--json", str(json))
    done = subprocess.run(
        command(place, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "insert rows, a transaction each (SQLite)" in done.stdout
    assert "<= 60 MiB" in done.stdout
    assert list(place.iterdir()) == []
    assert mounts_below(place) == []
    found = results.load(json)
    assert found.subjects == ["plain", "cryptfs"]
    rows = {row.title: row.subjects for row in found.places[0].rows}
    inserted = rows["insert rows, a transaction each (SQLite)"]
    assert all(len(inserted[name].rounds) == 2 and not inserted[name].failed for name in found.subjects)
    idle, mounting = rows["memory, idle"]["cryptfs"], rows["mount, passphrase derivation apart"]["cryptfs"]
    assert idle.median is not None and idle.median > 5
    assert mounting.median is not None and mounting.median > 0
    again = subprocess.run(
        [sys.executable, "-m", "benchlib", "--from", str(json)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert again.stdout in done.stdout, "the same tables come from the file"


def test_what_the_daemon_writes_for_a_byte(tmp_path: Path) -> None:
    """Each hit goes to the journal; how often to its place depends on when the journal comes home."""
    json = tmp_path / "found.json"
    words = ("--workload", "amplification", "--rounds", "1", "--json", str(json))
    done = subprocess.run(
        command(tmp_path, *words), env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {row.title: row.subjects for row in results.load(json).places[0].rows}
    factors = [found[title(hits)]["cryptfs"].median for hits in HITS]
    assert all(factor is not None and 1 < factor < 20 for factor in factors), factors
    assert all(found[title(hits)]["plain"].median is None for hits in HITS)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.usefixtures("fuse_for_everybody")
def test_root_measures_as_an_ordinary_user() -> None:
    """Daemons, vaults and work are the user's; the file is root's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as base:
        place, json = Path(base, "place"), Path(base, "found.json")
        place.mkdir(mode=0o700)
        os.chown(place, *NOBODY)
        Path(base).chmod(0o711)
        words = ("--workload", "sqlite", "--workload", "mount", "--peer", "pass-through", "--json", str(json))
        owners, mounts = set(), set()
        with subprocess.Popen(
            command(place, *words, "--user", str(NOBODY[0])),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as bench:
            while bench.poll() is None:
                with contextlib.suppress(OSError):
                    owners |= {path.lstat().st_uid for path in place.rglob("vault/*")}
                mounts |= {mount.owner for mount in read_mounts() if mount.mountpoint.startswith(str(place))}
                time.sleep(0.05)
            _, complaints = bench.communicate()
        if not others_can_run(sys.executable):
            assert "cannot run" in complaints
            return
        assert bench.returncode == 0, complaints
        found = results.load(json)
        rows = {row.title: row.subjects for row in found.places[0].rows}
        assert all(
            len(entry.rounds) == 2 and not entry.failed
            for name in found.subjects
            for entry in [rows["insert rows, a transaction each (SQLite)"][name]]
        )
        assert (owners, mounts) == ({NOBODY[0]}, {NOBODY[0]})
        assert json.stat().st_uid == 0
        assert found.machine["user"] == pwd.getpwuid(NOBODY[0]).pw_name
        assert found.machine["caches_dropped"] is True
        assert list(place.iterdir()) == []
        assert mounts_below(place) == []


def others_can_run(program: str) -> bool:
    """Whether a user who is not root can start it; a Python may be in a home of root."""
    done = subprocess.run(
        ["setpriv", "--reuid", str(NOBODY[0]), "--clear-groups", program, "-c", "import cryptfs.cli.main"],
        env=ENVIRONMENT,
        cwd="/",
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_a_run_that_is_stopped_leaves_no_mount_behind(tmp_path: Path) -> None:
    words = ("--workload", "sqlite", "--rounds", "100000")
    with subprocess.Popen(command(tmp_path, *words), env=ENVIRONMENT, stdout=subprocess.PIPE) as bench:
        deadline = time.monotonic() + 60
        while not mounts_below(tmp_path):
            assert time.monotonic() < deadline and bench.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(90) == 143
    assert mounts_below(tmp_path) == []
    assert [path for path in tmp_path.iterdir() if path.name.startswith("cryptfs-bench")] == []
