"""Every command as a script needs it: no question without a terminal, `--quiet`, and NO_COLOR."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cryptfs
from cryptfs.cli import main as main_module
from cryptfs.cli.exit_codes import ExitCode
from cryptfs.unlock.passphrase import new_passphrase
from cryptfs.unlock.table import changing_slots
from tests.age_keys import SPECIFICATION
from tests.commands import all_commands, runner
from tests.e2e.mounting import PROJECT

# Each command, opening a vault by nothing, so that it has to ask; VAULT has two key slots and a file.
COMMANDS: dict[str, tuple[str, ...]] = {
    "cat": ("VAULT", "file"),
    "completion": ("bash",),
    "cp": ("VAULT", "file", "copy"),
    "export": ("VAULT", "NEW"),
    "find": ("VAULT",),
    "fsck": ("VAULT",),
    "import": ("EMPTY", "VAULT:copy"),
    "info": ("VAULT",),
    "init": ("NEW", "--kdf-memory", "64m"),
    "integrate": ("--list",),
    "key add fido2": ("VAULT",),
    "key add keyfile": ("VAULT", "NEW", "--generate"),
    "key add passphrase": ("VAULT", "--kdf-memory", "64m"),
    "key add recipient": ("VAULT", str(SPECIFICATION["recipient"])),
    "key label": ("VAULT", "1", "a label"),
    "key list": ("VAULT",),
    "key remove": ("VAULT", "1"),
    "key test": ("VAULT",),
    "ls": ("VAULT",),
    "mkdir": ("VAULT", "directory"),
    "mount": ("VAULT", "EMPTY"),
    "mv": ("VAULT", "file", "moved"),
    "open": ("VAULT", "--at", "EMPTY"),
    "passwd": ("VAULT", "--kdf-memory", "64m"),
    "path": ("VAULT", "file"),
    "recovery export": ("VAULT", "NEW"),
    "recovery list": ("VAULT",),
    "recovery remove": ("VAULT", "00"),
    "recovery restore-config": ("VAULT", "--words"),
    "recovery shares": ("VAULT", "--needed", "2", "--of", "3", "--output", "NEW"),
    "recovery words": ("VAULT", "--output", "NEW"),
    "rekey": ("VAULT",),
    "rm": ("VAULT", "file"),
    "snapshot": ("VAULT", "--output", "NEW"),
    "speed": ("--size", "1m", "--repeat", "1"),
    "status": ("EMPTY",),
    "tree": ("VAULT",),
    "umount": ("EMPTY",),
    "upgrade": ("VAULT",),
    "verify": ("VAULT", "MANIFEST"),
}
OTHER_CODES = {
    **dict.fromkeys(("completion", "info", "integrate", "key list", "recovery list", "speed"), ExitCode.OK),
    **dict.fromkeys(("status", "umount"), ExitCode.MOUNTPOINT),
    "recovery export": ExitCode.OTHER,  # it has no record
    "recovery restore-config": ExitCode.WRONG_PASSPHRASE,  # for the same reason
}
"""Of commands that need no key; all others end with PASSPHRASE_UNREADABLE."""
NEED_MORE = (
    "key add fido2",
    "mount",
    "open",
    "recovery export",
    "recovery remove",
    "recovery restore-config",
)
"""Commands that the passphrase file is not enough for, or that mount."""
RIGHT = ("--passfile", "PASSFILE")
NEW = ("--new-passfile", "PASSFILE")

# What a script without a terminal has: a session of its own, and nothing on stdin.
ALONE = """
import io, json, os, sys
from cryptfs.cli import main as main_module
found = []
for number, words in enumerate(json.load(open(sys.argv[1]))):
    with open(sys.argv[1] + ".out", "w+b") as out, open(sys.argv[1] + ".err", "w+b") as err:
        for stream, target in ((sys.stdout, out), (sys.stderr, err)):
            stream.flush()
            os.dup2(target.fileno(), stream.fileno())
        os.lseek(0, 0, os.SEEK_SET)
        code = int(main_module.main(words))
        sys.stdout.flush(), sys.stderr.flush()
        found.append((code, *(os.pread(each.fileno(), 1 << 20, 0).decode() for each in (out, err))))
json.dump(found, open(sys.argv[1], "w"))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vault with two slots, a manifest of it, and the passphrase of the first slot in a file."""
    place = tmp_path_factory.mktemp("unattended")
    (place / "passfile").touch(mode=0o600)
    (place / "passfile").write_text("five random words\n")
    (place / "empty").mkdir()
    cryptfs.Vault.create(place / "vault", b"five random words", kdf_memory=64 << 20)
    with changing_slots(place / "vault", b"five random words") as table:
        table.add(new_passphrase(b"quite another sentence", 64 << 20, 3))
        table.save()
    with cryptfs.Vault.unlock(place / "vault", b"five random words") as vault:
        vault.open("file", "wb").close()
    snapshot = ("-q", "snapshot", place / "vault", "-o", place / "manifest", "--passfile", place / "passfile")
    assert main_module.main([str(each) for each in snapshot]) == 0
    return place


@pytest.fixture
def place(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, seen for the first time."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copytree(original, tmp_path / "place")
    return tmp_path / "place"


def words_of(name: str, place: Path, *more: str) -> list[str]:
    places = {each: str(place / each.lower()) for each in ("VAULT", "EMPTY", "NEW", "MANIFEST", "PASSFILE")}
    words = (*name.split(), *COMMANDS[name], *more)
    return [re.sub(r"^[A-Z]{3,}\b", lambda found: places.get(found[0], found[0]), each) for each in words]


def run_alone(place: Path, lines: list[list[str]], stdin: bytes = b"") -> list[tuple[int, str, str]]:
    """Run commands one after another in one process; stdin is a file that begins anew for each."""
    file, given = place / "lines", place / "stdin"
    file.write_text(json.dumps(lines))
    given.write_bytes(stdin)
    with given.open("rb") as source:
        subprocess.run(
            [sys.executable, "-c", ALONE, file],
            stdin=source,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd=PROJECT,
            timeout=120,
            check=True,
        )
    return [tuple(each) for each in json.loads(file.read_text())]


def test_all_commands_are_here() -> None:
    assert COMMANDS.keys() == dict(all_commands(main_module.cli)).keys()


def test_without_a_terminal_nobody_is_asked(place: Path) -> None:
    """A question has no line end; the process would wait for its answer."""
    lines = {name: words_of(name, place) for name in COMMANDS}
    for name, (code, out, err) in zip(lines, run_alone(place, list(lines.values())), strict=True):
        assert code == OTHER_CODES.get(name, ExitCode.PASSPHRASE_UNREADABLE), (name, err)
        assert err == "" or err.endswith("\n"), (name, err)
        assert code == 0 or (err.startswith("cryptfs: ") and not out), (name, out, err)


def test_without_a_terminal_nobody_has_to_agree(place: Path) -> None:
    """Commands that have their passphrase, and would like to know something else."""
    before = (place / "vault" / "cryptfs.json").read_bytes()
    questions = {
        "rekey": RIGHT,  # the second slot would go
        "passwd": RIGHT,
        "key add passphrase": RIGHT,
    }
    lines = [words_of(name, place, *more) for name, more in questions.items()]
    lines.append(["recovery", "words", str(place / "vault"), "--passfile", str(place / "passfile")])
    for code, out, err in run_alone(place, lines):
        assert code not in (0, ExitCode.INTERRUPTED)
        assert err.endswith("\n")
        assert out == ""
    assert (place / "vault" / "cryptfs.json").read_bytes() == before


def test_a_pipe_answers_in_place_of_a_person(place: Path) -> None:
    ((code, out, err),) = run_alone(place, [words_of("cat", place, "-q")], b"five random words\nrest\n")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("name", [each for each in COMMANDS if each not in NEED_MORE])
def test_quiet(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing on stderr if all is well; `init` alone says how to lose the files."""
    more: tuple[str, ...] = () if name in OTHER_CODES else RIGHT
    more += {"passwd": NEW, "key add passphrase": NEW, "rekey": ("--slot-passfile", "OTHER")}.get(name, ())
    (place / "other").touch(mode=0o600)
    (place / "other").write_text("quite another sentence")
    words = [str(place / "other") if each == "OTHER" else each for each in words_of(name, place, *more)]
    told = runner(capsys)("--quiet", *words)
    assert told.code == OTHER_CODES.get(name, 0)
    if name == "init":
        assert told.err.startswith("There is no way in without the passphrase")
    elif not told.code:
        lines = told.err.splitlines()  # the load of the machine is none of the command's doing
        assert [line for line in lines if not line.startswith("cryptfs: warning: other programs")] == []
    else:
        assert told.err.startswith("cryptfs: "), "errors come all the same"


@pytest.mark.parametrize("name", sorted({each.split()[0] for each in COMMANDS}))
def test_no_color(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The help, as a terminal would get it; a table and a finding have no more than rich gives them."""
    colour = re.compile(r"\x1b\[[0-9;]*?\b(3[0-7]|4[0-7]|9[0-7]|38|48)[;m]")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    run = runner(capsys)
    assert colour.search(run(name, "--help").out)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(run(name, "--help").out)


def test_no_color_in_an_answer(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    run = runner(capsys)
    words = words_of("fsck", place, "--passfile", str(place / "passfile"))
    assert "\x1b[32m" in run(*words).out, "green: everything is in order"
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run(*words).out
