"""The parts that a killed copy leaves: never damage, removed by the next copy, and nobody else's business."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cryptfs
from cryptfs.fsck.check import check_vault
from cryptfs.fsck.findings import Severity
from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import LARGE, Copied, EntryCopy
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from cryptfs.transfer.sides import OLD_PART, PART_PREFIX, Parts, is_part, part_name
from cryptfs.transfer.vaultside import VaultSide
from cryptfs.vfs import newcontent
from cryptfs.vfs.recovery.replay import Waiting
from tests.commands import Run
from tests.crash.power.powermodel import crash_images
from tests.crash.power.recorder import Recorder
from tests.support import everything_below, pattern, state_files
from tests.transfer.conftest import PASSPHRASE
from tests.transfer.test_workers import parts_below, parts_in
from tests.transfer.trees import seen
from tests.transfer.workerly import Command, outcome

WORKERS = 3
LEFT = part_name(bytes(16), b"of a copy that was killed")


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """Large files, and some small ones."""
    top = tmp_path / "heavy"
    (top / "small").mkdir(parents=True)
    for number in range(2):
        (top / f"large {number}").write_bytes(pattern((24 << 20) + number * 70_001, number))
    for number in range(40):
        (top / "small" / str(number)).write_bytes(pattern(number * 1000, number))
    return top


def size_below(top: Path) -> int:
    """Bytes of all files, without what is not there yet of those that have their length already."""
    found = 0
    with contextlib.suppress(FileNotFoundError):  # a part goes, or gets its name
        for each in everything_below(top):
            found += each.lstat().st_blocks * 512
    return found


def kill_at(command: Command, target: Path, size: int, *, group: bool) -> bool:
    """SIGKILL once the target has so many bytes; whether it was alive. group: the workers as well."""
    while command.process.poll() is None and size_below(target) < size:
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        if group:
            os.killpg(command.process.pid, signal.SIGKILL)
        else:
            command.process.kill()
    return command.end().code == -signal.SIGKILL


@pytest.mark.waits
@pytest.mark.parametrize("group", [True, False], ids=["with its workers", "alone"])
def test_kill_9_in_the_middle_of_large_files_is_no_damage(
    group: bool, heavy: Path, vault_dir: Path, tmp_path: Path, passfile: Path, run: Run
) -> None:
    dice, killed, left = random.Random(int(group)), 0, 0
    for attempt in range(3):
        before = size_below(vault_dir)
        command = Command(WORKERS, passfile, "import", heavy, f"{vault_dir}:{attempt}", "-q")
        killed += kill_at(command, vault_dir, before + dice.randrange(48 << 20), group=group)
        told = run("fsck", "--deep", vault_dir)  # before the journal is replayed
        assert told.code == 0, told.out
        assert run("mkdir", vault_dir, f"replays {attempt}").code == 0
        told = run("fsck", "--deep", vault_dir)
        assert told.code == 0, told.out
        with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
            for top, _, names in vault.walk():
                for name in names:
                    with vault.open(os.path.join(top, name), "rb") as file:
                        content = file.read()
                    left += is_part(os.fsencode(name))
                    whole = heavy / os.path.relpath(top, str(attempt)) / name
                    assert is_part(os.fsencode(name)) or content == whole.read_bytes()
        assert outcome(WORKERS, passfile, "import", heavy, f"{vault_dir}:{attempt}", "--verify").code == 0
        assert parts_in(vault_dir) == []
        assert run("rm", "-r", vault_dir, str(attempt)).code == 0
    assert killed > 1
    assert left or not group
    assert outcome(WORKERS, passfile, "import", heavy, f"{vault_dir}:last").code == 0
    assert run("export", f"{vault_dir}:last", tmp_path / "out").code == 0
    assert seen(tmp_path / "out") == seen(heavy)


@pytest.mark.waits
def test_kill_9_of_an_export_leaves_whole_files_and_parts(
    heavy: Path, vault_dir: Path, tmp_path: Path, passfile: Path, run: Run
) -> None:
    assert run("import", heavy, vault_dir).code == 0
    out, dice, killed = tmp_path / "out", random.Random(1), 0
    for _ in range(3):
        command = Command(WORKERS, passfile, "export", vault_dir, out, "-q")
        killed += kill_at(command, out, size_below(out) + dice.randrange(1, 20 << 20), group=True)
        for each in everything_below(out) if out.exists() else ():
            if each.is_file() and not is_part(os.fsencode(each.name)):
                assert each.read_bytes() == (heavy / each.relative_to(out)).read_bytes()
    assert killed
    assert outcome(WORKERS, passfile, "export", vault_dir, out, "--verify").code == 0
    assert parts_below(out) == []
    assert seen(out) == seen(heavy)
    assert run("fsck", "--deep", vault_dir).code == 0


@pytest.mark.serial
def test_a_loss_of_power_leaves_an_empty_file(vault_dir: Path, tmp_path: Path) -> None:
    """Whatever of the chunks has reached the disk."""
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, start=False) as vault:
        recorder = Recorder(vault_dir)
        with recorder.on():
            tree = vault.tree
            file = tree.create(tree.root, LEFT, os.O_RDWR | os.O_EXCL, 0o600)
            content_id = newcontent.expect(file)
            for chunk in (6, 0, 3):
                piece = newcontent.NewContent(vault.context, tree.root, LEFT, content_id)
                piece.write(chunk * 16384, memoryview(pattern(16384)))
                piece.close()
        tree.release(file)
        vault.unlink(LEFT)
    states = set()
    for number, image in enumerate(crash_images(recorder.recording, count=60)):
        place = tmp_path / f"image {number}"
        image.write_to(place)
        with cryptfs.Vault.unlock(place, PASSPHRASE) as vault:
            for name in vault.listdir(b""):
                entry = place / vault.tree.root.entry_name(name)
                raw = entry.read_bytes()
                states.add(hashlib.sha256(raw).digest())
                if raw[:7] == b"CRYPTFS" or not raw:
                    with vault.open(name, "rb") as reading:
                        assert reading.read() == b""
                    found = check_vault(vault, deep=True).run()
                    assert [each for each in found if each.severity is Severity.ERROR] == []
                else:  # only the length is on disk, and not even the header, as of any new file
                    with pytest.raises(OSError, match="does not authenticate"):
                        vault.open(name, "rb").read()
    assert len(states) > 5


# ---- who removes parts


def import_into(vault: cryptfs.Vault, source: Path, name: bytes) -> list[object]:
    """The problems of an import of a file or a directory to a name in the root."""
    problems: list[object] = []

    def tell(*problem: object) -> None:
        problems.append(problem)

    where = PlainDirectory.at(str(source.parent))
    copy = TreeCopy(PlainSide(where), VaultSide(vault, tell), tell, Copied())
    copy.run(where, os.fsencode(source.name), vault.tree.root, name, b"")
    return problems


@pytest.mark.parametrize("left", [LEFT, LEFT + b"00000000"], ids=["a copy's", "fsspec's"])
@pytest.mark.parametrize("kind", ["file", "symlink", "damaged"])
def test_an_import_of_something_else_removes_them(
    kind: str, left: bytes, opened: cryptfs.Vault, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "d").mkdir(parents=True)
    (other / "d" / "file").write_text("content")
    opened.mkdir("d")
    mine = [b".cryptfs-part-of my own", b"d/.cryptfs-part-0", b"d/x" + left]
    for name in (left, b"d/" + left, *mine):
        if kind == "symlink":
            opened.symlink("nowhere", name)
        else:
            with opened.open(name, "wb") as file:
                file.write(b"half of")
    if kind == "damaged":
        for name in (left, b"d/" + left):
            found = opened.places.find(name)
            place = opened.vault_dir / found.directory.cipher_path / found.directory.entry_name(found.name)
            place.write_bytes(b"x" * 300)
    assert import_into(opened, other / "d", b"d") == []
    assert left in opened.listdir(b"")
    assert sorted(opened.listdir(b"d")) == sorted([b"file", b".cryptfs-part-0", b"x" + left])
    assert import_into(opened, other / "d" / "file", b"file") == []
    assert sorted(opened.listdir(b"")) == [b".cryptfs-part-of my own", b"d", b"file"]


def test_those_of_the_source_are_copied_and_stay(opened: cryptfs.Vault, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / os.fsdecode(LEFT)).write_text("somebody's")
    for _ in range(2):
        assert import_into(opened, source, b"copy") == []
        assert opened.listdir(b"copy") == [LEFT]


def test_those_of_a_machine_that_is_at_work_stay(
    opened: cryptfs.Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    opened.mkdir("copy")
    with opened.open(b"copy/" + LEFT, "wb") as file:
        file.write(b"half")
    found = opened.places.find(b"copy/" + LEFT)
    place = opened.vault_dir / found.directory.cipher_path / found.directory.entry_name(found.name)
    with place.open("rb") as backing:
        header = opened.context.header_of(backing.fileno())
    assert header is not None

    waiting = Waiting(others=frozenset({header.journal_id}))
    with monkeypatch.context() as patch:
        patch.setattr("cryptfs.transfer.vaultside.waiting_journals", lambda *_: waiting)
        assert import_into(opened, source, b"copy") == []
        assert opened.listdir(b"copy") == [LEFT]
    assert import_into(opened, source, b"copy") == []
    assert opened.listdir(b"copy") == []


@pytest.fixture
def exported(opened: cryptfs.Vault, tmp_path: Path) -> Callable[[], list[object]]:
    """Exports a vault with one large file to `out`; returns the problems."""
    with opened.open("file", "wb") as file:
        file.write(pattern(3 * LARGE))

    def export() -> list[object]:
        problems: list[object] = []

        def tell(*problem: object) -> None:
            problems.append(problem)

        where = PlainDirectory.at(str(tmp_path))
        copy = TreeCopy(VaultSide(opened, tell), PlainSide(where), tell, Copied())
        copy.run(opened.tree.root, b"", where, b"out", b"")
        return problems

    return export


def test_an_export_removes_those_of_dead_copies_only(
    exported: Callable[[], list[object]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    left, old = out / os.fsdecode(LEFT), out / (PART_PREFIX.decode() + "f" * 24)
    other = PlainDirectory.at(str(out))
    fcntl.flock(other.fd, fcntl.LOCK_SH)  # as another copy that works there
    for each in (left, old):
        each.write_text("half")
    there = PlainSide.stat

    def stat_of(self: PlainSide, where: PlainDirectory, name: bytes) -> Any:
        st = there(self, where, name)
        is_old = name == os.fsencode(old.name)
        return SimpleNamespace(st_ctime=st.st_ctime - OLD_PART - 1) if is_old else st

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlainSide, "stat", stat_of)
        assert exported() == []
    assert sorted(each.name for each in out.iterdir()) == sorted([left.name, "file"])
    del other
    assert exported() == []
    assert [each.name for each in out.iterdir()] == ["file"]


def test_a_directory_that_somebody_has_locked_is_no_reason_to_wait(
    exported: Callable[[], list[object]], tmp_path: Path
) -> None:
    """As `flock out cryptfs export ...`."""
    (tmp_path / "out").mkdir()
    held = PlainDirectory.at(str(tmp_path / "out"))
    fcntl.flock(held.fd, fcntl.LOCK_EX)
    began = time.monotonic()
    assert exported() == []
    assert time.monotonic() - began < 5
    assert (tmp_path / "out" / "file").read_bytes() == pattern(3 * LARGE)


class Killed(BaseException):
    """In place of SIGKILL."""


def test_two_exports_to_one_place_do_not_mix(
    exported: Callable[[], list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins in the middle of the first, and is killed in its own middle."""
    move, begun = EntryCopy._move, []

    def moving(self: Any, reading: Any, writing: Any, *, is_large: bool) -> None:
        begun.append(self)
        if len(begun) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(Parts, "remove", lambda *_: None)
                with pytest.raises(Killed):
                    exported()
            move(self, reading, writing, is_large=is_large)
        else:
            writing.write(0, memoryview(b"half"))
            raise Killed

    monkeypatch.setattr(EntryCopy, "_move", moving)
    assert exported() == []
    assert (tmp_path / "out" / "file").read_bytes() == pattern(3 * LARGE)


def test_two_exports_of_the_same_are_no_problem(
    exported: Callable[[], list[object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is faster."""
    begun: list[object] = []
    name = EntryCopy._name

    def naming(self: Any, item: Any, part: bytes) -> None:
        begun.append(self)
        if len(begun) == 1:
            assert exported() == []
        name(self, item, part)

    monkeypatch.setattr(EntryCopy, "_name", naming)
    assert exported() == []
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["file"]


# ---- ends


@pytest.mark.waits
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, WORKERS])
@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_signal_in_the_middle_of_a_large_file_leaves_nothing(
    direction: str, workers: int, number: int, heavy: Path, vault_dir: Path, tmp_path: Path, passfile: Path,
    run: Run,
) -> None:  # fmt: skip
    words: tuple[object, ...] = ("import", heavy, vault_dir, "-q")
    target = vault_dir
    if direction == "export":
        assert run(*words).code == 0
        target = tmp_path / "out"
        words = ("export", vault_dir, target, "-q")
    command = Command(workers, passfile, *words)
    while size_below(target) < 20 << 20:
        assert command.process.poll() is None
        time.sleep(0.001)
    os.killpg(command.process.pid, number)
    told = command.end()
    assert (told.code, told.err.strip()) == (
        (130, "cryptfs: interrupted") if number == signal.SIGINT else (-number, "")
    )
    assert (parts_in(vault_dir) if direction == "import" else parts_below(target)) == []
    assert state_files(vault_dir, "journal") == []
    assert run("fsck", "--deep", vault_dir).code == 0
    assert outcome(workers, passfile, *words, "--verify").code == 0


def test_one_import_at_a_time(heavy: Path, vault_dir: Path, passfile: Path, run: Run) -> None:
    command = Command(WORKERS, passfile, "import", heavy, vault_dir, "-q")
    command.workers(WORKERS)
    command.process.send_signal(signal.SIGSTOP)  # else it may have ended before the other one asks
    try:
        told = run("import", heavy, vault_dir)
    finally:
        command.process.send_signal(signal.SIGCONT)
    assert command.end().code == 0
    assert told.code == 40
