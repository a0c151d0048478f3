"""Fixtures: mounts for a whole session, and pairs of mount and plain directory to compare."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest

from cryptfs.mount.leaving import ownmountpoint
from cryptfs.mount.mounts import wait_until
from tests.e2e.desk import Desk, desk_at, furnish
from tests.e2e.deskmounts import ENDS, Mounts
from tests.e2e.mounting import Mounted, MountSpec, detach, mounted
from tests.e2e.outside import Outside
from tests.e2e.trace import Case, first_difference, known_limit, run_case, walk

ENGINES = ("fusepy", "native")
"""Add an engine here and everything below runs on it, too."""

MATRIX = [
    spec
    for engine in ENGINES
    for spec in (
        MountSpec(engine),
        MountSpec(
            engine,
            cipher="xchacha20-poly1305",
            chunk_size=4096,
            options="nowriteback",
            tmpfs=False,
            deltas=True,
        ),
        MountSpec(engine, chunk_size=1 << 20, options="noxattrs,allow_other"),
    )
]


def require_fuse(spec: MountSpec) -> None:
    """Skip where the machine really cannot run such a mount."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is not accessible here")
    if spec.engine == "fusepy" and not find_library("fuse3"):
        pytest.skip("libfuse 3 is not installed: apt-get install fuse3 libfuse3-3")


@pytest.fixture(scope="session", params=ENGINES)
def shared_mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """One mount with the default options for all cheap tests, for each engine."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as mount:
        yield mount


@pytest.fixture
def on_mount(shared_mount: Mounted, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of one's own on the shared mount; the log must stay silent."""
    directory = shared_mount.mountpoint / f"{abs(hash(request.node.nodeid)):x}"
    directory.mkdir()
    yield directory
    shared_mount.assert_quiet()


@pytest.fixture(params=ENGINES)
def own_mount(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A fresh vault, mounted with the default options, for one test: it may be unmounted or killed."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as mount:
        yield mount


@pytest.fixture(scope="module", params=ENGINES)
def actor(request: pytest.FixtureRequest) -> Iterator[Outside]:
    """One mount for all tests here, for each engine."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    with mounted(spec) as mount:
        actor = Outside(mount)
        yield actor
        actor.close()


@pytest.fixture
def outside(actor: Outside, request: pytest.FixtureRequest) -> Iterator[Outside]:
    """In a fresh directory; the log must stay silent."""
    actor.enter(f"{abs(hash(request.node.nodeid)):x}")
    allowed = list(actor.mount.allowed)
    yield actor
    actor.mount.assert_quiet()
    actor.mount.allowed = allowed


class Pair:
    """A mount and a plain directory on the filesystem that holds its vault."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.plain = mount.scratch / "plain"
        self.plain.mkdir()
        self._count = 0

    def directories(self, name: str) -> tuple[Path, Path]:
        """Two fresh directories: on the mount, plain."""
        self._count += 1
        both = (
            self.mount.mountpoint / f"{self._count:03}-{name}",
            self.plain / f"{self._count:03}-{name}",
        )
        for directory in both:
            directory.mkdir()
        return both

    def check(self, case: Case) -> None:
        """Run a case on both sides; fail at the first difference and on any line in the log."""
        on_mount, on_plain = self.directories(case.__name__)
        expected = run_case(case, on_plain)
        seen = run_case(case, on_mount)
        difference = first_difference(seen, expected)
        assert not difference, f"{self.mount.spec}: {difference}"
        self.mount.assert_quiet()

    def check_after_remount(self) -> None:
        """What all the cases left behind is the same still when it is read from the vault."""
        before = list(walk(os.fsencode(self.mount.mountpoint), mtime=True))
        self.mount.remount()
        after = list(walk(os.fsencode(self.mount.mountpoint), mtime=True))
        changed = [(old, new) for old, new in zip(before, after, strict=False) if old != new]
        assert not changed, f"changed by a remount: {changed[:3]!r}"
        assert len(before) == len(after)


@pytest.fixture(scope="session", params=MATRIX, ids=str)
def all_pairs(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Mount and plain directory, once for each configuration; at the end all must survive a remount."""
    require_fuse(request.param)
    with mounted(request.param) as mount:
        pair = Pair(mount)
        yield pair
        pair.check_after_remount()


@pytest.fixture
def pair(all_pairs: Pair, request: pytest.FixtureRequest) -> Pair:
    """As all_pairs, with known limits marked: strictly, so that one that is gone is noticed."""
    callspec = getattr(request.node, "callspec", None)
    case = callspec.params.get("case") if callspec is not None else None
    reason = known_limit(all_pairs.mount.spec, case.__name__) if case is not None else ""
    if reason:
        request.applymarker(pytest.mark.xfail(strict=True, reason=reason))
    return all_pairs


@pytest.fixture(scope="session")
def users_pair() -> Iterator[Pair]:
    """The native engine's mount for several users, and a plain directory on the same disk."""
    spec = MountSpec("native", options="allow_other", tmpfs=False)
    require_fuse(spec)
    if os.geteuid() != 0:
        pytest.skip("acting as several users needs root")
    with mounted(spec) as mount:
        pair = Pair(mount)
        yield pair
        pair.check_after_remount()


@pytest.fixture(scope="session")
def fuse_for_everybody() -> Iterator[None]:
    """/dev/fuse as udev makes it on every distribution; bare virtual machines and containers may differ."""
    device = Path("/dev/fuse")
    mode = device.stat().st_mode & 0o777 if device.exists() else 0o666
    if mode & 0o006 == 0o006:
        yield
        return
    device.chmod(0o666)
    yield
    device.chmod(mode)


@pytest.fixture(scope="session")
def allow_other_for_everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """user_allow_other in /etc/fuse.conf: a file of ours over it, since the file itself stays as it is."""
    config = Path("/etc/fuse.conf")
    if not config.exists():
        config.touch()
    if "user_allow_other" in config.read_text().splitlines():
        yield
        return
    ours = tmp_path_factory.mktemp("fuse") / "fuse.conf"
    ours.write_text("user_allow_other\n")
    subprocess.run(["mount", "--bind", str(ours), str(config)], check=True)
    yield
    subprocess.run(["umount", str(config)], check=True)


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vault that each desk has a copy of: making one costs a key derivation."""
    place = tmp_path_factory.mktemp("furnished")
    furnish(place)
    return place


@pytest.fixture
def desk(tmp_path: Path, furnished: Path) -> Iterator[Desk]:
    """A vault with a small tree, and the program as a process."""
    made = desk_at(tmp_path, furnished)
    yield made
    for place in (made.base / "mountpoint", made.base / "Vaults" / "vault"):
        if ownmountpoint.is_own(place):  # else nothing could remove it, and pytest could not tidy up
            ownmountpoint.restore(place)


@pytest.fixture(params=ENGINES)
def mounts(desk: Desk, request: pytest.FixtureRequest) -> Iterator[Mounts]:
    """Of its vault, by each engine; what is mounted goes afterwards."""
    made = Mounts(desk, request.param)
    yield made
    detach(made.point)
    assert wait_until(lambda: desk.info()["held_by"] is None, ENDS)
