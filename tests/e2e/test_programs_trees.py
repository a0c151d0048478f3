"""Programs that move whole trees: cp, rsync, tar, git, zip, find; and what the vault shows of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.mounting import PROJECT, Mounted
from tests.e2e.programs import git, part_of, require, run
from tests.e2e.trace import settle
from tests.support import everything_below

MIB = 1 << 20


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bounded part of /usr/share/doc: links, small and large files, odd names."""
    target = tmp_path_factory.mktemp("trees") / "doc"
    part_of(Path("/usr/share/doc"), target, 6 * MIB)
    return target


def assert_same_trees(ours: Path, theirs: Path) -> None:
    """Contents by checksum, and modes, owners, times and links."""
    options = ("-aHn", "--checksum", "--delete", "--itemize-changes", "--exclude=fifo")
    assert run("rsync", *options, f"{theirs}/", f"{ours}/") == ""
    run("diff", "-r", "--no-dereference", "--exclude=fifo", ours, theirs)


def test_copy_and_compare_with_rsync(own_mount: Mounted, documents: Path) -> None:
    require("rsync")
    place = own_mount.mountpoint
    run("cp", "-a", documents, place / "copied")
    run("rsync", "-aH", f"{documents}/", f"{place}/synced/")
    for name in ("copied", "synced"):
        assert_same_trees(place / name, documents)
    own_mount.remount()
    for name in ("copied", "synced"):
        assert_same_trees(place / name, documents)
    assert run("rsync", "-ain", f"{documents}/", f"{place}/synced/") == ""
    run("cp", "-a", place / "copied", place / "within")
    run("mv", place / "within", place / "moved")
    assert_same_trees(place / "moved", documents)
    run("rm", "-r", place / "moved", place / "copied")
    assert os.listdir(place) == ["synced"]


def test_the_vault_shows_nothing(own_mount: Mounted) -> None:
    place = own_mount.mountpoint
    directory = place / "unmistakable-directory"
    directory.mkdir()
    secret = "unmistakable-plaintext-" + "0123456789" * 3
    (directory / "unmistakable-name.txt").write_text(f"{secret}\n" * 500)
    (directory / ("unmistakable-long-" + "n" * 220)).write_text(secret)
    (directory / "tiny").write_text(secret)
    os.symlink(f"/somewhere/{secret}", directory / "unmistakable-link")
    os.setxattr(directory / "tiny", "user.unmistakable-attribute", secret.encode())

    def grep(where: Path) -> tuple[str, str]:
        found = subprocess.run(
            ["grep", "-rla", "unmistakable", where], capture_output=True, text=True, check=False
        )
        names = run("find", where, "-name", "*unmistakable*")
        links = run("find", where, "-lname", "*unmistakable*")
        attributes = "".join(
            f"{name}={os.getxattr(path, name)!r}\n"
            for path in everything_below(where)
            if not path.is_symlink()
            for name in os.listxattr(path)
        )
        return found.stdout, names + links + "".join(
            line for line in attributes.splitlines() if "unmistakable" in line
        )

    contents, names = grep(place)
    assert len(contents.splitlines()) == 3
    assert names.count("unmistakable-name.txt") == 1
    assert "unmistakable-attribute" in names
    own_mount.remount()
    assert grep(own_mount.vault_dir) == ("", "")
    own_mount.unmount()
    assert grep(own_mount.vault_dir) == ("", "")
    own_mount.start()


def test_tar_with_xattrs(on_mount: Path, documents: Path) -> None:
    require("tar", "getfattr")
    source = on_mount / "source"
    run("cp", "-a", documents, source)
    (source / "tagged").write_bytes(b"x")
    os.link(source / "tagged", source / "hard link")
    os.mkfifo(source / "fifo")
    os.setxattr(source / "tagged", "user.tag", b"value")
    settle()
    run("tar", "--xattrs", "-cf", on_mount / "all.tar", "-C", source, ".")
    settle()
    target = on_mount / "target"
    target.mkdir()
    run("tar", "--xattrs", "-xpf", on_mount / "all.tar", "-C", target)
    settle()
    assert_same_trees(target, source)
    assert os.getxattr(target / "tagged", "user.tag") == b"value"
    run("tar", "--compare", "-f", on_mount / "all.tar", "-C", target)


def test_zip_find_du_and_ls(on_mount: Path, documents: Path) -> None:
    require("zip", "unzip")
    run("cp", "-a", documents, on_mount / "doc")
    run("zip", "-qry", "all.zip", "doc", cwd=on_mount)
    run("unzip", "-q", "all.zip", "-d", "out", cwd=on_mount)
    run("diff", "-r", "--no-dereference", on_mount / "doc", on_mount / "out/doc")
    for command in (
        ("find", ".", "-printf", r"%P %y %s %m\n"),
        ("find", ".", "-type", "f", "-size", "+10k"),
        ("ls", "-lRU", "--time-style=full-iso"),
        ("du", "-s", "--apparent-size", "--exclude=."),
    ):
        ours, theirs = (run(*command, cwd=where) for where in (on_mount / "doc", documents))
        if command[0] == "find" and "-printf" in command:
            # Sizes of directories are the filesystem's own affair.
            ours, theirs = (
                "\n".join(x for x in text.splitlines() if " d " not in x) for text in (ours, theirs)
            )
        if command[0] != "ls" and command[0] != "du":
            assert sorted(ours.splitlines()) == sorted(theirs.splitlines())


def test_git_on_a_tree(own_mount: Mounted, documents: Path) -> None:
    require("git")
    repository = own_mount.mountpoint / "repository"
    run("cp", "-a", documents, repository)
    git("init", "-q", cwd=repository)
    git("add", "-A", cwd=repository)
    git("commit", "-q", "-m", "first", cwd=repository)
    (repository / "new file").write_text("content\n")
    git("add", "-A", cwd=repository)
    git("commit", "-q", "-m", "second", cwd=repository)
    git("checkout", "-q", "-b", "branch", "HEAD~1", cwd=repository)
    git("merge", "-q", "main", cwd=repository)
    git("clone", "-q", repository, "clone", cwd=own_mount.mountpoint)
    git("gc", "-q", "--prune=now", cwd=repository)
    git("stash", "list", cwd=repository)
    for name in ("repository", "clone"):
        git("fsck", "--full", "--strict", cwd=own_mount.mountpoint / name)
        assert git("status", "--porcelain", cwd=own_mount.mountpoint / name) == ""
    own_mount.remount()
    for name in ("repository", "clone"):
        git("fsck", "--full", "--strict", cwd=own_mount.mountpoint / name)
        assert git("status", "--porcelain", cwd=own_mount.mountpoint / name) == ""
    run("diff", "-r", "--no-dereference", "--exclude=.git", "--exclude=new file", repository, documents)


def test_clone_of_a_real_repository(own_mount: Mounted, tmp_path: Path) -> None:
    require("git")
    try:
        git("rev-parse", "HEAD", cwd=PROJECT)
    except AssertionError:
        pytest.skip("these tests do not run from a git repository")
    git("clone", "-q", "--no-hardlinks", PROJECT, tmp_path / "plain", cwd=tmp_path)
    git("clone", "-q", tmp_path / "plain", own_mount.mountpoint / "clone", cwd=tmp_path)
    own_mount.remount()
    git("fsck", "--full", cwd=own_mount.mountpoint / "clone")
    run(
        "diff", "-r", "--no-dereference", "--exclude=.git", own_mount.mountpoint / "clone", tmp_path / "plain"
    )
    log = [
        git("log", "--format=%H %s", cwd=where)
        for where in (own_mount.mountpoint / "clone", tmp_path / "plain")
    ]
    assert log[0] == log[1]


def test_compileall_of_the_standard_library(on_mount: Path) -> None:
    source = Path(os.__file__).parent / "email"
    run("cp", "-r", source, on_mount / "email")
    run(sys.executable, "-m", "compileall", "-qf", on_mount / "email")
    run(sys.executable, "-c", "import email, email.message; assert 'mount' in email.__file__", cwd=on_mount)
    assert list((on_mount / "email/__pycache__").glob("*.pyc"))
