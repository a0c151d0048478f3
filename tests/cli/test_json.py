"""Every command with --json prints what the published schema says, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from cryptfs import Vault
from cryptfs.cli import main as main_module
from cryptfs.cli.entries import TYPES
from cryptfs.fsck.findings import Severity, State
from cryptfs.unlock.carriers import ctap
from cryptfs.unlock.carriers.words import words_of
from cryptfs.witness.comparison import Change
from tests.age_keys import SPECIFICATION
from tests.commands import Outcome, Run, all_commands, runner
from tests.schema import check_answer, published
from tests.softtoken import SoftToken
from tests.unlock.vaults import make_vault, new_shares, new_words

ROOT = Path(__file__).parents[2]
PASSPHRASES = (b"five random words", b"quite another sentence", b"of a vault that can be recovered")
WITH_JSON = sorted(
    name
    for name, command in all_commands(main_module.cli)
    if any("--json" in parameter.opts for parameter in command.params)
)


class Place:
    """A vault with files of all types, a key file beside it, and commands on it."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run, self.vault = path, run, path / "vault"
        self.passfiles = []
        for number, passphrase in enumerate(PASSPHRASES):
            file = path / f"p{number}"
            file.touch(mode=0o600)
            file.write_bytes(passphrase)
            self.passfiles.append(file)
        Vault.create(self.vault, PASSPHRASES[0], kdf_memory=64 << 20)
        with Vault.unlock(self.vault, PASSPHRASES[0]) as vault:
            vault.mkdir("letters")
            with vault.open("letters/ana.txt", "wb") as text:
                text.write(b"x" * 40_000)
            vault.symlink("ana.txt", "letters/link")

    def __call__(self, *words: object, code: int = 0) -> Outcome:
        opens = any(str(word).startswith("--passfile") for word in words)
        done = self.run(*words, *(() if opens else ("--passfile", self.passfiles[0])))
        assert done.code == code, done.err
        return done

    def damage(self) -> None:
        """One byte of the largest file."""
        files = [path for path in self.vault.rglob("*") if path.is_file() and path.stat().st_size > 40_000]
        with files[0].open("r+b") as file:
            file.seek(30_000)
            file.write(b"!")


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, runner(capsys))


def info(place: Place) -> None:
    check_answer("info without VAULT", place.run("info", "--json").out)
    found = check_answer("info", place.run("info", "--json", place.vault).out)
    assert (found["cipher"], found["identity"]) == ("aegis-256", None)
    place("ls", place.vault)
    assert check_answer("info", place.run("info", "--json", place.vault).out)["identity"]


def entries(place: Place) -> None:
    """`ls`, `tree` and `find` have one form."""
    for name, options in (("ls", ("-R",)), ("tree", ()), ("find", ())):
        found = check_answer(name, place(name, "--json", *options, place.vault).out)
        by_path = {each["path"]: each for each in found["entries"]}
        assert by_path["letters/ana.txt"]["size"] == 40_000
        assert by_path["letters/link"]["target"] == "ana.txt"
        lost = check_answer(name, place(name, "--json", place.vault, "nowhere", code=11).out)
        assert lost["problems"][0]["path"] == "nowhere"


def path(place: Place) -> None:
    found = check_answer("path", place("path", "--json", place.vault, "letters").out)
    cipher = found["entries"][0]["cipher_path"]
    options = ("--json", "--plain", "--passfile", place.passfiles[0])  # the name may begin with -
    back = check_answer("path", place("path", *options, "--", place.vault, cipher).out)
    assert back["entries"] == found["entries"]


def fsck(place: Place) -> None:
    found = check_answer("fsck", place("fsck", "--json", place.vault).out)
    assert (found["checked"]["files"], found["findings"]) == (1, [])
    place.damage()
    for options in ((), ("--no-names",)):
        found = check_answer("fsck", place("fsck", "--json", "--deep", *options, place.vault, code=26).out)
        assert [each["kind"] for each in found["findings"]] == ["chunks"]
    found = check_answer("fsck", place("fsck", "--json", "--deep", "--repair", place.vault).out)
    assert found["summary"]["repaired"] == 1


def verify(place: Place) -> None:
    manifest = place.path / "manifest"
    place("snapshot", place.vault, "-o", manifest)
    place("rm", place.vault, "letters/link")
    found = check_answer("verify", place("verify", "--json", place.vault, manifest).out)
    assert found["summary"]["counts"] == {"deleted": 1}


def upgrade(place: Place) -> None:
    assert check_answer("upgrade", place("upgrade", "--json", place.vault).out)["added"] == []
    found = check_answer("upgrade", place("upgrade", "--json", "--delta-journal", place.vault).out)
    assert found["added"] == ["delta-journal"]


def rekey(place: Place) -> None:
    found = check_answer("rekey", place("rekey", "--json", place.vault).out)
    assert (found["files"], len(found["kept"])) == (1, 1)


def recovery_list(place: Place) -> None:
    found = check_answer("recovery list", place.run("recovery", "list", "--json", place.vault).out)
    assert (found["record"], found["secrets"]) == ("none", [])
    for number, held in enumerate((new_words(), new_shares())):
        vault = place.path / f"with secrets {number}"
        make_vault(vault, held)
        found = check_answer("recovery list", place.run("recovery", "list", "--json", vault).out)
        assert [each["kind"] for each in found["secrets"]] == [held.about.kind.name.lower()]


def speed(place: Place) -> None:
    found = check_answer("speed", place.run("speed", "--json", "--size", "1m", "--repeat", "1").out)
    assert found["results"]


def key_slots(place: Place) -> None:
    """All that add a slot, and what names, tries and removes one."""
    cheap = ("--kdf-memory", "64m")
    new = ("--new-passfile", place.passfiles[1], *cheap)
    first = check_answer(
        "key add passphrase", place("key", "add", "passphrase", "--json", place.vault, *new).out
    )
    keyfile = ("keyfile", "--json", place.vault, "--generate", place.path / "key")
    recipient = ("recipient", "--json", place.vault, SPECIFICATION["recipient"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctap, "list_devices", lambda: [SoftToken()])
        for words in (keyfile, recipient, ("fido2", "--json", place.vault)):
            check_answer(f"key add {words[0]}", place("key", "add", *words).out)
    number = first["slot"]["id"]
    label = check_answer("key label", place("key", "label", "--json", place.vault, number, "ana").out)
    assert label["slot"]["label"] == "ana"
    assert check_answer(
        "key test", place("key", "test", "--json", place.vault, number, "--passfile", place.passfiles[1]).out
    )
    gone = check_answer("key remove", place("key", "remove", "--json", place.vault, number).out)
    assert gone["slot"]["id"] == number
    slots = check_answer("key list", place.run("key", "list", "--json", place.vault).out)["slots"]
    assert {each["kind"] for each in slots} == {"passphrase", "key-file", "hpke", "fido2"}


def a_test_by_words(place: Place) -> None:
    """`key test` names the words that open the vault in place of a slot."""
    vault, held = place.path / "by words", new_words()
    make_vault(vault, held)
    words = place.path / "words"
    words.touch(mode=0o600)
    words.write_text(words_of(held.secret))
    found = check_answer("key test", place.run("key", "test", "--json", vault, "--words-file", words).out)
    assert found["recovery"] == held.about.recovery_id.hex()


ANSWERS: dict[str, Callable[[Place], None]] = {
    "info": info,
    "ls, tree and find": entries,
    "path": path,
    "fsck": fsck,
    "verify": verify,
    "upgrade": upgrade,
    "rekey": rekey,
    "recovery list": recovery_list,
    "speed": speed,
    "key": key_slots,
    "key test by words": a_test_by_words,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_it_prints_what_the_schema_says(name: str, place: Place) -> None:
    ANSWERS[name](place)


def test_every_command_is_tried() -> None:
    """Here, on a mount, or with the other tests of the command."""
    cli = ROOT / "tests" / "cli"
    elsewhere = (ROOT / "tests" / "e2e" / "test_status.py", cli / "test_open.py", cli / "test_integrate.py")
    text = "".join(path.read_text() for path in (Path(__file__), *elsewhere))
    tried = set(re.findall(r'check_answer\(\s*"([a-z0-9 ]+)"', text))
    tried |= {"ls", "tree", "find", *(f"key add {kind}" for kind in ("keyfile", "recipient", "fido2"))}
    assert set(WITH_JSON) <= tried


def test_every_command_has_a_definition() -> None:
    defined = {
        name for name, shape in published()["$defs"].items() if "schema" in shape.get("properties", {})
    }
    assert defined == {*WITH_JSON, "info without VAULT"}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(published())


def test_the_schema_has_all_values() -> None:
    """Of those that only rare damage shows."""
    changes = published()["$defs"]["verify"]["properties"]["findings"]["items"]["properties"]["change"]
    assert changes["enum"] == [each.value for each in Change]
    found = published()["$defs"]["fsck"]["properties"]["findings"]["items"]["properties"]
    assert set(found["severity"]["enum"]) == {each.value for each in Severity}
    assert set(found["state"]["enum"]) == {each.value for each in State}
    entry = published()["$defs"]["entry"]["properties"]["type"]["enum"]
    assert set(entry) == {*TYPES.values(), "unknown"}


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("ls", {"entries": None}),
        ("ls", {"schema": 2}),
        ("ls", {"unknown": 1}),
        ("path", {"entries": [{"path": "a"}]}),
        ("path", {"entries": [{"path": "a", "cipher_path": "b", "more": 1}]}),
    ],
)
def test_another_answer_is_refused(command: str, change: dict[str, object]) -> None:
    whole = {"schema": 1, "entries": [], "problems": []}
    check_answer(command, json.dumps(whole))
    with pytest.raises(jsonschema.ValidationError):
        check_answer(command, json.dumps(whole | change))


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "jsonpage.py"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "JSON.md").read_text() == made.stdout, "run: scripts/jsonpage.py > docs/JSON.md"
