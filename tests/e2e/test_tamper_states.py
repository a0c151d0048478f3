"""States that somebody arranges in a vault from parts of earlier ones, on mounts: at rest, and after a look.

Headers over content that they did not know, files as a dead writer leaves them, and directories with a record
of then. tests/crash/ and tests/tamper/ try more of each, without a mount.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.core.format.header import NO_FLAGS
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names.dirrecord import RECORD_NAME, open_directory_record, pack_bound_record
from cryptfs.core.names.names import siv_of
from cryptfs.core.slots.checks import RECOVERY_NAME
from cryptfs.mount.options import FRESH_SECONDS
from cryptfs.unlock.carriers.words import words_of
from cryptfs.unlock.recovering import opened_recovery
from cryptfs.vfs import vault as vault_module
from cryptfs.vfs.upgrade import upgrade
from soaklib.sealed import Sealer, replace
from tests.commands import Run, runner
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec, mounted
from tests.e2e.tamper_trees import assert_eio
from tests.e2e.test_tamper_mounted import read_direct
from tests.support import KIB, everything_below, pattern
from tests.unlock.vaults import new_words

pytestmark = pytest.mark.timeout(60)  # a hang is among what these cases are about

CHUNK = 16 * KIB
SIZE = 2 * CHUNK + 300
CONTENT = pattern(SIZE, 1)
MORE = pattern(CHUNK, 2)


class Ground:
    """A mount, its vault, and a directory for each case."""

    def __init__(self, mount: Mounted) -> None:
        self.mount = mount
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        self.kept: dict[str, bytes] = {}
        """What the attacker has from then, by case and file."""

    def entry(self, path: str) -> Path:
        """The ciphertext of a path."""
        return self.sealer.entry(path)

    def keep(self, path: str) -> None:
        """The attacker copies the ciphertext of a file."""
        self.kept[path] = self.entry(path).read_bytes()


class Case:
    """What is in a directory of the mount, what somebody does to it, and what shows then.

    Each method gets the directory, on the mount or by its name. They are called in this order, and everything
    is at rest between the first three.
    """

    def furnish(self, ground: Ground, place: Path) -> None:
        """Make what there is first."""

    def change(self, ground: Ground, place: Path) -> None:
        """What a program does later."""

    def attack(self, ground: Ground, name: str) -> None:
        """What somebody does in the vault."""

    def check(self, ground: Ground, place: Path) -> None:
        """What the mount shows."""


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def pwrite(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


class OlderHeaderOverALongerFile(Case):
    """The last chunk of then has grown, so it does not open at the length of then."""

    def furnish(self, ground: Ground, place: Path) -> None:
        (place / "file").write_bytes(CONTENT)

    def change(self, ground: Ground, place: Path) -> None:
        ground.keep(f"{place.name}/file")
        append(place / "file", MORE)

    def attack(self, ground: Ground, name: str) -> None:
        path = ground.entry(f"{name}/file")
        self.whole = ground.kept[f"{name}/file"][:HEADER_SIZE] + path.read_bytes()[HEADER_SIZE:]
        replace(path, self.whole)

    def check(self, ground: Ground, place: Path) -> None:
        path = place / "file"
        assert read_direct(path, 0, CHUNK) == CONTENT[:CHUNK]
        assert_eio(lambda: read_direct(path, 2 * CHUNK, CHUNK))
        assert_eio(lambda: pwrite(path, b"x"))
        assert_eio(lambda: append(path, b"x"))
        assert_eio(lambda: os.truncate(path, 1))
        assert ground.entry(f"{place.name}/file").read_bytes() == self.whole, "nothing is cut off"


class HeaderOfAnEmptyFileOverContent(Case):
    """As after a crash: the content of the same epoch is there."""

    def furnish(self, ground: Ground, place: Path) -> None:
        (place / "file").write_bytes(b"earlier")
        os.truncate(place / "file", 0)

    def change(self, ground: Ground, place: Path) -> None:
        ground.keep(f"{place.name}/file")
        pwrite(place / "file", CONTENT)

    def attack(self, ground: Ground, name: str) -> None:
        path = ground.entry(f"{name}/file")
        replace(path, ground.kept[f"{name}/file"][:HEADER_SIZE] + path.read_bytes()[HEADER_SIZE:])

    def check(self, ground: Ground, place: Path) -> None:
        path = place / "file"
        assert path.read_bytes() == CONTENT
        append(path, b"more")
        assert path.read_bytes() == CONTENT + b"more"


class DeadWriter(Case):
    """Somebody cuts a file that was being written when its writer died. floor: the length from before."""

    def __init__(self, floor: int) -> None:
        self.floor = floor

    def furnish(self, ground: Ground, place: Path) -> None:
        (place / "file").write_bytes(CONTENT)

    def attack(self, ground: Ground, name: str) -> None:
        path = ground.entry(f"{name}/file")
        raw = path.read_bytes()
        header = ground.sealer.header(raw).changed(flags=NO_FLAGS, size_min=self.floor)
        end = ground.sealer.geometry.record_offset(1)
        replace(path, ground.sealer.pack(header) + raw[HEADER_SIZE:end])

    def check(self, ground: Ground, place: Path) -> None:
        path = place / "file"
        if self.floor > CHUNK:
            assert_eio(lambda: read_direct(path, 0, CHUNK))
            assert_eio(lambda: append(path, b"x"))
        else:  # not detected
            assert path.read_bytes() == CONTENT[:CHUNK]


class DirectoryPutBackWithItsRecordOfThen(Case):
    """Not detected: the record fits at the old place."""

    def furnish(self, ground: Ground, place: Path) -> None:
        (place / "one").mkdir()
        (place / "one" / "doc").write_bytes(b"of one")

    def change(self, ground: Ground, place: Path) -> None:
        shutil.copytree(ground.entry(f"{place.name}/one"), ground.mount.scratch / "saved")
        (place / "one").rename(place / "new")

    def attack(self, ground: Ground, name: str) -> None:
        shutil.copytree(ground.mount.scratch / "saved", ground.entry(f"{name}/one"))

    def check(self, ground: Ground, place: Path) -> None:
        assert (place / "one" / "doc").read_bytes() == b"of one"
        assert (place / "new" / "doc").read_bytes() == b"of one"


class DirectoryMovedBackDuringItsRename(Case):
    """Not detected: the record names both places, until the machine that has begun the rename ends it."""

    def furnish(self, ground: Ground, place: Path) -> None:
        (place / "new").mkdir()
        (place / "new" / "doc").write_bytes(b"content")

    def attack(self, ground: Ground, name: str) -> None:
        sealer, above = ground.sealer, ground.entry(name)
        record = above / ground.entry(f"{name}/new").name / RECORD_NAME
        opened = open_directory_record(record.read_bytes(), sealer._keys)
        old = sealer.dir_id_of(above) + siv_of(ground.entry(f"{name}/old").name)
        both = opened._replace(places=(old, *opened.places), host=bytes(11) + b"h")
        record.write_bytes(pack_bound_record(both, sealer._keys))
        record.parent.rename(ground.entry(f"{name}/old"))

    def check(self, ground: Ground, place: Path) -> None:
        assert (place / "old" / "doc").read_bytes() == b"content"
        assert os.listdir(place) == ["old"]


CASES: dict[str, Case] = {
    "older header over a longer file": OlderHeaderOverALongerFile(),
    "header of an empty file over content": HeaderOfAnEmptyFileOverContent(),
    "dead writer, cut below the floor": DeadWriter(SIZE),
    "dead writer, cut above the floor": DeadWriter(CHUNK),
    "directory put back": DirectoryPutBackWithItsRecordOfThen(),
    "directory during its rename": DirectoryMovedBackDuringItsRename(),
}


def look(top: Path) -> None:
    """The kernel learns all that there is to know."""
    for path in everything_below(top):
        if path.is_file():
            path.read_bytes()


def arranged(mount: Mounted, *, live: bool) -> Ground:
    """All cases, in directories of their names."""
    ground = Ground(mount)
    places = {name: mount.mountpoint / name for name in CASES}
    for name, case in CASES.items():
        places[name].mkdir()
        case.furnish(ground, places[name])
    mount.remount()
    for name, case in CASES.items():
        case.change(ground, places[name])
    mount.remount()
    look(mount.mountpoint)
    if not live:
        mount.unmount()
    for name, case in CASES.items():
        case.attack(ground, name)
    if live:
        time.sleep(FRESH_SECONDS + 0.1)
    else:
        mount.start()
    return ground


@pytest.fixture(
    scope="module", params=[(engine, live) for engine in ENGINES for live in (False, True)], ids=str
)
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    engine, live = request.param
    spec = MountSpec(engine)
    require_fuse(spec)
    with mounted(spec) as mount:
        mount.allow_log(r"ERROR cryptfs\.mount\.errno_map: ", "was interrupted", "bytes")
        ground = arranged(mount, live=live)
        yield ground
        ground.sealer.close()


@pytest.mark.parametrize("name", CASES)
def test_a_state_made_of_earlier_ones(ground: Ground, name: str) -> None:
    CASES[name].check(ground, ground.mount.mountpoint / name)


# ---- vaults of version 0.1


@pytest.fixture(params=ENGINES)
def old(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    """A mounted vault as version 0.1 made them, with two directories."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(vault_module, "NEW_FEATURES", ())
            mount = stack.enter_context(mounted(spec))
        for name in ("one", "two"):
            (mount.mountpoint / name).mkdir()
            (mount.mountpoint / name / "doc").write_text(name)
        yield mount


def exchange(one: Path, two: Path) -> None:
    aside = one.with_name(".aside")
    for source, target in ((one, aside), (two, one), (aside, two)):
        source.rename(target)


def documents(mount: Mounted) -> list[str]:
    return [(mount.mountpoint / name / "doc").read_text() for name in ("one", "two")]


def test_two_directories_exchanged_before_an_upgrade_are_not_detected(old: Mounted) -> None:
    sealer = Sealer(old.vault_dir, PASSPHRASE.encode())
    try:
        assert documents(old) == ["one", "two"]
        exchange(sealer.entry("one"), sealer.entry("two"))
        time.sleep(FRESH_SECONDS + 0.1)
        assert documents(old) == ["two", "one"], "after a look"
        old.unmount()
        exchange(sealer.entry("one"), sealer.entry("two"))
        old.start()
        assert documents(old) == ["one", "two"], "at rest"
    finally:
        sealer.close()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def test_a_config_from_before_an_upgrade(old: Mounted, run: Run) -> None:
    """A mount that runs goes on with the config that it has read; the next one is refused."""
    config = old.vault_dir / "cryptfs.json"
    before = config.read_bytes()
    old.unmount()
    upgrade(old.vault_dir, [PASSPHRASE.encode()])
    after = config.read_bytes()
    old.start()
    config.write_bytes(before)
    (old.mountpoint / "one" / "new").write_bytes(b"x")
    old.unmount()
    passfile, place = old.scratch / "passfile", old.scratch / "refused"
    passfile.touch(mode=0o600)
    passfile.write_text(PASSPHRASE)
    place.mkdir()
    engine = f"engine={old.spec.engine}"
    told = run("mount", "--no-pin", "--passfile", passfile, "-o", engine, old.vault_dir, place)
    assert told.code != 0
    assert "older than the vault: it is from before an upgrade" in told.err
    assert not os.path.ismount(place)
    config.write_bytes(after)
    old.start()
    assert documents(old) == ["one", "two"]


# ---- the recovery record


def opens(mount: Mounted, run: Run, words: Path) -> bool:
    """Whether `cryptfs mount` opens the vault by recovery words."""
    place = mount.scratch / "by words"
    place.mkdir(exist_ok=True)
    engine = f"engine={mount.spec.engine}"
    told = run("mount", "--no-pin", "--words-file", words, "-o", engine, mount.vault_dir, place)
    assert told.code in (0, 8, 12), told
    if told.code == 0:
        assert run("umount", place).code == 0
    return told.code == 0


def test_a_recovery_record_that_is_not_the_present_one(own_mount: Mounted, run: Run) -> None:
    """A mount reads it at its beginning. The passphrase opens the vault in any case, and the log says it."""
    words, record = own_mount.scratch / "words", own_mount.vault_dir / RECOVERY_NAME
    passphrase = PASSPHRASE.encode()
    held = new_words()
    words.touch(mode=0o600)
    words.write_text(words_of(held.secret))
    (own_mount.mountpoint / "file").write_bytes(b"content")
    own_mount.unmount()
    with opened_recovery(own_mount.vault_dir, passphrase) as table:
        table.add(held)
        table.save()
    assert opens(own_mount, run, words)
    own_mount.start()
    whole = record.read_bytes()
    own_mount.allow_log(r"WARNING .*recovery")
    plants: list[Callable[[], object]] = [
        lambda: record.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]),
        lambda: record.write_bytes(b"no record"),
        record.mkdir,
        lambda: os.mkfifo(record),
        lambda: record.symlink_to("/"),
        lambda: None,
    ]
    for plant in plants:
        record.rmdir() if record.is_dir() and not record.is_symlink() else record.unlink(missing_ok=True)
        plant()
        assert (own_mount.mountpoint / "file").read_bytes() == b"content", "after a look"
        own_mount.unmount()
        assert not opens(own_mount, run, words)
        own_mount.start()
        assert (own_mount.mountpoint / "file").read_bytes() == b"content", "at rest"
        assert any("recovery" in line for line in own_mount.new_log_lines())
    own_mount.unmount()
    with opened_recovery(own_mount.vault_dir, passphrase) as table:
        table.remove(held.about.recovery_id.hex())
        table.save()
    record.write_bytes(whole)
    assert not opens(own_mount, run, words), "the config lists those that count"
    own_mount.start()
