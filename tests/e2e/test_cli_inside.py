"""Each option of the commands that work in a vault without a mount, by what it changes; as a process."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.test_cli_processes import CRYPTFS
from tests.e2e.desk import LARGE, Desk, as_json
from tests.schema import check_answer

ALL = ["a", "a/b", "a/b/c", "a/b/c/deep", "a/b/large.TXT", "a/one.txt", ".hidden", "link", "new\nline"]

MANY = "x" * 300


def paths(text: str) -> set[str]:
    """What `find -0` printed, without the root."""
    return set(text.split("\0")) - {"", "/"}


# ---- ls


def test_ls(desk: Desk) -> None:
    plain = ["a", "link", r"new\nline"]
    assert desk("ls", desk.vault).out.splitlines() == plain
    assert desk("ls", "--all", desk.vault).out.splitlines() == [".hidden", *plain]
    assert desk("ls", "--directory", desk.vault, "a").out == "a\n"
    assert desk("ls", "--null", desk.vault).out == "a\0link\0new\nline\0"
    assert desk("ls", "--recursive", desk.vault, "a").out == (
        "a:\nb\none.txt\n\na/b:\nc\nlarge.TXT\n\na/b/c:\ndeep\n"
    )
    (line,) = desk("ls", "--long", desk.vault, "a/one.txt").out.splitlines()
    assert re.fullmatch(r"-rw\S+ +1 \S+ +\S+ +10 \d{4}-\d\d-\d\d \d\d:\d\d a/one\.txt", line)
    assert desk("ls", "--long", "--directory", desk.vault, "link").out.endswith(" link -> a/one.txt\n")
    found = check_answer("ls", desk("ls", "--json", "--recursive", "--all", desk.vault).out)
    assert {each["path"]: each["size"] for each in found["entries"]}["a/b/large.TXT"] == len(LARGE)


# ---- tree and find


def test_tree(desk: Desk) -> None:
    assert ".hidden" not in desk("tree", desk.vault).out
    assert ".hidden" in desk("tree", "--all", desk.vault).out
    assert desk("tree", "--directories", desk.vault).out == (
        "/\n└── a\n    └── b\n        └── c\n\n3 directories\n"
    )
    assert desk("tree", "--directories", "--level", 1, desk.vault).out == "/\n└── a\n\n1 directory\n"
    found = check_answer("tree", desk("tree", "--json", "--level", "2", desk.vault, "a").out)
    assert [each["path"] for each in found["entries"]] == ["a", "a/b", "a/b/c", "a/b/large.TXT", "a/one.txt"]
    assert "give a whole number from 1" in desk("tree", "--level", "0", desk.vault, code=1).err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), ALL),
        (("--name", "*.txt"), ["a/one.txt"]),
        (("--iname", "*.txt"), ["a/one.txt", "a/b/large.TXT"]),
        (("--name", "deep", "--iname", "ONE*"), ["a/one.txt", "a/b/c/deep"]),
        (("--type", "d"), ["a", "a/b", "a/b/c"]),
        (("--type", "l"), ["link"]),
        (("--type", "f", "--level", "1"), [".hidden", "new\nline"]),
        (("--level", "0"), []),
        (("--larger", "10"), ["a/b/large.TXT"]),
        (("--smaller", "10"), ["a/b/c/deep", ".hidden", "new\nline"]),
        (("--larger", "9", "--smaller", "1k"), ["a/one.txt"]),
    ],
)
def test_find(desk: Desk, words: tuple[str, ...], found: list[str]) -> None:
    said = desk("find", "--null", desk.vault, *words).out
    assert paths(said) == set(found)
    assert said.count("\0") == len(found) + ("/" in said.split("\0"))


def test_each_option_of_find_as_it_is_typed(desk: Desk) -> None:
    """One line with all of them, and with JSON."""
    told = desk(
        *("find", "--json", desk.vault, "a", "--name", "*.TXT", "--iname", "x", "--type", "f"),
        *("--larger", "1k", "--smaller", "1m", "--level", "2"),
    )
    (entry,) = check_answer("find", told.out)["entries"]
    assert (entry["path"], entry["size"]) == ("a/b/large.TXT", len(LARGE))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--type", "x"), "'f', 'd', 'l'"),
        (("--larger", "much"), "'much' is not a size; write for example 16k"),
        (("--smaller", "-1"), "'-1' is not a size"),
        (("--level", "-1"), "give a whole number from 0"),
    ],
)
def test_wrong_values_of_find(desk: Desk, words: tuple[str, ...], says: str) -> None:
    said = desk("find", desk.vault, *words, code=1)
    assert (says in said.err, said.out) == (True, "")


# ---- path


def test_path(desk: Desk) -> None:
    told = desk("path", "--null", desk.vault, text="a\0new\nline\0no\0", code=11)
    ciphers = told.out.split("\0")[:-1]
    assert len(ciphers) == 2 and all(os.path.lexists(desk.vault / each) for each in ciphers)
    assert told.err == "cryptfs: no: No such file or directory\n"
    back = desk("path", "--plain", "--null", desk.vault, text="\0".join(ciphers) + "\0")
    assert back.out == "a\0new\nline\0"
    found = check_answer("path", desk("path", "--json", "--plain", desk.vault, "--", *ciphers).out)
    assert [each["path"] for each in found["entries"]] == ["a", r"new\nline"]


def test_paths_that_are_none(desk: Desk) -> None:
    """A name has no zero byte, no more than 255 bytes, and the root stays where it is."""
    told = desk("path", desk.vault, text="a\0b\na\n", code=11)
    assert told.err == "cryptfs: a\\x00b: it has a zero byte; for paths that end in zero bytes, give -0\n"
    assert len(told.out.splitlines()) == 1
    for given in ("../outside", "/etc/passwd"):
        told = desk("path", "--plain", desk.vault, given, code=11)
        assert told.err == f"cryptfs: {given}: it leads out of the vault directory\n"
        told = desk("rm", "--cipher", given, desk.vault, code=11)
        assert told.err == f"cryptfs: {given}: it leads out of the vault directory\n"
    for words in (("mkdir", desk.vault, "/"), ("mv", desk.vault, "/", "x"), ("mkdir", desk.vault, "")):
        assert desk(*words, code=11).err == "cryptfs: /: it is the root of the vault\n"
    for words in (("mkdir", desk.vault, MANY), ("cat", desk.vault, MANY), ("mv", desk.vault, "a", MANY)):
        assert re.search("over the limit of 255|File name too long", desk(*words, code=11).err)
    assert paths(desk("find", "-0", desk.vault).out) == set(ALL)


# ---- changes


def test_mkdir_parents(desk: Desk) -> None:
    assert "x/y/z: No such file or directory" in desk("mkdir", desk.vault, "x/y/z", code=11).err
    desk("mkdir", "--parents", desk.vault, "x/y/z")
    desk("mkdir", "--parents", desk.vault, "x/y/z", "a")
    assert "x: File exists" in desk("mkdir", desk.vault, "x", code=11).err
    assert desk("ls", "-R", desk.vault, "x").out == "x:\ny\n\nx/y:\nz\n\nx/y/z:\n"


@pytest.mark.parametrize("command", ["cp", "mv"])
def test_overwrite_within_the_vault(desk: Desk, command: str) -> None:
    refused = desk(command, desk.vault, "a/one.txt", ".hidden", code=11)
    assert "(--overwrite replaces it)" in refused.err
    assert desk("cat", desk.vault, ".hidden", "a/one.txt").out == "hidden0123456789"
    desk(command, "--overwrite", desk.vault, "a/one.txt", ".hidden")
    assert desk("cat", desk.vault, ".hidden").out == "0123456789"
    assert (r"one.txt" in desk("ls", desk.vault, "a").out) is (command == "cp")


def test_overwrite_as_it_is_typed(desk: Desk) -> None:
    desk("cp", "--overwrite", "--recursive", desk.vault, "a/b", "copy")
    desk("mv", "--overwrite", desk.vault, "copy/large.TXT", "a/one.txt")
    assert desk("cat", desk.vault, "a/one.txt").out == os.fsdecode(LARGE)
    assert desk("find", "--null", desk.vault, "copy").out == "copy\0copy/c\0copy/c/deep\0"


def test_rm(desk: Desk) -> None:
    assert "Is a directory" in desk("rm", desk.vault, "a", code=11).err
    assert desk("rm", desk.vault, "no", code=11).err == "cryptfs: no: No such file or directory\n"
    assert desk("rm", "--force", desk.vault, "no", "link").err == ""
    cipher = desk("path", desk.vault, "a/one.txt").out.strip()
    desk("rm", "--cipher", cipher, desk.vault)
    assert paths(desk("find", "-0", desk.vault, "a").out) == {
        "a",
        "a/b",
        "a/b/c",
        "a/b/c/deep",
        "a/b/large.TXT",
    }
    (record,) = (desk.vault / desk("path", desk.vault, "a/b/c").out.strip()).glob("cryptfs.dir")
    record.write_bytes(b"nonsense")
    refused = desk("rm", "--recursive", desk.vault, "a", code=26)
    assert "cryptfs: a/b/c" in refused.err
    desk("rm", "--recursive", "--damaged", desk.vault, "a")
    assert paths(desk("find", "-0", desk.vault).out) == {".hidden", "new\nline"}
    assert "say what to remove" in desk("rm", desk.vault, code=1).err


# ---- export and import


def test_export(desk: Desk) -> None:
    target = desk.base / "out"
    assert "Exported" in desk("export", desk.vault, target).err
    (target / "a" / "one.txt").write_text("mine")
    refused = desk("export", desk.vault, target, code=11)
    assert "a/one.txt" in refused.err
    assert (target / "a" / "one.txt").read_text() == "mine"
    said = desk("export", "--overwrite", "--verify", desk.vault, target)
    assert "compared" in said.err
    assert (target / "a" / "one.txt").read_text() == "0123456789"
    assert desk("export", "--quiet", desk.vault, target).err == ""


def test_import(desk: Desk) -> None:
    source = desk.base / "in"
    (source / "a").mkdir(parents=True)
    (source / "a" / "one.txt").write_text("from outside")
    refused = desk("import", source, desk.vault, code=11)
    assert "a/one.txt" in refused.err
    assert desk("cat", desk.vault, "a/one.txt").out == "0123456789"
    said = desk("import", "--overwrite", "--verify", source, f"{desk.vault}:")
    assert "compared" in said.err
    assert desk("cat", desk.vault, "a/one.txt").out == "from outside"
    assert desk("import", "--quiet", source, desk.vault).err == ""


# ---- checks, and what needs no vault


def test_fsck_no_names(desk: Desk) -> None:
    cipher = desk.damage()
    for words, shown in (((), True), (("--no-names",), False)):
        told = desk("fsck", "--deep", desk.vault, *words, code=26)
        assert cipher in told.out
        assert ("a/b/large.TXT" in told.out) is shown
    found = check_answer("fsck", desk("fsck", "--deep", "--json", "--no-names", desk.vault, code=26).out)
    assert "large.TXT" not in str(found)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_completion_is_one(desk: Desk, shell: str) -> None:
    script = desk("completion", shell).out
    subprocess.run([shell, "-n"], input=script, text=True, check=True, capture_output=True)
    assert "_CRYPTFS_COMPLETE" in script
    assert "'bash', 'zsh', 'fish'" in desk("completion", "tcsh", code=1).err


def test_speed(desk: Desk) -> None:
    words = ("speed", "--json", "--size", "1m", "--repeat", "2", "--threads", "3")
    found = check_answer("speed", desk(*words).out)
    assert (found["size"], found["repeat"], found["threads"]) == (1 << 20, 2, 3)
    assert {each["threads"] for each in found["results"]} == {1, 3}
    for option, value in (("--size", "1k"), ("--repeat", "0"), ("--threads", "257"), ("--size", "9999g")):
        said = desk("speed", option, value, code=1)
        assert option in said.err and "Traceback" not in said.err


def test_a_listing_ends_when_its_reader_does(desk: Desk) -> None:
    """`cryptfs find | head -1`: no word about it, whatever the reader has read."""
    for words in (("find", desk.vault), ("ls", "-R", desk.vault), ("cat", desk.vault, "a/b/large.TXT")):
        done = subprocess.run(
            ["bash", "-c", '"$@" | head -c 1; echo ${PIPESTATUS[0]}', "bash", *CRYPTFS, *map(str, words)],
            env=desk.environment(),
            capture_output=True,
            check=True,
        )
        assert done.stderr == b""
        assert done.stdout[1:].strip() in (b"0", b"141")


@pytest.mark.parametrize(
    "words", ["cat V a/b/large.TXT", "find -0 V", "ls --json V", "ls -l V", "path V a", "tree V"]
)
def test_a_full_disk_takes_no_answer(desk: Desk, words: str) -> None:
    """It is said of stdout, not of a file in the vault."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*CRYPTFS, *words.replace("V", str(desk.vault)).split()],
            env=desk.environment(), stdout=full, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (11, b"cryptfs: stdout: No space left on device\n")


def test_an_answer_that_is_whole_json(desk: Desk) -> None:
    """Also of damage and of paths that are not there; an error that leaves no answer leaves stdout empty."""
    desk.damage()
    for words, code in (
        (("ls", "--json", "-R", desk.vault, "no", "a"), 11),
        (("find", "--json", desk.vault, "no"), 11),
        (("tree", "--json", desk.vault, "no"), 11),
        (("path", "--json", desk.vault, "no"), 11),
        (("fsck", "--json", "--deep", desk.vault), 26),
    ):
        check_answer(str(words[0]), desk(*words, code=code).out)
    for name in ("ls", "find", "tree", "path", "fsck", "rekey", "upgrade"):
        assert desk(name, "--json", desk.base / "none", code=6).out == ""
        assert desk(name, "--json", desk.vault, "--passfile", "/dev/null", code=22).out == ""
    assert as_json(desk("info", "--json"))["mounts"] is not None
