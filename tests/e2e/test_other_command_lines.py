"""Each option of the program for front ends of gocryptfs, and of the mount helper, by what it changes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.mount.mounts import Mount, mount_at, wait_until
from tests.commands import Outcome
from tests.e2e.desk import PASSPHRASE, Desk
from tests.e2e.mounting import PROJECT, detach

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]

GOCRYPTFS = (sys.executable, "-m", "cryptfs.cli.gocryptfs")
LINE = f"{PASSPHRASE}\n"
ENDS = 20.0

# Flags of gocryptfs that change nothing in cryptfs, and those that it refuses.
HARMLESS = (
    *(
        "-acl",
        "-sharedstorage",
        "-nosyslog",
        "-fusedebug",
        "-kernel_cache",
        "-noprealloc",
        "-serialize_reads",
    ),
    *("-hkdf", "-longnames", "-raw64", "-devrandom", "-forcedecode", "-nofail", "-wpanic", "-rw"),
    *("-scryptn", "10", "-openssl", "true", "-badname", "*"),
)
REFUSED = (
    *(
        "-aessiv",
        "-reverse",
        "-plaintextnames",
        "-deterministic-names",
        "-zerokey",
        "-speed",
        "-one-file-system",
    ),
    *(
        "-config=x",
        "-masterkey=x",
        "-fido2=x",
        "-force_owner=0:0",
        "-ctlsock=x",
        "-longnamemax=99",
        "-notifypid=1",
    ),
    *("-exclude=x", "-exclude-wildcard=x", "-exclude-from=x", "-cpuprofile=x", "-memprofile=x", "-trace=x"),
    *("-e=x", "-ew=x"),
)


class FrontEnd:
    """A front end of gocryptfs at a desk, and what it mounts."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.point = desk.base / "mountpoint"
        self.point.mkdir()

    def __call__(self, *words: object, code: int = 0, text: str = LINE) -> Outcome:
        return self.desk(*words, code=code, text=text, opens=False, program=GOCRYPTFS)

    def mount(self, *words: object, text: str = LINE) -> Mount:
        """Mount with these flags, look into a file, unmount."""
        self(*words, self.desk.vault, self.point, text=text)
        found = mount_at(self.point)
        assert found is not None
        assert (self.point / "a" / "one.txt").read_bytes() == b"0123456789"
        return found

    def umount(self) -> None:
        detach(self.point)


@pytest.fixture
def front(desk: Desk) -> Iterator[FrontEnd]:
    made = FrontEnd(desk)
    yield made
    detach(made.point)
    assert wait_until(lambda: desk.info()["held_by"] is None, ENDS)


def test_what_it_says_of_itself(front: FrontEnd) -> None:
    assert front("-version").out.startswith("gocryptfs 2.3; cryptfs ")
    for flag in ("-h", "-help", "-hh", "--help"):
        assert "-allow_other" in front(flag).out
    assert "Usage: " in front(code=1).out


def test_actions(front: FrontEnd) -> None:
    new, second = front.desk.base / "new", "Qx7 another\n"
    new.mkdir()
    assert "created successfully" in front("-init", "-xchacha", new, text=LINE).out
    assert "Creator:" in (told := front("-info", new).out) and "xchacha20-poly1305" in told
    assert "Password changed." in front("-passwd", front.desk.vault, text=LINE + second).out
    assert "Password incorrect." in front("-fsck", front.desk.vault, code=12).err
    assert "no problems found" in front("-fsck", front.desk.vault, text=second).out
    assert front("-fsck", "-q", front.desk.vault, text=second).out == ""
    assert front("-fsck", "-quiet", front.desk.vault, text=second).out == ""
    front.desk.damage()
    assert "corruption found" in front("-fsck", front.desk.vault, text=second, code=26).err
    assert "at most one of" in front("-info", "-fsck", front.desk.vault, code=1).err


def test_passphrases(front: FrontEnd) -> None:
    half = len(PASSPHRASE) // 2
    first, rest = front.desk.file("1", PASSPHRASE[:half]), front.desk.file("2", f"{PASSPHRASE[half:]}\n")
    for flags in (
        ("-extpass", f"cat {front.desk.passfile}"),
        ("-extpass", "cat", "-extpass", str(front.desk.passfile)),
        ("-passfile", str(front.desk.passfile)),
        ("-passfile", str(first), "-passfile", str(rest)),
    ):
        front("-fsck", "-q", *flags, front.desk.vault, text="")
    both = ("-extpass", "x", "-passfile", "y")
    assert "cannot be used at the same time" in front("-fsck", *both, front.desk.vault, code=1).err
    front("-fsck", "-extpass", "false", front.desk.vault, code=9)
    front("-fsck", "-passfile", front.desk.base / "none", front.desk.vault, code=9)
    front("-fsck", front.desk.vault, text="\n", code=9)


def test_flags_of_a_mount(front: FrontEnd) -> None:
    found = front.mount("-ro", "-noexec", "-nodev", "-nosuid", "-fsname", "by its name", "-idle", "1h")
    assert found.source == "by its name"
    assert {"ro", "noexec", "nodev", "nosuid"} <= set(found.options)
    status = front.desk("status", "--json", front.point).out
    assert '"idle_seconds": 3600' in status
    front.umount()
    found = front.mount("-rw", "-exec", "-dev", "-suid", "-i", "90s", "-d", "-allow_other", "-q")
    assert not {"ro", "noexec", "nodev", "nosuid"} & set(found.options)
    assert "allow_other" in found.options
    assert '"idle_seconds": 90' in front.desk("status", "--json", front.point).out
    front.umount()
    found = front.mount("-o", "ro,fsname=of o", "-ko", "noexec")
    assert {"ro", "noexec"} <= set(found.options) and found.source == "of o"
    front.umount()
    (front.point / "below").touch()
    refused = front(front.desk.vault, front.point, code=10)
    assert "use the 'nonempty' option" in refused.err
    assert "below" not in (front.mount("-nonempty"), [each.name for each in front.point.iterdir()])[1]
    front.umount()
    assert (front.point / "below").exists()


@pytest.mark.parametrize("flag", ["-fg", "-f"])
def test_the_foreground(front: FrontEnd, flag: str) -> None:
    words = [*GOCRYPTFS, flag, "-debug", str(front.desk.vault), str(front.point)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=front.desk.environment(opens=False)
    ) as process:
        assert process.stdin is not None
        process.stdin.write(LINE.encode())
        process.stdin.close()
        assert wait_until(lambda: mount_at(front.point) is not None, ENDS)
        assert process.poll() is None
        detach(front.point)
        assert process.wait(ENDS) == 0


def test_flags_without_effect(front: FrontEnd) -> None:
    found = front.mount(*HARMLESS)
    assert found.fs_type == "fuse.cryptfs" and not found.read_only


@pytest.mark.parametrize("flag", REFUSED)
def test_flags_that_are_refused(front: FrontEnd, flag: str) -> None:
    """None of them is passed over in silence: the vault would be another than somebody thinks."""
    told = front(flag, front.desk.vault, front.point, code=1)
    assert "of gocryptfs. Try: cryptfs-gocryptfs -help" in told.err
    assert mount_at(front.point) is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-rain",), "unknown option: -rain"),
        (("-o", "rain"), "unknown option: -o rain"),
        (("-ko", "rain"), "unknown option: -o rain"),
        (("-idle", "soon"), "a time is written as"),
        (("-idle", "-1s"), "a time is written as"),
        (("-q=perhaps",), "is true or false"),
        (("-o", "fsname"), "needs a value"),
    ],
)
def test_flags_that_are_wrong(front: FrontEnd, words: tuple[str, ...], says: str) -> None:
    told = front(*words, front.desk.vault, front.point, code=1)
    assert says in told.err and told.out == ""
    assert mount_at(front.point) is None
    assert "needs a value" in front(front.desk.vault, front.point, "-fsname", code=1).err


# ---- the mount helper


@pytest.fixture
def helper(front: FrontEnd) -> tuple[str, ...]:
    """As mount(8) finds it: by its name."""
    place = front.desk.base / "mount.fuse.cryptfs"
    place.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from cryptfs.cli.main import run\nrun()\n"
    )
    place.chmod(0o755)
    return (str(place),)


def test_the_mount_helper(front: FrontEnd, helper: tuple[str, ...]) -> None:
    """Flags of mount(8), before and after the places; a rehearsal mounts nothing."""
    places = (front.desk.vault, front.point)
    option = f"ro,passfile={front.desk.passfile}"
    said = front.desk(*places, "-f", "-o", option, program=helper, opens=False)
    assert (mount_at(front.point), said.err) == (None, "")
    for flags, speaks in ((("-s", "-n"), False), (("-v",), True), (("-sn", "-t", "fuse.cryptfs"), False)):
        said = front.desk(*places, *flags, "-o", option, program=helper, opens=False)
        assert ("is mounted on" in said.err) is speaks
        found = mount_at(front.point)
        assert found is not None and found.read_only
        front.umount()
        assert wait_until(lambda: front.desk.info()["held_by"] is None, ENDS)
    front.desk("-N", "/proc/1/ns/mnt", *places, "-o", option, program=helper, opens=False)
    assert mount_at(front.point) is not None
    front.umount()
    for words in ((front.desk.vault,), (), (*places, "-o", "rain"), (*places, "-o")):
        told = front.desk(*words, program=helper, code=1 if words[-1:] != ("-o",) else 0)
        assert told.err.startswith("cryptfs: ") or not told.code
        front.umount()
