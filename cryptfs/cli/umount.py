"""`cryptfs umount`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.mounted import MOUNTPOINT, only_mountpoint, own_mounts
from cryptfs.cli.output import note, say
from cryptfs.cli.params import debug_option, shown

if TYPE_CHECKING:
    from cryptfs.mount.closing import Closing


@command()
@click.argument("mountpoint", type=MOUNTPOINT, metavar="[MOUNTPOINT]", required=False)
@click.option("-a", "--all", "everything", is_flag=True, help="Unmount all vaults that you mounted.")
@click.option("-z", "--lazy", is_flag=True, help="Unmount now; programs keep their open files.")
@click.option("--no-hook", is_flag=True, help="Do not run the command of mount --before-unmount.")
@click.option(
    "--restore",
    is_flag=True,
    help="Turn a MOUNTPOINT that cryptfs made into an ordinary directory, so that you can write to it and "
    "remove it.",
)
@debug_option
def umount(mountpoint: Path | None, everything: bool, lazy: bool, no_hook: bool, restore: bool) -> None:
    """Unmount MOUNTPOINT and wait until its vault is closed.

    Without MOUNTPOINT, the command unmounts the only mount, or lists all mounts. In place of MOUNTPOINT, you
    can give the name of a vault: one from the config file, or of a vault that was opened before.

    When this returns, everything is written, and you can mount the vault again, copy it or move it. If
    something keeps the vault open (a bind mount, a container with the mount, an open file), the command names
    it and waits for up to two minutes.
    """
    from cryptfs.mount.mounts import absolute, mount_at

    if everything:
        if mountpoint is not None or restore:
            raise UsageProblem("--all takes no MOUNTPOINT and no --restore")
        os.chdir("/")
        _unmount_all(lazy=lazy, run_hook=not no_hook)
        return
    if restore:
        if mountpoint is None:
            raise UsageProblem("name a directory: cryptfs umount --restore MOUNTPOINT")
        mountpoint = absolute(mountpoint)
        found = mount_at(mountpoint)
        if found is not None and found.is_cryptfs:
            _unmount(mountpoint, lazy=lazy, run_hook=not no_hook)
        _restore(mountpoint)
        return
    was_named = mountpoint is not None
    mountpoint = only_mountpoint("umount") if mountpoint is None else absolute(mountpoint)
    _unmount(mountpoint, lazy=lazy, run_hook=not no_hook)
    if not was_named and not lazy:
        note(f"{shown(mountpoint)} is unmounted.")


def _unmount(mountpoint: Path, *, lazy: bool, run_hook: bool) -> None:
    os.chdir("/")  # this process itself must not keep the mount busy
    _wait(_take_away(mountpoint, lazy=lazy, run_hook=run_hook), lazy=lazy)


def _take_away(mountpoint: Path, *, lazy: bool, run_hook: bool) -> Closing:
    """Raises: MountError."""
    from cryptfs.mount.closing import closing_of
    from cryptfs.mount.mounts import cryptfs_mount_at, unmount

    closing = closing_of(cryptfs_mount_at(mountpoint))
    unmount(mountpoint, lazy=lazy, run_hook=run_hook)
    return closing


def _wait(closing: Closing, *, lazy: bool) -> None:
    """Until a vault is closed, or, with lazy, for a moment. Raises: MountError: it is open still."""
    from cryptfs.mount.closing import SAY_AFTER, find_keepers, wait_closed
    from cryptfs.mount.mounts import wait_until

    if not lazy:
        wait_closed(closing, lambda text: say(f"{text}\nWaiting for that; Ctrl-C ends only the waiting."))
    elif not wait_until(lambda: not closing.is_open(), SAY_AFTER):
        lines = find_keepers(closing.mount.device).lines()
        who = ":\n  " + "\n  ".join(lines) if lines else ""
        gone = f"{shown(closing.mount.mountpoint)} is gone"
        say(f"{gone}; the vault closes when the last program closes its files{who}")


def _unmount_all(*, lazy: bool, run_hook: bool) -> None:
    """The newest mount first: it may be inside an older one. After an error the others go all the same.

    Raises: MountError: what could not be unmounted, or is open still.
    """
    from cryptfs.errors import MountError

    found = [mount for mount in own_mounts() if mount.owner == os.geteuid()]  # root's, not everybody's
    if not found:
        note("No vault of yours is mounted.")
    problems: list[str] = []
    closings: list[Closing] = []
    for mount in reversed(found):
        try:
            closings.append(_take_away(Path(mount.mountpoint), lazy=lazy, run_hook=run_hook))
        except MountError as error:
            problems.append(str(error))
    for closing in closings:
        try:
            _wait(closing, lazy=lazy)
        except MountError as error:
            problems.append(str(error))
        else:
            note(f"{shown(closing.mount.mountpoint)} is unmounted.")
    if problems:
        raise MountError("\n".join(problems))


def _restore(mountpoint: Path) -> None:
    from cryptfs.errors import MountError
    from cryptfs.mount.leaving import ownmountpoint
    from cryptfs.mount.mounts import mount_at

    other = mount_at(mountpoint)
    if other is not None:
        raise MountError(f"{shown(mountpoint)}: a mount of type {other.fs_type} is there; unmount that first")
    if not mountpoint.is_dir():
        reason = "is not a directory" if os.path.lexists(mountpoint) else "does not exist"
        raise MountError(f"{shown(mountpoint)} {reason}")
    ownmountpoint.restore(mountpoint)
    note(
        f"{shown(mountpoint)} is an ordinary directory now: files that programs write there are NOT "
        "encrypted."
    )
