"""Syncthing nodes on loopback: configuration, start, connections, and an end. Nothing leaves the machine."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to connections by itself: a stopped node finds its ports again."""
API_KEY = "soak"
_DEVICE = re.compile(r"Device ID: ([A-Z0-9-]+)")
_END_SECONDS = 20
_ANSWER_SECONDS = 20.0
_LINK_SECONDS = 60.0

_CONFIG = """<configuration version="36">
  <folder id="vault" label="vault" path="{vault}" type="sendreceive" rescanIntervalS="10"
          fsWatcherEnabled="true" fsWatcherDelayS="1" ignorePerms="false" autoNormalize="true">
    <filesystemType>basic</filesystemType>
    {folder_devices}
    <minDiskFree unit="%">0</minDiskFree>
    <maxConflicts>-1</maxConflicts>
    <markerName>.stfolder</markerName>
  </folder>
  {devices}
  <gui enabled="true" tls="false"><address>127.0.0.1:{api_port}</address><apikey>{api_key}</apikey></gui>
  <options>
    <listenAddress>tcp://127.0.0.1:{port}</listenAddress>
    <globalAnnounceEnabled>false</globalAnnounceEnabled>
    <localAnnounceEnabled>false</localAnnounceEnabled>
    <relaysEnabled>false</relaysEnabled>
    <natEnabled>false</natEnabled>
    <startBrowser>false</startBrowser>
    <reconnectionIntervalS>2</reconnectionIntervalS>
    <urAccepted>-1</urAccepted>
    <autoUpgradeIntervalH>0</autoUpgradeIntervalH>
    <crashReportingEnabled>false</crashReportingEnabled>
    <stunKeepaliveStartS>0</stunKeepaliveStartS>
    <setLowPriority>false</setLowPriority>
    <minHomeDiskFree unit="%">0</minHomeDiskFree>
  </options>
</configuration>
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now: several runs may be on one machine."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().choice(PORTS)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                found.append(port)
    return found


@dataclass
class SyncNode:
    """One Syncthing. home: its configuration and database.   vault: the folder that it syncs.

    port: where it listens for its peers.   api_port: where it answers us.
    """

    number: int
    home: Path
    vault: Path
    port: int
    api_port: int
    device: str = ""
    process: subprocess.Popen[bytes] | None = None

    def generate(self) -> None:
        """Make its key."""
        words = ["syncthing", "generate", "--home", str(self.home), "--no-default-folder"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        found = _DEVICE.search(done.stdout + done.stderr)
        if found is None:
            raise RuntimeError(f"syncthing generate said no device id: {done.stdout}{done.stderr}")
        self.device = found[1]

    def start(self, nodes: list[SyncNode]) -> None:
        """Write its configuration and start it."""
        devices = "\n  ".join(
            f'<device id="{node.device}" name="node{node.number}" compression="never">'
            f"<address>tcp://127.0.0.1:{node.port}</address></device>"
            for node in nodes
        )
        shared = "\n    ".join(f'<device id="{node.device}" introducedBy=""></device>' for node in nodes)
        text = _CONFIG.format(
            vault=self.vault,
            folder_devices=shared,
            devices=devices,
            api_port=self.api_port,
            api_key=API_KEY,
            port=self.port,
        )
        (self.home / "config.xml").write_text(text)
        (self.vault / ".stfolder").mkdir(exist_ok=True)
        words = ["syncthing", "serve", "--home", str(self.home), "--no-browser", "--no-restart"]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "--no-upgrade"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"STNOUPGRADE": "1", "HOME": str(self.home)},
                start_new_session=True,
            )

    def require_running(self) -> None:
        """Raises: RuntimeError: it has ended, perhaps since somebody else has taken its ports."""
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"syncthing {self.number} has ended: {(self.home / 'log').read_text()[-300:]}")

    def ask(self, path: str, *, post: bool = False, **query: str) -> Any:
        """One request to its REST API; its answer, or None. Raises: OSError: it does not answer."""
        url = f"http://127.0.0.1:{self.api_port}/rest/{path}?{urllib.parse.urlencode(query)}"
        method = "POST" if post else "GET"
        request = urllib.request.Request(url, method=method, headers={"X-API-Key": API_KEY})
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def wait_until_up(self) -> None:
        """It answers. Raises: RuntimeError: it has ended, or never does."""
        deadline = time.monotonic() + _LINK_SECONDS
        while time.monotonic() < deadline:
            self.require_running()
            with contextlib.suppress(OSError):
                self.ask("system/ping")
                return
            time.sleep(0.2)
        raise RuntimeError(f"syncthing {self.number} does not answer")

    def rescan(self) -> None:
        """Ask it to look at its folder now. It may be busy.

        Raises: RuntimeError: it has ended.
        """
        self.require_running()
        with contextlib.suppress(OSError):
            self.ask("db/scan", post=True, folder="vault")

    def is_idle(self) -> bool:
        """Whether it has, as far as it knows, all that the others have."""
        try:
            status = self.ask("db/status", folder="vault")
        except OSError:
            return False
        return bool(status["state"] == "idle" and status["needTotalItems"] == 0)

    def set_links(self, others: Iterable[SyncNode], *, open_: bool) -> None:
        """Cut the connections to others, or allow them again. Raises: OSError."""
        for other in others:
            self.ask("system/resume" if open_ else "system/pause", post=True, device=other.device)

    def await_links(self, others: Iterable[SyncNode], *, open_: bool) -> None:
        """Wait until the connections to others are there, or cut.

        Raises: RuntimeError: one stays as it was.   OSError.
        """
        others = list(others)
        deadline = time.monotonic() + _LINK_SECONDS
        while time.monotonic() < deadline:
            links = self.ask("system/connections")["connections"]
            if all(links[other.device]["connected"] == open_ for other in others):
                return
            time.sleep(0.2)
        raise RuntimeError(f"syncthing {self.number} does not {'connect' if open_ else 'disconnect'}")

    def stop(self) -> None:
        """End it: its own process, and its monitor's child by their session."""
        process, self.process = self.process, None
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
                return
