"""Signals that come where Python drops what their handler raises, or before an object is complete."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cryptfs
from cryptfs.vfs.tree.directory import CachedNames, Directory
from tests.commands import Run
from tests.support import child_environment
from tests.transfer.test_workers import parts_below, parts_in
from tests.transfer.trees import make_tree, seen

IN_DEL = """
import os, signal, sys
from cryptfs.cli import transfer
from cryptfs.cli.main import main
from cryptfs.storage.backing import OwnsDescriptor
from cryptfs.transfer import waiting

number, workers, where = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
for each in (signal.SIGTERM, signal.SIGHUP):  # whoever runs the tests may do so under nohup
    signal.signal(each, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
waiting.crew_size = lambda cores: workers
transfer._ENOUGH = 1
parent, closed = os.getpid(), 0
close = OwnsDescriptor.__del__

def interrupted(self):
    global closed
    close(self)
    if (os.getpid() == parent) == (where == "parent"):
        closed += 1
        if closed == 3:
            signal.raise_signal(number)

OwnsDescriptor.__del__ = interrupted
sys.exit(main(sys.argv[4:]))
"""


def in_del(number: int, workers: int, where: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A command that gets a signal while an object is thrown away."""
    numbers = (str(int(number)), str(workers), where)
    return subprocess.run(
        [sys.executable, "-c", IN_DEL, *numbers, *map(str, words)],
        env=child_environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some directories, each thrown away when it is copied."""
    top = tmp_path / "tree"
    top.mkdir()
    make_tree(top / "all kinds")
    for number in range(200):
        (top / f"d{number}").mkdir()
        (top / f"d{number}" / "file").write_text(str(number))
    return top


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("direction", ["import", "export"])
def test_it_ends_a_copy(
    direction: str, number: signal.Signals, workers: int, tree: Path, vault_dir: Path, tmp_path: Path,
    passfile: Path, run: Run,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    words: tuple[object, ...] = ("import", tree, vault_dir)
    if direction == "export":
        assert run(*words).code == 0
        words = ("export", vault_dir, out)
    told = in_del(number, workers, "parent", *words, "--passfile", passfile)
    if number == signal.SIGINT:
        assert (told.returncode, told.stderr.strip()) == (130, "cryptfs: interrupted")
    else:
        assert (told.returncode, told.stderr) == (-number, "")
    assert (parts_in(vault_dir) if direction == "import" else parts_below(out)) == []
    assert run(*words).code == 0
    if direction == "import":
        assert run("export", vault_dir, out).code == 0
    assert seen(out) == seen(tree)


@pytest.mark.parametrize("direction", ["import", "export"])
def test_it_ends_a_worker(
    direction: str, tree: Path, vault_dir: Path, tmp_path: Path, passfile: Path, run: Run
) -> None:
    out = tmp_path / "out"
    words: tuple[object, ...] = ("import", tree, vault_dir)
    if direction == "export":
        assert run(*words).code == 0
        words = ("export", vault_dir, out)
    told = in_del(signal.SIGTERM, 1, "worker", *words, "--passfile", passfile)
    assert told.returncode == 11
    assert told.stderr.startswith("cryptfs: the worker process ")
    assert told.stderr.endswith(
        " ended with exit code 0. The files that it copied are complete. Repeat the command: it continues\n"
    )
    assert told.stderr.count("\n") == 1
    assert (parts_in(vault_dir) if direction == "import" else parts_below(out)) == []


def test_in_a_generator_that_is_thrown_away() -> None:
    program = """
import signal, sys, time
from cryptfs.cli.interrupts import heeds_interrupts

def steps():
    try:
        yield
    finally:
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with heeds_interrupts():
        for _ in steps():
            break
        time.sleep(30)
except KeyboardInterrupt:
    sys.exit(5)
"""
    told = subprocess.run(
        [sys.executable, "-c", program],
        env=child_environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (told.returncode, told.stderr) == (5, "")


def own_classes() -> Iterator[type]:
    """Every class of the package that clears up when it is thrown away."""
    for module in pkgutil.walk_packages(cryptfs.__path__, "cryptfs."):
        found = importlib.import_module(module.name)
        own = (each for each in vars(found).values() if isinstance(each, type))
        yield from (each for each in own if each.__module__ == module.name and clears_up(each))


def clears_up(found: type) -> bool:
    """Whether code of the package runs when such an object is thrown away."""
    return any("__del__" in vars(base) for base in found.__mro__ if base.__module__.startswith("cryptfs."))


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python says of exceptions that it drops."""
    found: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: found.append(repr(what.exc_value)))
    return found


def test_before_a_constructor_has_begun(dropped: list[str]) -> None:
    classes = set(own_classes())
    assert {"Directory", "HeldFile", "PlainDirectory", "WalkedDirectory"} <= {
        each.__name__ for each in classes
    }
    for each in classes:
        object.__new__(each)
    gc.collect()
    assert dropped == []


def test_within_the_constructor_of_a_directory(
    opened: cryptfs.Vault, tmp_path: Path, dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    root = opened.tree.root
    fd = os.open(tmp_path, os.O_RDONLY)
    cached = CachedNames()
    monkeypatch.setattr(cached, "of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Directory(fd, root.dir_id, root._names, "", cached)
    gc.collect()
    assert dropped == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
