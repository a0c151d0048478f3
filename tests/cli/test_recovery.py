"""`cryptfs recovery` without a terminal: words and shares in files, right and wrong."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli import recovery, rekey
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.recovering import RecoveryTable, some_words
from cryptfs.vfs.vault import Vault, read_config
from tests.commands import Outcome, Run, runner
from tests.unlock.vaults import PASSPHRASE, make_vault

CHEAP = ("--kdf-memory", "64m")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    for name, text in (("passfile", "of a vault that can be recovered"), ("new", "a new one")):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text(f"{text}\n")
    make_vault(tmp_path / "vault")
    return tmp_path / "vault"


def by_passphrase(vault: Path) -> Sequence[object]:
    return ("--passfile", vault.parent / "passfile")


def make_words(run: Run, vault: Path, name: str = "words", *more: object) -> Path:
    place = vault.parent / name
    made = run("recovery", "words", vault, "--output", place, *(more or by_passphrase(vault)))
    assert made.code == 0, made.err
    return place


def make_shares(run: Run, vault: Path, needed: int = 2, count: int = 3) -> list[Path]:
    place = vault.parent / "shares"
    numbers = ("--needed", needed, "--of", count, "--output", place)
    made = run("recovery", "shares", vault, *numbers, *by_passphrase(vault))
    assert made.code == 0, made.err
    return sorted(place.iterdir())


def listed(run: Run, vault: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("recovery", "list", vault, "--json").out)
    return found


def restore(run: Run, vault: Path, *more: object) -> Outcome:
    new = ("--new-passfile", vault.parent / "new")
    return run("recovery", "restore-config", vault, *new, *CHEAP, *more)


def test_words_in_a_file(run: Run, vault: Path) -> None:
    place = make_words(run, vault)
    assert place.stat().st_mode & 0o777 == 0o600
    words = place.read_text().split()
    assert len(words) == 24
    (vault / "cryptfs.json").unlink()
    done = restore(run, vault, "--words-file", place)
    assert (done.code, done.out) == (0, "")
    assert "is back" in done.err
    assert not any(word in done.err.split() for word in words if len(word) > 6)
    with Vault.unlock(vault, b"a new one"):
        pass


def test_shares_in_files(run: Run, vault: Path) -> None:
    places = make_shares(run, vault)
    assert [place.name.partition("-of")[2] for place in places] == ["-3"] * 3
    assert {place.stat().st_mode & 0o777 for place in places} == {0o600}
    assert (vault.parent / "shares").stat().st_mode & 0o777 == 0o700
    (vault / "cryptfs.json").write_text("{")
    few = restore(run, vault, "--share-file", places[0])
    assert (few.code, few.err.count("it takes 2 different shares; 1 of them is here")) == (12, 1)
    assert (vault / "cryptfs.json").read_text() == "{"
    assert restore(run, vault, "--share-file", places[2], "--share-file", places[0]).code == 0
    with Vault.unlock(vault, b"a new one"):
        pass


def test_new_words_end_the_old_ones_unless_they_are_kept(run: Run, vault: Path) -> None:
    first = make_words(run, vault)
    assert "shares" not in str(listed(run, vault))
    second = make_words(run, vault, "second", "--words-file", first)
    assert len(listed(run, vault)["secrets"]) == 1
    wrong = run("recovery", "words", vault, "--output", vault.parent / "third", "--words-file", first)
    assert (wrong.code, "not those of this vault" in wrong.err) == (12, True)
    third = make_words(run, vault, "third", "--keep", "--words-file", second)
    make_shares(run, vault)
    for place in (second, third):
        make_words(run, vault, f"{place.name} again", "--keep", "--words-file", place)
    kinds = [each["kind"] for each in listed(run, vault)["secrets"]]
    assert sorted(kinds) == ["shares", *["words"] * 4]


def test_what_a_person_is_told(run: Run, vault: Path) -> None:
    first = make_words(run, vault)
    said = run("recovery", "words", vault, "--output", vault.parent / "w2", "--words-file", first)
    assert said.out == ""
    assert "no longer open it. They still open older copies of the vault" in said.err
    assert "cryptfs rekey" in said.err
    assert f"cryptfs recovery export {vault} FILE" in said.err


def test_list(run: Run, vault: Path) -> None:
    none = run("recovery", "list", vault)
    assert (none.code, none.out) == (0, "")
    assert "cryptfs recovery words" in none.err
    assert listed(run, vault)["record"] == "none"
    make_words(run, vault)
    make_shares(run, vault, 3, 5)
    found = listed(run, vault)
    assert found["record"] == "present"
    words, shares = found["secrets"]
    assert (words["kind"], shares["kind"], shares["needed"], shares["shares"]) == ("words", "shares", 3, 5)
    assert [words["id"], shares["id"]] == read_config(vault).recovery
    lines = run("recovery", "list", vault).out.splitlines()
    assert lines == [f"{words['id'][:8]}  words", f"{shares['id'][:8]}  shares, 3 of 5"]
    (vault / "cryptfs.recovery").write_bytes(b"nothing")
    assert listed(run, vault)["record"] == "damaged"
    (vault / "cryptfs.recovery").unlink()
    missing = run("recovery", "list", vault)
    assert "is missing: these open nothing" in missing.err
    assert len(missing.out.splitlines()) == 2
    assert run("recovery", "list", vault.parent).code == 6


def test_remove(run: Run, vault: Path) -> None:
    words = make_words(run, vault)
    (recovery_id,) = read_config(vault).recovery
    wrong = run("recovery", "remove", vault, "zz", *by_passphrase(vault))
    assert (wrong.code, "cryptfs recovery list" in wrong.err) == (11, True)
    own = run("recovery", "remove", vault, recovery_id[:8], "--words-file", words)
    assert (own.code, "--force" in own.err) == (11, True)
    assert read_config(vault).recovery == [recovery_id]
    assert run("recovery", "remove", vault, recovery_id[:6], *by_passphrase(vault)).code == 0
    assert read_config(vault).recovery == []
    assert not (vault / "cryptfs.recovery").exists()
    again = make_words(run, vault, "again")
    (recovery_id,) = read_config(vault).recovery
    assert run("recovery", "remove", vault, recovery_id, "--force", "--words-file", again).code == 0
    assert read_config(vault).recovery == []


def test_export_and_a_kept_copy(run: Run, vault: Path) -> None:
    kept = vault.parent / "kept"
    none = run("recovery", "export", vault, kept)
    assert (none.code, "make words first" in none.err) == (11, True)
    words = make_words(run, vault)
    assert run("recovery", "export", vault, kept).code == 0
    assert kept.read_bytes() == (vault / "cryptfs.recovery").read_bytes()
    for name in ("cryptfs.json", "cryptfs.recovery"):
        (vault / name).unlink()
    without = restore(run, vault, "--words-file", words)
    assert (without.code, "cryptfs.recovery" in without.err) == (12, True)
    assert restore(run, vault, "--words-file", words, "--record", kept).code == 0
    assert run("recovery", "export", vault, kept).code == 0
    lost = restore(run, vault, "--words-file", words, "--record", vault.parent / "nowhere")
    assert lost.code == 11


def test_an_export_replaces_older_copies_alone(run: Run, vault: Path, tmp_path: Path) -> None:
    make_words(run, vault)
    (tmp_path / "thesis").write_bytes(b"years of work")
    told = run("recovery", "export", vault, tmp_path / "thesis")
    assert (told.code, "is not a copy of the recovery record" in told.err) == (1, True)
    assert (tmp_path / "thesis").read_bytes() == b"years of work"
    told = run("recovery", "export", vault, vault / "copy")
    assert (told.code, "is in the vault itself" in told.err) == (1, True)
    assert not (vault / "copy").exists()
    assert run("recovery", "export", vault, tmp_path / "copy").code == 0
    old = (tmp_path / "copy").read_bytes()
    make_words(run, vault, "again")
    assert run("recovery", "export", vault, tmp_path / "copy").code == 0
    assert (tmp_path / "copy").read_bytes() == (vault / "cryptfs.recovery").read_bytes() != old


def test_a_config_that_is_whole_stays(run: Run, vault: Path) -> None:
    words = make_words(run, vault)
    raw = (vault / "cryptfs.json").read_bytes()
    done = restore(run, vault, "--words-file", words)
    assert (done.code, "nothing to restore" in done.err) == (11, True)
    assert (vault / "cryptfs.json").read_bytes() == raw
    assert restore(run, vault, "--words-file", words, "--force").code == 0


def test_a_forgotten_passphrase(run: Run, vault: Path) -> None:
    words, shares = make_words(run, vault), make_shares(run, vault)
    new = ("--new-passfile", vault.parent / "new", *CHEAP)
    wrong = run("passwd", vault, *new, "--share-file", shares[0], "--share-file", words)
    assert wrong.code == 12
    assert run("passwd", vault, *new, "--words-file", words).code == 0
    with Vault.unlock(vault, b"a new one"):
        pass
    back = ("--new-passfile", vault.parent / "passfile", *CHEAP)
    assert run("passwd", vault, *back, "--share-file", shares[1], "--share-file", shares[2]).code == 0
    with Vault.unlock(vault, b"of a vault that can be recovered"):
        pass
    Vault.create(vault.parent / "another", b"of another", kdf_memory=64 << 20)
    none = run("passwd", vault.parent / "another", *new, "--words-file", words)
    assert (none.code, "no cryptfs.recovery" in none.err) == (12, True)


def test_fsck_says_that_words_are_lost(run: Run, vault: Path) -> None:
    make_words(run, vault)
    for repair in ((), ("--repair",)):
        done = run("fsck", vault, "--json", *repair, *by_passphrase(vault))
        assert (done.code, json.loads(done.out)["findings"]) == (0, [])
    raw = (vault / "cryptfs.recovery").read_bytes()
    (vault / "cryptfs.recovery").write_bytes(raw[:-1] + b"!")
    done = run("fsck", vault, "--json", *by_passphrase(vault))
    (finding,) = json.loads(done.out)["findings"]
    assert (done.code, finding["kind"]) == (0, "recovery-record")
    (vault / "cryptfs.recovery").unlink()
    assert "cryptfs recovery words" in run("fsck", vault, *by_passphrase(vault)).out


def test_a_vault_that_is_in_use(run: Run, vault: Path) -> None:
    words = make_words(run, vault)
    with Vault.unlock(vault, b"of a vault that can be recovered"):
        (vault / "cryptfs.json").unlink()
        assert restore(run, vault, "--words-file", words).code == 40
    assert restore(run, vault, "--words-file", words).code == 0


def test_names_that_do_not_belong_to_the_record(run: Run, vault: Path, tmp_path: Path) -> None:
    words = make_words(run, vault)
    make_vault(tmp_path / "other")
    (theirs,) = (each for each in (tmp_path / "other").iterdir() if each.is_file() and "." not in each.name)
    (vault / theirs.name).write_bytes(theirs.read_bytes())
    (vault / "cryptfs.json").unlink()
    asked = restore(run, vault, "--words-file", words)
    assert (asked.code, "1 of 3 names" in asked.err) == (11, True)
    assert not (vault / "cryptfs.json").exists()
    assert restore(run, vault, "--words-file", words, "--force").code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda words: words[:-1], "there are 24 recovery words, and these are 23"),
        (lambda words: [*words[:6], "secretword", *words[7:]], "word 7 is not in the list"),
        (lambda words: [words[1], words[0], *words[2:]], "checksum"),
    ],
    ids=["few", "unknown", "exchanged"],
)
def test_mistyped_words(change: object, said: str, run: Run, vault: Path) -> None:
    place = make_words(run, vault)
    words = place.read_text().split()
    if words[0] == words[1]:
        words[2:4] = words[3:1:-1]
    place.write_text(" ".join(change(words)))  # type: ignore[operator]
    (vault / "cryptfs.json").unlink()
    done = restore(run, vault, "--words-file", place)
    assert (done.code, said in done.err) == (12, True), done.err
    assert "secretword" not in done.err  # it may be a log


def test_no_terminal(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    for command in (("words", vault), ("shares", vault, "--needed", "2", "--of", "3")):
        done = run("recovery", *command, *by_passphrase(vault))
        assert (done.code, done.out) == (1, "")
        assert "stdout is not a terminal" in done.err and "--output" in done.err
    assert read_config(vault).recovery == []
    (vault / "cryptfs.json").rename(vault.parent / "config")
    done = restore(run, vault)
    assert (done.code, "--record FILE" in done.err) == (12, True)
    (vault / "cryptfs.recovery").touch()
    done = restore(run, vault)
    assert (done.code, "--words-file" in done.err) == (9, True)
    done = restore(run, vault, "--shares")
    assert done.code == 9


def test_words_from_stdin(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_words(run, vault)
    (vault / "cryptfs.json").unlink()
    with place.open(encoding="ascii") as opened:
        monkeypatch.setattr(sys, "stdin", opened)
        assert restore(run, vault, "--words-file", "-").code == 0


def test_the_command_line(run: Run, vault: Path) -> None:
    words = make_words(run, vault)
    both = restore(run, vault, "--words", "--words-file", words)
    assert (both.code, "choose one of" in both.err) == (1, True)
    for numbers in (("4", "3"), ("1", "3"), ("2", "17")):
        done = run(
            "recovery", "shares", vault, "--needed", numbers[0], "--of", numbers[1], *by_passphrase(vault)
        )
        assert done.code == 1
    assert run("recovery", "shares", vault, *by_passphrase(vault)).code == 1
    assert run("recovery", "words", vault.parent / "nowhere", *by_passphrase(vault)).code == 1
    somewhere = ("--output", vault.parent / "somewhere")
    assert run("recovery", "words", vault.parent / "nowhere", *somewhere, *by_passphrase(vault)).code == 6
    exists = run("recovery", "words", vault, "--output", words, *by_passphrase(vault))
    assert (exists.code, "exists already; nothing was changed" in exists.err) == (11, True)
    assert len(listed(run, vault)["secrets"]) == 1
    wrong = run("recovery", "words", vault, *somewhere, "--passfile", vault.parent / "new")
    assert wrong.code == 12
    assert not (vault.parent / "somewhere").exists()


def test_a_file_that_others_can_read(run: Run, vault: Path) -> None:
    place = make_words(run, vault)
    place.chmod(0o644)
    (vault / "cryptfs.json").unlink()
    assert "can be read by other users" in restore(run, vault, "--words-file", place).err


def test_a_vault_of_version_0_1_and_its_upgrade(run: Run, vault: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    make_vault(old, features=())
    words = make_words(run, old, "old words", *by_passphrase(vault))
    said = run("upgrade", old, *by_passphrase(vault))
    assert said.code == 0
    (recovery_id,) = read_config(old).recovery
    assert f"These open it as well: recovery words {recovery_id[:8]}." in said.err
    assert f"recovery record: cryptfs recovery export {old} FILE" in said.err
    (old / "cryptfs.json").unlink()
    assert "restore-config" in run("info", old).err
    assert restore(run, old, "--words-file", words).code == 0
    with Vault.unlock(old, b"a new one"):
        pass


def test_the_secret_is_wiped_whatever_happens(run: Run, vault: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptfs.unlock import recovering

    drawn = []

    def draw(*arguments: Any) -> recovering.HeldSecret:
        drawn.append(real(*arguments))
        return drawn[-1]

    real = recovering.draw_secret
    monkeypatch.setattr(recovering, "draw_secret", draw)
    make_words(run, vault)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    full = run("recovery", "words", vault, "--output", vault.parent / "x", *by_passphrase(vault))
    assert (full.code, "No space left" in full.err) == (11, True)
    assert len(drawn) == 2
    assert not any(any(held.secret) for held in drawn)


@pytest.mark.parametrize("is_saved", [False, True], ids=["before", "after"])
def test_after_a_change_of_the_masterkey_only_words_that_do_not_work_are_said_not_to(
    is_saved: bool, vault: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = RecoveryTable.save

    def interrupted(table: RecoveryTable) -> None:
        if is_saved:
            save(table)
        raise KeyboardInterrupt

    monkeypatch.setattr(RecoveryTable, "save", interrupted)
    monkeypatch.setattr(recovery, "give_words", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        rekey._give_anew(vault, Offer(PASSPHRASE), [some_words()], asks=False)
    assert len(read_config(vault).recovery) == is_saved
    assert ("do not work" in capsys.readouterr().err) is not is_saved
