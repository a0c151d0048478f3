"""Random damage to a vault: what disks, sync tools, interrupted programs and attackers may leave."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from cryptfs.core.names.dirrecord import RECORD_NAME
from tests.support import everything_below

Vandalism = Callable[[random.Random, list[Path]], None]


def things(vault_dir: Path) -> list[Path]:
    """Everything below the vault directory, in an order that does not depend on the machine's."""
    return sorted(everything_below(vault_dir))


def _file(rng: random.Random, paths: list[Path]) -> Path | None:
    files = [path for path in paths if stat.S_ISREG(path.lstat().st_mode)]
    return rng.choice(files) if files else None


def flip_bytes(rng: random.Random, paths: list[Path]) -> None:
    path = _file(rng, paths)
    if path is None or not path.stat().st_size:
        return
    raw = bytearray(path.read_bytes())
    start = rng.randrange(len(raw))
    for offset in range(start, min(start + rng.choice([1, 1, 16, 300, 9000]), len(raw))):
        raw[offset] ^= rng.randrange(1, 256)
    path.write_bytes(raw)


def zero_bytes(rng: random.Random, paths: list[Path]) -> None:
    path = _file(rng, paths)
    if path is None or not path.stat().st_size:
        return
    raw = bytearray(path.read_bytes())
    start = rng.randrange(len(raw))
    length = min(rng.choice([1, 64, 4160, 100_000]), len(raw) - start)
    raw[start : start + length] = bytes(length)
    path.write_bytes(raw)


def cut(rng: random.Random, paths: list[Path]) -> None:
    path = _file(rng, paths)
    if path is not None:
        os.truncate(path, rng.randrange(path.stat().st_size + 1))


def lengthen(rng: random.Random, paths: list[Path]) -> None:
    path = _file(rng, paths)
    if path is not None:
        with path.open("ab") as file:
            file.write(rng.randbytes(rng.choice([1, 64, 5000])))


def remove(rng: random.Random, paths: list[Path]) -> None:
    path = rng.choice(paths)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_record(rng: random.Random, paths: list[Path]) -> None:
    records = [path for path in paths if path.name == RECORD_NAME]
    if records:
        rng.choice(records).unlink()


def rename(rng: random.Random, paths: list[Path]) -> None:
    path = rng.choice(paths)
    letters = "ABCabc019-_. "
    place = rng.randrange(len(path.name))
    new = path.name[:place] + rng.choice(letters) + path.name[place + rng.randrange(2) :]
    if new not in ("", ".", "..") and not (path.parent / new).exists() and len(new) < 255:
        path.rename(path.parent / new)


def move(rng: random.Random, paths: list[Path]) -> None:
    path = rng.choice(paths)
    directories = [each for each in paths if each.is_dir() and not each.is_symlink()]
    if directories:
        target = rng.choice(directories) / path.name
        if not target.exists() and path != target.parent and path not in target.parents:
            path.rename(target)


def exchange(rng: random.Random, paths: list[Path]) -> None:
    first, second = _file(rng, paths), _file(rng, paths)
    if first is not None and second is not None and first != second:
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)


def plant(rng: random.Random, paths: list[Path]) -> None:
    """Something else in the place of a thing."""
    path = rng.choice(paths)
    if path.is_dir() and not path.is_symlink():
        return
    path.unlink()
    what = rng.randrange(4)
    if what == 0:
        os.mkfifo(path)
    elif what == 1:
        path.mkdir()
    elif what == 2:
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(rng.randbytes(rng.choice([0, 64, 300, 5000])))


def copy(rng: random.Random, paths: list[Path]) -> None:
    path = _file(rng, paths)
    if path is not None:
        target = path.parent / (path.name[:200] + rng.choice([" (copy)", "x", ".bak"]))
        if not target.exists():
            shutil.copy(path, target)


def leave(rng: random.Random, paths: list[Path]) -> None:
    """What an interrupted operation may leave."""
    directories = [each for each in paths if each.is_dir() and not each.is_symlink()]
    if not directories:
        return
    where = rng.choice(directories)
    name = f"cryptfs.tmp.{rng.randrange(10**9)}"
    record = where / RECORD_NAME
    match rng.randrange(4):
        case 0:
            (where / name).mkdir()
        case 1:
            (where / name).write_bytes(rng.randbytes(64))
        case 2 if record.is_file():
            record.rename(where.parent / name)
        case _:
            (where / name).symlink_to("x" * 60)


def spoil_xattr(rng: random.Random, paths: list[Path]) -> None:
    having = [path for path in paths if not path.is_symlink() and os.listxattr(path)]
    if having:
        path = rng.choice(having)
        name = rng.choice(os.listxattr(path))
        os.setxattr(path, name, rng.randbytes(50))


VANDALISM: tuple[Vandalism, ...] = (
    *(flip_bytes, flip_bytes, zero_bytes, cut, lengthen, remove, remove_record, rename, move, exchange),
    *(plant, copy, leave, spoil_xattr),
)


def vandalise(rng: random.Random, vault_dir: Path, times: int) -> list[str]:
    """Damage the vault so many times; what was done."""
    done = []
    for _ in range(times):
        act = rng.choice(VANDALISM)
        paths = things(vault_dir)
        if not paths:
            break
        act(rng, paths)
        done.append(act.__name__)
    return done
