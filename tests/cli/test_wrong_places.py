"""Every command where its vault, its passphrase or its other file is not as it should be.

The exit code is that of the manual, the first word is `cryptfs:`, nothing is on stdout, and nothing changes.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.cli import main as main_module
from cryptfs.core.printable import fit_for_terminal
from tests.cli.test_unattended import COMMANDS, original
from tests.commands import Outcome, Run, runner
from tests.rekey.test_ordinary_users import USER
from tests.support import everything_below

__all__ = ["original"]

pytestmark = pytest.mark.waits

WITH_VAULT = sorted(
    name for name, words in COMMANDS.items() if any(word.startswith("VAULT") for word in words)
)
KEYLESS = ("info", "key list", "recovery list", "recovery export")
OPENED_BY_WORDS = ("recovery restore-config",)
UNLOCKING = [name for name in WITH_VAULT if name not in (*KEYLESS, *OPENED_BY_WORDS)]
MORE = {
    "passwd": ("--new-passcommand", "echo a new one of words"),
    "key add passphrase": ("--new-passcommand", "echo a new one of words"),
    "rekey": ("--drop-slots",),
}
MANY = "x" * 300
ESCAPES = "new\nline \x1b[31m\u202e"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a vault, and files beside it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(original, tmp_path / "place")
    return tmp_path / "place"


def words_of(name: str, place: Path, vault: Path | str, *more: str) -> list[str]:
    """The command on another vault."""
    places = {each: str(place / each.lower()) for each in ("EMPTY", "NEW", "MANIFEST", "PASSFILE")}
    places["VAULT"] = str(vault)
    words = (*name.split(), *COMMANDS[name], *MORE.get(name, ()), *more)
    return [re.sub(r"^[A-Z]{3,}\b", lambda found: places.get(found[0], found[0]), each) for each in words]


def contents(place: Path) -> dict[str, bytes]:
    """All files, but locks."""
    return {
        str(each): each.read_bytes()
        for each in everything_below(place)
        if each.is_file() and not each.name.endswith("lock")
    }


def assert_told(told: Outcome, *codes: int) -> None:
    assert told.code in codes, told
    assert told.err.startswith("cryptfs: "), told
    assert "internal error" not in told.err and "Traceback" not in told.err
    assert told.out == ""
    assert fit_for_terminal(told.err) == told.err


# ---- what stands in the place of the vault


def make_file(vault: Path) -> None:
    vault.write_text("precious")


def make_config(content: bytes) -> Callable[[Path], None]:
    def make(vault: Path) -> None:
        vault.mkdir()
        (vault / "cryptfs.json").write_bytes(content)

    return make


def make_directory_as_config(vault: Path) -> None:
    (vault / "cryptfs.json").mkdir(parents=True)


def make_fifo_as_config(vault: Path) -> None:
    vault.mkdir()
    os.mkfifo(vault / "cryptfs.json")


def make_loop(vault: Path) -> None:
    vault.symlink_to(vault)


NO_VAULTS: dict[str, tuple[Callable[[Path], object], set[int]]] = {
    "nothing": (lambda vault: None, {6}),
    "a file": (make_file, {6}),
    "an empty directory": (Path.mkdir, {6}),
    "an empty config": (make_config(b""), {8}),
    "a config of zeros": (make_config(bytes(1000)), {8}),
    "a config without end": (make_config(b'{"format": "cryptfs"' * 100_000), {8}),
    "a config of a later version": (make_config(b'{"format": "cryptfs", "version": 99}'), {8, 27}),
    "a directory as config": (make_directory_as_config, {8, 23}),
    "a FIFO as config": (make_fifo_as_config, {8, 23}),
    "a loop of links": (make_loop, {6, 23}),
}
OTHER_CODES = {"recovery restore-config": {6, 11, 12}}
"""It works where there is no config; here the record is missing."""


@pytest.mark.parametrize("what", NO_VAULTS)
@pytest.mark.parametrize("name", WITH_VAULT)
def test_no_vault(name: str, what: str, place: Path, run: Run) -> None:
    make, codes = NO_VAULTS[what]
    vault = place / "elsewhere"
    make(vault)
    before = contents(place)
    told = run(*words_of(name, place, vault))
    assert_told(told, *OTHER_CODES.get(name, codes))
    assert str(vault) in told.err
    assert contents(place) == before
    assert not (place / "new").exists()


@pytest.mark.parametrize("shape", ["long", "odd", "dash", "bytes", "relative"])
@pytest.mark.parametrize("name", WITH_VAULT)
def test_names_of_vaults(
    name: str, shape: str, place: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that no disk takes; and those of vaults that are there, which each command finds."""
    monkeypatch.chdir(place)
    if shape == "long":
        assert_told(run(*words_of(name, place, place / MANY)), *OTHER_CODES.get(name, {6, 23}))
        return
    given = {"odd": ESCAPES, "dash": "./-v", "bytes": os.fsdecode(b"raw\xff"), "relative": "vault"}[shape]
    (place / "vault").rename(place / given)
    more = [] if name in (*KEYLESS, *OPENED_BY_WORDS) else ["--passfile", str(place / "none")]
    told = run(*words_of(name, place, given, *more))
    if name in ("info", "key list", "recovery list"):
        assert told.code == 0 and fit_for_terminal(told.out + told.err) == told.out + told.err
    else:
        assert_told(told, 9, 11, 12, 31)
        assert "is not a vault" not in told.err


# ---- what opens it


@pytest.mark.parametrize("name", UNLOCKING)
def test_passphrases(name: str, place: Path, run: Run) -> None:
    before = contents(place / "vault")
    (place / "wrong").touch(mode=0o600)
    (place / "wrong").write_text("wrong\n")
    for words, codes in (
        (("--passfile", str(place / "wrong")), (12,)),
        (("--passfile", "/dev/null"), (22,)),
        (("--passfile", str(place / "none")), (9,)),
        (("--passfile", str(place)), (9,)),
        (("--passfile", "/dev/zero"), (9,)),
        (("--passcommand", "false"), (9,)),
        (("--passcommand", "true"), (22,)),
        (("--passcommand", "'"), (9,)),
        (("--passcommand", ""), (9,)),
        (("--passcommand", str(place / "none")), (9,)),
        (("--askpass", str(place / "none")), (9,)),
        (("--words",), (9,)),
        (("--words-file", str(place / "wrong")), (12,)),
        (("--share-file", str(place / "wrong")), (12,)),
        (("--keyfile", str(place / "wrong")), (12,)),
        (("--keyfile", "/dev/null"), (9,)),
        (("--passfile", ""), (1,)),
        (("--expect-identity", "nonsense"), (1,)),
    ):
        told = run(*words_of(name, place, place / "vault", *words))
        not_kept = name == "rekey" and words[0] in ("--words-file", "--share-file")
        assert_told(told, *((1,) if not_kept else codes))
    assert contents(place / "vault") == before
    assert not (place / "new").exists()


# ---- other files


@pytest.mark.parametrize("name", [name for name in WITH_VAULT if "NEW" in COMMANDS[name]])
def test_places_for_new_files(name: str, place: Path, run: Run) -> None:
    """In a directory that is missing, below a file, in the vault, and where the name is too long."""
    (place / "file").write_text("precious")
    for where in (place / "no" / "such", place / "file" / "below", place / "vault" / "inside", place / MANY):
        words = words_of(name, place, place / "vault", "--passfile", str(place / "passfile"))
        words = words if name not in KEYLESS else words[:-2]
        words = [str(where) if word == str(place / "new") else word for word in words]
        told = run(*words)
        assert_told(told, 1, 11)
    assert not (place / "vault" / "inside").exists()
    assert (place / "file").read_text() == "precious"


# ---- somebody else's


def as_user(work: Callable[[], int], said: Path) -> int:
    """A command in a process of an ordinary user; both streams go to a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 250
    try:
        descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        os.environ["XDG_STATE_HOME"] = "/nonexistent"
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
    raise AssertionError


@pytest.fixture
def open_place(original: Path) -> Iterator[Path]:
    """A copy in a directory that others may go through."""
    with tempfile.TemporaryDirectory(prefix="wrong-places-") as made:
        Path(made).chmod(0o755)
        shutil.copytree(original, Path(made) / "place")
        (Path(made) / "place").chmod(0o755)
        yield Path(made) / "place"


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
@pytest.mark.parametrize("closed", ["vault", "vault/cryptfs.json"])
@pytest.mark.parametrize("name", [name for name in WITH_VAULT if name not in OPENED_BY_WORDS])
def test_of_somebody_else(name: str, closed: str, open_place: Path, tmp_path: Path) -> None:
    """A vault, or a config, that this user may not read. It is not taken for a vault that is none."""
    (open_place / "vault").chmod(0o755)
    (open_place / closed).chmod(0)
    words = words_of(name, open_place, open_place / "vault")
    said = tmp_path / "said"
    code = as_user(lambda: main_module.main(words), said)
    text = said.read_text()
    assert_told(Outcome(code, "", text), 23)
    assert "Permission denied" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as another user needs root")
@pytest.mark.parametrize(
    "name", [name for name in UNLOCKING if name not in ("mount", "open", "key add fido2")]
)
def test_that_may_be_read_and_not_written(name: str, open_place: Path, tmp_path: Path) -> None:
    """What only reads works, and what writes says so."""
    vault = open_place / "vault"
    for each in (open_place / "passfile", open_place / "manifest", *everything_below(vault)):
        each.chmod(0o644)
    vault.chmod(0o755)
    before = contents(vault)
    words = words_of(name, open_place, vault, "--passfile", str(open_place / "passfile"))
    said = tmp_path / "said"
    code = as_user(lambda: main_module.main(words), said)
    text = said.read_text()
    assert "internal error" not in text and "Traceback" not in text
    if code:
        assert re.search(
            r"^cryptfs: .*(Permission denied|cannot be (opened for writing|written))", text, re.M
        ), text
        assert code in (6, 11, 24), text
    assert contents(vault) == before
