"""A vault is unmounted when the machine sleeps, the screen is locked, or the session ends, by real signals.

logind and the screen saver are stand-ins (desktop.py), under dbus-run-session.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.errors import MountError
from cryptfs.mount.leaving import desktop as desktop_module
from cryptfs.mount.leaving.desktop import Desktop
from tests.commands import runner
from tests.e2e.conftest import ENGINES
from tests.e2e.mounting import PROJECT
from tests.e2e.test_cli_mount import ENVIRONMENT, Place
from tests.e2e.test_unmounting import noting
from tests.e2e.unmounting import Scene, scene_of, vault
from tests.schema import check_answer

__all__ = ["vault"]

pytestmark = [
    pytest.mark.waits,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(
        shutil.which("dbus-run-session") is None, reason="needs dbus-run-session: apt-get install dbus"
    ),
]

SOON = 20.0
A_WHILE = 0.5  # seconds in which nothing happens


class StandIn:
    """The desktop, running."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["dbus-run-session", "--", sys.executable, "-m", "tests.e2e.desktop"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        assert self._process.stdout is not None
        self.buses: dict[str, str] = json.loads(self._process.stdout.readline())
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line.strip())

    def happen(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def says(self, what: str) -> None:
        assert self._said.get(timeout=SOON) == what

    def says_nothing(self) -> None:
        assert self._said.empty()

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(SOON)
        self._reader.join(SOON)
        self._process.stdout.close()


@pytest.fixture
def desktop(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A fresh one, whose buses the commands and this process find."""
    made = StandIn()
    for environment in (ENVIRONMENT, None):
        for name, address in made.buses.items():
            variable = f"DBUS_{name.upper()}_BUS_ADDRESS"
            if environment is None:
                monkeypatch.setenv(variable, address)
            else:
                monkeypatch.setitem(environment, variable, address)
    yield made
    made.end()


# ---- on a mount


@pytest.fixture
def scene(
    vault: Place,
    desktop: StandIn,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Scene]:
    """On the engine that the test names, or the native one; the mount goes before the desktop does."""
    engine = getattr(request, "param", "native")
    with scene_of(vault, tmp_path / "mountpoint", engine, runner(capsys)) as made:
        yield made


on_both = pytest.mark.parametrize("scene", ENGINES, indirect=True)


@on_both
def test_the_machine_waits_until_the_vault_is_closed(scene: Scene, desktop: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "out"
    scene.mount("--unmount-on", "sleep", "--before-unmount", noting(out, 1))
    scene.place.allowed.append("sh failed with exit code 1; unmounting anyway")
    desktop.says("inhibited")  # by the look before the passphrase
    desktop.says("released")
    desktop.says("inhibited")
    (scene.mountpoint / "file").write_text("kept")
    desktop.happen("sleep")
    desktop.says("released")
    assert scene.is_closed()
    assert out.read_text().startswith("sleep|")
    assert scene.logs("the machine goes to sleep")
    desktop.happen("wake")
    scene.mount()
    assert (scene.mountpoint / "file").read_text() == "kept"


def test_a_busy_vault_does_not_keep_the_machine_awake(scene: Scene, desktop: StandIn) -> None:
    scene.mount("--unmount-on", "sleep,lock")
    scene.place.allowed.append("is in use by pid")
    for said in ("inhibited", "released", "inhibited"):
        desktop.says(said)
    with (scene.mountpoint / "file").open("w") as file:
        desktop.happen("sleep")
        desktop.says("released")
        assert scene.place.is_mounted()
        told = check_answer("status", scene.run("status", "--json", scene.mountpoint).out)["unmounts"]
        assert (told["on"], told["waiting"]) == (["sleep", "lock"], ["sleep"])
        desktop.happen("wake")
        desktop.says("inhibited")  # for the next time
        file.write("kept")
    log = scene.log()
    assert "the machine goes to sleep, but " in log
    assert "It stays mounted until no program uses it" in log
    desktop.happen("Lock")
    desktop.says("released")
    assert scene.is_closed()


def test_detach_busy(scene: Scene, desktop: StandIn) -> None:
    scene.mount("--unmount-on", "lock", "--detach-busy")
    scene.place.allowed.append("is still in use by pid")
    with (scene.mountpoint / "file").open("w") as file:
        desktop.happen("saver org.freedesktop.ScreenSaver on")
        deadline = time.monotonic() + SOON
        while scene.place.is_mounted() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not scene.place.is_mounted()
        assert not scene.is_closed()
        file.write("still works")
    assert scene.closes()
    with pytest.raises(PermissionError):
        (scene.mountpoint / "file").write_text("saved after that")
    scene.mount()
    assert (scene.mountpoint / "file").read_text() == "still works"


def test_the_end_of_the_session(scene: Scene, desktop: StandIn, tmp_path: Path) -> None:
    """logind never removes a session in which our daemon lives: it is closing then."""
    out = tmp_path / "out"
    scene.mount("--unmount-on", "logout", "--before-unmount", noting(out))
    desktop.happen("removed other")
    desktop.happen("lock other")
    desktop.happen("Lock")
    desktop.happen("closing")
    assert scene.closes()
    assert out.read_text().count("logout|") == 1
    assert scene.logs("the session has ended")


def test_without_buses_the_mount_is_refused(
    vault: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the passphrase, and with the reason."""
    for name in ("SYSTEM", "SESSION"):
        monkeypatch.setitem(ENVIRONMENT, f"DBUS_{name}_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    words = ["mount", vault.vault, tmp_path / "m", "--passfile", tmp_path / "missing"]
    told = vault.cryptfs(*words, "--unmount-on", "sleep", code=10).stderr
    assert told.startswith(
        "cryptfs: --unmount-on sleep needs logind, which does not answer here (system bus: "
    )
    told = vault.cryptfs(*words, "-o", "unmount_on=lock:logout", code=10).stderr
    assert "neither logind nor a session bus reports that here" in told
    assert not (tmp_path / "m").exists()


def test_without_polkit_it_says_what_to_install(desktop: StandIn) -> None:
    """logind asks it whether an ordinary user may delay the sleep; a small server has none."""
    desktop.happen("no polkit")
    desktop.says("no polkit")
    with pytest.raises(MountError, match=r"does not let this user .*AccessDenied.*apt-get install polkitd"):
        Desktop(("sleep",), lambda *_: None)
    Desktop(("lock",), lambda *_: None).close()


# ---- without a mount


class Listener:
    """A Desktop, and what it told."""

    def __init__(self, *reasons: str) -> None:
        self.told: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
        self.desktop = Desktop(reasons, lambda *each: self.told.put(each))
        self.desktop.start()

    def hears(self, *expected: tuple[str, bool]) -> None:
        assert [self.told.get(timeout=SOON) for _ in expected] == list(expected)


@pytest.fixture
def listener(desktop: StandIn) -> Iterator[Listener]:
    made = Listener("sleep", "lock", "logout")
    desktop.says("inhibited")
    yield made
    made.desktop.close()


def test_every_signal(listener: Listener, desktop: StandIn) -> None:
    for what, reason, begins in (
        ("sleep", "sleep", True),
        ("wake", "sleep", False),
        ("shutdown", "logout", True),
        ("removed", "logout", True),
        ("Lock", "lock", True),
        ("Unlock", "lock", False),
        ("hint", "lock", True),
        ("saver org.gnome.ScreenSaver on", "lock", True),
        ("saver org.gnome.ScreenSaver off", "lock", False),
        ("saver org.freedesktop.ScreenSaver on", "lock", True),
        ("saver org.xfce.ScreenSaver on", "lock", True),
    ):
        desktop.happen(what)
        listener.hears((reason, begins))
    for what in ("removed other", "lock other", "saver org.example.Other on"):
        desktop.happen(what)
    desktop.happen("closing")
    listener.hears(("logout", True))
    assert listener.told.empty()


def test_a_service_follows_a_session_that_begins_later(desktop: StandIn) -> None:
    """A service of a user who lingers starts before its user comes."""
    desktop.happen("no session")
    desktop.says("no session")
    listener = Listener("lock", "logout")
    try:
        desktop.happen("Lock")
        desktop.happen("login")
        desktop.happen("Unlock")
        desktop.happen("Lock")
        listener.hears(("lock", False), ("lock", True))
        desktop.happen("removed")
        listener.hears(("logout", True))
        assert listener.told.empty()
    finally:
        listener.desktop.close()


def test_only_logind_itself_counts(listener: Listener, desktop: StandIn) -> None:
    """Any program may send such a signal straight to ours."""
    bus = listener.desktop._logind.bus
    assert bus is not None
    desktop.happen(f"stranger to {bus._connection.unique_name}")
    desktop.happen("Unlock")
    listener.hears(("lock", False))
    assert listener.told.empty()


def test_a_session_bus_that_ends_is_a_logout(desktop: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener("lock", "logout")
    try:
        desktop.end()
        listener.hears(("logout", True))
        assert listener.told.empty()
    finally:
        listener.desktop.close()


def test_a_closing_session_is_noticed_without_a_signal(
    desktop: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desktop_module, "_LOOK", 0.05)
    listener = Listener("logout")
    try:
        time.sleep(3 * 0.05)
        assert listener.told.empty()
        desktop.happen("closing quietly")
        listener.hears(("logout", True))
    finally:
        listener.desktop.close()


def test_a_lost_system_bus_is_found_again(
    desktop: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desktop_module, "_RECONNECT", 0.05)
    listener = Listener("sleep")
    desktop.says("inhibited")
    try:
        bus = listener.desktop._logind.bus
        assert bus is not None
        bus.hang_up()
        desktop.says("inhibited")
        desktop.says("released")  # the older lock
        desktop.happen("sleep")
        listener.hears(("sleep", True))
        listener.desktop.tried("sleep")
        desktop.says("released")
    finally:
        listener.desktop.close()
    assert "lost the connection to the system bus" in caplog.text


def test_without_jeepney_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jeepney.io.blocking", None)
    with pytest.raises(MountError, match=r"pip install 'cryptfs\[desktop\]'"):
        Desktop(("lock",), lambda *_: None)
