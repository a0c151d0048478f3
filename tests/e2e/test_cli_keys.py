"""Each option of the commands that make a vault or change its key slots, by what it changes; as a process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.age_keys import SPECIFICATION, identity_file
from tests.cli.test_cli_processes import Terminal
from tests.e2e.desk import CHEAP, Desk
from tests.e2e.with_tokens import save_tokens
from tests.schema import check_answer
from tests.softtoken import SoftToken

SECOND = "Qx7 the second of these"
KDF_LIMITS = [
    (("--kdf-memory", "1m"), "--kdf-memory is 64m to 4g"),
    (("--kdf-memory", "64.5m"), "'64.5m' is not a size"),
    (("--kdf-passes", "2"), "give a whole number from 3 to 64"),
    (("--calibrate", "0"), "give a number from 0.1 to 60"),
    (("--calibrate", "1", "--kdf-passes", "3"), "either --calibrate, or --kdf-memory and --kdf-passes"),
]


@pytest.fixture
def second(desk: Desk) -> Path:
    """A file with another passphrase."""
    return desk.file("second", f"{SECOND}\n")


def proposal(terminal: Terminal) -> bytes:
    """The words that --generate proposes, once typed."""
    terminal.expect(b"[Enter]: ")
    found = re.search(rb"disappears\.\r\n([a-z -]+?)   \[Enter\]", terminal.output)
    assert found is not None, terminal.output
    terminal.type(b"\n")
    terminal.expect(b"shows another one): ")
    terminal.type(found[1] + b"\n")
    return found[1]


# ---- init


def test_init(desk: Desk) -> None:
    new = desk.base / "new"
    desk("init", new, "--cipher", "xchacha20-poly1305", "--chunk-size", "64k", "--label", "of ana",
         "--kdf-memory", "80m", "--kdf-passes", "4", "--delta-journal")  # fmt: skip
    found = desk.info(new)
    assert (found["cipher"], found["chunk_size"]) == ("xchacha20-poly1305", 65536)
    assert "delta-journal" in found["features"]
    assert found["slots"][0]["label"] == "of ana"
    assert desk.cost(vault=new) == (80, 4)
    desk("import", desk.passfile, f"{new}:copy")
    assert desk("cat", new, "copy").out == desk.passfile.read_text()


def test_init_for(desk: Desk) -> None:
    new = desk.base / "new"
    desk("init", new, "--for", "databases", *CHEAP)
    assert desk.info(new)["chunk_size"] == 4096
    assert "delta-journal" not in desk.info(new)["features"]


def test_init_measures(desk: Desk) -> None:
    new = desk.base / "new"
    said = desk("init", new, "--calibrate", "0.2")
    memory, passes = desk.cost(vault=new)
    assert f"A try of {memory} MiB, {passes} passes takes" in said.err or "GiB" in said.err
    assert memory >= 64 and passes >= 3


def test_init_proposes_a_passphrase(desk: Desk) -> None:
    new = desk.base / "new"
    terminal = desk.terminal("init", new, "--generate", "--no-recovery", *CHEAP)
    typed = proposal(terminal)
    assert terminal.finish() == 0, terminal.output
    assert not (new / "cryptfs.recovery").exists()
    assert desk("ls", new, "--passfile", "-", text=typed.decode()).out == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        *KDF_LIMITS,
        (("--cipher", "rot13"), "'aegis-256', 'xchacha20-poly1305'"),
        (("--chunk-size", "5000"), "a chunk size is a power of two from 4k to 1m"),
        (("--for", "games"), "'databases'"),
        (("--label", "x" * 5000), "a label has at most"),
        (("--label", "a\nb"), "no control characters"),
        (("--label", "raw \udcff"), "bytes of UTF-8"),
        (("--generate",), "--generate makes a new passphrase"),
    ],
)
def test_init_with_wrong_values_makes_nothing(desk: Desk, words: tuple[str, ...], says: str) -> None:
    said = desk("init", desk.base / "new", *words, code=1)
    assert says in said.err
    assert not (desk.base / "new").exists()


# ---- key add


def test_add_a_passphrase(desk: Desk, second: Path) -> None:
    cost = ("--kdf-memory", "80m", "--kdf-passes", "4")
    said = desk(
        "key", "add", "passphrase", desk.vault, "--json", "--label", "ana", "--new-passfile", second, *cost
    )
    slot = check_answer("key add passphrase", said.out)["slot"]
    assert (slot["id"], slot["label"]) == (1, "ana")
    assert desk.cost(1) == (80, 4)
    assert desk.opens("--passfile", second)["slot"]["id"] == 1
    desk("key", "add", "passphrase", desk.vault, "--new-passcommand", "echo of a program", *CHEAP)
    assert desk.opens("--passcommand", "echo of a program")["slot"]["id"] == 2
    desk(
        "key", "add", "passphrase", desk.vault, "--calibrate", "0.1", "--new-passcommand", "echo measured one"
    )
    assert desk.opens("--passcommand", "echo measured one")["slot"]["id"] == 3
    both = ("--new-passfile", second, "--new-passcommand", "echo x")
    assert "choose one of" in desk("key", "add", "passphrase", desk.vault, *both, code=1).err
    assert (
        "differ" not in desk("key", "add", "passphrase", desk.vault, "--new-passcommand", "false", code=9).err
    )
    assert sorted(desk.slots()) == [0, 1, 2, 3]


def test_add_a_proposed_passphrase(desk: Desk) -> None:
    terminal = desk.terminal(
        "key", "add", "passphrase", desk.vault, "--generate", *CHEAP, "--passfile", desk.passfile
    )
    typed = proposal(terminal)
    assert terminal.finish() == 0, terminal.output
    assert desk.opens("--passcommand", f"echo {typed.decode()}")["slot"]["id"] == 1


def test_add_key_files(desk: Desk, second: Path) -> None:
    key, photo = desk.base / "key", desk.file("photo", bytes(range(256)) * 8)
    said = desk("key", "add", "keyfile", desk.vault, key, "--generate", "--label", "server", "--json")
    assert check_answer("key add keyfile", said.out)["slot"]["label"] == "server"
    assert key.stat().st_mode & 0o777 == 0o600
    assert desk.opens("--keyfile", key)["slot"]["id"] == 1
    new = ("--with-passphrase", "--new-passfile", second, "--kdf-memory", "80m", "--kdf-passes", "4")
    desk("key", "add", "keyfile", desk.vault, photo, *new)
    assert desk.cost(2) == (80, 4)
    assert desk.opens("--keyfile", photo, "--passfile", second)["slot"]["id"] == 2
    desk.opens("--keyfile", photo, code=9)
    measured = ("--with-passphrase", "--new-passcommand", "echo of a program", "--calibrate", "0.1")
    desk("key", "add", "keyfile", desk.vault, photo, *measured)
    assert desk.opens("--keyfile", photo, "--passcommand", "echo of a program")["slot"]["id"] == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("photo",), "is not a key file that cryptfs made"),
        (("photo", "--generate"), "exists"),
        (("none",), "--generate"),
        (("new", "--generate", "--new-passcommand", "echo x"), "--with-passphrase"),
        (("new", "--generate", "--calibrate", "1"), "--with-passphrase"),
        (("vault/new", "--generate"), "is in the vault itself"),
        (("photo", "--with-passphrase", "--label", "a\tb"), "no control characters"),
    ],
)
def test_wrong_key_files_change_nothing(desk: Desk, words: tuple[str, ...], says: str) -> None:
    desk.file("photo", b"a photo" * 9)
    place, *more = words
    said = desk("key", "add", "keyfile", desk.vault, desk.base / place, *more, code=1)
    assert says in said.err
    assert sorted(desk.slots()) == [0]
    assert not (desk.base / "new").exists() and not (desk.vault / "new").exists()


def test_add_a_recipient(desk: Desk) -> None:
    words = ("key", "add", "recipient", "--label", "ana", "--json", desk.vault, SPECIFICATION["recipient"])
    slot = check_answer("key add recipient", desk(*words).out)["slot"]
    assert (slot["kind"], slot["label"]) == ("hpke", "ana")
    desk("key", "add", "recipient", "--label", "second", desk.vault, SPECIFICATION["recipient"])
    identity = desk.file("identity", identity_file(SPECIFICATION["identity"]))
    assert desk.opens("--identity", identity)["slot"]["id"] == 1
    for text in ("age1nonsense", "", "-x", "\u00fc"):
        told = desk("key", "add", "recipient", desk.vault, "--", text, code=1)
        assert told.err.startswith("cryptfs: ") and "recipient" in told.err
    assert sorted(desk.slots()) == [0, 1, 2]


def test_add_a_token(desk: Desk) -> None:
    plugged = save_tokens(desk.base / "plugged", [SoftToken("Blue")])
    program = (*desk.python, "-m", "tests.e2e.with_tokens", str(plugged))
    words = ("key", "add", "fido2", "--label", "blue one", "--json", desk.vault)
    slot = check_answer("key add fido2", desk(*words, program=program).out)["slot"]
    assert (slot["kind"], slot["label"]) == ("fido2", "blue one")
    assert "no FIDO2 token" in desk("key", "add", "fido2", "--label", "x", desk.vault, code=31).err
    assert sorted(desk.slots()) == [0, 1]


# ---- remove, label, test


def test_remove_label_and_test(desk: Desk, second: Path) -> None:
    desk("key", "add", "passphrase", desk.vault, "--new-passfile", second, *CHEAP)
    slot = check_answer("key label", desk("key", "label", "--json", desk.vault, 1, "of ana").out)["slot"]
    assert (slot["id"], slot["label"]) == (1, "of ana")
    assert desk.slots()[1]["label"] == "of ana"
    said = desk("key", "remove", "--json", desk.vault, 1, "--passfile", second, code=1)
    assert "you opened the vault with key slot 1 itself" in said.err and said.out == ""
    gone = desk("key", "remove", "--json", "--force", desk.vault, 1, "--passfile", second)
    assert check_answer("key remove", gone.out)["slot"]["id"] == 1
    assert desk.opens("--passfile", second, code=12) == {}
    assert "has no key slot 1" in desk("key", "test", "--json", desk.vault, 1, code=1).err
    assert desk("key", "remove", "--force", desk.vault, 0, code=11).err.startswith("cryptfs: ")
    assert sorted(desk.slots()) == [0]


@pytest.mark.parametrize("text", ["x" * 5000, "a\nb", "\x1b[31m", "raw \udcff"])
def test_labels_that_are_refused(desk: Desk, text: str) -> None:
    told = desk("key", "label", desk.vault, 0, text, code=1)
    assert "a label has at most" in told.err
    assert desk.slots()[0]["label"] == ""


# ---- passwd


def test_passwd(desk: Desk, second: Path) -> None:
    desk(
        "passwd",
        desk.vault,
        "--new-passcommand",
        "echo of a program",
        "--kdf-memory",
        "80m",
        "--kdf-passes",
        "4",
    )
    assert desk.cost() == (80, 4)
    opens = ("--passcommand", "echo of a program")
    desk.opens("--passfile", desk.passfile, code=12)
    desk("passwd", desk.vault, *opens, "--calibrate", "0.1", "--new-passfile", second)
    assert min(memory := desk.cost()[0], 80) == 80 and memory
    assert desk.opens("--passfile", second)["slot"]["id"] == 0


def test_passwd_of_another_slot(desk: Desk, second: Path) -> None:
    """A slot with passphrase and file gets another of both; the one that opens stays."""
    photo, other = desk.file("photo", b"a photo" * 9), desk.file("other", b"another" * 9)
    both = ("--with-passphrase", "--new-passfile", second)
    desk("key", "add", "keyfile", desk.vault, photo, *both, *CHEAP)
    change = ("passwd", desk.vault, "--change-slot", 1, "--new-passcommand", "echo a third of them")
    assert "--new-keyfile" in desk(*change, code=1).err
    desk(
        "passwd",
        desk.vault,
        "--change-slot",
        1,
        "--new-keyfile",
        other,
        "--new-passcommand",
        "echo a third of them",
    )
    third = ("--passcommand", "echo a third of them")
    assert desk.opens("--keyfile", other, *third)["slot"]["id"] == 1
    desk.opens("--keyfile", photo, "--passfile", second, code=12)
    assert desk.opens("--passfile", desk.passfile)["slot"]["id"] == 0
    told = desk("passwd", desk.vault, "--new-keyfile", other, "--new-passfile", second, code=1)
    assert "key slot 0 (passphrase) takes no key file" in told.err
    assert (
        "has no key slot 9"
        in desk("passwd", desk.vault, "--change-slot", 9, "--new-passfile", second, code=1).err
    )


@pytest.mark.parametrize(("words", "says"), KDF_LIMITS)
def test_costs_beyond_the_bounds(desk: Desk, second: Path, words: tuple[str, ...], says: str) -> None:
    before = (desk.vault / "cryptfs.json").read_bytes()
    for command in (("passwd",), ("key", "add", "passphrase")):
        assert says in desk(*command, desk.vault, "--new-passfile", second, *words, code=1).err
    assert (desk.vault / "cryptfs.json").read_bytes() == before


def test_too_little_memory(desk: Desk, second: Path) -> None:
    """As a shell or a container limits it. It is no fault of the program, and nothing is left."""
    before = (desk.vault / "cryptfs.json").read_bytes()
    few = ("sh", "-c", f'ulimit -v 1500000; exec {desk.python[0]} -m cryptfs "$@"', "sh")
    for words in (
        ("init", desk.base / "new"),
        ("passwd", desk.vault, "--new-passfile", second),
        ("key", "add", "passphrase", desk.vault, "--new-passfile", second),
    ):
        told = desk(*words, "--kdf-memory", "2g", program=few, code=11)
        assert told.err.endswith("takes 2,048 MiB of memory, and there is not so much\n")
    assert not (desk.base / "new").exists()
    assert (desk.vault / "cryptfs.json").read_bytes() == before


# ---- upgrade


def test_upgrade(desk: Desk, second: Path) -> None:
    found = check_answer("upgrade", desk("upgrade", "--json", "--delta-journal", desk.vault).out)
    assert found["added"] == ["delta-journal"]
    assert "delta-journal" in desk.info()["features"]
    assert "is up to date" in desk("upgrade", desk.vault, "--delta-journal").err
    desk("key", "add", "passphrase", desk.vault, "--new-passfile", second, *CHEAP)
    assert "is up to date" in desk("upgrade", desk.vault, "--slot-passfile", second).err
