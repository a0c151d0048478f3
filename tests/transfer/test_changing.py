"""`cryptfs rm`, `cp`, `mv`, `mkdir` and `path`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cryptfs
from tests.commands import Run
from tests.support import child_environment, everything_below, pattern
from tests.transfer.conftest import PASSPHRASE
from tests.transfer.trees import make_tree, seen
from tests.vaults.make_golden import PASSPHRASE as GOLDEN_PASSPHRASE
from tests.vaults.test_golden import GOLDEN, HERE


@pytest.fixture
def vault(vault_dir: Path) -> Path:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as opened:
        opened.makedirs("a/b")
        opened.mkdir("n" * 200)
        for path in ("a/one", "a/two", "a/b/three", "top", "n" * 200 + "/" + "m" * 255):
            with opened.open(path, "w") as file:
                file.write(path)
        opened.symlink("a", "link")
    return vault_dir


def names(vault: Path) -> list[str]:
    with cryptfs.Vault.unlock(vault, PASSPHRASE, read_only=True) as opened:
        return sorted(
            os.path.join(top, name)
            for top, directories, files in opened.walk()
            for name in directories + files
        )


LONG = "n" * 200
ALL = ["a", "a/b", "a/b/three", "a/one", "a/two", "link", LONG, f"{LONG}/{'m' * 255}", "top"]


def test_mkdir(vault: Path, run: Run) -> None:
    assert run("mkdir", vault, "new", "a/b/c").code == 0
    assert run("mkdir", vault, "-p", "new/x/y", "a").code == 0
    assert names(vault) == sorted([*ALL, "new", "a/b/c", "new/x", "new/x/y"])
    told = run("mkdir", vault, "a", "no/where")
    assert (told.code, told.err) == (
        11, "cryptfs: a: File exists\ncryptfs: no/where: No such file or directory\n"
    )  # fmt: skip


def test_mv(vault: Path, run: Run) -> None:
    assert run("mv", vault, "top", "renamed").code == 0
    assert run("mv", vault, "a/*", LONG).code == 0
    assert names(vault) == sorted(
        ["a", "link", "renamed", LONG]
        + [f"{LONG}/{each}" for each in ("b", "b/three", "one", "two", "m" * 255)]
    )
    told = run("mv", vault, "renamed", f"{LONG}/one")
    assert (told.code, told.err) == (
        11, f"cryptfs: renamed: {LONG}/one exists (--overwrite replaces it)\n"
    )  # fmt: skip
    assert run("mv", vault, "--overwrite", "renamed", f"{LONG}/one").code == 0
    with (
        cryptfs.Vault.unlock(vault, PASSPHRASE, read_only=True) as opened,
        opened.open(f"{LONG}/one") as file,
    ):
        assert file.read() == "top"
    assert run("mv", vault, "no", "x").code == 11
    assert run("mv", vault, f"{LONG}/one", f"{LONG}/two", "x").code == 1
    told = run("mv", vault, LONG, f"{LONG}/inside")
    assert (told.code, told.err) == (11, f"cryptfs: {LONG}: a directory cannot be moved into itself\n")
    assert run("mv", vault, "one").code == 1


def test_cp(vault: Path, tmp_path: Path, run: Run) -> None:
    assert run("cp", vault, "top", "copy").code == 0
    assert run("cp", vault, "-r", "a", "top", LONG).code == 0
    assert run("cp", vault, "-r", "a", "whole").code == 0
    copied = ["copy", "whole", *(f"whole/{each}" for each in ("b", "b/three", "one", "two"))]
    copied += [f"{LONG}/{each}" for each in ("a", "a/b", "a/b/three", "a/one", "a/two", "top")]
    assert names(vault) == sorted(ALL + copied)
    for words, text in (
        (["a", "x"], "a: it is a directory; to copy it, give -r"),
        (["-r", "a", "a/b"], "a: a directory cannot be copied into itself"),
        (["-r", "a", "a"], "a: a directory cannot be copied into itself"),
        (["-r", "/", "a"], "/: a directory cannot be copied into itself"),
        (["top", "top"], "top: it cannot be copied to itself"),
        (["a/one", "top"], "a/one: the target has another file of this name (--overwrite replaces it)"),
    ):
        told = run("cp", vault, *words)
        assert (told.code, told.err) == (11, f"cryptfs: {text}\n")
    assert run("cp", vault, "--overwrite", "a/one", "top").code == 0
    assert names(vault) == sorted(ALL + copied)


def test_a_copy_has_all_that_belongs_to_it(vault_dir: Path, tmp_path: Path, run: Run) -> None:
    make_tree(tmp_path / "tree")
    assert run("import", tmp_path / "tree", f"{vault_dir}:a").code == 0
    assert run("cp", vault_dir, "-r", "a", "b").code == 0
    assert run("rm", vault_dir, "-r", "a").code == 0
    assert run("export", f"{vault_dir}:b", tmp_path / "out").code == 0
    assert seen(tmp_path / "out") == seen(tmp_path / "tree")
    assert run("fsck", "--deep", vault_dir).code == 0


def test_rm(vault: Path, run: Run) -> None:
    told = run("rm", vault, "top", "no", "a", "/", "link")
    assert told.code == 11
    assert told.err.splitlines() == [
        "cryptfs: no: No such file or directory",
        "cryptfs: a: Is a directory",
        "cryptfs: /: the root of a vault cannot be removed",
    ]
    assert names(vault) == [each for each in ALL if each not in ("top", "link")]
    assert run("rm", vault, "-f", "no").code == 0
    assert run("rm", vault, "-r", "*").code == 0
    assert names(vault) == []
    assert [each for each in os.listdir(vault) if not each.startswith("cryptfs.")] == []
    assert run("rm", vault).code == 1


@pytest.fixture
def damaged(vault: Path) -> dict[str, str]:
    """Cipher paths by what is damaged there."""
    with cryptfs.Vault.unlock(vault, PASSPHRASE) as opened:
        root = opened.tree.root
        a = opened.tree.directory(root, b"a")
        in_a = f"{root.entry_name(b'a')}/"
        long = root.entry_name(LONG.encode())
        top, name, record = root.entry_name(b"top"), in_a + a.entry_name(b"one"), in_a + a.entry_name(b"b")
    (vault / top).write_bytes(b"x" * 300)
    forged = in_a + "B" * len(a.entry_name(b"one"))
    (vault / name).rename(vault / forged)
    (vault / record / "cryptfs.dir").write_bytes(b"nonsense")
    (vault / f"{long}.name").write_bytes(b"nonsense")
    return {"content": top, "name": forged, "record": record, "sidecar": long}


def test_damage_goes(vault: Path, damaged: dict[str, str], run: Run) -> None:
    assert run("ls", vault, "-R").code == 26
    assert run("rm", vault, "top").code == 0
    told = run("rm", vault, "--cipher", damaged["record"])
    assert (told.code, told.err) == (11, "cryptfs: a/b: Is a directory\n")
    assert run("rm", vault, "--cipher", damaged["name"]).code == 0
    assert run("rm", vault, "-r", "--cipher", vault / damaged["sidecar"]).code == 0
    assert run("rm", vault, "-r", "--damaged", "--cipher", damaged["record"]).code == 0
    assert run("ls", vault, "-R").code == 0
    assert names(vault) == ["a", "a/two", "link"]
    assert run("fsck", "--deep", vault).code == 0
    assert not list(vault.glob("cryptfs.long.*"))


def test_damage_in_a_directory_goes_only_if_asked(vault: Path, damaged: dict[str, str], run: Run) -> None:
    told = run("rm", vault, "-r", "a")
    assert told.code == 26
    assert f"(in the vault: {damaged['name']})" in told.err
    assert f"(in the vault: {damaged['record']})" in told.err
    assert "cryptfs: a: Directory not empty" in told.err
    assert (vault / damaged["name"]).exists()
    assert run("rm", vault, "-r", "--damaged", "a").code == 0
    assert names(vault) == ["link", "top"]


@pytest.mark.parametrize(
    "cipher", ["cryptfs.json", "cryptfs.lock", "..", "../passfile", "{a}/cryptfs.dir", "no"]
)
def test_files_of_the_vault_itself_stay(cipher: str, vault: Path, run: Run) -> None:
    with cryptfs.Vault.unlock(vault, PASSPHRASE) as opened:
        cipher = cipher.format(a=opened.tree.root.entry_name(b"a"))
    before = sorted(each for each in everything_below(vault))
    told = run("rm", vault, "-r", "--damaged", "--cipher", cipher)
    assert told.code == 11
    assert sorted(each for each in everything_below(vault)) == before
    assert (vault.parent / "passfile").exists()


def test_path_and_back(vault: Path, run: Run) -> None:
    plain = ["a", "a/b/three", LONG, f"{LONG}/{'m' * 255}", "link", "top"]
    told = run("path", vault, *plain)
    assert told.code == 0
    ciphers = told.out.splitlines()
    for cipher, path in zip(ciphers, plain, strict=True):
        assert (vault / cipher).is_symlink() or (vault / cipher).exists()
        assert (vault / cipher).is_dir() == (path in ("a", LONG))
    assert run("path", vault, "--plain", *ciphers).out.splitlines() == plain
    absolute = [vault / each for each in ciphers]
    assert run("path", vault, "--plain", *absolute).out.splitlines() == plain
    assert run("path", vault, "/").out == ".\n"
    found = json.loads(run("path", vault, "--json", "top", "no").out)
    assert found["entries"] == [{"path": "top", "cipher_path": ciphers[-1].removeprefix("./")}]
    assert found["problems"] == [{"path": "no", "reason": "No such file or directory"}]
    for wrong in ("cryptfs.json", "no", ciphers[0] + "/cryptfs.dir"):
        assert run("path", vault, "--plain", wrong).code == 11
    assert run("path", vault, "--plain", "A" * len(ciphers[0])).code == 11  # there is none
    (vault / ciphers[-1]).rename(vault / ("A" * len(ciphers[-1])))
    assert run("path", vault, "--plain", "A" * len(ciphers[-1])).code == 26


def test_no_cipher_path_looks_like_an_option(vault_dir: Path, run: Run) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as opened:
        numbers = (
            number for number in range(10_000) if opened.tree.root.entry_name(b"%d" % number)[0] == "-"
        )
        name = str(next(numbers))
        opened.open(name, "w").close()
    told = run("path", vault_dir, name)
    assert told.out.startswith("./-")
    assert run("path", vault_dir, "--plain", told.out.rstrip("\n")).out == f"{name}\n"
    assert run("rm", vault_dir, "--cipher", told.out.rstrip("\n").removeprefix("./")).code == 0
    assert names(vault_dir) == []


@pytest.mark.waits
@pytest.mark.parametrize(("options", "end"), [([], b"\n"), (["-0"], b"\0")])
def test_a_stream_of_paths_is_answered_as_it_comes(
    options: list[str], end: bytes, vault: Path, passfile: Path, run: Run
) -> None:
    """A program asks, reads the answer, and asks again; while the vault is in use."""
    expected = run("path", vault, "a/one", "top").out.encode().splitlines()
    with cryptfs.Vault.unlock(vault, PASSPHRASE):
        command = [
            sys.executable,
            "-u",
            "-m",
            "cryptfs",
            "path",
            str(vault),
            "--passfile",
            str(passfile),
            *options,
        ]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for path, answer in zip((b"a/one", b"top"), expected, strict=True):
                process.stdin.write(path + end)
                assert process.stdout.read(len(answer) + 1) == answer + end
            process.stdin.close()
            assert process.wait() == 0


def test_a_vault_in_use_is_refused(vault: Path, run: Run) -> None:
    with cryptfs.Vault.unlock(vault, PASSPHRASE, read_only=True):
        for words in (
            ["rm", vault, "top"],
            ["mkdir", vault, "x"],
            ["mv", vault, "a", "b"],
            ["cp", vault, "top", "x"],
        ):
            assert run(*words).code == 40
    assert names(vault) == ALL


def test_removing_leaves_nothing(vault_dir: Path, run: Run) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as opened:
        with opened.open("large", "wb") as file:
            file.write(pattern(100_000))
        opened.symlink("x" * 3900, "long target")
    assert run("rm", vault_dir, "large", "long target").code == 0
    assert [each for each in os.listdir(vault_dir) if not each.startswith("cryptfs.")] == []
    assert os.listdir(vault_dir / "cryptfs.links") == []


@pytest.mark.parametrize("name", GOLDEN)
def test_a_vault_of_01(name: str, tmp_path: Path, run: Run, passfile: Path) -> None:
    shutil.copytree(HERE / name, tmp_path / "golden", symlinks=True)
    vault = tmp_path / "golden" / "vault"
    passfile.write_bytes(GOLDEN_PASSPHRASE)
    long = "d" * 200
    assert run("mkdir", vault, "new").code == 0
    assert run("cp", vault, "-r", long, "sparse", "link", "new").code == 0
    assert run("mv", vault, "n" * 255, "L" * 255, "empty directory", "new").code == 0
    assert run("path", vault, f"new/{long}/deeper/leaf").code == 0
    assert run("rm", vault, "-r", long, "sparse").code == 0
    assert run("fsck", "--deep", vault).code == 0
    found = run("find", vault, "new").out.splitlines()
    expected = ["", "L" * 255, "empty directory", "link", "n" * 255, "sparse"]
    expected += [
        long,
        *(f"{long}/{each}" for each in ("deeper", "deeper/leaf", "i" * 255, "inside", "moved link")),
    ]
    assert found == sorted(f"new/{each}".rstrip("/") for each in expected)
    assert run("cat", vault, f"new/{long}/deeper/leaf").out == "leaf"
