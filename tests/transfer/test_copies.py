"""`cryptfs export` and `import`: what they refuse, how they go on after a kill, and what damage does."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from cryptfs.transfer.copying import TreeCopy
from cryptfs.transfer.entrycopy import Copied
from cryptfs.transfer.plainside import PlainDirectory, PlainSide
from cryptfs.transfer.sides import PART_PREFIX
from cryptfs.transfer.vaultside import VaultSide
from tests.commands import Run
from tests.support import child_environment, crash_in, everything_below, pattern
from tests.transfer.conftest import PASSPHRASE
from tests.transfer.trees import make_tree, seen
from tests.vaults.make_golden import PASSPHRASE as GOLDEN_PASSPHRASE
from tests.vaults.test_golden import GOLDEN, HERE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small tree."""
    top = tmp_path / "source"
    (top / "d" / "e").mkdir(parents=True)
    for number in range(20):
        (top / "d" / f"file {number}").write_bytes(pattern(number * 3000, number))
    (top / "d" / "e" / "deep").write_text("deep")
    (top / "link").symlink_to("d")
    return top


def test_there_and_back(source: Path, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    told = run("import", source, vault_dir, "--verify")
    assert (told.code, told.err) == (0, "Imported 25 entries, 22 files read again and compared.\n")
    told = run("export", vault_dir, tmp_path / "out", "-q")
    assert (told.code, told.err, told.out) == (0, "", "")
    assert seen(tmp_path / "out") == seen(source)
    again = run("export", vault_dir, tmp_path / "out")
    assert again.err == "Exported 25 entries, 22 were there already.\n"
    assert seen(tmp_path / "out") == seen(source)


def test_everything_is_kept_without_a_mount(vault_dir: Path, tmp_path: Path, run: Run) -> None:
    make_tree(tmp_path / "tree")
    before = seen(tmp_path / "tree")
    assert run("import", tmp_path / "tree", f"{vault_dir}:a").code == 0
    assert run("export", f"{vault_dir}:a", tmp_path / "out").code == 0
    assert seen(tmp_path / "out") == before


def test_files_go_into_directories(source: Path, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    one = source / "d" / "file 3"
    assert run("import", one, vault_dir).code == 0
    assert run("import", one, f"{vault_dir}:renamed").code == 0
    assert run("import", source / "link", f"{vault_dir}:/").code == 0
    assert run("import", source / "d" / "e", f"{vault_dir}:new").code == 0
    (tmp_path / "into").mkdir()
    assert run("export", f"{vault_dir}:file 3", tmp_path / "into").code == 0
    assert run("export", f"{vault_dir}:/renamed", tmp_path / "into" / "other").code == 0
    assert run("export", f"{vault_dir}:link", tmp_path / "into").code == 0
    assert (tmp_path / "into" / "file 3").read_bytes() == one.read_bytes()
    assert (tmp_path / "into" / "other").read_bytes() == one.read_bytes()
    assert os.readlink(tmp_path / "into" / "link") == "d"
    assert run("export", f"{vault_dir}:new", tmp_path / "into").code == 0  # a directory becomes DEST
    assert (tmp_path / "into" / "deep").read_text() == "deep"


def test_nothing_is_overwritten_unless_told(source: Path, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    assert run("import", source, vault_dir).code == 0
    shutil.copytree(source, tmp_path / "out", symlinks=True)
    (tmp_path / "out" / "d" / "file 1").write_text("mine")
    (tmp_path / "out" / "link").unlink()
    (tmp_path / "out" / "link").symlink_to("elsewhere")
    (tmp_path / "out" / "d" / "file 2").unlink()
    (tmp_path / "out" / "d" / "file 2").mkdir()
    told = run("export", vault_dir, tmp_path / "out")
    assert told.code == 11
    assert sorted(told.err.splitlines()) == [
        "Exported 22 entries, 19 were there already, 3 problems.",
        "cryptfs: d/file 1: the target has another file of this name (--overwrite replaces it)",
        "cryptfs: d/file 2: the target has a directory of this name",
        "cryptfs: link: the target has another file of this name (--overwrite replaces it)",
    ]
    assert (tmp_path / "out" / "d" / "file 1").read_text() == "mine"
    (tmp_path / "out" / "d" / "file 2").rmdir()
    assert run("export", vault_dir, tmp_path / "out", "--overwrite").code == 0
    assert seen(tmp_path / "out") == seen(source)
    (source / "d" / "file 1").write_text("newer")
    (source / "link").unlink()
    (source / "link").write_text("no link any longer")
    assert run("import", source, vault_dir).code == 11
    assert run("import", source, vault_dir, "--overwrite").code == 0
    shutil.rmtree(tmp_path / "out")
    assert run("export", vault_dir, tmp_path / "out").code == 0
    assert seen(tmp_path / "out") == seen(source)


def test_verify_finds_what_only_looks_the_same(
    source: Path, vault_dir: Path, tmp_path: Path, run: Run
) -> None:
    assert run("import", source, vault_dir).code == 0
    assert run("export", vault_dir, tmp_path / "out").code == 0
    changed = tmp_path / "out" / "d" / "file 5"
    st = changed.stat()
    changed.write_bytes(bytes(st.st_size))
    os.utime(changed, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert run("export", vault_dir, tmp_path / "out").code == 0
    told = run("export", vault_dir, tmp_path / "out", "--verify")
    assert told.code == 11
    assert "cryptfs: d/file 5: the copy differs from what was copied" in told.err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["export", "{vault}:no", "{tmp}/out"], 11, "vault:no: No such file or directory"),
        (["export", "{vault}", "{tmp}/no/where"], 11, "no: No such file or directory"),
        (["export", "{vault}", "{vault}/inside"], 1, "is in the vault itself"),
        (["export", "{tmp}/nothing", "{tmp}/out"], 6, "nothing"),
        (["export", "{vault}:../x", "{tmp}/out"], 11, "vault:../x: Invalid cross-device link: it leads out"),
        (["import", "{tmp}/no", "{vault}"], 11, "no: No such file or directory"),
        (["import", "{tmp}/source", "{vault}:no/where"], 11, "vault:no/where: No such file or directory"),
        (["import", "{vault}", "{vault}:copy"], 1, "is in the vault itself"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    words: list[str], code: int, text: str, source: Path, vault_dir: Path, tmp_path: Path, run: Run
) -> None:
    told = run(*(each.format(vault=vault_dir, tmp=tmp_path) for each in words))
    assert told.code == code
    assert text in told.err
    assert not (tmp_path / "out").exists()


def test_a_vault_with_a_colon_in_its_name(source: Path, vault_dir: Path, tmp_path: Path, run: Run) -> None:
    named = vault_dir.rename(tmp_path / "my:vault")
    assert run("import", source, f"{named}:d:e", "--no-pin").code == 0
    assert run("ls", named, "--no-pin").out == "d:e\n"
    assert run("export", f"{named}:d:e", tmp_path / "out", "--no-pin").code == 0
    assert seen(tmp_path / "out") == seen(source)


def in_the_background(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cryptfs", *map(str, words)],
        env=child_environment(),
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.waits
@pytest.mark.parametrize("direction", ["import", "export"])
def test_it_goes_on_after_kill_9(
    direction: str, vault_dir: Path, tmp_path: Path, run: Run, passfile: Path
) -> None:
    """Each kill some files later; never a file that has its name and not its content."""
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(150):
        (source / str(number % 5)).mkdir(parents=True, exist_ok=True)
        (source / str(number % 5) / str(number)).write_bytes(pattern(20_000 + number * 300, number))
    (source / "large").write_bytes(pattern(30 << 20))
    if direction == "export":
        assert run("import", source, vault_dir).code == 0
    words = ["import", source, vault_dir] if direction == "import" else ["export", vault_dir, out]
    target, killed = vault_dir if direction == "import" else out, 0
    for attempt in range(4):
        process = in_the_background(*words, "--passfile", passfile)
        while process.poll() is None and sum(len(files) for *_, files in os.walk(target)) < 10 + attempt * 30:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        if direction == "export" and out.exists():
            for path in [each for each in everything_below(out) if each.is_file()]:
                if not path.name.startswith(PART_PREFIX.decode()):
                    assert path.read_bytes() == (source / path.relative_to(out)).read_bytes()
    assert killed
    told = run(*words, "--verify")
    assert told.code == 0, told.err
    if direction == "import":
        assert run("export", vault_dir, out).code == 0
    assert seen(out) == seen(source)
    assert run("fsck", "--deep", vault_dir).code == 0


@pytest.mark.waits
def test_an_ordinary_user_keeps_what_cp_keeps() -> None:
    """Owners of others go, and their set-id bits; modes that forbid their owner to read or write stay."""
    place = Path(tempfile.mkdtemp(prefix="transfer-user-"))
    source, user = place / "source", 64_001
    (source / "closed").mkdir(parents=True)
    for name, owner, mode in (
        *(("mine", user, 0o640), ("read only", user, 0o400), ("mine, set-id", user, 0o6755)),
        *(("of root", 0, 0o644), ("of root, set-id", 0, 0o4755), ("closed/file", user, 0o600)),
    ):
        (source / name).write_text(name)
        os.chown(source / name, owner, owner)
        (source / name).chmod(mode)
    os.setxattr(source / "read only", "user.colour", b"blue")
    os.chown(source / "closed", user, user)
    (source / "closed").chmod(0o500)
    os.chown(place, user, user)
    codecs.lookup("ascii")  # afterwards the interpreter's own files may be out of reach

    def work() -> None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        cryptfs.Vault.create(place / "vault", PASSPHRASE, kdf_memory=64 << 20)
        problems: list[object] = []

        def tell(*problem: object) -> None:
            problems.append(problem)

        with cryptfs.Vault.unlock(place / "vault", PASSPHRASE) as vault:
            top, root = PlainDirectory.at(str(place)), vault.tree.root
            plain, inside = PlainSide(top), VaultSide(vault, tell)
            for _ in range(2):  # the second finds everything there
                importing = TreeCopy(plain, inside, tell, Copied(), verify=True)
                importing.run(top, b"source", root, b"a", b"")
                exporting = TreeCopy(inside, plain, tell, Copied(), verify=True)
                exporting.run(root, b"a", top, b"out", b"")
        assert problems == [], problems
        subprocess.run(["cp", "-a", source, place / "cp"], check=True)

    try:
        crash_in(work)
        assert seen(place / "out") == seen(place / "cp")
        assert (place / "out" / "mine, set-id").stat().st_mode & 0o7777 == 0o6755
        assert (place / "out" / "of root, set-id").stat().st_mode & 0o7777 == 0o755
    finally:
        shutil.rmtree(place)


@pytest.mark.waits
def test_a_terminal_gets_a_bar(source: Path, vault_dir: Path, passfile: Path) -> None:
    (source / "large").write_bytes(pattern(20 << 20))
    terminal, end = pty.openpty()
    words = ["import", str(source), str(vault_dir), "--passfile", str(passfile)]
    command = [sys.executable, "-m", "cryptfs", *words]
    with subprocess.Popen(command, env=child_environment() | {"TERM": "xterm"}, stderr=end) as process:
        os.close(end)
        said = b""
        with contextlib.suppress(OSError):  # the program has ended
            while piece := os.read(terminal, 65536):
                said += piece
    os.close(terminal)
    assert process.returncode == 0
    assert re.search(rb"\d+ entries, \d+ MB", said)
    assert said.decode().endswith("Imported 26 entries.\r\n")


class CutShort(Exception):
    """In place of a kill, at a chosen moment."""


def test_what_a_kill_leaves_is_cleared(source: Path, opened: cryptfs.Vault, tmp_path: Path) -> None:
    """In the middle of a file: the part has a name of its own, and the next run takes it away."""
    problems: list[tuple[bytes, Exception]] = []
    side = VaultSide(opened, lambda *problem: problems.append(problem))
    plain = PlainSide(PlainDirectory.at(str(source.parent)))

    def copy() -> None:
        where = PlainDirectory.at(str(source.parent))
        TreeCopy(plain, side, lambda *problem: problems.append(problem), Copied()).run(
            where, b"source", opened.tree.root, b"copy", b"copy"
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VaultSide, "put_small", _put_and_raise)
        patch.setattr(VaultSide, "unlink", lambda *_: None)  # a killed process clears nothing
        with pytest.raises(CutShort):
            copy()
    left = [name for _, _, files in opened.walk() for name in files]
    assert [name.startswith(PART_PREFIX.decode()) for name in left] == [True]
    copy()
    assert problems == []
    assert sorted(name for _, _, files in opened.walk("copy") for name in files) == sorted(
        name for _, _, files in os.walk(source) for name in files
    )


@pytest.mark.parametrize("direction", ["import", "export"])
def test_a_full_disk_ends_it_at_once(
    direction: str, source: Path, vault_dir: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if direction == "export":
        assert run("import", source, vault_dir).code == 0
    side: Any = VaultSide if direction == "import" else PlainSide
    create, made = side.put_small, []

    def create_a_few(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", "cipher name")
        return create(*arguments)

    monkeypatch.setattr(side, "put_small", create_a_few)
    words = (
        ["import", source, vault_dir] if direction == "import" else ["export", vault_dir, tmp_path / "out"]
    )
    told = run(*words)
    assert told.code == 11
    place = vault_dir if direction == "import" else tmp_path / "out"
    assert told.err.startswith(f"cryptfs: {place}: its disk is full.")
    assert len(told.err.splitlines()) == 1
    monkeypatch.undo()
    assert run(*words).code == 0


_put = VaultSide.put_small


def _put_and_raise(*arguments: Any) -> None:
    _put(*arguments)
    raise CutShort


def test_damage_is_left_out_and_the_rest_goes_on(
    source: Path, vault_dir: Path, tmp_path: Path, run: Run
) -> None:
    os.setxattr(source / "d" / "file 2", "user.colour", b"blue")
    (source / "large").write_bytes(pattern(200_000))
    (source / "gone").mkdir()
    (source / "gone" / "inside").write_text("inside")
    assert run("import", source, vault_dir).code == 0
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        root = vault.tree.root
        below = vault.tree.directory(root, b"d")
        large, gone, link = (vault_dir / root.entry_name(name) for name in (b"large", b"gone", b"link"))
        file_2, file_3 = (
            vault_dir / root.entry_name(b"d") / below.entry_name(name) for name in (b"file 2", b"file 3")
        )
    raw = bytearray(large.read_bytes())
    raw[100_000] ^= 1
    large.write_bytes(raw)
    (gone / "cryptfs.dir").unlink()
    text = os.readlink(link)
    link.unlink()
    link.symlink_to(text[:-2] + "AA")
    file_3.rename(file_3.with_name("A" * len(file_3.name)))
    attribute = next(name for name in os.listxattr(file_2) if name.startswith("user.cryptfs."))
    os.setxattr(file_2, attribute, os.getxattr(file_2, attribute)[:-1] + b"x")
    told = run("export", vault_dir, tmp_path / "out", "--verify")
    assert told.code == 26
    for path in ("large", "gone", "link", "d", "d/file 2"):
        assert f"cryptfs: {path}: " in told.err
    assert "chunk 6" in told.err
    assert "5 problems" in told.err
    copied = {str(each.relative_to(tmp_path / "out")) for each in everything_below(tmp_path / "out")}
    expected = {str(each.relative_to(source)) for each in everything_below(source)}
    assert copied == expected - {"large", "gone", "gone/inside", "link", "d/file 3"}
    assert os.listxattr(tmp_path / "out" / "d" / "file 2") == []


@pytest.mark.parametrize("name", GOLDEN)
def test_a_vault_of_01(name: str, tmp_path: Path, source: Path, run: Run, passfile: Path) -> None:
    shutil.copytree(HERE / name, tmp_path / "golden", symlinks=True)
    vault = tmp_path / "golden" / "vault"
    passfile.write_bytes(GOLDEN_PASSPHRASE)
    assert run("export", vault, tmp_path / "out", "--verify").code == 0
    manifest: dict[str, Any] = json.loads((tmp_path / "golden" / "manifest.json").read_text())
    top = os.fsencode(tmp_path / "out")
    for path, about in manifest.items():
        place = Path(os.fsdecode(top + path.encode("latin-1")))
        if about["kind"] == "symlink":
            assert os.fsencode(os.readlink(place)).decode("latin-1") == about["target"]
        elif about["kind"] == "file":
            assert place.stat().st_size == about["size"]
    assert sum(len(files) + len(directories) for _, directories, files in os.walk(top)) == len(manifest)
    assert run("import", source, f"{vault}:new", "--verify").code == 0
    assert run("export", f"{vault}:new", tmp_path / "again").code == 0
    assert seen(tmp_path / "again") == seen(source)
