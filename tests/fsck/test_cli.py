"""The command `cryptfs fsck`: exit codes, JSON, names and progress."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX
from cryptfs.core.printable import escaped
from cryptfs.fsck.findings import FindingKind
from cryptfs.vfs.vault import Vault
from tests.commands import Run, runner
from tests.fsck.scene import flip, snapshot
from tests.support import child_environment

SECRET = b"a secret name"
WEIRD = b"we\x1b[31mird\n\xff\xe2\x80\xae\\x"
LONG = b"a secret long name " * 10


@dataclass(frozen=True)
class Place:
    """A vault with a directory and files, and what its passphrase is in."""

    vault_dir: Path
    passfile: Path
    record: Path
    file: Path
    sidecar: Path

    def options(self) -> tuple[str, ...]:
        return ("fsck", str(self.vault_dir), "--passfile", str(self.passfile))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    vault_dir, passfile = tmp_path / "vault", tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("right\n")
    Vault.create(vault_dir, b"right", kdf_memory=64 << 20, chunk_size=4096)
    with Vault.unlock(vault_dir, b"right") as vault:
        tree = vault.tree
        tree.make_directory(tree.root, SECRET, 0o700)
        where = tree.directory(tree.root, SECRET)
        for directory, name in ((where, SECRET), (tree.root, WEIRD), (tree.root, LONG)):
            file = tree.create(directory, name, os.O_RDWR, 0o600)
            file.write(0, bytes(range(256)) * 64)
            tree.release(file)
        record = vault_dir / where.cipher_path / RECORD_NAME
        weird = vault_dir / tree.root.entry_name(WEIRD)
        sidecar = vault_dir / (tree.root.entry_name(LONG) + SIDECAR_SUFFIX)
    yield Place(vault_dir, passfile, record, weird, sidecar)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def damage(place: Place) -> None:
    place.record.unlink()
    flip(place.file, 400)
    place.sidecar.unlink()


def test_a_sound_vault(place: Place, run: Run) -> None:
    state = snapshot(place.vault_dir)
    told = run(*place.options(), "--deep")
    assert (told.code, told.err) == (0, "")
    assert told.out == ("Checked 2 directories, 3 files (0.0 MB, every chunk).\nEverything is in order.\n")
    assert snapshot(place.vault_dir) == state


def test_errors_are_told_and_nothing_is_written(place: Place, run: Run) -> None:
    damage(place)
    state = snapshot(place.vault_dir)
    told = run(*place.options(), "--deep")
    assert (told.code, told.err) == (26, "")
    assert "3 errors. Nothing was changed." in told.out
    assert "[directory-record]" in told.out
    assert SECRET.decode() in told.out
    assert "To repair as much as possible: cryptfs fsck --repair --deep" in told.out
    assert snapshot(place.vault_dir) == state


def test_each_kind_is_explained_once(place: Place, run: Run) -> None:
    for number in range(3):
        (place.vault_dir / f"cryptfs.tmp.{number}").mkdir()
    told = run(*place.options())
    assert told.code == 0  # warnings are no errors
    assert told.out.count("[leftover]") == 3
    assert told.out.count("The remains of an interrupted operation.") == 1
    assert "3 warnings. Nothing was changed." in told.out
    assert "--deep checks them" in told.out


def test_repair_and_again(place: Place, run: Run) -> None:
    damage(place)
    told = run(*place.options(), "--deep", "--repair")
    assert (told.code, told.err) == (0, "")
    assert "3 errors; 3 repaired. No errors remain." in told.out
    again = run(*place.options(), "--deep")
    assert again.code == 0
    assert "Everything is in order." in again.out


def test_a_repair_says_what_is_in_lost_found(place: Place, run: Run) -> None:
    """After a repair of warnings there is nothing; then only what is there is named."""
    (place.vault_dir / "cryptfs.tmp.1").mkdir()
    told = run(*place.options(), "--repair")
    assert "1 warning; 1 repaired. No errors remain." in told.out
    assert "lost+found" not in told.out
    stray = place.vault_dir / f"{place.file.name} (copy)"
    stray.write_bytes(place.file.read_bytes())
    told = run(*place.options(), "--repair")
    assert told.out.count("lost+found in the vault has all that was set aside.\n") == 1
    assert "report" not in told.out
    place.record.unlink()
    told = run(*place.options(), "--repair")
    assert "lost+found in the vault has a report.\n" in told.out
    flip(place.file, 400)
    told = run(*place.options(), "--repair", "--deep")
    assert "lost+found in the vault has a report and all that was set aside.\n" in told.out


def test_what_was_set_aside_before(place: Place, run: Run) -> None:
    """Only what is in lost+found is said to be there: a mount keeps its own files in the root."""
    flip(place.file, 10, 200)
    run(*place.options(), "--repair")
    told = run(*place.options(), "--deep")
    assert "1 damaged item set aside by an earlier repair is in lost+found in the vault.\n" in told.out
    (place.vault_dir / f"cryptfs.host.{'a' * 16}.aside.{'b' * 24}").touch()
    told = run(*place.options())
    assert "1 damaged item set aside by an earlier repair is in lost+found in the vault.\n" in told.out
    assert "1 damaged file of earlier mounts: see above.\n" in told.out


def test_a_stray_directory_record_in_the_root(place: Place, run: Run) -> None:
    (place.vault_dir / RECORD_NAME).write_bytes(place.record.read_bytes())
    told = run(*place.options())
    assert told.code == 0
    assert "A directory record where none belongs: the root has none." in told.out


def test_lines_have_no_blanks_at_their_ends(place: Place, run: Run) -> None:
    damage(place)
    for options in ((), ("--deep",), ("--deep", "--repair")):
        told = run(*place.options(), *options)
        assert "         " in told.out
        assert not [line for line in told.out.splitlines() if line.endswith(" ")]


def test_what_remains_is_an_error(place: Place, run: Run) -> None:
    os.mkfifo(place.vault_dir / "cryptfs.links")
    told = run(*place.options(), "--repair")
    assert told.code == 26
    assert "1 error remains." in told.out


def test_json(place: Place, run: Run) -> None:
    damage(place)
    told = run(*place.options(), "--deep", "--json")
    assert (told.code, told.err) == (26, "")
    document = json.loads(told.out)
    assert set(document) == {"schema", "vault", "repair", "deep", "mounted", "findings", "checked", "summary"}
    assert document["vault"] == str(place.vault_dir)
    assert (document["repair"], document["deep"], document["mounted"]) == (False, True, False)
    assert document["checked"] == {
        "directories": 2,
        "files": 3,
        "symlinks": 0,
        "others": 0,
        "bytes": 3 * 16384,
        "bytes_opened": 3 * 16384,
    }
    assert document["summary"] == {"error": 3, "warning": 0, "info": 0, "repaired": 0, "remaining_errors": 3}
    fields = {"severity", "kind", "state", "cipher_path", "plain_path", "meaning", "detail", "remedy", "done"}
    for finding in document["findings"]:
        assert set(finding) == fields
        assert FindingKind(finding["kind"])
        assert (finding["severity"], finding["state"]) == ("error", "found")
    paths = {finding["kind"]: finding["plain_path"] for finding in document["findings"]}
    assert paths == {"directory-record": SECRET.decode(), "chunks": escaped(WEIRD), "sidecar": None}


def test_json_of_a_repair(place: Place, run: Run) -> None:
    damage(place)
    document = json.loads(run(*place.options(), "--repair", "--deep", "--json").out)
    assert document["summary"]["remaining_errors"] == 0
    assert document["summary"]["repaired"] == 3
    assert {finding["state"] for finding in document["findings"]} == {"repaired"}
    assert all(finding["done"] for finding in document["findings"])
    empty = json.loads(run(*place.options(), "--json").out)
    assert empty["findings"] == []


@pytest.mark.parametrize("options", [(), ("--json",), ("--repair",), ("--repair", "--json")])
def test_no_names(place: Place, run: Run, options: tuple[str, ...]) -> None:
    damage(place)
    with Vault.unlock(place.vault_dir, b"right") as vault:  # what moves to lost+found has a name, too
        entry = vault.tree.root.entry_name(b"a secret name too")
    (place.vault_dir / (entry[:-4] + "AAAA")).write_bytes(b"")
    weird = re.compile(r"we\W.{0,20}ird\W", re.DOTALL)  # however the name is quoted
    assert weird.search(run(*place.options(), "--deep").out)
    told = run(*place.options(), "--deep", "--no-names", *options)
    assert "secret" not in told.out + told.err
    assert not weird.search(told.out + told.err)
    assert place.file.name in told.out


def test_names_have_no_say_over_the_terminal(place: Place, run: Run) -> None:
    flip(place.file, 400)
    for options in ((), ("--json",), ("--repair",)):
        told = run(*place.options(), "--deep", *options)
        assert all(line.isprintable() for line in told.out.splitlines())


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("blå".encode(), "blå"),
        (b"a\\b", "a\\\\b"),
        (b"\xff", "\\xff"),
        (b"\x1b[0m", "\\x1b[0m"),
        ("\u202e".encode(), "\\u202e"),
        (b"a\nb", "a\\nb"),
    ],
)
def test_escaped(name: bytes, shown: str) -> None:
    assert escaped(name) == shown


def test_other_ends(place: Place, run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.touch(mode=0o600)
    wrong.write_text("wrong\n")
    assert run("fsck", str(place.vault_dir), "--passfile", str(wrong)).code == 12
    assert run("fsck", str(tmp_path), "--passfile", str(place.passfile)).code == 6
    with Vault.unlock(place.vault_dir, b"right"):
        told = run(*place.options(), "--repair")
        assert told.code == 40
        assert "in use" in told.err
        looked = run(*place.options())  # a look needs no lock
        assert looked.code == 0
        assert "mounted" in looked.err
    config = place.vault_dir / "cryptfs.json"
    config.write_text(config.read_text().replace('"generation": 1', '"generation": 2'))
    assert run(*place.options()).code == 8


def run_on_terminal(*args: str) -> tuple[bytes, bytes]:
    """stdout through a pipe, stderr on a terminal: (stdout, what the terminal got)."""
    leader, follower = pty.openpty()
    environment = {**child_environment(), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [sys.executable, "-m", "cryptfs", *args],
        stdout=subprocess.PIPE,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env=environment,
    ) as process:
        os.close(follower)
        out, _ = process.communicate(timeout=120)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    return out, seen


def test_progress_shows_on_a_terminal_only(place: Place) -> None:
    damage(place)
    out, seen = run_on_terminal(*place.options(), "--deep", "--json")
    json.loads(out)
    assert re.search(rb"\x1b\[", seen)
    assert b"counting" in seen
    piped = subprocess.run(
        [sys.executable, "-m", "cryptfs", *place.options(), "--deep"],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=child_environment(),
        check=False,
    )
    assert piped.stderr == b""
    assert b"\x1b" not in piped.stdout


def test_the_whole_document_is_valid_whatever_was_found(place: Place, run: Run) -> None:
    for number in range(5):
        (place.vault_dir / f"foreign {number} \x1b").touch()
    document = json.loads(run(*place.options(), "--json").out)
    assert document["summary"]["info"] == 5
