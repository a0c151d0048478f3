"""The end of a run: every last version is shown, nothing is hidden or mixed, and all copies are in order."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

from cryptfs.errors import IntegrityError
from cryptfs.storage.dirs import holds_plaintext
from soaklib.sealed import Sealer
from soaklib.syncthing.cluster import NODES, Cluster
from soaklib.syncthing.edits import CONFLICT, Edits
from soaklib.syncthing.versions import UNDER_WAY, is_on_its_way, stamp_of
from tests.e2e.mounting import PASSPHRASE

REPOSITORY = "git."
MARKER = ".stfolder"
SETTLE_SECONDS = 120.0
QUIET_SECONDS = 5.0
DROPPED = re.compile(
    r"Conflict for (\S+?)\.sync-conflict-\S+ which is already a conflict copy; not copying again"
)
"""Two nodes have made conflict copies of one name in one second. Syncthing keeps one and says this."""


class Judge:
    """Looks at settled copies while they are mounted, and then at the vaults."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def mounted(self, edits: Edits) -> None:
        """What the mounts show, and what became of every last version."""
        shown = [self.shown(node, edits) for node in range(NODES)]
        for node in range(1, NODES):
            paths = sorted({*shown[0], *shown[node]})
            differing = [path for path in paths if shown[0].get(path) != shown[node].get(path)]
            if differing:
                self._cluster.found(f"nodes 0 and {node} show different content in {differing[:6]}")
        present: dict[int, str] = {}
        for path, content in sorted(shown[0].items()):
            stamp = stamp_of(content)
            if stamp is not None:
                present.setdefault(stamp[1], path)
        self._require_leaves(edits, set(present))
        copies = [path for path in shown[0] if CONFLICT in path]
        beside = [present[each] for each in edits.leaves if each in present]
        print(
            f"{len(edits.leaves)} last versions, of which {sum(CONFLICT in path for path in beside)} in "
            f"conflict copies; {len(shown[0])} files are shown, of which {len(copies)} are conflict copies"
        )
        if not self._cluster.plain:
            for node in range(NODES):
                self._compare_with_ciphertext(node)

    def _require_leaves(self, edits: Edits, present: set[int]) -> None:
        dropped = self.dropped_by_syncthing()
        for sequence, (path, size) in sorted(edits.leaves.items()):
            if sequence in present:
                continue
            if path in dropped:
                dropped.remove(path)  # one version each time
                print(f"version {sequence} of {path} was in a conflict copy that Syncthing dropped")
                continue
            self._cluster.found(f"version {sequence} of {path}, {size} bytes, was last and is not shown")
            events = (self._cluster.scratch / "events").read_text().splitlines()
            print("\n".join([line for line in events if f" {path}," in line][-8:]))

    def shown(self, node: int, edits: Edits) -> dict[str, bytes]:
        """Every file of a mount; what is no whole version is a finding."""
        contents = {}
        root = self._cluster.root(node)
        for directory, _, names in os.walk(root, onerror=self._unreadable):
            for name in names:
                path = Path(directory, name)
                if self._cluster.plain and (name.startswith(UNDER_WAY) or MARKER in path.parts):
                    continue
                try:
                    contents[str(path.relative_to(root))] = path.read_bytes()
                except OSError as error:
                    said = f"{path.relative_to(root)}, at the end: {error.strerror}"
                    self._cluster.found(f"node {node}, {said}")
        for name, content in contents.items():
            if name.startswith(REPOSITORY) or stamp_of(content) is not None:
                continue
            # Syncthing keeps the copy that it took of a file being written where another version meets it.
            if CONFLICT not in name or not is_on_its_way(content, edits.versions_of(name)):
                said = f"{name}, at the end, {len(content)} bytes, no version"
                self._cluster.found(f"node {node} shows in {said}")
        return contents

    def _unreadable(self, error: OSError) -> None:
        self._cluster.found(f"{error.filename}, at the end: {error.strerror}")

    def _compare_with_ciphertext(self, node: int) -> None:
        """The mount shows each file of the vault, with the content that the core alone finds in it."""
        vault_dir, mountpoint = self._cluster.mounts[node].vault_dir, self._cluster.root(node)
        shown = {
            os.lstat(path).st_ino: path
            for directory, _, names in os.walk(mountpoint)
            for path in (os.path.join(directory, name) for name in names)
        }
        sealer = Sealer(vault_dir, PASSPHRASE.encode())
        try:
            for path in sorted(vault_dir.rglob("*")):
                st = path.lstat()
                if not stat.S_ISREG(st.st_mode) or path.name.startswith(UNDER_WAY):
                    continue
                if not holds_plaintext(path.name):
                    continue
                where = shown.get(st.st_ino)
                if where is None:
                    self._cluster.found(f"no name on node {node} shows {path.relative_to(vault_dir)}")
                    continue
                try:
                    content = sealer.content(path.read_bytes())
                except (IntegrityError, OSError) as error:
                    self._cluster.found(f"node {node}, {path.relative_to(vault_dir)}: {error}")
                    continue
                if content != Path(where).read_bytes():
                    self._cluster.found(f"node {node} shows in {where} what its vault no longer has")
        finally:
            sealer.close()

    def dropped_by_syncthing(self) -> list[str]:
        """The path of each conflict copy that a Syncthing gave up for another of the same name."""
        logs = "".join((sync.home / "log").read_text(errors="replace") for sync in self._cluster.syncs)
        originals = [found[1] for found in DROPPED.finditer(logs)]
        if self._cluster.plain:
            return originals
        sealer = Sealer(self._cluster.mounts[0].vault_dir, PASSPHRASE.encode())
        try:
            return [sealer.plain_path(original) for original in originals]
        finally:
            sealer.close()

    def vaults(self) -> None:
        """Unmount all, and let the ends of the sessions settle; then logs and vaults are in order."""
        if self._cluster.plain:
            return
        for node, mount in enumerate(self._cluster.mounts):
            mount.unmount()
            if "Traceback" in mount.log_path.read_text(errors="replace"):
                self._cluster.found(f"a traceback in the log of node {node}")
        differing = self._cluster.settle(SETTLE_SECONDS, QUIET_SECONDS)
        if differing:
            self._cluster.found(f"unmounted copies differ after {SETTLE_SECONDS:.0f} s: {differing[:6]}")
        for node in range(NODES):
            code, lines = self.fsck(node)
            if code:
                self._cluster.found(f"fsck --deep of node {node} ends with {code}: {lines[:4]}")

    def fsck(self, node: int, *options: str) -> tuple[int, list[str]]:
        """Exit code of fsck --deep, and the lines of its errors, or else all that it said."""
        passfile = self._cluster.scratch / "passphrase"
        passfile.write_text(PASSPHRASE + "\n")
        passfile.chmod(0o600)
        words = [sys.executable, "-m", "cryptfs", "fsck", "--deep", *options, "--passfile", str(passfile)]
        done = subprocess.run(
            [*words, str(self._cluster.mounts[node].vault_dir)],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines = (done.stdout + done.stderr).splitlines()
        return done.returncode, [line for line in lines if line.startswith("error")] or lines
