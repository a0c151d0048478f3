"""Syncthing nodes on loopback: configuration, start, and an end to them. Nothing leaves the machine."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

FIRST_PORT = 22_101
FIRST_API_PORT = 28_101
API_KEY = "soak"
_DEVICE = re.compile(r"Device ID: ([A-Z0-9-]+)")
_END_SECONDS = 20

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


@dataclass
class SyncNode:
    """One Syncthing. home: its configuration and database.   vault: the folder that it syncs."""

    number: int
    home: Path
    vault: Path
    device: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it listens for its peers."""
        return FIRST_PORT + self.number

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
            api_port=FIRST_API_PORT + self.number,
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
        """Raises: RuntimeError: it has ended, perhaps since another run has its ports."""
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"syncthing {self.number} has ended: {(self.home / 'log').read_text()[-300:]}")

    def rescan(self) -> None:
        """Ask it to look at its folder now. It may be busy, or not up yet.

        Raises: RuntimeError: it has ended.
        """
        self.require_running()
        url = f"http://127.0.0.1:{FIRST_API_PORT + self.number}/rest/db/scan?folder=vault"
        request = urllib.request.Request(url, method="POST", headers={"X-API-Key": API_KEY})
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=20):
            pass

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
