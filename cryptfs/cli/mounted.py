"""The mounts of this system, for commands without an argument and for completion."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from cryptfs.cli.configfile import NamedVault
from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.knownvaults import known_vaults
from cryptfs.cli.params import PathParameter, config_file, shell_word, shown

if TYPE_CHECKING:
    from cryptfs.mount.mounts import Mount


class Mountpoint(PathParameter):
    """A path; completion proposes the mountpoints of vaults.

    The scripts of click put a proposal on the command line as it is. So one in which a shell would see more
    than a word is left out: it may be the choice of another user.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Besides paths it takes names: of the config file, and of vaults that were opened before."""
        if isinstance(value, str) and "/" not in value and ctx is not None and not os.path.lexists(value):
            named = config_file(ctx).named(value)
            if named is not None:
                return _mountpoint_of(named)
            if (place := _mountpoint_of_known(value)) is not None:
                return place
        return super().convert(value, param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        places = [mount.mountpoint for mount in own_mounts()]
        if incomplete and not incomplete.startswith("/"):
            here = f"{os.getcwd()}/"
            places = [place.removeprefix(here) for place in places if place.startswith(here)]
        found = [
            _completed(place) for place in places if place.startswith(incomplete) and place.isprintable()
        ]
        return [CompletionItem(place) for place in found] or [CompletionItem(incomplete, type="dir")]


def _mountpoint_of_known(name: str) -> Path | None:
    """Where a vault is mounted that `cryptfs open` knows by this name; None if it knows none.

    Raises: UsageProblem: it is not mounted, or there are several mounts.
    """
    known = [vault for vault in known_vaults() if vault.name == name and vault.is_dir()]
    found = [place for vault in known for place in places_of(vault)]
    if known and not found:
        raise UsageProblem(f"the vault {shown(known[0])} is not mounted")
    if len(found) > 1:
        places = "".join(f"\n  {shown(place)}" for place in found)
        raise UsageProblem(f"several mounts are of vaults called {shown(name)}; give one:{places}")
    return found[0] if found else None


def _mountpoint_of(named: NamedVault) -> Path:
    """Where a vault of the config file is mounted; if it is not, where it would be.

    Raises: UsageProblem: neither, or it has several mountpoints.
    """
    found = places_of(named.vault)
    if named.mountpoint is not None and (not found or named.mountpoint in found):
        return named.mountpoint
    if len(found) == 1:
        return found[0]
    where = "".join(f"\n  {shown(place)}" for place in found)
    how = f"has several mountpoints; give one:{where}" if found else "is not mounted"
    raise UsageProblem(f"the vault {shown(named.name)} of the config file {how}")


def _completed(place: str) -> str:
    """A path as completion has to say it: zsh and fish quote it, bash takes it as it is, less backslashes."""
    if os.environ.get("_CRYPTFS_COMPLETE") != "bash_complete":
        return place
    return shell_word(place).replace("\\", "\\\\")


MOUNTPOINT = Mountpoint()


def places_of(vault: Path) -> list[Path]:
    """The mountpoints of a vault. A mount whose source was changed (fsname) says by its daemon what it is."""
    from cryptfs.mount.mounts import absolute, mounts_of

    found = [Path(mount.mountpoint) for mount in mounts_of(vault)]
    others = [mount for mount in own_mounts() if not os.path.isdir(mount.source)]
    return found + [Path(mount.mountpoint) for mount in others if vault_of(mount) == str(absolute(vault))]


def own_mounts() -> list[Mount]:
    """The cryptfs mounts of this user; for root all of them."""
    from cryptfs.mount.mounts import read_mounts

    user = os.geteuid()
    return [mount for mount in read_mounts() if mount.is_cryptfs and user in (0, mount.owner)]


def vault_of(mount: Mount) -> str:
    """The vault of a mount, by its daemon; by its source, any text, if the daemon does not answer."""
    from cryptfs.errors import MountError
    from cryptfs.mount.statistics import ask_status

    told: dict[str, Any] = {}
    with contextlib.suppress(MountError):
        told = ask_status(mount)
    return str(told.get("vault", mount.source))


def only_mountpoint(command: str) -> Path:
    """The mountpoint of the only mount, for a command without an argument.

    Raises: UsageProblem: there is none, or several, or root sees somebody else's; the text lists them.
    """
    found = own_mounts()
    if len(found) == 1 and found[0].owner == os.geteuid():
        return Path(found[0].mountpoint)
    if not found:
        raise UsageProblem("no vault of yours is mounted")
    lines = [
        f"  cryptfs {command} {shell_word(each.mountpoint)}    ({shown(vault_of(each))})" for each in found
    ]
    raise UsageProblem("name one of these mounts:\n" + "\n".join(lines))
