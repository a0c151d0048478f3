"""One vault on two machines; a sync client carries all files both ways: journals, lists and locks as well."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.vfs import vault as vault_module
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.machines import SyncClient, command, findings, on_machine, second_machine
from tests.e2e.mounting import Mounted, MountSpec, mounted, scratch_directory
from tests.support import pattern, state_files

pytestmark = pytest.mark.waits

KIB = 1024
SIZE = 300 * KIB
AFTER_CRASH = (
    r"WARNING .*(did not end with an unmount|was interrupted|bytes at its end|closed shortly"
    r"|unfinished session)"
)
SAID_MISSING = r"WARNING .*(journal is gone|last changes is missing)"


@pytest.fixture(params=ENGINES)
def machine(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A machine with a name of its own and a fresh vault, mounted."""
    spec = MountSpec(request.param)
    require_fuse(spec)
    place = scratch_directory(tmpfs=True)
    try:
        with mounted(on_machine(spec, place, "a")) as mount:
            mount.allow_log(AFTER_CRASH)
            yield mount
    finally:
        shutil.rmtree(place)


@pytest.fixture(params=[(engine, age) for engine in ENGINES for age in ("0.1", "new")], ids="-".join)
def any_age(request: pytest.FixtureRequest) -> Iterator[Mounted]:
    """A mounted vault as 0.1 made it, and one as it is made now."""
    engine, age = request.param
    spec = MountSpec(engine)
    require_fuse(spec)
    with pytest.MonkeyPatch.context() as patch:
        if age == "0.1":
            patch.setattr(vault_module, "NEW_FEATURES", ())
        with mounted(spec) as mount:
            mount.allow_log(AFTER_CRASH)
            yield mount


def put(mount: Mounted, name: str, content: bytes) -> None:
    """Make a file that is on disk."""
    with (mount.mountpoint / name).open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())


def overwrite(mount: Mounted, name: str, held: list[int], seed: int) -> bytes:
    """Overwrite pieces of a file, have them synced and leave it open; what it holds then."""
    fd = os.open(mount.mountpoint / name, os.O_RDWR)
    for number in range(0, SIZE, 40 * KIB):
        os.pwrite(fd, pattern(4 * KIB, seed + number), number)
    os.fsync(fd)
    content = os.pread(fd, SIZE + 1, 0)
    held.append(fd)
    return content


@pytest.fixture
def held() -> Iterator[list[int]]:
    """Descriptors that programs have open; what is open on a dead mount closes with an error."""
    descriptors: list[int] = []
    yield descriptors
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)


def read(mount: Mounted, name: str) -> bytes:
    return (mount.mountpoint / name).read_bytes()


# ---- sync clients


def test_the_list_of_another_machine_ends_no_journal(machine: Mounted, held: list[int]) -> None:
    """Killed after an fsync; then a sync client brings what another machine, mounted meanwhile, has."""
    put(machine, "big", pattern(SIZE))
    machine.remount()
    with second_machine(machine) as other:
        other.start()
        put(other, "theirs", b"x")
        other.unmount()
        other.start()
        put(other, "theirs again", b"x")
        expected = overwrite(machine, "big", held, 1)
        machine.kill()
        for path in other.vault_dir.glob("cryptfs.*"):
            if path.name not in ("cryptfs.json", "cryptfs.lock"):
                shutil.copy2(path, machine.vault_dir)
        other.unmount()
    machine.start()
    assert read(machine, "big") == expected


def test_two_mounts_that_are_synced_both_ways_lose_nothing(machine: Mounted, held: list[int]) -> None:
    """While both are mounted, while one is killed, and while the other is; each has files that it changes."""
    for name in ("a0", "a1", "b0", "b1"):
        put(machine, name, pattern(SIZE))
    machine.remount()
    expected: dict[str, bytes] = {}
    with second_machine(machine) as other:
        client = SyncClient(machine.vault_dir, other.vault_dir)
        other.allow_log(AFTER_CRASH)
        other.start()
        for round_ in range(3):
            for mount, letter in ((machine, "a"), (other, "b")):
                for number in range(2):
                    name = f"{letter}{number}"
                    expected[name] = overwrite(mount, name, held, 100 * round_ + number)
                    client.sync()
                put(mount, f"{letter} new {round_}", pattern(1000, round_))
                expected[f"{letter} new {round_}"] = pattern(1000, round_)
            client.sync()
        machine.kill()
        client.sync()
        expected["b0"] = overwrite(other, "b0", held, 1000)
        client.sync()
        other.kill()
        client.sync()
        client.sync()
        for mount, letter in ((machine, "a"), (other, "b")):
            mount.start()
            for name, content in expected.items():
                if name.startswith(letter):
                    assert read(mount, name) == content, name
            mount.unmount()
        client.sync()
        for mount in (machine, other):
            mount.start()
            for name, content in expected.items():
                assert read(mount, name) == content, (name, str(mount.spec))
            mount.unmount()
        assert findings(machine, "--deep") == (0, [])
        assert findings(other, "--deep") == (0, [])


def test_a_second_mount_is_refused_when_the_lock_was_replaced(machine: Mounted, tmp_path: Path) -> None:
    """A sync client deletes or replaces files that it takes for older."""
    (own,) = set(state_files(machine.vault_dir, "lock")) - {"cryptfs.lock"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("cryptfs.lock", own):
        kept = machine.scratch / "kept"
        (machine.vault_dir / name).rename(kept)
        shutil.copyfile(kept, machine.vault_dir / name)
        code, said = command(machine, "mount", machine.vault_dir, elsewhere)
        assert code == 40, said
        assert "in use by" in said
        kept.rename(machine.vault_dir / name)
    assert (machine.vault_dir / "cryptfs.lock").read_bytes() == b""
    code, said = command(machine, "info", "--json", machine.vault_dir)
    assert code == 0
    assert f'"pid": {machine.pid}' in said


# ---- journals that are missing, or are another machine's


def test_a_removed_journal_is_told(machine: Mounted, held: list[int]) -> None:
    put(machine, "file", pattern(SIZE))
    machine.remount()
    overwrite(machine, "file", held, 1)
    machine.kill()
    for name in state_files(machine.vault_dir, "journal"):
        (machine.vault_dir / name).unlink()
    for options in ((), ("--deep",)):
        code, found = findings(machine, *options)
        assert code == 26
        assert [each["kind"] for each in found] == ["missing-journal"]
    machine.allow_log(SAID_MISSING)
    machine.new_log_lines()
    machine.start()
    assert [line for line in machine.new_log_lines() if "its journal is gone" in line]
    machine.unmount()
    code, found = findings(machine, "--repair")
    assert code == 0
    assert [each["done"] for each in found if "may be lost" in each["done"]]
    assert findings(machine, "--deep") == (0, [])


def test_a_removed_journal_is_told_by_the_files_alone(any_age: Mounted, held: list[int]) -> None:
    """The lock file is gone, too; the headers name the journal. It is told once, not for each file."""
    for name in ("one", "two"):
        put(any_age, name, pattern(SIZE))
    any_age.remount()
    for name in ("one", "two"):
        overwrite(any_age, name, held, 1)
    any_age.kill()
    for kind in ("journal", "lock"):
        for name in state_files(any_age.vault_dir, kind):
            (any_age.vault_dir / name).unlink()
    code, found = findings(any_age)
    assert (code, [each["kind"] for each in found]) == (26, ["missing-journal"] * 2)
    any_age.allow_log(SAID_MISSING)
    any_age.new_log_lines()
    any_age.start()
    for name in ("one", "two"):
        assert len(read(any_age, name)) == SIZE
    said = [line for line in any_age.new_log_lines() if "last changes is missing" in line]
    assert len(said) == 1


def test_an_old_journal_without_the_list_makes_no_closed_file_short(machine: Mounted) -> None:
    """Put back when the session was over, and the list removed: the file was cut, and not by a crash."""
    with (machine.mountpoint / "file").open("wb") as file:
        file.write(pattern(SIZE))
    os.listdir(machine.mountpoint)
    journals = {
        name: (machine.vault_dir / name).read_bytes() for name in state_files(machine.vault_dir, "journal")
    }
    assert len(journals) == 2
    machine.unmount()
    for name, raw in journals.items():
        (machine.vault_dir / name).write_bytes(raw)
    (lists,) = state_files(machine.vault_dir, "sessions")
    (machine.vault_dir / lists).unlink()
    (backing,) = (path for path in machine.vault_dir.iterdir() if not path.name.startswith("cryptfs."))
    os.truncate(backing, 256 + 3 * (16 * KIB + 64))
    machine.allow_log(r"WARNING .*list of sessions is missing", r"ERROR .*the file was cut")
    machine.new_log_lines()
    machine.start()
    with pytest.raises(OSError):
        read(machine, "file")
    assert [line for line in machine.new_log_lines() if "list of sessions is missing" in line]


def test_a_disk_that_moves_to_another_machine(machine: Mounted, held: list[int]) -> None:
    """After a crash. The other machine leaves the journal alone, until a person says how it is."""
    put(machine, "file", pattern(SIZE))
    machine.remount()
    expected = overwrite(machine, "file", held, 1)
    machine.kill()
    first, journals = machine.spec, state_files(machine.vault_dir, "journal")
    backing = {path: path.read_bytes() for path in machine.vault_dir.iterdir() if path.name in journals}
    machine.spec = on_machine(first, machine.scratch, "b")
    machine.new_log_lines()
    machine.start()
    assert (
        len([line for line in machine.new_log_lines() if "unfinished session of another machine" in line])
        == 1
    )
    put(machine, "another", b"x")
    machine.unmount()
    code, found = findings(machine)
    assert code == 0
    assert "other-session" in [each["kind"] for each in found]
    assert {path: path.read_bytes() for path in backing} == backing
    code, found = findings(machine, "--repair")
    assert code == 0
    assert {path: path.read_bytes() for path in backing} == backing
    code, said = command(machine, "fsck", "--other-machines", machine.vault_dir)
    assert code == 1, said
    code, found = findings(machine, "--repair", "--other-machines")
    assert code == 0
    assert not state_files(machine.vault_dir, "journal")
    for back in (machine.spec, first):
        machine.spec = back
        machine.start()
        assert read(machine, "file") == expected
        machine.unmount()
    assert findings(machine, "--deep") == (0, [])


def test_the_first_machine_comes_back(machine: Mounted, held: list[int]) -> None:
    """What another one did in between, a repair as well, takes nothing away from its journal."""
    put(machine, "file", pattern(SIZE))
    machine.remount()
    expected = overwrite(machine, "file", held, 1)
    machine.kill()
    first = machine.spec
    machine.spec = on_machine(first, machine.scratch, "b")
    machine.start()
    put(machine, "another", b"x")
    machine.unmount()
    assert findings(machine, "--repair")[0] == 0
    machine.spec = first
    machine.start()
    assert read(machine, "file") == expected
    assert read(machine, "another") == b"x"


# ---- files that share a file_id


def test_copies_of_a_file_get_their_own_changes_back(any_age: Mounted, held: list[int]) -> None:
    """Their ciphertext is the same, as that of conflict copies; both are overwritten, the daemon killed."""
    vault = any_age.vault_dir
    for name in ("a", "b"):
        put(any_age, name, pattern(SIZE))
    any_age.unmount()
    one, other = (path for path in vault.iterdir() if not path.name.startswith("cryptfs."))
    shutil.copyfile(one, other)
    any_age.start()
    expected = {name: overwrite(any_age, name, held, seed) for name, seed in (("a", 1), ("b", 500_000))}
    assert expected["a"] != expected["b"]
    any_age.kill()
    any_age.start()
    for name, content in expected.items():
        assert read(any_age, name) == content, name


# ---- temporary names


def test_what_another_machine_began_keeps_its_directory_for_a_day(machine: Mounted) -> None:
    (machine.mountpoint / "directory").mkdir()
    (inside,) = (path for path in machine.vault_dir.iterdir() if path.is_dir())
    theirs = inside / "cryptfs.tmp.AAAAAAAAAAAAAAAA.unfinished"
    theirs.write_bytes(b"")
    machine.allow_log(r"WARNING .*another machine began something")
    with pytest.raises(OSError, match="not empty"):
        (machine.mountpoint / "directory").rmdir()
    assert theirs.exists()
    a_while_ago = time.time() - 90_000
    os.utime(theirs, (a_while_ago, a_while_ago))
    (machine.mountpoint / "directory").rmdir()
    assert not inside.exists()


def test_a_journal_that_a_client_brings_back_under_a_mount_is_in_nobodys_way(
    machine: Mounted, held: list[int]
) -> None:
    put(machine, "file", pattern(SIZE))
    names = state_files(machine.vault_dir, "journal")
    old = {name: (machine.vault_dir / name).read_bytes() for name in names}
    machine.remount()
    for name, raw in old.items():
        (machine.vault_dir / name).write_bytes(raw)
    machine.allow_log(r"WARNING .*kept as cryptfs\.host\.")
    expected = overwrite(machine, "file", held, 1)
    machine.kill()
    machine.start()
    assert read(machine, "file") == expected
    assert len([name for name in os.listdir(machine.vault_dir) if ".aside." in name]) == 2


def test_a_journal_that_a_client_removes_under_a_mount(machine: Mounted, held: list[int]) -> None:
    """What was synced before, and what is synced later, is there after a kill."""
    for name in ("one", "two"):
        put(machine, name, pattern(SIZE))
    machine.remount()
    expected = {"one": overwrite(machine, "one", held, 1)}
    for name in state_files(machine.vault_dir, "journal"):
        (machine.vault_dir / name).unlink()
    machine.allow_log(r"ERROR .*somebody removed the journal", SAID_MISSING)
    expected["two"] = overwrite(machine, "two", held, 2)
    time.sleep(2)  # a thread brings the first one home at once; on a busy machine that takes a while
    machine.kill()
    machine.start()
    for name, content in expected.items():
        assert read(machine, name) == content, name


def test_the_command_says_it_on_the_terminal_and_in_the_log(machine: Mounted, held: list[int]) -> None:
    """The daemon logs what the command said before there was one: once each."""
    put(machine, "file", pattern(SIZE))
    machine.remount()
    overwrite(machine, "file", held, 1)
    machine.kill()
    machine.spec = on_machine(machine.spec, machine.scratch, "b")
    log = machine.scratch / "daemon.log"
    engine = ("--engine", machine.spec.engine)
    code, said = command(machine, "mount", *engine, "--log-file", log, machine.vault_dir, machine.mountpoint)
    try:
        assert code == 0, said
        for text in (said, log.read_text()):
            assert text.count("an unfinished session of another machine") == 1, text
            assert "fsck --repair --other-machines" in text
    finally:
        assert command(machine, "umount", machine.mountpoint)[0] == 0
