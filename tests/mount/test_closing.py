"""What keeps a vault open after its mount is gone, as /proc tells it, and what is said of it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.printable import shell_word, shown
from cryptfs.errors import MountError
from cryptfs.mount import closing as closing_module
from cryptfs.mount import mounts
from cryptfs.mount.closing import (
    SAY_AFTER,
    Closing,
    Elsewhere,
    Keepers,
    find_keepers,
    wait_closed,
    wait_while_closing,
)
from cryptfs.mount.holders import Holder, device_behind, find_users
from cryptfs.mount.mounts import Mount, cryptfs_mount_at, unmount
from cryptfs.storage.vaultdir import LOCK_NAME, LockHolder, VaultLock

MOUNT = Mount("0:1", "/m", (), "fuse.cryptfs", "/v")


class Held(Closing):
    """A vault that stays open for so many questions."""

    questions = 10**9

    def is_open(self) -> bool:
        type(self).questions -= 1
        return type(self).questions > 0


def keepers(*lines: str) -> Keepers:
    return Keepers(users=tuple(Holder(number, line, "open file") for number, line in enumerate(lines, 1)))


def test_nothing_is_said_of_what_closes_at_once() -> None:
    said: list[str] = []

    class Closed(Closing):
        def is_open(self) -> bool:
            return False

    wait_closed(Closed(MOUNT, Path("/v"), 0), said.append)
    assert said == []


def test_it_says_who_keeps_it_and_again_when_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([keepers("vim"), keepers("vim"), keepers("cat")])
    monkeypatch.setattr(closing_module, "SAY_AFTER", 0.01)
    monkeypatch.setattr(closing_module, "find_keepers", lambda device: next(answers, keepers("cat")))
    said: list[str] = []
    with pytest.raises(MountError) as caught:
        wait_closed(Held(MOUNT, Path("/v"), 7), said.append, timeout=2.0)
    assert [text.splitlines() for text in said] == [
        [
            "/m is unmounted, but the vault /v is still open. It closes when these let go of it:",
            f"  process 1 ({command}) uses it: open file",
        ]
        for command in ("vim", "cat")
    ]
    assert str(caught.value).startswith("/m is unmounted, but the vault /v is still open after 2 s. ")
    assert str(caught.value).endswith("  process 1 (cat) uses it: open file")


@pytest.mark.parametrize(("pid", "who"), [(7, "process 7"), (0, "its daemon")])
def test_where_nobody_is_seen_the_daemon_is_named(
    monkeypatch: pytest.MonkeyPatch, pid: int, who: str
) -> None:
    monkeypatch.setattr(closing_module, "SAY_AFTER", 0.01)
    monkeypatch.setattr(closing_module, "find_keepers", lambda device: Keepers())
    said: list[str] = []
    with pytest.raises(MountError, match=f"{who} has not closed the vault /v after 2 s"):
        wait_closed(Held(MOUNT, Path("/v"), pid), said.append, timeout=2.0)
    assert said == [f"/m is unmounted; {who} is still writing to the vault /v"]


def test_the_end_of_the_daemon_is_the_end_of_the_waiting() -> None:
    with subprocess.Popen(["sleep", "0.2"]) as daemon:
        closing = Closing(MOUNT, None, daemon.pid)
        assert closing.is_open()
        started = time.monotonic()
        wait_closed(closing)  # a zombie counts as ended: nobody has waited for it yet
        assert time.monotonic() - started < 30
        assert not closing.is_open()


def test_lines_for_a_person() -> None:
    found = Keepers(
        ("/bind mount",),
        (Elsewhere(12, "evil\x1b[2J", "/a\nb"),),
        (Holder(12, "evil\x1b[2J", "root directory"), Holder(13, "vim", "open file")),
    )
    assert found.lines() == [
        "/bind mount is a bind mount of it; remove it with: umount '/bind mount'",
        r"process 12 (evil\x1b[2J) has it mounted on /a\nb, in another mount namespace "
        "(a container or a service)",
        "process 13 (vim) uses it: open file",
    ]
    many = Keepers(users=tuple(Holder(pid, "cat", "open file") for pid in range(20)))
    assert len(many.lines()) == 9
    assert many.lines()[-1] == "and 12 more"


# ---- a vault that is being closed


@pytest.fixture
def held(tmp_path: Path) -> Iterator[VaultLock]:
    """The lock of a vault in tmp_path, whose holder says that it is mounted where nothing is."""
    vault_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    lock = VaultLock(vault_fd, tmp_path, shared=False)
    lock.announce(str(tmp_path / "gone"))
    yield lock
    lock.release()
    os.close(vault_fd)


TIMEOUT = 20.0


def waited(vault_dir: Path, timeout: float = TIMEOUT) -> tuple[LockHolder | None, list[str], float]:
    """Who has the vault after the waiting, what was said, and how long it took."""
    said: list[str] = []
    started = time.monotonic()
    holder = wait_while_closing(vault_dir, said.append, timeout)
    return holder, said, time.monotonic() - started


def test_a_vault_that_nobody_has_is_not_waited_for(tmp_path: Path) -> None:
    assert waited(tmp_path)[:2] == (None, [])


@pytest.mark.parametrize(("seconds", "say_after"), [(0.1, 20), (0.6, 20), (1.0, 0.2)])
def test_it_waits_until_the_vault_is_closed(
    tmp_path: Path, held: VaultLock, seconds: float, say_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing_module, "SAY_AFTER", say_after)
    lines = int(say_after < seconds)
    timer = threading.Timer(seconds, held.release)
    timer.start()
    holder, said, _ = waited(tmp_path)
    timer.join()
    assert holder is None
    assert (
        said
        == [f"The vault {tmp_path} is still being closed after its unmount. Waiting for that ..."] * lines
    )


def test_the_waiting_has_an_end(tmp_path: Path, held: VaultLock) -> None:
    holder, said, seconds = waited(tmp_path, timeout=0.5)
    assert holder == LockHolder(os.getpid(), str(tmp_path / "gone"))
    assert len(said) == 1
    assert SAY_AFTER + 0.5 <= seconds < 20
    told = str(closing_module.locked(tmp_path, holder))
    assert told == f"{tmp_path} is in use by process {os.getpid()}, at {tmp_path}/gone; try again later"


def test_a_command_in_the_vault_is_not_waited_for(tmp_path: Path, held: VaultLock) -> None:
    held.announce("")
    holder, said, seconds = waited(tmp_path)
    assert (holder, said) == (LockHolder(os.getpid(), ""), [])
    assert seconds < TIMEOUT / 2


def test_the_text_of_a_killed_daemon_is_not_believed(tmp_path: Path, held: VaultLock) -> None:
    """The next holder, here this process, replaces it when it is mounted or ends."""
    with subprocess.Popen(["true"]) as gone:
        pass
    text = json.dumps({"pid": gone.pid, "mountpoint": str(tmp_path / "gone")})
    (tmp_path / LOCK_NAME).write_text(text)
    holder, said, seconds = waited(tmp_path)
    assert (holder, said) == (LockHolder(gone.pid, str(tmp_path / "gone")), [])
    assert seconds < TIMEOUT / 2


def test_a_mount_is_not_waited_for(tmp_path: Path, held: VaultLock, monkeypatch: pytest.MonkeyPatch) -> None:
    use_mounts(monkeypatch, tmp_path, f"5 1 0:5 / {tmp_path}/gone rw - fuse.cryptfs {tmp_path} rw")
    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    assert waited(tmp_path)[:2] == (LockHolder(os.getpid(), str(tmp_path / "gone")), [])
    assert sleeps == []


def test_what_is_kept_is_not_waited_for(
    tmp_path: Path, held: VaultLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lazy unmount, for example: only a person knows when vim ends."""
    monkeypatch.setattr(closing_module, "device_served_by", {os.getpid(): "0:5"}.get)
    monkeypatch.setattr(closing_module, "find_keepers", {"0:5": keepers("vim")}.get)
    holder, said, seconds = waited(tmp_path)
    assert holder is not None
    assert said == []
    assert seconds < TIMEOUT / 2


def test_another_filesystem_with_its_device_number_keeps_nothing(
    tmp_path: Path, held: VaultLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_mounts(monkeypatch, tmp_path, "5 1 0:5 / /elsewhere rw - tmpfs tmpfs rw")
    monkeypatch.setattr(closing_module, "device_served_by", {os.getpid(): "0:5"}.get)
    monkeypatch.setattr(closing_module, "find_keepers", {"0:5": keepers("vim")}.get)
    holder, said, _ = waited(tmp_path, timeout=0.1)
    assert holder is not None
    assert len(said) == 1


def a_proc(tmp_path: Path, mountinfos: dict[int, str]) -> Path:
    proc = tmp_path / "proc"
    for pid, text in mountinfos.items():
        process = proc / str(pid)
        process.mkdir(parents=True)
        (process / "mountinfo").write_text(text)
        (process / "comm").write_text(f"p{pid}\n")
    return proc


def test_other_namespaces_are_told_by_the_numbers_of_their_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc does not say which namespace a process is in, as to other users."""
    ours = "40 1 0:77 / /bind rw - fuse.cryptfs /v rw\n"
    theirs = "90 1 0:77 / /m rw - fuse.cryptfs /v rw\n91 1 0:78 / /x rw - fuse.cryptfs /w rw\n"
    own = tmp_path / "own"
    own.write_text(ours)
    monkeypatch.setattr(mounts, "MOUNTINFO", own)
    proc = a_proc(tmp_path, {5: ours, 6: theirs, 7: theirs})
    found = find_keepers("0:77", proc)
    assert found == Keepers(("/bind",), (Elsewhere(6, "p6", "/m"),))


def test_a_device_is_told_without_asking_the_filesystem(tmp_path: Path) -> None:
    st = os.stat(tmp_path)
    device = f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}"
    assert device_behind(tmp_path) == device
    assert device_behind(tmp_path / "missing") is None
    (tmp_path / "file").write_bytes(bytes(4096))
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as sleeper:
        try:
            assert Holder(sleeper.pid, "sleep", "current directory") in find_users(device)
        finally:
            sleeper.kill()
    assert find_users("nonsense", tmp_path) == []


def test_a_mapping_is_found_by_its_device(tmp_path: Path) -> None:
    process = tmp_path / "77"
    process.mkdir()
    (process / "comm").write_text("mapper\n")
    (process / "maps").write_text("7f00-7f01 r--p 00000000 00:37 12    /gone\n7f02-7f03 rw-p 0 00:00 0\n")
    assert find_users("0:55", tmp_path) == [Holder(77, "mapper", "mapped file")]
    assert find_users("0:56", tmp_path) == []


@pytest.mark.parametrize(
    ("path", "word", "text"),
    [
        ("/plain", "/plain", "/plain"),
        ("/with space", "'/with space'", "/with space"),
        ("/für", "'/für'", "/für"),
        ("-z", "./-z", "-z"),
        ("/it's", "'/it'\"'\"'s'", "/it's"),
        ("/a\x1b[2J\n'\\", r"$'/a\x1b[2J\x0a\'\\'", r"/a\x1b[2J\n'\\"),
        ("/\udcff", r"$'/\xff'", r"/\xff"),
    ],
)
def test_words_for_terminals_and_shells(path: str, word: str, text: str) -> None:
    assert shown(path) == text
    assert shell_word(path) == word
    if path != "-z":
        pasted = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
        assert pasted.stdout == os.fsencode(path)


def use_mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str) -> None:
    sample = tmp_path / "mountinfo"
    sample.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(mounts, "MOUNTINFO", sample)


def test_the_vault_in_place_of_its_mountpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "cryptfs.json").touch()
    use_mounts(monkeypatch, tmp_path)
    with pytest.raises(MountError, match="v is a vault, and it is not mounted"):
        unmount(tmp_path / "v")
    use_mounts(monkeypatch, tmp_path, f"5 1 0:5 / {tmp_path}/m\\040n rw - fuse.cryptfs {tmp_path}/v rw")
    with pytest.raises(MountError) as caught:
        cryptfs_mount_at(tmp_path / "v", "status")
    assert str(caught.value) == (
        f"{tmp_path}/v is a vault; it is mounted on {tmp_path}/m n. Use: cryptfs status '{tmp_path}/m n'"
    )


def test_a_mount_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_mounts(monkeypatch, tmp_path, f"5 1 0:5 / {tmp_path} rw - fuse.cryptfs /v rw,user_id=0")
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(MountError, match="root mounted it; only that user and root can unmount it"):
        unmount(tmp_path)


def test_a_mount_below_the_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_mounts(
        monkeypatch,
        tmp_path,
        f"5 1 0:5 / {tmp_path} rw - fuse.cryptfs /v rw,user_id={os.geteuid()}",
        f"6 5 0:6 / {tmp_path}/below rw - tmpfs tmpfs rw",
    )

    def busy(_mountpoint: str, *, lazy: bool) -> None:
        raise OSError(16, "busy")

    monkeypatch.setattr(mounts, "detach", busy)
    with pytest.raises(MountError, match=f"Unmount that first: umount {tmp_path}/below"):
        unmount(tmp_path)
