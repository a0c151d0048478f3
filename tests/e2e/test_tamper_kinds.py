"""One victim for each way to tamper, on real mounts of both engines: attacked while mounted, and while not.

tests/tamper/ goes through every byte without a mount. Here a sample of each kind goes all the way: EIO, one
line in the log, nothing wrong read, everything else works, and the victim can be emptied and removed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cryptfs.core.aead import AEGIS_256
from cryptfs.core.geometry import HEADER_SIZE, ChunkGeometry
from tests.e2e.conftest import ENGINES, require_fuse
from tests.e2e.mounting import Mounted, MountSpec, mounted
from tests.e2e.test_tamper_mounted import backing_file, flip, read_direct
from tests.support import KIB, pattern

pytestmark = pytest.mark.timeout(60)  # a hang is among what these cases are about

CHUNK = 16 * KIB
SIZE = 3 * CHUNK + 1000
CHUNKS = 4
CONTENT = pattern(SIZE, 1)
GEOMETRY = ChunkGeometry(CHUNK, AEGIS_256.overhead)
LONG = "l" * 200


def record(index: int) -> slice:
    """Where a chunk's record stands in a victim."""
    start = GEOMETRY.record_offset(index)
    return slice(start, min(start + GEOMETRY.record_size, GEOMETRY.cipher_size(SIZE)))


@dataclass(frozen=True)
class Evidence:
    """What an attacker has: the victim, another file of the same size, and the victim of long ago."""

    victim: bytes
    other: bytes
    old: bytes


Attack = Callable[[Evidence], bytes]


def replacing(index: int, taken: Callable[[Evidence], bytes]) -> Attack:
    """One record replaced by something of its length."""

    def attack(has: Evidence) -> bytes:
        changed = bytearray(has.victim)
        changed[record(index)] = taken(has)
        return bytes(changed)

    return attack


def flipping(place: int) -> Attack:
    def attack(has: Evidence) -> bytes:
        changed = bytearray(has.victim)
        changed[place] ^= 0x10
        return bytes(changed)

    return attack


def cutting(length: int) -> Attack:
    return lambda has: has.victim[:length]


def swapping(has: Evidence) -> bytes:
    first, second = record(1), record(2)
    changed = bytearray(has.victim)
    changed[first], changed[second] = has.victim[second], has.victim[first]
    return bytes(changed)


def moving_down(has: Evidence) -> bytes:
    gone = record(0)
    return has.victim[: gone.start] + has.victim[gone.stop :] + has.victim[gone]


WHOLE = None
ATTACKS: dict[str, tuple[Attack, tuple[int, ...] | None]] = {
    "header flipped": (flipping(40), WHOLE),
    "header of another file": (lambda has: has.other[:HEADER_SIZE] + has.victim[HEADER_SIZE:], (0, 1, 2, 3)),
    "nonce flipped": (flipping(record(1).start), (1,)),
    "ciphertext flipped": (flipping(record(1).start + 5000), (1,)),
    "tag flipped": (flipping(record(1).stop - 1), (1,)),
    "last chunk flipped": (flipping(record(3).start + 40), (3,)),
    "chunks swapped": (swapping, (1, 2)),
    "chunks moved": (moving_down, (0, 1, 2, 3)),
    "chunk repeated": (replacing(2, lambda has: has.victim[record(0)]), (2,)),
    "chunk of another file": (replacing(1, lambda has: has.other[record(1)]), (1,)),
    "chunk from before a truncate": (replacing(1, lambda has: has.old[record(1)]), (1,)),
    "chunk zeroed": (replacing(2, lambda has: bytes(GEOMETRY.record_size)), (2,)),
    "cut at a chunk": (cutting(record(2).start), WHOLE),
    "cut inside a chunk": (cutting(record(2).start + 700), WHOLE),
    "cut to the header": (cutting(HEADER_SIZE), WHOLE),
    "cut inside the header": (cutting(100), WHOLE),
}
"""What is done to the backing file, and which chunks are lost by it."""


class Scene:
    """A mount with a victim for each attack, which has happened."""

    def __init__(self, mount: Mounted, *, live: bool) -> None:
        self.mount = mount
        self.backing: dict[str, Path] = {}
        root = mount.mountpoint
        (root / "other").write_bytes(pattern(SIZE, 2))
        for name in ATTACKS:
            (root / name).write_bytes(pattern(SIZE, 3))
        self.make_tree(root)
        mount.remount()  # everything is at rest, and the kernel remembers nothing
        for path in root.rglob("*"):
            self.backing[str(path.relative_to(root))] = backing_file(mount, path.lstat().st_ino)
        old = {name: self.backing[name].read_bytes() for name in ATTACKS}
        for name in ATTACKS:
            (root / name).write_bytes(CONTENT)  # O_TRUNC: the next epoch
        mount.remount()
        if live:
            self.attack(old)
        else:
            mount.unmount()
            self.attack(old)
            mount.start()

    @staticmethod
    def make_tree(root: Path) -> None:
        for kind in TREE_ATTACKS:
            place = root / f"in {kind}"
            place.mkdir()
            (place / "bystander").write_bytes(b"fine")
            (place / "victim").write_bytes(b"content")
            (place / LONG).write_bytes(b"long")
            (place / ("m" * 200)).write_bytes(b"other long")
            (place / "directory").mkdir()
            (place / "directory" / "inside").write_bytes(b"inside")
            (place / "directory 2").mkdir()
            (place / "link").symlink_to("target")
            (place / "link 2").symlink_to("other")
            for name in ("victim", "bystander"):
                os.setxattr(place / name, "user.a", b"a of " + name.encode())
                os.setxattr(place / name, "user.b", b"b of " + name.encode())

    def attack(self, old: dict[str, bytes]) -> None:
        other = self.backing["other"].read_bytes()
        for name, (attack, _) in ATTACKS.items():
            path = self.backing[name]
            changed = attack(Evidence(path.read_bytes(), other, old[name]))
            with path.open("r+b") as file:
                file.write(changed)
                file.truncate()
        for kind, (tree_attack, _) in TREE_ATTACKS.items():
            tree_attack(lambda name, kind=kind: self.backing[f"in {kind}/{name}"])  # type: ignore[misc]

    def lines(self) -> list[str]:
        """New lines of the log; none of them holds a name from the mount."""
        lines = self.mount.new_log_lines()
        for word in ("victim", "bystander", "inside", "link", "directory 2", "lll", *ATTACKS):
            assert not any(word in line.partition(": ")[2].partition(": ")[0] for line in lines), lines
        return lines

    def assert_one_line(self, *wanted: str) -> None:
        """Nothing was logged since the last look but one line that says all this."""
        lines = self.lines()
        assert len(lines) == 1, lines
        assert all(part in lines[0] for part in wanted), (lines, wanted)


# ---- the tree


Find = Callable[[str], Path]
TreeCheck = Callable[["Scene", Path, Find], None]


def assert_eio(action: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        action()
    assert raised.value.errno == errno.EIO


def relink(path: Path, text: str) -> None:
    path.unlink()
    path.symlink_to(text)


def flipped_text(text: str) -> str:
    return ("B" if text[0] == "A" else "A") + text[1:]


def backing_xattrs(path: Path) -> list[str]:
    return sorted(name for name in os.listxattr(path) if name.startswith("user.cryptfs."))


def spoil_xattrs(path: Path) -> None:
    for name in backing_xattrs(path):
        os.setxattr(path, name, bytes(60))


def exchange_xattrs(first: tuple[Path, str], second: tuple[Path, str]) -> None:
    one, two = os.getxattr(*first), os.getxattr(*second)
    os.setxattr(*first, two)
    os.setxattr(*second, one)


def exchange_files(one: Path, two: Path) -> None:
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


def sidecar(entry: Path) -> Path:
    return Path(f"{entry}.name")


def lost(name: str) -> TreeCheck:
    """The entry is left out of its listing, with one warning; it hides nothing else."""

    def check(scene: Scene, place: Path, find: Find) -> None:
        everything = {path.name for path in find("bystander").parent.iterdir()}
        names = set(os.listdir(place))
        assert name not in names
        assert {"bystander", "directory", "link"} - {name} <= names
        scene.assert_one_line("WARNING", "left out of the listing")
        assert everything == {path.name for path in find("bystander").parent.iterdir()}

    return check


def eio_directory(scene: Scene, place: Path, find: Find) -> None:
    assert_eio(lambda: os.listdir(place / "directory"))
    scene.assert_one_line("ERROR", find("directory").name, "directory record")
    assert_eio(lambda: (place / "directory" / "new").touch())
    scene.lines()
    if not (find("directory") / "cryptfs.dir").exists():
        for path in find("directory").iterdir():
            path.unlink()
        (place / "directory").rmdir()  # what is empty but for a bad record can go


def eio_link(scene: Scene, place: Path, find: Find) -> None:
    assert_eio(lambda: (place / "link").readlink())
    scene.assert_one_line("ERROR", find("link").name, "symlink")
    (place / "link").unlink()
    assert not find("link").is_symlink()


def eio_xattr(attribute: str) -> TreeCheck:
    def check(scene: Scene, place: Path, find: Find) -> None:
        assert_eio(lambda: os.getxattr(place / "victim", attribute))
        scene.assert_one_line("ERROR", find("victim").name, "xattr")
        os.removexattr(place / "victim", attribute)
        os.setxattr(place / "victim", attribute, b"new")
        assert os.getxattr(place / "victim", attribute) == b"new"

    return check


def record_of(find: Find, name: str) -> Path:
    return find(name) / "cryptfs.dir"


TREE_ATTACKS: dict[str, tuple[Callable[[Find], object], TreeCheck]] = {
    "entry renamed": (
        lambda find: find("victim").rename(find("victim").with_name("A" * 43)),
        lost("victim"),
    ),
    "entry moved": (
        lambda find: find("directory/inside").rename(find("victim").with_name(find("directory/inside").name)),
        lost("inside"),
    ),
    "entry copied": (
        lambda find: os.link(
            find("directory/inside"), find("victim").with_name(find("directory/inside").name)
        ),
        lost("inside"),
    ),
    "sidecar missing": (lambda find: sidecar(find(LONG)).unlink(), lost(LONG)),
    "sidecar of another": (
        lambda find: sidecar(find(LONG)).write_bytes(sidecar(find("m" * 200)).read_bytes()),
        lost(LONG),
    ),
    "record flipped": (lambda find: flip(record_of(find, "directory"), 20), eio_directory),
    "record missing": (lambda find: record_of(find, "directory").unlink(), eio_directory),
    "link flipped": (
        lambda find: relink(find("link"), flipped_text(str(find("link").readlink()))),
        eio_link,
    ),
    "link of another name": (
        lambda find: relink(find("link"), str(find("link 2").readlink())),
        eio_link,
    ),
    "link to outside": (lambda find: relink(find("link"), "/etc/passwd"), eio_link),
    "xattr flipped": (lambda find: spoil_xattrs(find("victim")), eio_xattr("user.a")),
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
        lambda scene, place, find: exchanged_between_files(scene, place, find),
    ),
}


def exchanged_between_files(scene: Scene, place: Path, find: Find) -> None:
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


# ---- the tests


@pytest.fixture(
    scope="module", params=[(engine, live) for engine in ENGINES for live in (False, True)], ids=str
)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    engine, live = request.param
    spec = MountSpec(engine)
    require_fuse(spec)
    with mounted(spec) as mount:
        yield Scene(mount, live=live)


def append(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"more")
        os.fsync(fd)
    finally:
        os.close(fd)


def chunk_or_error(path: Path, index: int) -> bytes | int | None:
    try:
        return read_direct(path, index * CHUNK, CHUNK)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("name", ATTACKS)
def test_a_file(scene: Scene, name: str) -> None:
    _, lost_chunks = ATTACKS[name]
    path, backing = scene.mount.mountpoint / name, scene.backing[name]
    scene.lines()
    seen_size = path.stat().st_size
    for index in range(CHUNKS):
        found = chunk_or_error(path, index)
        if lost_chunks is WHOLE and 0 < seen_size <= index * CHUNK:
            assert found == b""  # behind the end that the kernel sees; the file is not empty to it
        elif lost_chunks is WHOLE or index in lost_chunks:
            assert found == errno.EIO
            if lost_chunks is not WHOLE:
                scene.assert_one_line("ERROR", f"{backing.name}, chunk {index}: ")
        else:
            assert found == CONTENT[index * CHUNK : (index + 1) * CHUNK]
    if lost_chunks is WHOLE:
        scene.assert_one_line("ERROR", f"{backing.name}: ")
        assert_eio(lambda: os.truncate(path, 10))
        assert_eio(lambda: append(path))
    assert (scene.mount.mountpoint / "other").read_bytes() == pattern(SIZE, 2)
    path.write_bytes(b"new life")
    assert path.read_bytes() == b"new life"
    path.unlink()
    assert not path.exists()
    assert not backing.exists()
    scene.lines()


@pytest.mark.parametrize("kind", TREE_ATTACKS)
def test_the_tree(scene: Scene, kind: str) -> None:
    place = scene.mount.mountpoint / f"in {kind}"
    scene.lines()
    TREE_ATTACKS[kind][1](scene, place, lambda name: scene.backing[f"in {kind}/{name}"])
    assert (place / "bystander").read_bytes() == b"fine"
    scene.lines()
