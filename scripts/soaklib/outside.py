"""A vault that changes behind its mount, at random: `python -m soaklib.outside --seed N --seconds N`.

An outside actor changes the ciphertext as sync clients, restores and accidents do; programs work on the mount
meanwhile; a model knows what each may see. A finding ends the round with exit code 1, and keeps the vault.

`--calm` leaves the outside actor out, `--remount` mounts anew after each of its steps: what is found then
is a fault of this program, or one that no cache has a part in.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from soaklib.actor import Actor
from soaklib.ground import ext4, mounted_on
from soaklib.model import GRACE, Content, Track, files_of
from soaklib.programs import Finding, Programs, describe
from soaklib.sealed import Sealer
from tests.e2e.mounting import PASSPHRASE, Mounted, MountSpec

DIRECTORIES = ("one", "two", "one/below")
NAMES = ("doc", "del", "run", "log", "data")
CONFLICT = "conflict"
HANG_SECONDS = 60.0
SAID = 40  # steps that are shown with a finding
SIZES = (0, 100, 700, 5_000, 16_384, 20_000, 40_000, 70_000)


class Round:
    """One vault, mounted, for a while."""

    def __init__(self, mount: Mounted, seed: int, chosen: argparse.Namespace) -> None:
        self.mount = mount
        self.dice = random.Random(seed)
        self.conflict = re.compile(os.fsencode(chosen.conflict))
        self.calm, self.remounts = chosen.calm, chosen.remount
        self.sealer = Sealer(mount.vault_dir, PASSPHRASE.encode())
        paths = [f"{directory}/{name}" for directory in DIRECTORIES for name in NAMES]
        self.tracks = {path: Track(path) for path in paths}
        aside = mount.scratch / "aside"
        aside.mkdir()
        self.programs = Programs(mount.mountpoint, self.tracks, self.dice, self.content, mount.spec.engine)
        self.actor = Actor(self.sealer, self.tracks, self.dice, aside, self.content, self.programs.moved)
        self.serial = 0
        self.said: list[str] = []
        self.began = time.monotonic()
        self.alive = time.monotonic()

    def content(self, path: str) -> bytes:
        """New content that says what it is; no two are alike, nor are two chunks."""
        self.serial += 1
        size = self.dice.choice(SIZES)
        head = f"#!/bin/sh\necho {path} {self.serial}\nexit 0\n".encode()
        lines = (f"# {path} {self.serial} {number:05}\n".encode() for number in range(size // 12 + 1))
        return (head + b"".join(lines))[: max(size, len(head))] if size else b""

    # ---- for who looks into a finding

    def say(self, what: str) -> None:
        """Note what a step did."""
        self.said.append(f"{time.monotonic() - self.began:8.3f}  {what}")

    def tell(self, finding: str) -> None:
        """Print the last steps, those about paths that a finding names, and what the model knows of these."""
        named = [path for path in self.tracks if path in finding]
        about = [line for line in self.said[:-SAID] if any(path in line for path in named)]
        for line in (*about[-4 * SAID :], "...", *self.said[-SAID:]):
            print(f"    {line}")
        now = time.monotonic()
        for path in named:
            for state in self.tracks[path].states[-6:]:
                ended, held = state.ended - self.began, " or ".join(map(describe, state.contents))
                print(f"    {path} {state.since - self.began:.3f} to {ended:.3f}: {held}"
                      f"{' damaged' * state.damaged}{' outside' * state.outside}")  # fmt: skip
        print(f"    now it is {now - self.began:.3f}")
        for line in self.mount.log_path.read_text(errors="replace").splitlines()[-6:]:
            print(f"    log: {line}")

    # ---- steps

    def begin(self) -> None:
        """Directories and files to begin with, from outside."""
        for directory in DIRECTORIES:
            (self.mount.mountpoint / directory).mkdir()
        for path, track in self.tracks.items():
            backing = self.actor.backing(path)
            assert backing is not None
            self.actor.create(track, backing)
            track.last.since -= 2 * GRACE
            track.states = track.states[-1:]

    def step(self) -> str:
        """One thing happens, and is judged."""
        self.alive = time.monotonic()
        path = self.dice.choice(sorted(self.tracks))
        roll = self.dice.random()
        programs = self.programs
        if roll < 0.15 and not self.calm:
            return self.outside(path, roll)
        if roll < 0.20:
            return self.list(self.dice.choice(DIRECTORIES))
        if roll < 0.21:
            time.sleep(self.dice.random())
            return "wait"
        choice = self.dice.choices(
            (programs.read, programs.stat, programs.mark, programs.hold, programs.write, programs.unlink,
             programs.rename, self.settle, self.untouched),
            (30, 10, 5, 10, 20, 3, 4, 10, 8),
        )[0]  # fmt: skip
        if programs.is_left(path):
            return f"nothing: {path} was moved while it is open"
        return f"{choice.__name__} {path}: {choice(path)}"

    def outside(self, path: str, roll: float) -> str:
        """A file or a directory changes outside; or a file, while a program writes to it."""
        if self.tracks[path].busy:
            return self.settle(path)
        if self.programs.is_left(path):
            return "nothing: moved while it is open"
        if roll >= 0.13 and not self.remounts:
            return f"both {path}: {self.both(path)}"
        if self.remounts:
            self.programs.close()
        directory = self.dice.choice(DIRECTORIES)
        if roll < 0.12:
            said = f"outside {path}: {self.actor.step(path)}"
        else:
            said = f"outside {directory}: {self.actor.directory_step(directory)}"
        if self.remounts:
            self.mount.remount()
        return said

    def both(self, path: str) -> str:
        """A program has a file open for writing while it changes outside."""
        track = self.tracks[path]
        if track.busy or not track.exists or len(track.window(time.monotonic())) > 1:
            return "nothing: busy"
        base = track.certain
        assert base is not None
        data = self.content(path)[:3000] or b"#"

        def effect(content: bytes) -> bytes:
            return data + content[len(data) :]

        began = time.monotonic()
        try:
            fd = os.open(self.programs.at(path), os.O_RDWR)
        except OSError as error:
            self.programs.failed(path, began, error, "open")
            return "open failed"
        failed = synced = False
        done = "nothing"
        try:
            os.pwrite(fd, data, 0)
            synced = self.dice.random() < 0.5
            if synced:
                os.fsync(fd)
            track.change(effect(base), outside=False)
            track.written_now = True
            done = self._meanwhile(track)
            if self.dice.random() < 0.5:
                os.pwrite(fd, data, 0)
        except OSError:
            failed = True
        finally:
            try:
                os.close(fd)
            except OSError:
                failed = True
            track.written_now = False
        came = files_of(track.last.contents)
        results = {effect(base), *(effect(content) for content in came)}
        if track.last.damaged:
            return done
        track.change(*results, *track.last.contents, *came, outside=True)
        if (not failed or synced) and "in place" not in done:  # else its place was overwritten, not by us
            track.claims.append(frozenset(results))
        if came:
            track.claims.append(frozenset(came | results - {effect(base)}))
        return f"{done}, {'and the program was told' if failed else 'both closed in order'}"

    def _meanwhile(self, track: Track) -> str:
        """What comes from outside; whoever replaces or deletes a file has no need to read it."""
        if self.actor.raw(track.path) is not None:
            return self.actor.step(track.path)
        backing = self.actor.backing(track.path)
        if backing is None or not backing.exists():
            return "nothing"
        if self.dice.random() < 0.3:
            return self.actor.delete(track, backing, b"")
        return self.actor.replace(track, backing, b"")

    def settle(self, path: str) -> str:
        """See which version won where two met, and that the other is there as well."""
        track = self.tracks[path]
        if not track.ripe(time.monotonic()):
            return "nothing"
        began = time.monotonic()
        try:
            seen = self.programs.look(path)
        except OSError as error:
            self.programs.failed(path, began, error, "read")
            if not track.last.damaged and not self.programs.was_another_kind(path):
                raise Finding(f"read {path}: {error.strerror}, {GRACE} s after it came to rest") from None
            return "damaged"
        self.programs.judge(path, began, seen, "read (after both wrote)")
        beside = self.conflicts(path)
        for claim in track.claims:
            if seen not in claim and not claim & beside.keys():
                lost = " or ".join(describe(content) for content in claim)
                raise Finding(
                    f"{path} lost {lost}: it shows {describe(seen)}, beside {sorted(beside.values())}"
                )
        track.settle(seen)
        return f"settled, {len(beside)} beside"

    def conflicts(self, path: str) -> dict[Content, str]:
        """What stands beside a path under names that say conflict."""
        directory = self.programs.at(path).parent
        found: dict[Content, str] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(os.fsencode(directory)):
                if self.conflict.search(name):
                    with contextlib.suppress(OSError):
                        found[(directory / os.fsdecode(name)).read_bytes()] = os.fsdecode(name)
        return found

    def list(self, directory: str) -> str:
        """A listing shows what is there, but for the grace."""
        began = time.monotonic()
        tracks = [track for path, track in self.tracks.items() if path.rpartition("/")[0] == directory]
        try:
            shown = set(os.listdir(self.mount.mountpoint / directory))
        except OSError as error:
            if all(None in track.allowed(began) for track in tracks):
                return f"list {directory}: {error.strerror}"
            raise Finding(f"list {directory}: {error.strerror}") from None
        for track in tracks:
            name, allowed = track.path.rpartition("/")[2], track.allowed(began)
            if name in shown and allowed == {None} and not track.last.damaged:
                raise Finding(f"list {directory}: {name} is listed and is not there")
            if name not in shown and None not in allowed:
                raise Finding(f"list {directory}: {name} is not listed")
        known = {*NAMES, "below"}
        strange = [n for n in shown - known if not self.conflict.search(os.fsencode(n))]
        if strange:
            raise Finding(f"list {directory}: nobody made {strange}")
        return f"list {directory}"

    def untouched(self, path: str) -> str:
        """What the actor placed and no program wrote has the bytes that it had."""
        track, backing = self.tracks[path], self.actor.backing(path)
        if track.placed is None or backing is None or track.last.damaged:
            return "nothing"
        if backing.read_bytes() != track.placed:
            raise Finding(f"the ciphertext of {path} changed, although nobody wrote to it")
        return "untouched"

    # ---- the end

    def finish(self) -> None:
        """Everything comes to rest; mount, vault and fsck agree with the model."""
        for path in self.tracks:
            if self.tracks[path].busy:
                time.sleep(max(0.0, self.tracks[path].last.since + GRACE + 0.1 - time.monotonic()))
                self.settle(path)
        self.programs.close()
        self.actor.heal()
        time.sleep(GRACE + 0.1)
        for path in self.tracks:
            self.alive = time.monotonic()
            began = time.monotonic()
            try:
                self.programs.judge(path, began, self.programs.look(path), "read (at the end)")
            except OSError as error:
                self.programs.failed(path, began, error, "read (at the end)")
        for directory in DIRECTORIES:
            self.list(directory)
        self.mount.unmount()
        for path, track in self.tracks.items():
            backing = self.actor.backing(path)
            raw = backing.read_bytes() if backing is not None and backing.is_file() else None
            content = None if raw is None else self.sealer.content(raw)
            if content not in track.allowed(time.monotonic()):
                raise Finding(f"after the end the vault has {describe(content)} in {path}")
        self.fsck()
        self.check_log()

    def fsck(self) -> None:
        """The vault is in order: whatever was damaged outside was mended outside."""
        passfile = self.mount.scratch / "passphrase"
        passfile.write_text(PASSPHRASE + "\n")
        passfile.chmod(0o600)
        words = [sys.executable, "-m", "cryptfs", "fsck", "--deep", "--passfile", str(passfile)]
        done = subprocess.run(
            [*words, str(self.mount.vault_dir)], capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            raise Finding(f"fsck --deep ends with {done.returncode}: {(done.stdout + done.stderr)[-600:]}")

    def check_log(self) -> None:
        """No traceback."""
        log = self.mount.log_path.read_text(errors="replace")
        if "Traceback" in log:
            raise Finding(f"a traceback in the daemon's log: {log[log.index('Traceback') :][:900]}")


@contextlib.contextmanager
def watched(current: Round) -> Iterator[None]:
    """A request that hangs ends with its daemon."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            if time.monotonic() - current.alive > HANG_SECONDS:
                print(f"HANGS for {HANG_SECONDS:.0f} s; its daemon is killed", flush=True)
                os.kill(current.mount.pid, signal.SIGKILL)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def keep(mount: Mounted, seed: int) -> Path:
    """A copy of vault and log, for who looks into a finding."""
    kept = Path(tempfile.mkdtemp(prefix=f"cryptfs-outside-{seed}-"))
    with contextlib.suppress(shutil.Error):  # files come and go
        shutil.copytree(mount.vault_dir, kept / "vault", symlinks=True)
    shutil.copy(mount.log_path, kept / "log")
    return kept


def run(seed: int, seconds: float, engine: str, chosen: argparse.Namespace) -> bool:
    """One round; False where it found something."""
    os.umask(0o022)
    with ext4() as ground, mounted_on(ground, MountSpec(engine)) as mount:
        if not chosen.calm:
            mount.allow_log(
                r"^(WARNING|ERROR) cryptfs\."
            )  # the actor damages files; a traceback is no such line
        current = Round(mount, seed, chosen)
        steps = 0
        try:
            with watched(current):
                current.begin()
                end = time.monotonic() + seconds
                while time.monotonic() < end:
                    steps += 1
                    current.say(current.step())
                current.check_log()
                current.finish()
        except Exception as error:
            if not isinstance(error, Finding | AssertionError | OSError):
                raise
            current.tell(str(error))
            kind = "" if isinstance(error, Finding) else f"{type(error).__name__}: "
            print(f"FOUND, seed {seed}, step {steps}, {engine}: {kind}{error}")
            print(f"the vault is kept: {keep(mount, seed)}")
            return False
        finally:
            for held in current.programs.held:
                with contextlib.suppress(OSError):
                    os.close(held.fd)
            current.sealer.close()
    print(f"seed {seed}, {engine}: {steps} steps in {seconds:.0f} s, nothing found")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """A round for each engine that was chosen."""
    parser = argparse.ArgumentParser(prog="soaklib.outside", description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CRYPTFS_CRASH_SEED", "1")))
    parser.add_argument("--seconds", type=float, default=60.0, help="of a round")
    parser.add_argument("--engine", choices=("native", "fusepy", "both"), default="both")
    parser.add_argument("--conflict", default=CONFLICT, help="what the name of a lost version matches")
    parser.add_argument("--calm", action="store_true", help="without the outside actor")
    parser.add_argument("--remount", action="store_true", help="mount anew after each outside step")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends it leaves no mount behind
    engines = ("native", "fusepy") if chosen.engine == "both" else (chosen.engine,)
    found = [run(chosen.seed, chosen.seconds, engine, chosen) for engine in engines]
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
