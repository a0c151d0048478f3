"""Ways to tamper with what a directory holds, and what a mount must show of it afterwards.

Each way has a directory of its own on the mount, as `furnish` makes it.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.names import SIDECAR_SUFFIX, DirectoryNames, decode_text, encode_text, long_entry_name
from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY
from tests.e2e.test_tamper_mounted import flip
from tests.outside.stage import until

if TYPE_CHECKING:
    from tests.e2e.test_tamper_kinds import Scene

BACK_SECONDS = 8.0
LONG, OTHER_LONG = "l" * 200, "m" * 200
LONG_TARGETS = {"far link": "/" + "far/" * 900, "far link 2": "/" + "other/" * 600}
NAMES = (
    *("bystander", "victim", LONG, OTHER_LONG, "directory", "directory 2", "link", "link 2"),
    *LONG_TARGETS,
)


def furnish(place: Path) -> None:
    """Make what an attack may need."""
    place.mkdir()
    (place / "bystander").write_bytes(b"fine")
    (place / "victim").write_bytes(b"content")
    (place / LONG).write_bytes(b"long")
    (place / OTHER_LONG).write_bytes(b"other long")
    for name in ("directory", "directory 2"):
        (place / name).mkdir()
        (place / name / "inside").write_bytes(b"inside")
    (place / "link").symlink_to("target")
    (place / "link 2").symlink_to("other")
    for name, target in LONG_TARGETS.items():
        (place / name).symlink_to(target)
    for name in ("victim", "bystander", "directory"):
        os.setxattr(place / name, "user.a", b"a of " + name.encode())
        os.setxattr(place / name, "user.b", b"b of " + name.encode())


class Backing:
    """The vault's side of one of these directories. vault_dir: of the vault.   names: of this directory."""

    def __init__(self, entries: dict[str, Path], vault_dir: Path, names: DirectoryNames) -> None:
        self._entries = entries
        self.vault_dir = vault_dir
        self.names = names

    def __call__(self, name: str) -> Path:
        """The backing entry that a plaintext path had before the attack."""
        return self._entries[name]

    def target_file(self, name: str) -> Path:
        """The file that holds a long target."""
        link_id = os.readlink(self(name)).split(".")[2]
        return self.vault_dir / LINKS_DIRECTORY / link_id


Attack = Callable[[Backing], object]
Check = Callable[["Scene", Path, Backing], None]


# ---- what is done


def relink(path: Path, text: str) -> None:
    path.unlink()
    path.symlink_to(text)


def flipped_text(text: str) -> str:
    return ("B" if text[0] == "A" else "A") + text[1:]


def other_spelling(entry_name: str) -> str:
    """Base64 of 32 bytes leaves two bits in its last character."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return entry_name[:-1] + alphabet[alphabet.index(entry_name[-1]) ^ 1]


def impossible_name(find: Backing, name: bytes) -> Path:
    """An entry with a sealed name that no entry can have, as a faulty program would make it."""
    names, padded = find.names, name + bytes(-len(name) % 16)
    siv = names._siv(name)
    return find("victim").with_name(encode_text(siv + names._cipher.apply_stream(siv, padded)))


def pose_as_long(find: Backing) -> None:
    cipher_name = find("bystander").name
    entry = find("bystander").with_name(long_entry_name(cipher_name))
    entry.write_bytes(b"")
    sidecar(entry).write_text(cipher_name)


def backing_xattrs(path: Path) -> list[str]:
    return sorted(name for name in os.listxattr(path) if name.startswith("user.cryptfs."))


def spoil_xattrs(path: Path) -> None:
    for name in backing_xattrs(path):
        os.setxattr(path, name, bytes(60))


def set_xattrs(path: Path, value: bytes) -> None:
    for name in backing_xattrs(path):
        os.setxattr(path, name, value)


def rename_xattrs(path: Path) -> None:
    for name in backing_xattrs(path):
        value = os.getxattr(path, name)
        os.removexattr(path, name)
        os.setxattr(path, f"{name[:-1]}{'A' if name[-1] != 'A' else 'B'}", value)


def exchange_xattrs(first: tuple[Path, str], second: tuple[Path, str]) -> None:
    one, two = os.getxattr(*first), os.getxattr(*second)
    os.setxattr(*first, two)
    os.setxattr(*second, one)


def exchange_files(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def sidecar(entry: Path) -> Path:
    return Path(f"{entry}{SIDECAR_SUFFIX}")


def record_of(find: Backing, name: str) -> Path:
    return find(name) / RECORD_NAME


def beside(find: Backing, name: str) -> Path:
    """A place in the directory itself for an entry of a subdirectory."""
    return find("victim").with_name(find(name).name)


# ---- what must be seen


def assert_eio(action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        action()
    assert raised.value.errno == errno.EIO


def assert_eio_or_kept(link: Path, target: str) -> None:
    """The kernel shows the target that it has read, or, if it has dropped that for want of memory, EIO."""
    try:
        assert os.readlink(link) == target
    except OSError as error:
        assert error.errno == errno.EIO


def lost(*names: str) -> Check:
    """These entries, or one that came, are left out of the listing, with a warning, and nothing else."""

    def check(scene: Scene, place: Path, find: Backing) -> None:
        everything = {path.name for path in find("bystander").parent.iterdir()}
        assert set(os.listdir(place)) == set(NAMES) - set(names)
        scene.assert_lines(max(1, len(names)), "WARNING", "left out of the listing")
        assert everything == {path.name for path in find("bystander").parent.iterdir()}

    return check


def lost_sidecar(scene: Scene, place: Path, find: Backing) -> None:
    """A mount that knows the name makes it again."""
    if not scene.live:
        lost(LONG)(scene, place, find)
        return
    assert until(lambda: set(os.listdir(place)) == set(NAMES) and sidecar(find(LONG)).exists(), BACK_SECONDS)


def lost_record(scene: Scene, place: Path, find: Backing) -> None:
    """A mount that has the directory open makes it again."""
    if not scene.live:
        eio_directory(scene, place, find)
        return
    record = record_of(find, "directory")
    assert until(lambda: os.listdir(place / "directory") == ["inside"] and record.exists(), BACK_SECONDS)


def eio_directory(scene: Scene, place: Path, find: Backing) -> None:
    assert_eio(lambda: os.listdir(place / "directory"))
    scene.assert_one_line("ERROR", find("directory").name, "directory record")
    assert_eio(lambda: (place / "directory" / "new").touch())
    scene.lines()
    if not (find("directory") / RECORD_NAME).exists():
        for path in find("directory").iterdir():
            path.unlink()
        (place / "directory").rmdir()  # what is empty but for a bad record can go


def eio_directories(*names: str) -> Check:
    """Their records verify, but belong to other directories."""

    def check(scene: Scene, place: Path, find: Backing) -> None:
        for name in names:
            assert_eio(functools.partial(os.listdir, place / name))
            scene.assert_one_line("ERROR", find(name).name, "belongs to another place, by its record")
            assert_eio((place / name / "new").touch)
            scene.lines()

    return check


def eio_link(name: str) -> Check:
    def check(scene: Scene, place: Path, find: Backing) -> None:
        assert_eio(lambda: (place / name).readlink())
        scene.assert_one_line("ERROR", find(name).name, "symlink")
        (place / name).unlink()
        assert not find(name).is_symlink()

    return check


def eio_far_links(*names: str) -> Check:
    """As eio_link. The links are as before, so a kernel that has read them may keep the targets."""

    def check(scene: Scene, place: Path, find: Backing) -> None:
        for name in names:
            if scene.live and scene.mount.spec.engine == "native":
                assert_eio_or_kept(place / name, LONG_TARGETS[name])
                (place / name).unlink()
            else:
                eio_link(name)(scene, place, find)

    return check


def eio_xattr(attribute: str, name: str = "victim") -> Check:
    def check(scene: Scene, place: Path, find: Backing) -> None:
        assert_eio(lambda: os.getxattr(place / name, attribute))
        scene.assert_one_line("ERROR", find(name).name, "xattr")
        os.removexattr(place / name, attribute)
        os.setxattr(place / name, attribute, b"new")
        assert os.getxattr(place / name, attribute) == b"new"

    return check


def no_xattrs(scene: Scene, place: Path, find: Backing) -> None:
    assert os.listxattr(place / "victim") == []
    scene.assert_lines(2, "WARNING", find("victim").name, "left out of the list of xattrs")


def exchanged_between_files(scene: Scene, place: Path, find: Backing) -> None:
    """One of the two attributes was exchanged; which of them has which cipher name is not known here."""
    results = []
    for attribute in ("user.a", "user.b"):
        try:
            results.append(os.getxattr(place / "victim", attribute))
        except OSError as error:
            assert error.errno == errno.EIO
            results.append(b"")
    assert sorted(results) in ([b"", b"a of victim"], [b"", b"b of victim"])
    scene.assert_one_line("ERROR", find("victim").name, "xattr")


def eio_file(scene: Scene, place: Path, find: Backing) -> None:
    assert_eio((place / "victim").read_bytes)
    scene.assert_one_line("ERROR", find("victim").name, "header")
    (place / "victim").unlink()
    assert not find("victim").exists()


TREE_ATTACKS: dict[str, tuple[Attack, Check]] = {
    "entry renamed": (
        lambda find: find("victim").rename(find("victim").with_name("A" * 43)),
        lost("victim"),
    ),
    "entry spelled in another way": (
        lambda find: find("victim").rename(find("victim").with_name(other_spelling(find("victim").name))),
        lost("victim"),
    ),
    "entry moved": (
        lambda find: find("directory/inside").rename(beside(find, "directory/inside")),
        lost(),
    ),
    "entry copied": (
        lambda find: os.link(find("directory/inside"), beside(find, "directory/inside")),
        lost(),
    ),
    "name of the parent": (lambda find: impossible_name(find, b"..").write_bytes(b""), lost()),
    "name with a slash": (lambda find: impossible_name(find, b"a/b").write_bytes(b""), lost()),
    "sidecar missing": (lambda find: sidecar(find(LONG)).unlink(), lost_sidecar),
    "sidecar flipped": (lambda find: flip(sidecar(find(LONG)), 30), lost(LONG)),
    "sidecar cut": (lambda find: os.truncate(sidecar(find(LONG)), 300), lost(LONG)),
    "sidecar of another": (
        lambda find: sidecar(find(LONG)).write_bytes(sidecar(find(OTHER_LONG)).read_bytes()),
        lost(LONG),
    ),
    "sidecars exchanged": (
        lambda find: exchange_files(sidecar(find(LONG)), sidecar(find(OTHER_LONG))),
        lost(LONG, OTHER_LONG),
    ),
    "sidecar for a short name": (pose_as_long, lost()),
    "record flipped": (lambda find: flip(record_of(find, "directory"), 20), eio_directory),
    "record missing": (lambda find: record_of(find, "directory").unlink(), lost_record),
    "records exchanged": (
        lambda find: exchange_files(record_of(find, "directory"), record_of(find, "directory 2")),
        eio_directories("directory", "directory 2"),
    ),
    "record of its parent": (
        lambda find: record_of(find, "directory").write_bytes(
            (find("directory").parent / RECORD_NAME).read_bytes()
        ),
        eio_directories("directory"),
    ),
    "link flipped": (
        lambda find: relink(find("link"), flipped_text(os.readlink(find("link")))),
        eio_link("link"),
    ),
    "link of another name": (
        lambda find: relink(find("link"), os.readlink(find("link 2"))),
        eio_link("link"),
    ),
    "link to outside": (lambda find: relink(find("link"), "/etc/passwd"), eio_link("link")),
    "long target flipped": (lambda find: flip(find.target_file("far link"), 100), eio_far_links("far link")),
    "long target lost": (lambda find: find.target_file("far link").unlink(), eio_far_links("far link")),
    "long targets exchanged": (
        lambda find: exchange_files(find.target_file("far link"), find.target_file("far link 2")),
        eio_far_links(*LONG_TARGETS),
    ),
    "id of a long target is none": (
        lambda find: relink(find("link"), "cryptfs.link.../../cryptfs.json.5"),
        eio_link("link"),
    ),
    "xattr flipped": (lambda find: spoil_xattrs(find("victim")), eio_xattr("user.a")),
    "xattr names changed": (lambda find: rename_xattrs(find("victim")), no_xattrs),
    "xattrs of two names exchanged": (
        lambda find: exchange_xattrs(
            (find("victim"), backing_xattrs(find("victim"))[0]),
            (find("victim"), backing_xattrs(find("victim"))[1]),
        ),
        eio_xattr("user.b"),
    ),
    "xattrs of two files exchanged": (
        lambda find: exchange_xattrs(
            (find("victim"), backing_xattrs(find("victim"))[0]),
            (find("bystander"), backing_xattrs(find("victim"))[0]),
        ),
        exchanged_between_files,
    ),
    "xattr of a file at a directory": (
        lambda find: set_xattrs(
            find("directory"), os.getxattr(find("victim"), backing_xattrs(find("victim"))[0])
        ),
        eio_xattr("user.a", "directory"),
    ),
    "link as xattr": (
        lambda find: set_xattrs(find("victim"), decode_text(os.readlink(find("link"))) or b""),
        eio_xattr("user.a"),
    ),
    "header as xattr": (
        lambda find: set_xattrs(find("victim"), find("victim").read_bytes()[48:224]),
        eio_xattr("user.a"),
    ),
    "xattr as link": (
        lambda find: relink(
            find("link"), encode_text(os.getxattr(find("victim"), backing_xattrs(find("victim"))[0]))
        ),
        eio_link("link"),
    ),
    "file as record": (
        lambda find: record_of(find, "directory").write_bytes(find("victim").read_bytes()[:HEADER_SIZE]),
        eio_directory,
    ),
    "record as file": (
        lambda find: find("victim").write_bytes(record_of(find, "directory").read_bytes()),
        eio_file,
    ),
}
