"""The calls of `Vault` by path are like their namesakes in os."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cryptfs
from tests.transfer.conftest import PASSPHRASE


class Plain:
    """The same names on a plain directory."""

    def __init__(self, top: Path) -> None:
        self._top = os.fsencode(top)

    def at(self, path: str | bytes) -> bytes:
        return os.path.join(self._top, os.fsencode(path).lstrip(b"/"))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*paths: Any, **named: Any) -> Any:
            first = paths[0] if name == "symlink" else self.at(paths[0])
            rest = [self.at(each) if isinstance(each, str | bytes) else each for each in paths[1:]]
            found = getattr(os, name)(first, *rest, **named)
            return [os.fsdecode(each) for each in found] if name == "listdir" else found

        return call


def told(action: Callable[[], Any]) -> Any:
    """What a call gives, or its errno."""
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.fixture
def sides(tmp_path: Path, opened: cryptfs.Vault) -> tuple[Any, Any]:
    """The vault, and a plain directory."""
    (tmp_path / "plain").mkdir()
    return opened, Plain(tmp_path / "plain")


STEPS: list[tuple[Any, ...]] = [
    ("mkdir", "a"), ("mkdir", "a"), ("mkdir", "a/b"), ("mkdir", "no/where"), ("mkdir", "a/b/"),
    ("makedirs", "d/e/f"), ("makedirs", "d/e/f"), ("makedirs", "d/e/g/"),
    ("symlink", "a/b", "to-b"), ("symlink", "../d", "a/to-d"), ("symlink", "x" * 300, "far"),
    ("symlink", "loop2", "loop1"), ("symlink", "loop1", "loop2"), ("symlink", "a", "a"),
    ("mkdir", "to-b/c"), ("mkdir", "a/to-d/e/h"), ("mkdir", "loop1/x"), ("mkdir", "n" * 256),
    ("mkdir", "n" * 255), ("mkdir", "ä\udcff"), ("readlink", "to-b"), ("readlink", "a"), ("readlink", "no"),
    ("listdir", "to-b"), ("listdir", "a/to-d/e"), ("listdir", "a/../a/b/."), ("listdir", "loop1"),
    ("listdir", "no"), ("rmdir", "a"), ("rmdir", "a/b/c"), ("rmdir", "to-b"), ("unlink", "a"),
    ("rmdir", "to-b/"), ("rename", "to-b/", "moved"),
    ("rename", "a", "z"), ("rename", "no", "z"), ("rename", "z", "z/b"), ("listdir", "z"), ("listdir", "a"),
    ("rename", "z", "d/e"), ("rename", "z", "d/e/f"), ("listdir", "d/e/f"), ("rename", "d/e/f", "a"),
    ("listdir", "a/b"), ("unlink", "loop1"), ("link", "to-b", "second"), ("readlink", "second"),
    ("chmod", "a/b", 0o711), ("chmod", "no", 0o711), ("listdir", ""), ("listdir", "/"), ("rmdir", "d/e/f"),
    ("chmod", "to-b", 0o700), ("listdir", "a//b/../to-d/./e"),
]  # fmt: skip


def test_step_by_step(sides: tuple[Any, Any]) -> None:
    ours, plain = sides
    for step in STEPS:
        name, *rest = step
        seen, expected = told(lambda: getattr(ours, name)(*rest)), told(lambda: getattr(plain, name)(*rest))  # noqa: B023
        if isinstance(expected, bytes):
            expected = os.fsdecode(expected)
        if isinstance(expected, list):
            seen, expected = sorted(seen), sorted(expected)
        assert seen == expected, step


def test_stat(sides: tuple[Any, Any]) -> None:
    ours, plain = sides
    for side in sides:
        side.mkdir("d", 0o750)
        side.symlink("d", "l")
        side.mkdir("masked")
    with ours.open("f", "wb") as file:
        file.write(b"x" * 70_000)
    Path(os.fsdecode(plain.at("f"))).write_bytes(b"x" * 70_000)
    for side in sides:
        side.chmod("f", 0o640)
        side.utime("f", ns=(1_000_000_007, 2_000_000_003))
    for path in ("d", "l", "f", "masked"):
        for follow in (False, True):
            one, two = ours.stat(path, follow_symlinks=follow), plain.stat(path, follow_symlinks=follow)
            assert (oct(one.st_mode), one.st_uid, one.st_nlink) == (
                oct(two.st_mode),
                two.st_uid,
                two.st_nlink,
            )
            if not stat.S_ISDIR(one.st_mode):
                assert one.st_size == two.st_size
    found = ours.stat("/f")
    assert (found.st_mtime_ns, found.st_atime_ns, found.st_size) == (2_000_000_003, 1_000_000_007, 70_000)
    assert found.st_mtime == 2.000000003
    assert (ours.is_file("f"), ours.is_dir("l"), ours.exists("no"), ours.is_file("d")) == (
        True,
        True,
        False,
        False,
    )


def test_nothing_leads_out_of_the_vault(opened: cryptfs.Vault) -> None:
    opened.symlink("/etc", "absolute")
    opened.symlink("../../etc", "upwards")
    for path in ("absolute/passwd", "absolute", "upwards", "upwards/passwd", "..", "../vault", "a/../../x"):
        opened.makedirs("a", exist_ok=True)
        with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
            opened.stat(path)
    assert opened.readlink("absolute") == "/etc"
    assert opened.readlink(b"absolute") == b"/etc"


def test_the_root_stays(opened: cryptfs.Vault) -> None:
    for call in (opened.unlink, opened.rmdir, lambda path: opened.rename(path, "x")):
        with pytest.raises(OSError, match="it is the root of the vault") as raised:
            call("/")
        assert raised.value.errno == errno.EBUSY
    with pytest.raises(FileExistsError):
        opened.rename(*_two(opened), replace=False)


def _two(opened: cryptfs.Vault) -> tuple[str, str]:
    for name in ("one", "two"):
        opened.open(name, "w").close()
    return "one", "two"


def walked(pairs: Iterator[tuple[Any, list[Any], list[Any]]]) -> list[tuple[Any, list[Any], list[Any]]]:
    return sorted((os.fsdecode(top), sorted(directories), sorted(files)) for top, directories, files in pairs)


@pytest.mark.parametrize("topdown", [True, False])
@pytest.mark.parametrize("followlinks", [True, False])
def test_walk(
    topdown: bool, followlinks: bool, tmp_path: Path, opened: cryptfs.Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain"
    for directory in ("a/b/c", "d", "e/f"):
        (plain / directory).mkdir(parents=True)
        opened.makedirs(directory)
    for file in ("a/x", "a/b/y", "z"):
        (plain / file).touch()
        opened.open(file, "w").close()
    for target, link in (("../d", "a/to-d"), ("nowhere", "dangling"), ("x", "a/to-x")):
        (plain / link).symlink_to(target)
        opened.symlink(target, link)
    monkeypatch.chdir(plain)
    seen = opened.walk(".", topdown=topdown, followlinks=followlinks)
    expected = list(os.walk(".", topdown=topdown, followlinks=followlinks))
    found = list(seen)
    assert walked(iter(found)) == walked(iter(expected))
    if topdown:
        assert found[0][0] == "."
        pruned = []
        for top, directories, _ in opened.walk():
            pruned.append(top)
            directories[:] = [name for name in directories if name != "a"]
        assert "a/b" not in pruned
    else:
        assert found[-1][0] == "."


def test_walk_tells_of_errors(opened: cryptfs.Vault) -> None:
    opened.makedirs("a/b")
    (opened.vault_dir / opened.tree.root.entry_name(b"a") / "cryptfs.dir").unlink()
    opened.places.forget()
    errors: list[OSError] = []
    assert [top for top, _, _ in opened.walk(onerror=errors.append)] == [""]
    assert [(error.errno, error.filename) for error in errors] == [(errno.EIO, "a")]
    with pytest.raises(OSError, match="directory record"):
        opened.listdir("a")


def test_attributes(opened: cryptfs.Vault) -> None:
    opened.open("f", "w").close()
    opened.setxattr("f", "user.colour", b"blue")
    assert opened.listxattr("f") == ["user.colour"]
    assert opened.getxattr("f", b"user.colour") == b"blue"
    opened.removexattr("f", "user.colour")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        opened.getxattr("f", "user.colour")


def test_a_default_acl_is_inherited(opened: cryptfs.Vault) -> None:
    acl = bytes.fromhex(
        "0200000001000700000000000200040001000000040005000000000010000700000000002000000000000000"
    )
    acl = acl.replace(bytes.fromhex("0100070000000000"), bytes.fromhex("01000700ffffffff"))
    for tag in ("04000500", "10000700", "20000000"):
        acl = acl.replace(bytes.fromhex(tag + "00000000"), bytes.fromhex(tag + "ffffffff"))
    opened.mkdir("d")
    opened.setxattr("d", "system.posix_acl_default", acl)
    opened.open("d/file", "w").close()
    opened.mkdir("d/sub")
    assert "system.posix_acl_access" in opened.listxattr("d/file")
    assert opened.getxattr("d/sub", "system.posix_acl_default") == acl
    assert stat.S_IMODE(opened.stat("d/file").st_mode) == 0o660


def test_read_only_refuses_every_change(vault_dir: Path) -> None:
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault:
        vault.open("f", "w").close()
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        for call in (
            lambda: vault.open("f", "a"), lambda: vault.open("new", "w"), lambda: vault.mkdir("d"),
            lambda: vault.unlink("f"), lambda: vault.rename("f", "g"), lambda: vault.symlink("x", "y"),
            lambda: vault.chmod("f", 0), lambda: vault.utime("f", ns=(0, 0)),
            lambda: vault.setxattr("f", "user.a", b""),
        ):  # fmt: skip
            with pytest.raises(OSError, match="Read-only") as raised:
                call()
            assert raised.value.filename is not None


def test_other_vaults_and_paths_of_any_kind(opened: cryptfs.Vault) -> None:
    opened.mkdir(Path("p"))
    opened.open(b"p/\xff", "w").close()
    assert opened.listdir(b"p") == [b"\xff"]
    assert [(entry.name, entry.path, entry.is_file()) for entry in opened.scandir("p")] == [
        ("\udcff", "p/\udcff", True)
    ]
    with pytest.raises(ValueError, match="null"):
        opened.stat("a\0b")


def test_the_example_of_the_manual(
    vault_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manual = (Path(__file__).parents[2] / "docs" / "MANUAL.md").read_text(encoding="utf-8")
    (example,) = (
        each for each in re.findall(r"```python\n(.*?)```", manual, re.DOTALL) if "Vault.unlock" in each
    )
    monkeypatch.chdir(vault_dir.parent)
    with cryptfs.Vault.unlock("vault", PASSPHRASE) as vault:
        vault.mkdir("letters")
    exec(example, {"cryptfs": cryptfs, "passphrase": PASSPHRASE})
    assert capsys.readouterr().out == " []\nletters ['ana.txt']\n"
    with (
        cryptfs.Vault.unlock("vault", PASSPHRASE, read_only=True) as vault,
        vault.open("letters/ana.txt") as file,
    ):
        assert file.read() == "..."
