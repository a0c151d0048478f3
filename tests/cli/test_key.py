"""`cryptfs key` and `cryptfs passwd` on real vaults with several slots, and on those of version 0.1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryptfs.cli import newsecret
from cryptfs.core.slots.kdf import MAX_KDF_PASSES, MIN_KDF_MEMORY
from cryptfs.unlock.calibration import MOST_MEMORY, Calibrated, calibrate
from cryptfs.unlock.keyfile import is_made_here
from cryptfs.vfs.vault import Vault, read_config
from tests.commands import Outcome, Run, runner
from tests.support import everything_below, make_old_vault

MEMORY = 64 << 20
CHEAP = ("--kdf-memory", "64m")
GOOD = ("five random words", "quite another sentence", "something that differs")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With passphrase files p0 to p2, a photo, and a vault that p0 opens."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for number, text in enumerate(GOOD):
        (tmp_path / f"p{number}").touch(mode=0o600)
        (tmp_path / f"p{number}").write_text(f"{text}\n")
    (tmp_path / "photo").write_bytes(bytes(range(256)))
    Vault.create(tmp_path / "vault", GOOD[0].encode(), kdf_memory=MEMORY)
    return tmp_path


class Keys:
    """`cryptfs key` on the vault of a place, opened by p0 unless words say otherwise."""

    def __init__(self, place: Path, run: Run) -> None:
        self.place = place
        self.vault = place / "vault"
        self._run = run

    def __call__(self, command: str, *words: object) -> Outcome:
        group, _, rest = command.partition(" ")
        names = [group, *rest.split()] if rest else [group]
        opens = any(str(word) in ("--passfile", "--keyfile") for word in words) or command == "list"
        return self._run("key", *names, self.vault, *words, *(() if opens else self.passfile(0)))

    def passfile(self, number: int) -> tuple[object, ...]:
        return "--passfile", self.place / f"p{number}"

    def added(self, number: int = 1, *words: object) -> int:
        """Add p`number`; returns the id of its slot."""
        new = ("--new-passfile", self.place / f"p{number}")
        told = self("add passphrase", *new, "--json", *CHEAP, *words)
        assert told.code == 0, told.err
        return int(json.loads(told.out)["slot"]["id"])

    def ids(self) -> list[int]:
        return [slot["id"] for slot in json.loads(self("list", "--json").out)["slots"]]

    def opens(self, *words: object) -> bool:
        told = self._run("fsck", self.vault, *words)
        assert told.code in (0, 12), told.err
        return told.code == 0


@pytest.fixture
def keys(place: Path, run: Run) -> Keys:
    return Keys(place, run)


# ---- add


def test_a_second_passphrase(keys: Keys) -> None:
    told = keys("add passphrase", "--new-passfile", keys.place / "p1", "--label", "ana", *CHEAP)
    assert (told.code, told.out) == (0, "")
    assert told.err == f"Added key slot 1 (passphrase, ana) to {keys.vault}.\n"
    assert keys.opens(*keys.passfile(0)) and keys.opens(*keys.passfile(1))
    assert not keys.opens(*keys.passfile(2))
    text = keys("list").out.splitlines()
    assert text[0].startswith("  0  passphrase (argon2id, 64 MiB, 3 passes)")
    assert text[1].startswith("  1  passphrase 'ana' (argon2id, 64 MiB, 3 passes)")


def test_a_key_file_that_cryptfs_makes(keys: Keys) -> None:
    file = keys.place / "key"
    told = keys("add keyfile", "--generate", file)
    assert told.code == 0
    assert f"Made the key file {file}. Keep a copy of it" in told.err
    assert file.stat().st_mode & 0o777 == 0o600
    assert is_made_here(file.read_bytes())
    assert keys.opens("--keyfile", file)
    before = file.read_bytes()
    told = keys("add keyfile", "--generate", file)
    assert (told.code, "exists. Choose another name" in told.err) == (1, True)
    assert (file.read_bytes(), keys.ids()) == (before, [0, 1])
    assert keys("add keyfile", file).code == 0  # the same file in a second slot
    assert keys.ids() == [0, 1, 2]


def test_a_file_beside_a_passphrase(keys: Keys) -> None:
    words = ("--with-passphrase", keys.place / "photo", "--new-passfile", keys.place / "p1", *CHEAP)
    assert keys("add keyfile", *words).code == 0
    assert keys.opens(*keys.passfile(1), "--keyfile", keys.place / "photo")
    assert not keys.opens(*keys.passfile(1))
    assert not keys.opens("--keyfile", keys.place / "photo", *keys.passfile(2))


@pytest.mark.parametrize("place_of", ["vault", "vault/below", "vault/../vault"])
def test_no_key_file_in_the_vault(keys: Keys, place_of: str) -> None:
    (keys.vault / "below").mkdir()
    told = keys("add keyfile", "--generate", keys.place / place_of / "key")
    assert (told.code, "is in the vault itself" in told.err) == (1, True)
    assert not (keys.place / place_of / "key").exists()


def test_files_that_are_no_key(keys: Keys) -> None:
    wrong: tuple[tuple[tuple[object, ...], str], ...] = (
        ((keys.place / "photo",), "photo is not a key file that cryptfs made"),
        (
            (keys.place / "missing",),
            f"does not exist. To make it: cryptfs key add keyfile {keys.vault} --generate",
        ),
        (
            ("--generate", keys.place / "missing" / "key"),
            f"the directory {keys.place / 'missing'} does not exist. To make it: mkdir -p ",
        ),
        ((keys.place / "photo", "--new-passfile", keys.place / "p1"), "needs --with-passphrase"),
    )
    for words, said in wrong:
        told = keys("add keyfile", *words)
        assert told.code in (1, 11)
        assert said in told.err
    (keys.place / "small").write_bytes(bytes(31))
    new = ("--new-passfile", keys.place / "p1", *CHEAP)
    told = keys("add keyfile", "--with-passphrase", keys.place / "small", *new)
    assert "32 to 1048576 bytes" in told.err
    assert keys.ids() == [0]


def test_a_key_file_is_not_left_where_no_slot_comes_of_it(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cryptfs.unlock.table.write_config_file", full)
    told = keys("add keyfile", "--generate", keys.place / "key")
    assert told.code == 24
    assert "cannot write the vault config: No space left on device; nothing was changed" in told.err
    assert not (keys.place / "key").exists()


def test_ctrl_c_at_the_question_for_the_passphrase_beside_leaves_no_key_file(
    keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def interrupted(*_: object, **__: object) -> bytes:
        made.append((keys.place / "key").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr("cryptfs.cli.newsecret.NewPassphrase.read", interrupted)
    told = keys("add keyfile", "--generate", keys.place / "key", "--with-passphrase", *CHEAP)
    assert (told.code, made) == (130, [True])
    assert not (keys.place / "key").exists()


def test_the_secret_comes_before_the_question_for_the_new_one(keys: Keys) -> None:
    """A wrong passphrase, and the new one is not even read; its key file is not made."""
    told = keys("add passphrase", *keys.passfile(1), "--new-passfile", keys.place / "missing")
    assert (told.code, "missing" in told.err) == (12, False)
    assert keys("add keyfile", "--generate", keys.place / "key", *keys.passfile(1)).code == 12
    assert not (keys.place / "key").exists()


@pytest.mark.parametrize("label", ["x" * 65, "line\nbreak", "\u202e", "ü" * 33])
def test_impossible_labels(keys: Keys, label: str) -> None:
    assert keys("add passphrase", "--label", label).code == 1
    assert keys("label", 0, label).code == 1


# ---- remove


def test_a_slot_that_is_removed_opens_nothing_and_leaves_nothing(keys: Keys) -> None:
    keys.added(1, "--label", "ana")
    gone = read_config(keys.vault).slots[1]
    old = (keys.vault / "cryptfs.json").read_bytes()
    (keys.vault / "cryptfs.tmp.killed").write_bytes(old)  # as a writer that was killed leaves it
    (keys.vault / "cryptfs.tmp.torn").write_bytes(old[: old.rindex(b"}")])
    (keys.vault / "cryptfs.tmp.other").write_bytes(b"of something else")
    told = keys("remove", 1)
    assert (told.code, told.out) == (0, "")
    assert f"Removed key slot 1 (passphrase, ana) from {keys.vault}." in told.err
    assert "It still opens older copies of cryptfs.json" in told.err
    assert "cryptfs rekey" in told.err
    assert not keys.opens(*keys.passfile(1))
    assert keys.opens(*keys.passfile(0))
    pieces = [gone.wrapped.encode(), gone.commitment.encode(), str(gone.params["salt"]).encode()]
    for path in everything_below(keys.vault):
        content = path.read_bytes()
        assert not any(piece in content for piece in pieces), path
    assert (keys.vault / "cryptfs.tmp.other").exists()


def test_the_slot_that_was_opened_is_not_removed_without_force(keys: Keys) -> None:
    keys.added(1)
    told = keys("remove", 1, *keys.passfile(1))
    assert told.code == 1
    assert "you opened the vault with key slot 1 itself" in told.err
    assert keys.ids() == [0, 1]
    assert keys("remove", 1, "--force", *keys.passfile(1), "--json").code == 0
    assert keys.ids() == [0]


def test_one_passphrase_in_two_slots(keys: Keys) -> None:
    """The other one is tried first, whichever opened last."""
    keys.added(0)
    for gone, stays in ((0, [1]), (1, [0])):
        assert keys.opens("--slot", gone, *keys.passfile(0))
        assert keys("remove", gone).code == 0
        assert keys.ids() == stays
        if gone == 0:
            Vault.create(keys.place / "again", GOOD[0].encode(), kdf_memory=MEMORY)
            keys.vault = keys.place / "again"
            keys.added(0)


def test_the_last_slot_stays(keys: Keys) -> None:
    for words in ((), ("--force",)):
        told = keys("remove", 0, *words)
        assert (told.code, "is the last one" in told.err) == (11, True)
    assert keys.ids() == [0]


def test_slots_that_are_not_there(keys: Keys) -> None:
    for command, words in (("remove", (7,)), ("label", (7, "x")), ("test", (7,))):
        told = keys(command, *words)
        assert (told.code, f"has no key slot 7. To list them: cryptfs key list {keys.vault}" in told.err) == (
            1,
            True,
        )


# ---- label, test, list


def test_labels(keys: Keys) -> None:
    assert (
        keys("label", 0, "[red]mine[/red]").err
        == "Changed the label: key slot 0 (passphrase, [red]mine[/red]).\n"
    )
    assert read_config(keys.vault).slots[0].label == "[red]mine[/red]"
    assert json.loads(keys("label", 0, "", "--json").out)["slot"]["label"] == ""
    assert keys.opens(*keys.passfile(0))


def test_trying_a_slot(keys: Keys) -> None:
    keys.added(1)
    before = (keys.vault / "cryptfs.json").read_bytes()
    told = keys("test").out.splitlines()
    assert told[0] == f"Key slot 0 (passphrase) opens {keys.vault}."
    assert told[1].startswith("The identity of the vault is ")
    assert keys("test", 1, *keys.passfile(1)).code == 0
    assert keys("test", 0, *keys.passfile(1)).code == 12
    assert keys("test", 0, "--slot", "1").code == 1
    assert (keys.vault / "cryptfs.json").read_bytes() == before


def test_nothing_but_the_answer_is_on_stdout(keys: Keys) -> None:
    keys.added(1)
    for command, words in (
        ("label", (1, "x")),
        ("test", ()),
        ("remove", (1,)),
        ("list", ()),
    ):
        found = json.loads(keys(command, *words, "--json").out)
        assert found["schema"] == 1
        assert found["vault"] == str(keys.vault)


def test_it_works_beside_others_who_change_slots(keys: Keys) -> None:
    generation = read_config(keys.vault).generation
    keys.added(1)
    keys("label", 1, "x")
    keys("remove", 1)
    assert read_config(keys.vault).generation == generation + 3
    assert keys.added(1) == 1


def test_a_group_without_a_command(run: Run) -> None:
    for words in (("key",), ("key", "add")):
        told = run(*words)
        assert (told.code, told.err) == (1, "")
        assert "Usage: cryptfs key" in told.out


# ---- passwd


def test_passwd_keeps_the_other_slots(keys: Keys, run: Run) -> None:
    keys.added(1, "--label", "ana")
    before = read_config(keys.vault)
    told = run("passwd", keys.vault, *keys.passfile(1), "--new-passfile", keys.place / "p2")
    assert told.code == 0
    assert "Opened with key slot 1 (passphrase, ana).\n" in told.err
    assert "(key slot 1; a try costs 64 MiB, 3 passes)" in told.err
    assert "If the old passphrase leaked, this does not help" in told.err
    after = read_config(keys.vault)
    assert after.slots[0] == before.slots[0]
    assert (after.slots[1].label, after.slots[1].id) == ("ana", 1)
    assert [keys.opens(*keys.passfile(number)) for number in range(3)] == [True, False, True]
    assert before.slots[1].wrapped.encode() not in (keys.vault / "cryptfs.json").read_bytes()


def test_a_forgotten_passphrase(keys: Keys, run: Run) -> None:
    """The owner of another slot gives the person a new one."""
    keys.added(1)
    words = ("--change-slot", "1", "--new-passfile", keys.place / "p2")
    assert run("passwd", keys.vault, *keys.passfile(0), *words).code == 0
    assert [keys.opens(*keys.passfile(number)) for number in range(3)] == [True, False, True]
    told = run("passwd", keys.vault, *keys.passfile(0), "--change-slot", "9")
    assert (told.code, "has no key slot 9" in told.err) == (1, True)


def test_a_passphrase_beside_a_file(keys: Keys, run: Run) -> None:
    photo, other = keys.place / "photo", keys.place / "other"
    other.write_bytes(bytes(100))
    keys("add keyfile", "--with-passphrase", photo, "--new-passfile", keys.place / "p1", *CHEAP)
    opens = (*keys.passfile(1), "--keyfile", photo)
    assert run("passwd", keys.vault, *opens, "--new-passfile", keys.place / "p2").code == 0
    assert keys.opens(*keys.passfile(2), "--keyfile", photo)
    assert not keys.opens(*opens)
    words = (*keys.passfile(2), "--keyfile", photo, "--new-passfile", keys.place / "p1")
    assert run("passwd", keys.vault, *words, "--new-keyfile", other).code == 0
    assert keys.opens(*keys.passfile(1), "--keyfile", other)
    assert not keys.opens(*opens)
    words = (*keys.passfile(0), "--change-slot", "1", "--new-passfile", keys.place / "p2")
    assert "give it with --new-keyfile" in run("passwd", keys.vault, *words).err


def test_passwd_of_what_has_no_passphrase(keys: Keys, run: Run) -> None:
    keys("add keyfile", "--generate", keys.place / "key")
    told = run("passwd", keys.vault, "--keyfile", keys.place / "key", "--change-slot", "1")
    assert (told.code, "key slot 1 (key-file) has no passphrase to change" in told.err) == (1, True)
    words = (*keys.passfile(0), "--new-passfile", keys.place / "p1", "--new-keyfile", keys.place / "key")
    assert "takes no key file" in run("passwd", keys.vault, *words).err


def test_passwd_by_a_key_without_a_passphrase(keys: Keys, run: Run) -> None:
    keys("add keyfile", "--generate", keys.place / "key")
    words = ("passwd", keys.vault, "--keyfile", keys.place / "key", "--new-passfile")
    assert run(*words, keys.place / "p1").code == 0
    assert [keys.opens(*keys.passfile(number)) for number in range(2)] == [False, True]
    assert keys.added(2, *keys.passfile(1)) == 2
    told = run(*words, keys.place / "p0")
    assert (told.code, "has 2 passphrases; say which one to change" in told.err) == (1, True)


def test_a_measured_cost_never_lowers(keys: Keys, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    costly = keys.place / "costly"
    Vault.create(costly, GOOD[0].encode(), kdf_memory=80 << 20, kdf_passes=5)
    found = [Calibrated(96 << 20, 4, 1.0), Calibrated(64 << 20, 3, 1.0)]

    def cost() -> tuple[int, int]:
        params = read_config(costly).slots[0].params
        return int(params["memory"]) >> 20, int(params["passes"])

    words = ("passwd", costly, *keys.passfile(0), "--new-passfile", keys.place / "p0")
    monkeypatch.setattr("cryptfs.unlock.calibration.calibrate", lambda *_: found.pop(0))
    assert "A try of 96 MiB, 4 passes takes 1 s on this machine." in run(*words, "--calibrate", "1").err
    assert cost() == (96, 5)
    assert "it becomes 96 MiB, 5 passes" in run(*words, "--calibrate", "1").err
    assert cost() == (96, 5)
    assert run(*words, "--kdf-memory", "64m", "--kdf-passes", "3").code == 0
    assert cost() == (64, 3)
    told = run(*words, "--calibrate", "1", "--kdf-passes", "3")
    assert (told.code, "give either --calibrate" in told.err) == (1, True)


@pytest.mark.parametrize("speed", [1e8, 1e9, 1e11])
@pytest.mark.parametrize("seconds", [0.1, 1.0, 60.0])
def test_measuring(speed: float, seconds: float) -> None:
    """On machines that derive at a speed in bytes a second; large memory is a tenth slower."""

    def take(memory: int, passes: int) -> float:
        return memory * passes / speed * (1.1 if memory > MIN_KDF_MEMORY else 1.0)

    found = calibrate(seconds, 512 << 20, take)
    assert MIN_KDF_MEMORY <= found.memory <= 512 << 20 <= MOST_MEMORY
    assert found.memory % 1024 == 0
    assert 3 <= found.passes <= MAX_KDF_PASSES
    assert found.seconds == pytest.approx(take(found.memory, found.passes))
    cheapest, dearest = take(MIN_KDF_MEMORY, 3), take(512 << 20, MAX_KDF_PASSES)
    if cheapest < seconds < dearest:
        assert 0.7 * seconds <= found.seconds <= 1.05 * seconds


def test_measuring_this_machine(keys: Keys, run: Run) -> None:
    words = ("--calibrate", "0.1", "--passfile", keys.place / "p0")
    told = run("init", keys.place / "measured", *words)
    assert told.code == 0
    assert "on this machine." in told.err
    assert run("fsck", keys.place / "measured", *keys.passfile(0)).code == 0


def test_generating_needs_a_terminal(keys: Keys, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newsecret, "has_terminal", lambda: False)
    for words in (
        ("init", keys.place / "new", "--generate"),
        ("passwd", keys.vault, "--generate", *keys.passfile(0)),
        ("key", "add", "passphrase", keys.vault, "--generate", *keys.passfile(0)),
    ):
        told = run(*words)
        assert (told.code, "there is none" in told.err) == (1, True)
    told = run("passwd", keys.vault, "--generate", "--new-passfile", "x", *keys.passfile(0))
    assert (told.code, "do not also say where to read one" in told.err) == (1, True)


# ---- vaults of version 0.1


def test_a_vault_of_the_first_version_gets_a_passphrase_and_no_other_kind(keys: Keys, run: Run) -> None:
    keys.vault = keys.place / "old"
    make_old_vault(keys.vault, GOOD[0].encode(), kdf_memory=MEMORY)
    told = keys("add passphrase", "--new-passfile", keys.place / "p1", *CHEAP)
    assert told.code == 0
    assert "Its upgrade will need both passphrases" in told.err
    assert read_config(keys.vault).version == 1
    assert keys.opens(*keys.passfile(0)) and keys.opens(*keys.passfile(1))
    for words in (("--generate", keys.place / "key"), ("--with-passphrase", keys.place / "photo")):
        told = keys("add keyfile", *words)
        assert (told.code, "first run: cryptfs upgrade" in told.err) == (27, True)
    assert not (keys.place / "key").exists()
    assert keys("label", 1, "ana").code == 0
    other = ("--slot-passfile", keys.place / "p1")
    assert run("upgrade", keys.vault, *keys.passfile(0), *other).code == 0
    assert keys("add keyfile", "--generate", keys.place / "key").code == 0
    assert keys("remove", 1).code == 0
    assert keys.opens("--keyfile", keys.place / "key")
    assert not keys.opens(*keys.passfile(1))
