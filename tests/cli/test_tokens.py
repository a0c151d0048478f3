"""FIDO2 tokens at a terminal, and the way to the devices of the system."""

from __future__ import annotations

import os
import pty
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fido2.ctap import CtapDevice
from fido2.hid import CtapHidDevice

from cryptfs.cli.dialogs import Dialogs
from cryptfs.cli.exit_codes import NothingTypedError
from cryptfs.cli.tokens import TerminalTokens, WindowTokens
from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import TokenError
from cryptfs.mount.mounts import wait_until
from cryptfs.unlock.carriers import ctap
from cryptfs.unlock.offer import Offer
from cryptfs.unlock.token import enrol_fido2
from cryptfs.unlock.unlocking import open_vault
from tests import softtoken
from tests.cli.desktops import desktop, program, said_to
from tests.cli.test_cli_processes import ENVIRONMENT, Terminal
from tests.softtoken import GONE, Behaviour, SoftToken
from tests.unit.token_slots import GIB, MASTERKEY, PIN, config_of, enrol, reset_counts

__all__ = ["desktop"]

pytestmark = pytest.mark.waits

# What a person is asked must go to the terminal, wherever stdin, stdout and stderr lead.
SCRIPT = """
import os, sys
from cryptfs.cli import main
from cryptfs.cli.tokens import TerminalTokens
from cryptfs.unlock.carriers import ctap
from cryptfs.unlock.token import enrol_fido2
from tests.softtoken import Behaviour, SoftToken
token = SoftToken("Blue\\x1b[2J", Behaviour(pin="grün grün".encode()))
token.pin_tries = int(sys.argv[1])
ctap.list_devices = lambda: [token]
null = os.open("/dev/null", os.O_RDWR)
kept = os.dup(0)  # as a shell has it: a terminal that nobody has open hangs up
for stream in (0, 1, 2):
    os.dup2(null, stream)
try:
    enrol_fido2(TerminalTokens(), uv=True)
except BaseException as error:
    with open("/dev/tty", "w") as out:
        print(f"{type(error).__name__}: {error}", file=out)
    sys.exit(7)
sys.exit(token.touches)
"""


class ScriptAtTerminal(Terminal):
    """SCRIPT on a pseudo-terminal of its own."""

    def __init__(self, tries: int) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(sys.executable, [sys.executable, "-c", SCRIPT, str(tries)], ENVIRONMENT)
        self.output, self.code = b"", -1


def test_a_person_types_the_pin_and_touches() -> None:
    terminal = ScriptAtTerminal(8)
    terminal.expect(b"PIN of the FIDO2 token 'Blue?[2J' (8 tries left): ")
    terminal.type("gru\u0308n grün\n".encode())  # decomposed and composed
    assert terminal.finish() == 3
    assert b"gr" not in terminal.output.partition(b"left): ")[2]
    assert b"Touch the FIDO2 token 'Blue?[2J' now, to make a credential (1 of 3)." in terminal.output
    assert b"(3 of 3)" in terminal.output
    assert b"blocks itself" not in terminal.output


def test_a_person_mistypes_the_pin_with_few_tries_left() -> None:
    terminal = ScriptAtTerminal(2)
    terminal.expect(b"After 2 tries with a wrong PIN, the FIDO2 token 'Blue?[2J' blocks itself")
    terminal.expect(b"(2 tries left): ")
    terminal.type(b"another\n")
    assert terminal.finish() == 7
    assert b"TokenError: the PIN is wrong" in terminal.output
    assert b"has 1 try left" in terminal.output
    assert b"Touch" not in terminal.output


@pytest.mark.parametrize(("typed", "said"), [(b"\x03", b"KeyboardInterrupt"), (b"\x04", b"no PIN was typed")])
def test_a_person_changes_their_mind(typed: bytes, said: bytes) -> None:
    terminal = ScriptAtTerminal(8)
    terminal.expect(b"left): ")
    terminal.type(typed)
    assert terminal.finish() == 7
    assert said in terminal.output


def test_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cryptfs.cli.terminal.TERMINAL", tmp_path / "none" / "tty")
    monkeypatch.setattr("cryptfs.cli.terminal.stdin_is_terminal", lambda: False)
    token = SoftToken(behaviour=Behaviour(pin=b"123456"))
    monkeypatch.setattr(ctap, "list_devices", lambda: [token])
    with pytest.raises(TokenError, match="there is no terminal to type it on"):
        enrol_fido2(TerminalTokens(), uv=True)
    assert token.pins_sent == 0
    assert enrol_fido2(TerminalTokens(), uv=False).params["uv"] == 0
    assert "Touch the FIDO2 token 'Soft Key' now" in capsys.readouterr().err


# ---- windows


class Patient(SoftToken):
    """A token that somebody touches once a file has something in it."""

    sign = Path()

    def _touch(self) -> None:
        if self.sign != Path():
            assert wait_until(lambda: self.sign.exists() and self.sign.read_text() != "", 30)
        super()._touch()


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Patient:
    made = Patient("Blue_<b>")
    monkeypatch.setattr(ctap, "list_devices", lambda: [made])
    for name in ("WAYLAND_DISPLAY", "XDG_CURRENT_DESKTOP"):
        monkeypatch.delenv(name, raising=False)
    return made


def opened(config: VaultConfig) -> bool:
    return open_vault(config, Offer(tokens=WindowTokens(Dialogs())), GIB).masterkey == MASTERKEY


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_window_says_touch_for_as_long_as_the_token_waits(name: str, desktop: Path, token: Patient) -> None:
    config = config_of(enrol(token))
    token.sign = desktop / "pid"
    noting = f"with open({str(token.sign)!r}, 'w') as file:\n    file.write(str(os.getpid()))"
    program(desktop, name, f"import os, time\n{noting}\ntime.sleep(60)")
    assert opened(config)
    (words,) = said_to(desktop)
    text = next(word for word in words if "Touch" in word)
    shown = "'Blue_<b>'" if name == "zenity" else "'Blue_&lt;b&gt;'"
    said = f"Touch the FIDO2 token {shown} now, to open the vault."
    assert text == (f"--text={said}" if name == "zenity" else f"<qt>{said}</qt>")
    assert ("--ok-label=Cancel" if name == "zenity" else "--warningcontinuecancel") in words
    with pytest.raises(ProcessLookupError):
        os.kill(int(token.sign.read_text()), 0)
    assert "cryptfs-notice" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(("name", "code"), [("zenity", 0), ("zenity", 1), ("kdialog", 2)])
def test_a_window_that_is_closed_ends_the_wait(
    name: str, code: int, desktop: Path, token: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(enrol(token))
    token.behaviour.touch = "awaited"
    monkeypatch.setattr(softtoken, "WAITS", 60.0)
    program(desktop, name, f"sys.exit({code})")
    with pytest.raises(NothingTypedError, match="before the token was touched"):
        opened(config)
    assert token.closed == 1


@pytest.mark.parametrize(("name", "code"), [("zenity", 255), ("kdialog", 0), ("kdialog", 1)])
def test_a_window_that_ends_otherwise_ends_nothing(
    name: str, code: int, desktop: Path, token: Patient
) -> None:
    """It could not be shown, or the person pressed Continue."""
    config = config_of(enrol(token))
    token.sign = desktop / "log"
    program(desktop, name, f"sys.exit({code})")
    assert opened(config)


@pytest.mark.parametrize("name", ["zenity", "kdialog"])
def test_a_window_asks_for_the_pin(name: str, desktop: Path, token: Patient) -> None:
    token.behaviour.pin = PIN
    config = config_of(enrol(token, uv=True))
    reset_counts(token)
    token.pin_tries = 2
    body = f"asks = {{'--hide-text', '--password'}} & set(words)\nprint({PIN.decode()!r}) if asks else None"
    program(desktop, name, f"{body}\nimport time\ntime.sleep(0 if asks else 60)")
    assert opened(config)
    asked = " ".join(said_to(desktop)[0])
    assert (
        "2 tries left" in asked
        and "blocks itself" in asked
        and asked.endswith("\nPIN" if name == "zenity" else "<br>PIN</qt>")
    )
    program(desktop, name, "sys.exit(1)")
    with pytest.raises(NothingTypedError):
        opened(config)
    program(desktop, name, "print('')")
    with pytest.raises(TokenError, match="was not sent"):
        opened(config)
    assert token.pins_sent == 1


# The report descriptor of a FIDO token by the CTAP specification, and that of a keyboard (its beginning).
FIDO = bytes.fromhex("06d0f10901a1010920150026ff007508954081020921150026ff00750895409102c0")
KEYBOARD = bytes.fromhex("05010906a101050719e029e715002501750195088102950175088103c0")


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    """A sysfs with a keyboard and a token, and their nodes."""
    for name, descriptor in (("hidraw0", KEYBOARD), ("hidraw3", FIDO)):
        place = tmp_path / "class" / name / "device"
        place.mkdir(parents=True)
        (place / "report_descriptor").write_bytes(descriptor)
    (tmp_path / "class" / "hidraw9").mkdir()
    (tmp_path / "dev").mkdir()
    return tmp_path


def test_a_token_that_this_user_may_not_open(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (devices / "dev" / "hidraw3").touch()
    assert ctap.locked_nodes(devices / "class", devices / "dev") == []
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may open anything
    assert ctap.locked_nodes(devices / "class", devices / "dev") == [devices / "dev" / "hidraw3"]
    said = ctap.no_permission(devices / "dev" / "hidraw3")
    assert "hidraw3" in said and "uaccess" in said and 'GROUP="plugdev"' in said


def test_a_container_without_the_node(devices: Path) -> None:
    found = ctap.locked_nodes(devices / "class", devices / "dev")
    assert found == [devices / "dev" / "hidraw3"]
    assert "pass this device in" in ctap.no_permission(found[0])


def test_listing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = SoftToken()

    def one_and_one_that_goes() -> Iterator[CtapDevice]:
        yield token
        raise GONE

    monkeypatch.setattr(CtapHidDevice, "list_devices", one_and_one_that_goes)
    assert ctap.list_devices() == [token]
    monkeypatch.setattr(CtapHidDevice, "list_devices", lambda: iter(()))
    monkeypatch.setattr(ctap, "locked_nodes", list)
    assert ctap.list_devices() == []
    monkeypatch.setattr(ctap, "locked_nodes", lambda: [tmp_path / "hidraw3"])
    with pytest.raises(TokenError, match="hidraw3"):
        ctap.list_devices()
