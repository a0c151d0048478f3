"""Rounds of killing: programs run on a mount, the daemon dies, and what is left is compared."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from cryptfs.vfs.content.redo import DEFAULT_DURABILITY, Durability
from tests.crash import expectations
from tests.crash.history import Damaged, Folder, Found, Link, Rules
from tests.crash.program import Program, Promise, replayed
from tests.e2e.mounting import PASSPHRASE, PROJECT, Mounted

QUIET = {f"quiet {number}": random.Random(number).randbytes(number * 7000) for number in range(5)}
WRITER_SECONDS = 60.0
KNOWN_LINES = ("was interrupted", "bytes at its end", "did not end with an unmount", "ignored and removed")
KEEP = Path(os.environ.get("CRYPTFS_CRASH_KEEP", "/tmp/cryptfs-findings"))


@dataclass(frozen=True)
class Ran:
    """A program as its log tells of it: operations that returned, and those that had been asked for."""

    directory: Path
    seed: int
    file_size: int
    done: int
    asked: int
    failure: str


@dataclass
class Killing:
    """A mount that is killed again and again.

    Args: seed: of all rounds.   processes, threads: who writes at once.   file_sizes: about, of each, bytes.
    """

    mount: Mounted
    seed: int
    processes: int = 2
    threads: int = 2
    file_sizes: tuple[int, ...] = (1 << 20, 120 << 10, 120 << 10, 30 << 10)
    check_every: int = 5
    """Rounds between two runs of fsck, for which the vault is unmounted."""
    operations: int = 0
    """Operations that returned, in all rounds."""

    @property
    def writeback(self) -> bool:
        """Whether the kernel keeps writes for a while."""
        return "nowriteback" not in self.mount.spec.options

    @property
    def promise(self) -> Promise:
        """What a program may rely on, on this mount."""
        return Promise.FLUSHED if self.writeback else Promise.DONE

    @property
    def rules(self) -> Rules:
        """What may be found, on this mount."""
        named = re.search("durability=([a-z]+)", self.mount.spec.options)
        durability = Durability(named[1]) if named else DEFAULT_DURABILITY
        return expectations.after_a_kill(self.mount.spec.chunk_size, durability, writeback=self.writeback)

    def prepare(self) -> None:
        """Files that nobody touches again."""
        for name, content in QUIET.items():
            with (self.mount.mountpoint / name).open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())

    def round(self, number: int) -> list[str]:
        """Run, kill, mount, compare; returns what is wrong. The vault as the kill left it is kept then."""
        dice = random.Random(f"{self.seed} {number}")
        base = self.mount.mountpoint / f"round {number}"
        base.mkdir()
        logs = self.mount.scratch / f"logs {number}"
        logs.mkdir()
        ran, killed_at = self._run_and_kill(base, logs, dice)
        copy = self.mount.scratch / "as the kill left it"
        shutil.copytree(self.mount.vault_dir, copy, symlinks=True)
        self._mount_again(dice)
        found = []
        for program in ran:
            if program.failure and int(program.failure.split()[-1]) < killed_at:
                found.append(f"seed {program.seed}: failed before the kill: {program.failure}")
            found += [f"{program.directory.name}: {line}" for line in self._compare(program)]
        found += self._look_around(base, number)
        if found:
            found.append(self._keep(copy, logs, ran, number))
        shutil.rmtree(copy)
        shutil.rmtree(logs)
        return found

    # ---- running

    def _run_and_kill(self, base: Path, logs: Path, dice: random.Random) -> tuple[list[Ran], int]:
        orders: list[list[dict[str, object]]] = [[] for _ in range(self.processes)]
        for number in range(self.processes * self.threads):
            directory = base / f"program {number}"
            directory.mkdir()
            order: dict[str, object] = {
                "directory": str(directory),
                "seed": dice.getrandbits(40),
                "log": str(logs / str(number)),
                "promise": self.promise.name,
                "file_size": self.file_sizes[number % len(self.file_sizes)],
            }
            orders[number % self.processes].append(order)
        writers = [self._start(order) for order in orders]
        try:
            self._wait_for_work(logs)
            time.sleep(dice.choice((dice.uniform(0, 0.05), dice.uniform(0.05, 0.5))))
        finally:
            killed_at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self.mount.kill()
            for writer in writers:
                _, said = writer.communicate(timeout=WRITER_SECONDS)
                assert writer.returncode == 0, said.decode()
        ran = [_read_log(what, killed_at) for order in orders for what in order]
        self.operations += sum(program.done for program in ran)
        return ran, killed_at

    @staticmethod
    def _start(order: list[dict[str, object]]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.crash.writer", json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
        )

    def _wait_for_work(self, logs: Path) -> None:
        """Until every program has begun."""
        deadline = time.monotonic() + 10
        while len(os.listdir(logs)) < self.processes * self.threads and time.monotonic() < deadline:
            time.sleep(0.01)

    def _mount_again(self, dice: random.Random) -> None:
        """Mount; now and then the daemon dies while it does, and another one has to go on."""
        if dice.random() < 0.25:
            self.mount.start_and_kill(dice.uniform(0.15, 0.5))
        self.mount.start()

    # ---- comparing

    def _compare(self, ran: Ran) -> list[str]:
        program = Program(ran.seed, self.promise, ran.file_size)
        replayed(program, ran.done, ran.asked)
        found = look(os.fsencode(ran.directory), self.mount.spec.chunk_size)
        return program.names.findings(found, self.rules)

    def _look_around(self, base: Path, number: int) -> list[str]:
        found = []
        for name, content in QUIET.items():
            if (self.mount.mountpoint / name).read_bytes() != content:
                found.append(f"{name} has changed, and nobody wrote to it")
        found += self._log_findings()
        if number % self.check_every == 0:
            found += self._check()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(base)
        names = sorted(os.listdir(self.mount.mountpoint))
        if names != sorted(QUIET):
            found.append(f"rm -r leaves {names}")
        afterwards = self.mount.mountpoint / "afterwards"
        afterwards.write_bytes(b"works")
        if afterwards.read_bytes() != b"works":
            found.append("a new file does not hold what was written")
        afterwards.unlink()
        return found

    def _log_findings(self) -> list[str]:
        """Lines of the daemons' logs that nothing explains."""
        lines = self.mount.new_log_lines()
        lines = [line for line in lines if not any(known in line for known in KNOWN_LINES)]
        if self.rules.in_place_tears:
            lines = [line for line in lines if not line.startswith("ERROR cryptfs.mount.errno_map")]
        return [f"log: {line}" for line in lines]

    def _check(self) -> list[str]:
        """What fsck says of the vault; it is unmounted for that."""
        self.mount.unmount()
        try:
            checked = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "cryptfs",
                    "fsck",
                    "--passfile",
                    "/dev/stdin",
                    str(self.mount.vault_dir),
                ],
                input=PASSPHRASE.encode(),
                capture_output=True,
                cwd=PROJECT,
                check=False,
            )
        finally:
            self.mount.start()
        if checked.returncode == 0 or self.rules.in_place_tears:
            return []
        return [f"fsck: {line}" for line in (checked.stdout + checked.stderr).decode().splitlines()[-5:]]

    def _keep(self, copy: Path, logs: Path, ran: list[Ran], number: int) -> str:
        KEEP.mkdir(exist_ok=True)
        place = KEEP / f"kill-{self.seed}-{number}-{time.time_ns()}"
        shutil.copytree(copy, place / "vault", symlinks=True)
        shutil.copytree(logs, place / "logs")
        lines = []
        for program in ran:
            work = Program(program.seed, self.promise, program.file_size)
            lines.append(f"{program}")
            lines += [f"  {op}" for op in replayed(work, program.done, program.asked)[-40:]]
        (place / "programs").write_text("\n".join(lines) + "\n")
        return f"seed {self.seed}, round {number}, mount {self.mount.spec}; vault and logs kept in {place}"


def _read_log(order: dict[str, object], killed_at: int) -> Ran:
    """What a program did. What returned after the kill counts as asked for only: a kernel that lost its
    filesystem drops what it held back, and lets close(2) succeed."""
    path = Path(str(order["log"]))
    lines = path.read_text().splitlines() if path.exists() else []
    done = sum(1 for line in lines if line.startswith("done") and int(line.split()[-1]) < killed_at)
    asked = sum(1 for line in lines if line.startswith("asked"))
    failure = lines[-1] if lines and lines[-1].startswith("failed") else ""
    seed, file_size = int(str(order["seed"])), int(str(order["file_size"]))
    return Ran(Path(str(order["directory"])), seed, file_size, done, asked, failure)


def _folder(path: bytes) -> Folder | Damaged:
    try:
        assert os.listdir(path) == []
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return Damaged()
    return Folder()


def look(directory: bytes, chunk_size: int) -> dict[bytes, Found]:
    """Everything in a directory."""
    found: dict[bytes, Found] = {}
    for name in os.listdir(directory):
        path = directory + b"/" + name
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            found[name] = Link(os.readlink(path))
        elif stat.S_ISDIR(mode):
            found[name] = _folder(path)
        else:
            found[name] = chunks_of_file(path, chunk_size)
    return found


def chunks_of_file(path: bytes, chunk_size: int) -> list[bytes | None]:
    """The chunks of a file; None for one that says EIO."""
    chunks: list[bytes | None] = []
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        assert error.errno == errno.EIO, error
        return [None]
    try:
        with contextlib.suppress(OSError):
            os.pread(fd, 1, 0)  # the length may be settled by the first read
        size = os.fstat(fd).st_size
        for start in range(0, size, chunk_size):
            try:
                chunk = os.pread(fd, min(chunk_size, size - start), start)
            except OSError as error:
                assert error.errno == errno.EIO, error
                chunks.append(None)
            else:
                assert len(chunk) == min(chunk_size, size - start), "stat and read disagree on the length"
                chunks.append(chunk)
    finally:
        os.close(fd)
    return chunks
