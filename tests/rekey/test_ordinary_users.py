"""A change of the masterkey by an ordinary user, also where modes forbid the owner to read or write."""

from __future__ import annotations

import codecs
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cryptfs.errors import VaultError
from cryptfs.vfs.vault import Vault, read_config
from tests.crash.striking import Strike
from tests.rekey.material import (
    PASSPHRASE,
    change_masterkey,
    finish,
    furnish_small,
    make_directory,
    make_vault,
    put,
)
from tests.support import everything_below

pytestmark = pytest.mark.waits

USER = 65534


def as_user(action: Callable[[], object]) -> None:
    """Do something in a process of an ordinary user; it must end well."""
    codecs.lookup("ascii")  # afterwards the interpreter's own files may be out of reach
    child = os.fork()
    if not child:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(USER)
                os.setuid(USER)
            action()
            code = 0
        except Exception:  # noqa: BLE001 - a child tells what it was
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user may go through, and that is the user's."""
    made = Path(tempfile.mkdtemp(prefix="rekey-user-"))
    if os.geteuid() == 0:
        os.chown(made, USER, USER)
    made.chmod(0o755)
    yield made
    subprocess.run(["chmod", "-R", "u+rwx", made], check=True)
    shutil.rmtree(made)


def seen(vault_dir: Path) -> dict[str, tuple[int, int, int]]:
    """Modes, sizes and times of change by the number of names and size: the names are others afterwards."""
    found = sorted(
        (st.st_mode, st.st_nlink if not path.is_dir() else 0, st.st_mtime_ns)
        for path in everything_below(vault_dir)
        if path.parent.name != "cryptfs.links"
        if not path.name.startswith("cryptfs.") or path.name.startswith("cryptfs.long.")
        for st in [path.lstat()]
        if not path.name.endswith(".name")
    )
    return {str(number): each for number, each in enumerate(found)}


def furnish_closed(vault_dir: Path) -> None:
    make_vault(vault_dir)
    furnish_small(vault_dir)
    with Vault.unlock(vault_dir, PASSPHRASE) as vault:
        root = vault.tree.root
        for mode in (0o000, 0o200, 0o400, 0o111):
            put(vault, root, b"file of mode %o" % mode, b"content")
            below = make_directory(vault, root, b"directory of mode %o" % mode)
            put(vault, below, b"inside", b"content")
    with Vault.unlock(vault_dir, PASSPHRASE, read_only=True) as vault:
        for mode in (0o000, 0o200, 0o400, 0o111):
            for kind in (b"file", b"directory"):
                name = vault.tree.root.entry_name(kind + b" of mode %o" % mode)
                (vault_dir / name).chmod(mode)


def test_modes_that_forbid_the_owner(place: Path) -> None:
    vault_dir = place / "vault"
    as_user(lambda: furnish_closed(vault_dir))
    before = seen(vault_dir)
    as_user(lambda: change_masterkey(vault_dir))
    assert seen(vault_dir) == before
    assert not [path for path in everything_below(vault_dir) if path.name == "cryptfs.rekey"]


def given_away(vault_dir: Path, *, closed: bool) -> list[Path]:
    """Two files that belong to another user now. closed: in directories that their owner cannot list."""
    given = [
        path
        for path in sorted(everything_below(vault_dir))
        if path.is_file() and not path.is_symlink() and path.lstat().st_nlink == 1
        if "cryptfs." not in str(path.relative_to(vault_dir))
        if (path.parent.stat().st_mode & 0o500 != 0o500) == closed
    ][:2]
    assert len(given) == 2
    for path in given:
        os.chown(path, USER - 1, USER - 1)
    return given


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("begun", [False, True])
def test_files_of_others_are_not_taken_over(place: Path, begun: bool) -> None:
    """An ordinary user would get what belongs to others; root keeps each owner."""
    vault_dir = place / "vault"
    as_user(lambda: furnish_closed(vault_dir))

    class Killed(Strike):
        def exception(self) -> BaseException:
            os._exit(0)

    def interrupted() -> None:
        with Killed(at=150).without_syncs():
            change_masterkey(vault_dir)

    def refused() -> None:
        with pytest.raises(VaultError, match=r"belong to another user or group.*run it as root"):
            (finish if begun else change_masterkey)(vault_dir)

    if begun:
        as_user(interrupted)
    assert read_config(vault_dir).is_rekeying == begun
    given = given_away(vault_dir, closed=False)
    as_user(refused)
    assert {path.lstat().st_uid for path in given} == {USER - 1}
    (finish if begun else change_masterkey)(vault_dir)
    left = [path for path in everything_below(vault_dir) if path.lstat().st_uid == USER - 1]
    assert len(left) == len(given)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_others_in_closed_directories(place: Path) -> None:
    """They are found on the way only: the rest is changed, they stay as they are, and root goes on."""
    vault_dir = place / "vault"
    as_user(lambda: furnish_closed(vault_dir))
    given = given_away(vault_dir, closed=True)

    def refused() -> None:
        with pytest.raises(VaultError, match=r"cannot be read or written.*Run this again as a user who may"):
            change_masterkey(vault_dir)

    def of_others() -> list[Path]:
        return [path for path in everything_below(vault_dir) if path.lstat().st_uid == USER - 1]

    def contents() -> dict[int, bytes]:
        return {path.lstat().st_ino: path.read_bytes() for path in of_others()}

    before = contents()
    assert len(before) == len(given)
    as_user(refused)
    assert read_config(vault_dir).is_rekeying
    assert contents() == before  # under new names of their directories, perhaps
    finish(vault_dir)
    assert len(of_others()) == len(given)


def test_killed_while_a_mode_is_lifted(place: Path) -> None:
    """At each third call: in the end all modes and times are as before."""

    class Killed(Strike):
        def exception(self) -> BaseException:
            os._exit(0)

    def killed(call: int) -> None:
        with Killed(at=call).without_syncs():
            change_masterkey(vault_dir)

    for call in range(20, 290, 9):
        vault_dir = place / f"vault-{call}"
        as_user(lambda: furnish_closed(vault_dir))  # noqa: B023
        before = seen(vault_dir)
        as_user(lambda: killed(call))  # noqa: B023
        if list(vault_dir.glob("cryptfs.rekey")):
            as_user(lambda: finish(vault_dir))  # noqa: B023
        else:
            continue
        assert seen(vault_dir) == before, call
