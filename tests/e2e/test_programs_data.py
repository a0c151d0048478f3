"""Programs that work within files: SQLite, compilers, dd, cp, fio, inotify watchers."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.mounting import Mounted
from tests.e2e.programs import require, run

MIB = 1 << 20

_WRITER = """
import sqlite3, sys
path, who, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
database = sqlite3.connect(path, timeout=120)
for number in range(count):
    with database:
        database.execute('insert into entries values (?, ?, ?)', (who, number, 'x' * (number * 37 % 5000)))
        if number % 7 == 0:
            database.execute('delete from entries where who = ? and number = ?', (who, number // 2))
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "wal"])
def test_sqlite_with_several_writers(own_mount: Mounted, journal: str) -> None:
    path = own_mount.mountpoint / "data.sqlite"
    with sqlite3.connect(path) as database:
        assert database.execute(f"pragma journal_mode = {journal}").fetchone() == (journal,)
        database.execute("create table entries (who integer, number integer, text text)")
        database.execute("create index by_who on entries (who, number)")
    database.close()
    count = 60
    children = [subprocess.Popen([sys.executable, "-c", _WRITER, path, str(n), str(count)]) for n in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]

    def look() -> list[tuple[int, int]]:
        database = sqlite3.connect(path)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = database.execute("select who, count(*) from entries group by who order by who").fetchall()
        database.close()
        return rows

    rows = look()
    assert len(rows) == 3
    assert len({number for _, number in rows}) == 1
    own_mount.remount()
    assert look() == rows
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("vacuum")
    database.close()
    assert look() == rows


def test_gcc_and_make(on_mount: Path) -> None:
    require("gcc", "make")
    modules = [f"module{number}" for number in range(12)]
    for number, name in enumerate(modules):
        (on_mount / f"{name}.c").write_text(
            f'#include "all.h"\nint {name}(int x) {{ return x + {number}; }}\n'
        )
    (on_mount / "all.h").write_text("".join(f"int {name}(int);\n" for name in modules))
    calls = " + ".join(f"{name}({number})" for number, name in enumerate(modules))
    (on_mount / "main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    objects = " ".join(f"{name}.o" for name in [*modules, "main"])
    (on_mount / "Makefile").write_text(
        f"program: libmodules.a main.o\n\tgcc -g -o $@ main.o libmodules.a\n"
        f"libmodules.a: {objects.replace(' main.o', '')}\n\tar rcs $@ $^\n"
        f"%.o: %.c all.h\n\tgcc -g -O1 -c -o $@ $<\n"
    )
    run("make", "-j2", cwd=on_mount)
    assert run("./program", cwd=on_mount) == f"{sum(2 * n for n in range(12))}\n"
    assert "up to date" in run("make", cwd=on_mount)
    (on_mount / "module3.c").write_text('#include "all.h"\nint module3(int x) { return x + 1003; }\n')
    run("make", cwd=on_mount)
    assert run("./program", cwd=on_mount) == f"{sum(2 * n for n in range(12)) + 1000}\n"


def test_cp_sparse_and_reflink(on_mount: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        for offset in (0, 10 * MIB, 40 * MIB):
            file.seek(offset)
            file.write(os.urandom(100_000))
        file.truncate(64 * MIB)
    for option in ("--sparse=always", "--sparse=auto", "--sparse=never", "--reflink=auto"):
        run("cp", option, source, on_mount / "in")
        run("cmp", source, on_mount / "in")
        run("cp", option, on_mount / "in", on_mount / "within")
        run("cmp", source, on_mount / "within")
        run("cp", option, on_mount / "within", tmp_path / "out")
        run("cmp", source, tmp_path / "out")
        if option == "--sparse=always":
            assert (on_mount / "within").stat().st_blocks * 512 < 20 * MIB
    refused = subprocess.run(
        ["cp", "--reflink=always", on_mount / "in", on_mount / "clone"], capture_output=True, check=False
    )
    assert refused.returncode != 0


@pytest.mark.parametrize(
    "options",
    [
        ("bs=4k", "conv=fsync"),
        ("bs=1M", "conv=fdatasync"),
        ("bs=64k", "oflag=direct"),
        ("bs=10007", "oflag=append", "conv=notrunc"),
        ("bs=4k", "oflag=sync", "count=64"),
        ("bs=33k", "conv=sparse"),
    ],
    ids=lambda options: " ".join(options),
)
def test_dd(on_mount: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(MIB) + os.urandom(3 * MIB))
    for directory in (on_mount, tmp_path):
        (directory / "target").write_bytes(b"" if "oflag=append" not in options else b"before")
        run("dd", f"if={source}", f"of={directory / 'target'}", "status=none", *options)
    run("cmp", on_mount / "target", tmp_path / "target")
    run("dd", f"if={on_mount / 'target'}", f"of={tmp_path / 'back'}", "bs=64k", "iflag=direct", "status=none")
    run("cmp", tmp_path / "back", tmp_path / "target")


@pytest.mark.parametrize("direct", [0, 1])
@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio_verifies(on_mount: Path, direct: int, engine: str) -> None:
    require("fio")
    if direct and engine == "mmap":
        pytest.skip("fio maps without O_DIRECT only")
    run(
        "fio",
        "--name=verify",
        f"--directory={on_mount}",
        "--size=32M",
        "--rw=randrw",
        "--bsrange=512-64k" if not direct else "--bsrange=4k-64k",
        "--bs_unaligned" if not direct else "--blockalign=4k",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_backlog=256",
        "--numjobs=2",
        f"--ioengine={engine}",
        f"--direct={direct}",
        "--randseed=7",
        "--allrandrepeat=1",
        "--fallocate=none",
        cwd=on_mount,
    )


def test_inotify_watcher(on_mount: Path) -> None:
    require("inotifywait")
    watcher = subprocess.Popen(
        ["inotifywait", "-m", "-r", "--format", "%e %f", on_mount],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watcher.stdout is not None and watcher.stderr is not None
        while "established" not in watcher.stderr.readline():
            pass
        (on_mount / "file").write_text("content")
        os.rename(on_mount / "file", on_mount / "renamed")
        os.unlink(on_mount / "renamed")
        events: list[str] = []
        while not events or events[-1] != "DELETE renamed":
            events.append(watcher.stdout.readline().strip())
        for wanted in (
            "CREATE file",
            "MODIFY file",
            "CLOSE_WRITE,CLOSE file",
            "MOVED_FROM file",
            "MOVED_TO renamed",
        ):
            assert wanted in events
    finally:
        watcher.terminate()
        watcher.communicate()


def test_a_log_that_is_followed(on_mount: Path) -> None:
    path = on_mount / "log"
    path.touch()
    command = ["tail", "-n", "+1", "-s", "0.1", "-f", str(path)]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert follower.stdout is not None
        dice = random.Random(3)
        for number in range(30):
            line = f"{number} {'x' * dice.randrange(3000)}\n"
            with path.open("a") as file:
                file.write(line)
            assert follower.stdout.readline() == line
    finally:
        follower.terminate()
        follower.communicate()
