"""Each way to unlock a vault, as an option and within `mount -o`; `open`; and mounts that a desktop ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import mount_at, wait_until
from cryptfs.unlock.table import changing_slots
from cryptfs.unlock.token import new_fido2
from tests.age_keys import SPECIFICATION, identity_file
from tests.e2e.desk import PASSPHRASE, Desk, as_json
from tests.e2e.mounting import detach
from tests.e2e.test_desktop import StandIn
from tests.e2e.with_tokens import save_tokens
from tests.schema import check_answer
from tests.softtoken import Person, SoftToken

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

ONE = "0123456789"
ENDS = 20.0


@pytest.fixture
def keys(desk: Desk) -> Desk:
    """With slots 1 to 3, a key file, an age identity and a token that is plugged in; and words and shares."""
    desk.file("identity", identity_file(SPECIFICATION["identity"]))
    desk("key", "add", "keyfile", desk.vault, desk.base / "key", "--generate")
    desk("key", "add", "recipient", desk.vault, SPECIFICATION["recipient"])
    token = SoftToken("Blue")
    with changing_slots(desk.vault, PASSPHRASE.encode()) as table:
        table.add(new_fido2(token, Person([token]), uv=False))
        table.save()
    save_tokens(desk.base / "plugged", [token])
    desk("recovery", "words", desk.vault, "--output", desk.base / "words")
    shares = desk.base / "shares"
    desk("recovery", "shares", desk.vault, "--needed", "2", "--of", "3", "--output", shares)
    return desk


def plugged(desk: Desk) -> tuple[str, ...]:
    return (*desk.python, "-m", "tests.e2e.with_tokens", str(desk.base / "plugged"))


def reader_of(line: str) -> int:
    """A descriptor with a passphrase in its first line."""
    reader, writer = os.pipe()
    os.write(writer, f"{line}\nof others\n".encode())
    os.close(writer)
    return reader


def asking(desk: Desk) -> Path:
    """A program that prints the passphrase."""
    place = desk.file("askpass", f"#!/bin/sh\ncat {desk.passfile}\n")
    place.chmod(0o700)
    return place


def code_of(desk: Desk) -> str:
    found = desk.opens("--passfile", desk.passfile)["identity"]
    assert isinstance(found, str)
    return found


def test_each_option(keys: Desk) -> None:
    """Nothing else opens the vault. Each is refused where it does not fit."""
    cat = ("cat", keys.vault, "a/one.txt")
    key, identity, shares = (
        keys.base / "key",
        keys.base / "identity",
        sorted((keys.base / "shares").iterdir()),
    )
    code = code_of(keys)
    assert keys("cat", keys.vault, "a/one.txt", "--passfile", keys.passfile, opens=False).out == ONE
    assert (
        keys("cat", keys.vault, "a/one.txt", "--passcommand", f"cat {keys.passfile}", opens=False).out == ONE
    )
    assert keys("cat", keys.vault, "a/one.txt", "--askpass", asking(keys), opens=False).out == ONE
    reader = reader_of(keys.passfile.read_text().strip())
    assert keys("cat", keys.vault, "a/one.txt", "--passfd", reader, opens=False, pass_fds=[reader]).out == ONE
    os.close(reader)
    assert keys("cat", keys.vault, "a/one.txt", "--keyfile", key, opens=False).out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--identity", identity, opens=False).out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--fido2", opens=False, program=plugged(keys)).out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--words-file", keys.base / "words", opens=False).out == ONE
    two = ("--share-file", shares[0], "--share-file", shares[2])
    assert keys("cat", keys.vault, "a/one.txt", *two, opens=False).out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--slot", "0").out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--expect-identity", code, "--no-pin").out == ONE
    assert keys("cat", keys.vault, "a/one.txt", "--accept", "--debug").out == ONE
    for words, refused in (
        (("--slot", "1"), 12),
        (("--slot", "2", "--keyfile", key), 12),
        (("--share-file", shares[0]), 12),
        (("--fido2", "--slot", "3"), 31),
        (("--keyfile", identity), 12),
        (("--identity", key), 9),
        (("--words-file", key), 12),
    ):
        assert keys(*cat, *words, code=refused, opens=False).out == ""


def test_each_option_within_o(keys: Desk) -> None:
    """As fstab has them."""
    point = keys.base / "mountpoint"
    code = code_of(keys)
    places = ("mount", keys.vault, point)

    def mounted(*words: object, **more: object) -> None:
        said = keys(*places, *words, opens=False, **more)  # type: ignore[arg-type]
        assert (point / "a" / "one.txt").read_text() == ONE, said
        detach(point)
        assert wait_until(lambda: keys.info()["held_by"] is None, ENDS)

    try:
        mounted("-o", f"passfile={keys.passfile}")
        mounted("-o", f"passcommand=cat {keys.passfile}")
        mounted("-o", f"askpass={asking(keys)}")
        reader = reader_of(keys.passfile.read_text().strip())
        mounted("-o", f"passfd={reader}", pass_fds=[reader])
        os.close(reader)
        mounted("-o", f"keyfile={keys.base}/key,slot=1")
        mounted("-o", f"identity={keys.base}/identity")
        mounted("-o", "fido2", program=plugged(keys))
        mounted("-o", f"words_file={keys.base}/words")
        mounted("-o", f"expect_identity={code},accept,passfile={keys.passfile}")
        mounted("-o", f"no_pin,quiet,debug,passfile={keys.passfile}")
        for text, refused in (
            (f"slot=1,passfile={keys.passfile}", 12),
            ("accept,no_pin", 1),
            ("expect_identity=nonsense", 1),
            (f"passfile={keys.passfile},passcommand=true", 1),
            (f"keyfile={keys.base}/none", 9),
        ):
            keys(*places, "-o", text, code=refused, opens=False)
            assert mount_at(point) is None
    finally:
        detach(point)


def test_a_traceback_with_debug_alone(desk: Desk) -> None:
    for words in (("--debug", "info"), ("info", "--debug")):
        assert "Traceback" in desk(*words, desk.base / "none", code=6).err
    assert "Traceback" not in desk("info", desk.base / "none", code=6).err


# ---- open


@pytest.fixture
def opened(desk: Desk) -> Iterator[Path]:
    """Where `cryptfs open` mounts the vault."""
    place = desk.base / "Vaults" / "vault"
    yield place
    detach(place)
    assert wait_until(lambda: desk.info()["held_by"] is None, ENDS)


@pytest.mark.parametrize("option", ["--browse", "--no-browse"])
def test_open_browses(desk: Desk, opened: Path, option: str) -> None:
    """--window browses of itself; xdg-open and zenity are stand-ins."""
    shown = desk.base / "shown"
    programs = {
        "xdg-open": f'echo "$1" >{shown}.new; mv {shown}.new {shown}',
        "zenity": f"cat {desk.passfile}",
    }
    for name, body in programs.items():
        desk.file(name, f"#!/bin/sh\n{body}\n").chmod(0o755)
    environment = desk.environment(opens=False) | {
        "DISPLAY": ":none",
        "PATH": f"{desk.base}:{os.environ['PATH']}",
    }
    asks = "--window" if option == "--no-browse" else "--no-window"
    words = [*desk.python, "-m", "cryptfs", "open", str(desk.vault), asks, option]
    done = subprocess.run(
        words,
        input=desk.passfile.read_bytes() if asks == "--no-window" else b"",
        env=environment, capture_output=True, check=False, start_new_session=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (opened / "a" / "one.txt").read_text() == ONE
    assert wait_until(shown.exists, ENDS if option == "--browse" else 0.5) is (option == "--browse")


def test_open_options_as_they_are_typed(desk: Desk, opened: Path) -> None:
    assert desk("open", "--list", "--json").out.strip().endswith("}")
    desk("open", "--no-window", "--no-browse", desk.vault)
    (known,) = check_answer("open", desk("open", "--list", "--json").out)["vaults"]
    assert known == {"vault": str(desk.vault), "mountpoint": str(opened), "found": True}
    desk("open", "--no-window", "--browse", desk.vault)
    desk("umount", opened)
    desk("open", "--forget", desk.vault)
    assert as_json(desk("open", "--list", "--json"))["vaults"] == []
    assert (desk.vault / "cryptfs.json").exists()
    for words, says in (
        (("--forget",), "--forget needs a VAULT"),
        (("--forget", desk.vault), "is not in the list"),
        (("--json", desk.vault), "--json works only with --list"),
        (("--list", desk.vault), "--list takes no VAULT"),
    ):
        assert says in desk("open", *words, code=1).err
    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        assert "there is no display for a window" in desk("open", "--window", desk.vault, code=11).err


# ---- reasons of a desktop


@pytest.mark.skipif(
    shutil.which("dbus-run-session") is None, reason="needs dbus-run-session: apt-get install dbus"
)
@pytest.mark.parametrize(
    "words", [("--unmount-on", "lock", "--detach-busy"), ("-o", "unmount_on=lock,detach_busy")]
)
def test_a_desktop_ends_it(desk: Desk, words: tuple[str, ...]) -> None:
    desktop, point = StandIn(), desk.base / "mountpoint"
    try:
        buses = {f"DBUS_{name.upper()}_BUS_ADDRESS": address for name, address in desktop.buses.items()}
        mount = ("mount", desk.vault, point, "--log-file", desk.base / "log", *words)
        done = subprocess.run(
            [*desk.python, "-m", "cryptfs", *map(str, mount)],
            env=desk.environment() | buses, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert check_answer("status", desk("status", "--json", point).out)["unmounts"]["detach_busy"] is True
        with (point / "file").open("w") as file:
            desktop.happen("Lock")
            assert wait_until(lambda: mount_at(point) is None, ENDS)
            file.write("still works")
        assert wait_until(lambda: desk.info()["held_by"] is None, ENDS)
        assert desk("cat", desk.vault, "file").out == "still works"
    finally:
        detach(point)
        desktop.end()
