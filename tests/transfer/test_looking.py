"""`cryptfs ls`, `tree`, `find` and `cat`, beside bash, ls and find on the same tree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import cryptfs
from tests.commands import Run, runner
from tests.support import pattern
from tests.transfer.conftest import PASSPHRASE
from tests.vaults.make_golden import PASSPHRASE as GOLDEN_PASSPHRASE
from tests.vaults.test_golden import GOLDEN, HERE

DIRECTORIES = ("a/b/c", ".hidden/inside", "d", "a/.h/deep", "with space", "a/[x]")
FILES = (
    "a/one.txt",
    "a/two.txt",
    "a/b/three.md",
    "a/b/c/four.txt",
    ".hidden/five",
    "z",
    "Z.TXT",
    "a/[x]/y",
    "a*b",
    "é",
)
LINKS = (("a", "to-a"), ("nowhere", "dangling"), ("../d", "a/to-d"))


class Captured:
    """What a command wrote, as Python keeps bytes that are no text."""

    def __init__(self, capture: pytest.CaptureFixture[bytes]) -> None:
        self._capture = capture

    def readouterr(self) -> SimpleNamespace:
        said = self._capture.readouterr()
        return SimpleNamespace(out=os.fsdecode(said.out), err=os.fsdecode(said.err))


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Run:
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_bytes(PASSPHRASE)
    plain = runner(Captured(capsysbinary))  # type: ignore[arg-type]
    return lambda *args: plain(*args, "--passfile", passfile)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """The same tree as in the vault."""
    top = tmp_path / "plain"
    top.mkdir()
    for each in DIRECTORIES:
        (top / each).mkdir(parents=True)
    for number, each in enumerate(FILES):
        (top / each).write_bytes(pattern(number * 10))
    for target, link in LINKS:
        (top / link).symlink_to(target)
    return top


@pytest.fixture
def vault(vault_dir: Path, plain: Path) -> Path:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as opened:
        for each in DIRECTORIES:
            opened.makedirs(each)
        for each in FILES:
            with opened.open(each, "wb") as file:
                file.write((plain / each).read_bytes())
        for target, link in LINKS:
            opened.symlink(target, link)
        for top, directories, files in os.walk(plain):
            for name in (*directories, *files):
                path = Path(top, name)
                st = path.lstat()
                inside = str(path.relative_to(plain))
                opened.utime(inside, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)
    return vault_dir


def shell(command: str, cwd: Path) -> str:
    words = ["bash", "-O", "globstar", "-c", command]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, check=True)
    return os.fsdecode(done.stdout)


@pytest.mark.parametrize(
    "expression",
    ["*", "a/*", "**", "**/*.txt", "a/**", "a/**/c", "*/", ".*", ".h*/*", "?", "[a-d]", "[!a-d]", "[^a]*",
     "a/[[]x]/*", r"a\*b", "a/*/", "to-a/*", "a/*/c/*", "*/*/*", "nothing*", "a/one.txt", "*.TXT", "é", "?*",
     "**/to-*", r"a/\[x]"],
)  # fmt: skip
def test_wildcards_are_those_of_bash(expression: str, vault: Path, plain: Path) -> None:
    expected = shell(f"shopt -u dotglob; printf '%s\\0' {expression}", plain).split("\0")[:-1]
    if expression.startswith("."):
        expected = [each for each in expected if each not in (".", "..")]
    with cryptfs.Vault.unlock(vault, PASSPHRASE, read_only=True) as opened:
        from cryptfs.transfer.walking import expanded

        found = expanded(opened.tree, opened.places, os.fsencode(expression), lambda *_: None)
    seen = [os.fsdecode(each) for each in found]
    literal = expression.replace("\\", "") if seen == [expression] else None
    assert sorted(each.rstrip("/") for each in ([literal] if literal else seen) if each) == sorted(
        each.rstrip("/") for each in expected
    )


@pytest.mark.parametrize("options", [[], ["-a"], ["-R"], ["-R", "-a"], ["-d"]])
@pytest.mark.parametrize("paths", [[], ["a"], ["a/one.txt"], ["a", "d", "z"], ["to-a"]])
def test_ls_lists_as_ls_does(
    options: list[str], paths: list[str], vault: Path, plain: Path, run: Run
) -> None:
    if options == ["-d"] and not paths:
        paths = ["a"]
    gnu = ["-A" if each == "-a" else each for each in options]
    follow = [] if "-d" in options else ["-H"]
    expected = shell(" ".join(["ls", "-1", *gnu, *follow, *paths]), plain)
    told = run("ls", vault, *options, *paths)
    assert (told.code, told.err) == (0, "")
    if "-R" in options and not paths:
        expected = expected.replace(".:", "/:", 1).replace("./", "")
    assert told.out.strip("\n") == expected.strip("\n")


def test_long_lines_are_those_of_ls(vault: Path, plain: Path, run: Run) -> None:
    expected = shell("ls -lA --time-style=long-iso", plain).splitlines()[1:]
    seen = run("ls", "-la", vault).out.splitlines()
    assert len(seen) == len(expected)
    for ours, gnu in zip(seen, expected, strict=True):
        mine, theirs = ours.split(), gnu.split()
        if ours.startswith("d"):
            mine[4] = theirs[4] = ""
        assert mine == theirs


@pytest.mark.parametrize(
    ("options", "gnu"),
    [
        ([], ""),
        (["--name", "*.txt"], "-name '*.txt'"),
        (["--iname", "z*", "--name", "five"], r"\( -iname 'z*' -o -name five \)"),
        (["--type", "d"], "-type d"),
        (["--type", "l"], "-type l"),
        (["--type", "f", "--level", "1"], "-type f -maxdepth 1"),
        (["--larger", "20"], "-type f -size +20c"),
        (["--smaller", "20"], "-type f -size -20c"),
    ],
)
def test_find_finds_what_find_does(options: list[str], gnu: str, vault: Path, plain: Path, run: Run) -> None:
    expected = shell(f"find . {gnu}", plain).splitlines()
    told = run("find", vault, *options)
    assert told.code == 0
    assert sorted(told.out.splitlines()) == sorted(
        each.removeprefix("./").replace(".", "/", each == ".") for each in expected
    )
    raw = run("find", vault, "-0", *options).out.split("\0")
    assert [*told.out.splitlines(), ""] == raw


def test_tree(vault: Path, run: Run) -> None:
    assert run("tree", vault, "-a", "a").out == (
        "a\n├── .h\n│   └── deep\n├── [x]\n│   └── y\n"
        "├── b\n│   ├── c\n│   │   └── four.txt\n│   └── three.md\n"
        "├── one.txt\n├── to-d -> ../d\n└── two.txt\n\n5 directories, 6 other entries\n"
    )
    assert run("tree", vault, "-d", "-L", "1").out == "/\n├── a\n├── d\n└── with space\n\n3 directories\n"
    found = json.loads(run("tree", vault, "a/b", "--json").out)
    assert [each["path"] for each in found["entries"]] == ["a/b", "a/b/c", "a/b/c/four.txt", "a/b/three.md"]


def test_cat(vault: Path, plain: Path, run: Run) -> None:
    told = run("cat", vault, "a/*.txt", "to-a/b/three.md")
    expected = b"".join((plain / each).read_bytes() for each in ("a/one.txt", "a/two.txt", "a/b/three.md"))
    assert os.fsencode(told.out) == expected
    wrong = run("cat", vault, "no", "a", "z")
    assert wrong.code == 11
    assert os.fsencode(wrong.out) == (plain / "z").read_bytes()
    assert wrong.err == "cryptfs: no: No such file or directory\ncryptfs: a: Is a directory\n"


def test_names_are_fit_for_a_terminal(vault_dir: Path, run: Run) -> None:
    name = b"\x1b[31mred\xff\n"
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as opened:
        opened.open(name, "w").close()
        opened.symlink(b"\x1b[2J", "link")
    for told in (run("ls", vault_dir, "-l"), run("tree", vault_dir), run("find", vault_dir)):
        assert "\x1b" not in told.out
        assert r"\x1b[31mred\xff\n" in told.out
    assert os.fsencode(run("ls", "-0", vault_dir).out) == name + b"\0link\0"
    found = json.loads(run("ls", "--json", vault_dir).out)
    assert [each["path"] for each in found["entries"]] == [r"\x1b[31mred\xff\n", "link"]
    assert found["entries"][1]["target"] == r"\x1b[2J"
    assert (found["schema"], found["problems"]) == (1, [])


def damage(vault: Path) -> dict[str, str]:
    """A chunk, a name, a directory record and a link that do not authenticate; cipher names by plain ones."""
    names = {}
    with cryptfs.Vault.unlock(vault, PASSPHRASE) as opened:
        with opened.open("large", "wb") as file:
            file.write(pattern(100_000))
        for each in ("large", "d", "dangling", "z"):
            names[each] = opened.tree.root.entry_name(os.fsencode(each))
    raw = bytearray((vault / names["large"]).read_bytes())
    raw[70_000] ^= 1
    (vault / names["large"]).write_bytes(raw)
    (vault / names["d"] / "cryptfs.dir").unlink()
    text = (vault / names["dangling"]).readlink()
    (vault / names["dangling"]).unlink()
    (vault / names["dangling"]).symlink_to(str(text)[:-2] + "AA")
    (vault / names["z"]).rename(vault / ("A" * len(names["z"])))
    return names


def test_damage_is_reported_and_the_rest_goes_on(vault: Path, run: Run) -> None:
    names = damage(vault)
    told = run("ls", "-lR", vault)
    assert told.code == 26
    assert "a/b:" in told.out
    assert "cryptfs: dangling: " in told.err
    assert f"(in the vault: {names['d']})" in told.err
    assert "(in the vault: AAAA" in told.err
    found = json.loads(run("find", vault, "--json").out)
    assert {each["path"] for each in found["problems"]} == {"", "dangling", "d"}
    assert "a/b/c/four.txt" in [each["path"] for each in found["entries"]]
    content = run("cat", vault, "large", "Z.TXT")
    assert content.code == 26
    assert "cryptfs: large: " in content.err
    assert "chunk 4" in content.err
    assert os.fsencode(content.out) == pattern(100_000)[: 4 * 16384] + pattern(60)


def test_a_mounted_vault_sends_the_reader_to_the_mount(vault: Path, run: Run) -> None:
    with cryptfs.Vault.unlock(vault, PASSPHRASE):
        told = run("ls", vault)
        assert told.code == 40
        assert "is in use by" in told.err
    with cryptfs.Vault.unlock(vault, PASSPHRASE, read_only=True):
        assert run("ls", vault).code == 0


@pytest.mark.parametrize("name", GOLDEN)
def test_a_vault_of_01(name: str, tmp_path: Path, run: Run) -> None:
    shutil.copytree(HERE / name, tmp_path / "golden", symlinks=True)
    (tmp_path / "passfile").write_bytes(GOLDEN_PASSPHRASE)
    told = run("find", tmp_path / "golden" / "vault", "-0")
    manifest = json.loads((tmp_path / "golden" / "manifest.json").read_text())
    assert sorted(f"/{os.fsencode(each).decode('latin-1')}" for each in told.out.split("\0")[1:-1]) == sorted(
        manifest
    )
    assert run("cat", tmp_path / "golden" / "vault", "script").out == "#!/bin/sh\n"
