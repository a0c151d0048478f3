"""The process that forks daemons for the tests: each is as one that was started by itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import mounting
from tests.e2e.forking import Daemon, start_daemon
from tests.e2e.mounting import MountSpec, mounted

SOON = 20.0  # seconds


def started(log: Path, order: dict[str, Any], **environment: str) -> Daemon:
    """A daemon with an order that may be wrong."""
    with log.open("ab") as stderr:
        return start_daemon(order, stderr.fileno(), os.environ | environment)


def order_of(mount: mounting.Mounted) -> dict[str, Any]:
    """What its daemon is told."""
    return {
        "vault_dir": str(mount.vault_dir),
        "mountpoint": str(mount.mountpoint),
        "passphrase": mounting.PASSPHRASE,
        "options": f"engine={mount.spec.engine}",
        "uid": mount.spec.uid,
        "gid": mount.spec.gid,
        "constants": [],
    }


def test_an_order_that_fails_ends_with_1_and_its_traceback_is_in_the_log(tmp_path: Path) -> None:
    """As `python -m` does; and the next daemon starts all the same."""
    for _ in range(2):
        daemon = started(tmp_path / "log", {"options": "no-such-option"})
        assert daemon.wait(SOON) == 1
        daemon.stdout.close()
    assert (tmp_path / "log").read_text().count("no-such-option") >= 2


def test_a_killed_daemon_says_by_which_signal() -> None:
    """The exit code is negative then, and nothing more is sent to that process id."""
    with mounted(MountSpec(engine="native")) as mount:
        daemon = mount._process
        assert daemon is not None and daemon.poll() is None
        daemon.kill()
        assert daemon.wait(SOON) == daemon.poll() == -signal.SIGKILL
        daemon.send_signal(signal.SIGKILL)
        mount.kill()
        mount.start()


@pytest.mark.usefixtures("fuse_for_everybody")
def test_what_one_daemon_changes_in_itself_no_other_one_sees(tmp_path: Path) -> None:
    """Constants, as here a function that is none any more, and the user."""
    user = MountSpec(engine="native", uid=1, gid=1)
    with mounted(user) as first, mounted(MountSpec(engine="native")) as second:
        second.unmount()
        daemon = started(tmp_path / "log", order_of(second) | {"constants": [("os", "umask", 5.0)]})
        assert daemon.wait(SOON) == 1
        daemon.stdout.close()
        assert "'float' object is not callable" in (tmp_path / "log").read_text()
        second.start()
        assert [Path(f"/proc/{each.pid}").stat().st_uid for each in (first, second)] != [0, 0]
        (second.mountpoint / "file").write_bytes(b"content")
        assert (second.mountpoint / "file").read_bytes() == b"content"


def test_the_daemons_of_a_test_are_not_of_one_another(tmp_path: Path) -> None:
    """The end of one leaves the other one alone."""
    with mounted(MountSpec(engine="native")) as first:
        with mounted(MountSpec(engine="native")) as second:
            assert first.pid != second.pid
        (first.mountpoint / "file").write_bytes(b"content")
        assert (first.mountpoint / "file").read_bytes() == b"content"


@pytest.mark.usefixtures("fuse_for_everybody")
def test_the_environment_of_a_daemon_is_that_of_the_test(tmp_path: Path) -> None:
    """Also what was set after the forker was started: here, that there is no fusermount3."""
    with mounted(MountSpec(engine="native", uid=1, gid=1)) as mount:
        mount.unmount()
        daemon = started(tmp_path / "log", order_of(mount), PATH="/nowhere")
        assert daemon.wait(SOON) == 1
        daemon.stdout.close()
        assert "fusermount3" in (tmp_path / "log").read_text()
        mount.start()
