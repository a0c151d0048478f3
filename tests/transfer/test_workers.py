"""`cryptfs import` and `export` with worker processes: the same as one process, and how they end early."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import cryptfs
from cryptfs.transfer.entrycopy import LARGE
from cryptfs.transfer.sides import PART_PREFIX
from tests.commands import Run
from tests.support import everything_below, pattern
from tests.transfer.conftest import PASSPHRASE
from tests.transfer.trees import make_tree, seen
from tests.transfer.workerly import Command, outcome

WORKERS = 3


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A tree with more files and directories than one share has, and with further names of files."""
    top = tmp_path / "many"
    for number in range(150):
        place = top / f"d{number % 12}" / "below" / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(pattern(number * 100, number))
        os.utime(place, ns=(number * 10**9, number * 10**9 + 5))
    for number in range(0, 150, 10):
        os.link(
            top / f"d{number % 12}" / "below" / str(number), top / f"d{(number + 5) % 12}" / f"link {number}"
        )
    (top / "d3" / "large").write_bytes(pattern(20 * LARGE + 12_345))
    (top / "d4" / ("long name " + "x" * 220)).write_text("long")
    (top / "d5" / "symlink").symlink_to("below")
    (top / "d6" / "below").chmod(0o500)
    for number in range(12):
        os.utime(top / f"d{number}", ns=(number, number * 10**9 + 9))
    return top


def parts_in(vault_dir: Path) -> list[str]:
    """Unfinished files in a vault."""
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        return [
            name for _, _, files in vault.walk() for name in files if name.startswith(PART_PREFIX.decode())
        ]


def parts_below(top: Path) -> list[Path]:
    """Unfinished files in a plain directory."""
    return [each for each in everything_below(top) if each.name.startswith(PART_PREFIX.decode())]


@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_the_same_as_one_process(
    verify: tuple[str, ...], many: Path, vault_dir: Path, tmp_path: Path, passfile: Path, run: Run
) -> None:
    make_tree(many / "all kinds")
    other = shutil.copytree(vault_dir, tmp_path / "other")
    told = [
        outcome(workers, passfile, "import", many, place, *verify)
        for workers, place in ((0, vault_dir), (WORKERS, other))
    ]
    assert told[0] == told[1]
    assert told[0].code == 0
    for number, place in enumerate((vault_dir, other)):
        for workers in (0, WORKERS):
            out = tmp_path / f"out {number} {workers}"
            assert outcome(workers, passfile, "export", place, out, *verify).code == 0
            assert seen(out) == seen(many)
        assert run("fsck", "--deep", place).code == 0
    again = [outcome(workers, passfile, "import", many, other, *verify) for workers in (0, WORKERS)]
    assert again[0] == again[1]
    assert "were there already" in again[0].err


def test_messages_come_in_the_order_of_the_walk(
    many: Path, vault_dir: Path, tmp_path: Path, passfile: Path
) -> None:
    assert outcome(WORKERS, passfile, "import", many, vault_dir).code == 0
    out = tmp_path / "out"
    shutil.copytree(many, out, symlinks=True)
    for number in range(3, 150, 7):
        (out / f"d{number % 12}" / "below" / str(number)).write_text("mine")
    (out / "d3" / "large").write_text("mine")
    (out / "d5" / "symlink").unlink()
    (out / "d5" / "symlink").mkdir()
    shutil.rmtree(out / "d7" / "below")
    (out / "d7" / "below").write_text("in the way")
    told = [outcome(0, passfile, "export", vault_dir, out)]
    kept = seen(out)
    told.append(outcome(WORKERS, passfile, "export", vault_dir, out))
    assert told[0] == told[1]
    assert told[1].code == 11
    assert len(told[1].err.splitlines()) > 20
    assert seen(out) == kept
    told = [outcome(workers, passfile, "import", out, vault_dir) for workers in (0, WORKERS)]
    assert told[0] == told[1]
    (out / "d5" / "symlink").rmdir()
    (out / "d7" / "below").unlink()
    assert outcome(WORKERS, passfile, "export", vault_dir, out, "--overwrite").code == 0
    assert seen(out) == seen(many)


def test_damage_in_shares_is_left_out(many: Path, vault_dir: Path, tmp_path: Path, passfile: Path) -> None:
    assert outcome(WORKERS, passfile, "import", many, vault_dir).code == 0
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        for path in ("d1/below/1", "d1/below/13", "d8/below/92", "d3/large"):
            found = vault.places.find(path)
            place = vault_dir / found.directory.cipher_path / found.directory.entry_name(found.name)
            raw = bytearray(place.read_bytes())
            raw[len(raw) * 3 // 4] ^= 1
            place.write_bytes(raw)
    told = [
        outcome(workers, passfile, "export", vault_dir, tmp_path / f"out {workers}")
        for workers in (0, WORKERS)
    ]
    assert told[0] == told[1]
    assert told[1].code == 26
    assert [line.split(":")[1].strip() for line in told[1].err.splitlines()[:-1]] == [
        "d1/below/1", "d1/below/13", "d3/large", "d8/below/92",
    ]  # fmt: skip
    out = tmp_path / f"out {WORKERS}"
    assert parts_below(out) == []
    missing = {str(each.relative_to(many)) for each in everything_below(many)} - {
        str(each.relative_to(out)) for each in everything_below(out)
    }
    assert missing == {"d1/below/1", "d1/below/13", "d3/large", "d8/below/92"}


def wait_for_files(place: Path, count: int) -> None:
    """Until there are so many files."""
    until = time.monotonic() + 30
    while sum(len(files) for *_, files in os.walk(place)) < count:
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.waits
@pytest.mark.parametrize("direction", ["import", "export"])
@pytest.mark.parametrize("how", ["kill a worker", "Ctrl-C", "SIGTERM", "SIGHUP", "kill the command"])
def test_it_ends_early_and_goes_on(
    direction: str, how: str, many: Path, vault_dir: Path, tmp_path: Path, passfile: Path, run: Run
) -> None:
    out = tmp_path / "out"
    words, target = ("import", many, vault_dir), vault_dir
    if direction == "export":
        assert run(*words, "-q").code == 0
        words, target = ("export", vault_dir, out), out
    command = Command(WORKERS, passfile, *words, slow=0.03)
    workers = command.workers(WORKERS)
    wait_for_files(target, 30)
    if how == "kill a worker":
        os.kill(workers[1], signal.SIGKILL)
    elif how == "Ctrl-C":
        os.killpg(command.process.pid, signal.SIGINT)
    elif how == "SIGTERM":
        command.process.terminate()
    elif how == "SIGHUP":
        os.killpg(command.process.pid, signal.SIGHUP)  # as of a terminal that closes
    else:
        command.process.kill()
    told = command.end()
    if how == "kill a worker":
        assert told.code == 11
        assert told.err == (
            f"cryptfs: the worker process {workers[1]} was killed by signal 9. "
            "The files that it copied are complete. Repeat the command: it continues\n"
        )
    elif how == "Ctrl-C":
        assert (told.code, told.err.strip()) == (130, "cryptfs: interrupted")
    elif how.startswith("SIG"):
        assert (told.code, told.err) == (-getattr(signal, how), "")
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.01)
    if how != "kill the command":
        assert (parts_in(vault_dir) if direction == "import" else parts_below(out)) == []
        assert not list(vault_dir.glob("*.journal*"))
    again = outcome(WORKERS, passfile, *words, "--verify")
    assert again.code == 0, again.err
    assert "were there already" in again.err
    if direction == "import":
        assert run("export", vault_dir, out).code == 0
    assert seen(out) == seen(many)
    assert run("fsck", "--deep", vault_dir).code == 0
    assert parts_in(vault_dir) == []
    assert parts_below(out) == []


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_full_disk_in_a_worker_ends_all(
    direction: str, many: Path, vault_dir: Path, tmp_path: Path, passfile: Path
) -> None:
    words: tuple[object, ...] = ("import", many, vault_dir)
    place = vault_dir
    if direction == "export":
        assert outcome(0, passfile, *words).code == 0
        place = tmp_path / "out"
        words = ("export", vault_dir, place)
    told = outcome(WORKERS, passfile, *words, full=8)
    assert (told.code, len(told.err.splitlines())) == (11, 1)
    assert told.err.startswith(f"cryptfs: {place}: its disk is full.")
    assert outcome(WORKERS, passfile, *words, "--verify").code == 0


@pytest.mark.parametrize("size", [LARGE, 8 << 20, (24 << 20) + 1])
def test_one_large_file(size: int, vault_dir: Path, tmp_path: Path, passfile: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(pattern(size))
    file.chmod(0o640)
    os.utime(file, ns=(1, 2 * 10**9 + 3))
    told = outcome(WORKERS, passfile, "import", file, f"{vault_dir}:new", "--verify")
    assert told == outcome(0, passfile, "import", file, f"{vault_dir}:other", "--verify")
    assert told.code == 0
    for name in ("new", "other"):
        assert (
            outcome(WORKERS, passfile, "export", f"{vault_dir}:{name}", tmp_path / name, "--verify").code == 0
        )
        assert (tmp_path / name).read_bytes() == file.read_bytes()
        st = (tmp_path / name).stat()
        assert (st.st_mode, st.st_mtime_ns) == (file.stat().st_mode, 2 * 10**9 + 3)
