"""For commands that work inside of a vault without a mount: open it, and report what cannot be read."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.exit_codes import ExitCode, exit_code_of
from cryptfs.cli.offers import OfferSource, say_opened, with_offer
from cryptfs.cli.output import say
from cryptfs.cli.params import leave_to_findings, shell_word, shown
from cryptfs.cli.vaults import config_of, naming, refuse_locked
from cryptfs.errors import CryptfsError, IntegrityError, VaultLockedError
from cryptfs.signals import interrupt_behind

if TYPE_CHECKING:
    from cryptfs.transfer.pathvault import PathVault
    from cryptfs.transfer.places import Found
    from cryptfs.unlock.offer import Offer


class Problems:
    """Reports each entry that something is wrong with, and knows the exit code in the end."""

    def __init__(self) -> None:
        self.told: list[dict[str, str]] = []  # as in JSON
        self._code = ExitCode.OK

    def __call__(self, path: bytes, error: Exception) -> None:
        """One entry. path: in the vault. Raises: what interrupted the work on it."""
        interrupt = interrupt_behind(error)
        if interrupt is not None:
            raise interrupt from error
        if isinstance(error.__cause__, CryptfsError):
            error = error.__cause__
        code = exit_code_of(error) or ExitCode.OTHER
        if code is ExitCode.DAMAGE or self._code is ExitCode.OK:
            self._code = code
        reason = str(error)
        if isinstance(error, IntegrityError):
            reason = f"{error.reason} (in the vault: {_where(error)})"
        elif isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        self.told.append({"path": shown(path), "reason": reason})
        say(f"cryptfs: {shown(path) or '/'}: {reason}")

    def code(self) -> ExitCode:
        """26 after damage, else that of the first problem."""
        return self._code


def _where(error: IntegrityError) -> str:
    """Cipher path and chunk."""
    return str(error).removesuffix(f": {error.reason}")


@contextlib.contextmanager
def opened_inside(
    ctx: click.Context,
    vault: Path,
    source: OfferSource,
    *,
    write: bool = False,
    lock: bool = True,
    start: bool = True,
) -> Iterator[PathVault]:
    """The vault, unlocked for reading, or for reading and writing.

    Args:   lock: False reads names beside a mount; content may be newer there.
            start: False leaves the threads of the vault to the caller, who forks first.
    Raises: VaultLockedError: it is mounted, or a command works in it.
    """
    from cryptfs.mount.mounts import absolute
    from cryptfs.mount.resources import claim_resources

    config = config_of(vault)
    if lock:
        if not write:
            _refuse_mounted(vault)
        refuse_locked(vault)
    leave_to_findings(ctx)
    from cryptfs.transfer.pathvault import PathVault

    claim_resources()

    def unlock(offer: Offer) -> PathVault:
        return PathVault.unlock(absolute(vault), offer, read_only=not write, lock=lock, start=start)

    with naming(vault):
        opened = with_offer(source, config, unlock)
    say_opened(opened.config, opened.slot, opened.spelling, quiet=True)
    try:
        yield opened
    finally:
        opened.close()


def _refuse_mounted(vault: Path) -> None:
    """A mount for writing has newer content than the disk: so send a reader there.

    Raises: VaultLockedError.
    """
    from cryptfs.mount.closing import mountpoint_of
    from cryptfs.vfs.vault import lock_holder

    holder = lock_holder(vault)
    place = None if holder is None else mountpoint_of(vault, holder)
    if place is not None:
        raise VaultLockedError(
            f"{shown(vault)} is mounted on {shown(place)}: work with its files there, or unmount it with: "
            f"cryptfs umount {shell_word(place)}"
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a path of the command line leads to. path: as it was given, or as a wildcard found it."""

    path: bytes
    found: Found


def chosen(
    opened: PathVault,
    paths: tuple[str, ...],
    problems: Problems,
    *,
    follow: bool = False,
    looks: bool = True,
    missing_is_fine: bool = False,
) -> Iterator[Chosen]:
    """All that paths and patterns lead to, one by one. A path that leads to nothing is a problem.

    Args: follow: also a symlink at the end of a path.   looks: the entry must be readable, not only there.
    """
    from cryptfs.transfer.walking import expanded
    from cryptfs.vfs.tree.attributes import backing_stat

    for pattern in paths:
        for path in expanded(opened.tree, opened.places, os.fsencode(pattern), problems):
            try:
                found = opened.places.find(path, follow=follow)
                if looks:
                    opened.tree.stat(*found)
                else:
                    backing_stat(*found)
            except FileNotFoundError as error:
                if not missing_is_fine:
                    problems(path, error)
                continue
            except (CryptfsError, OSError) as error:
                problems(path, error)
                continue
            yield Chosen(path, found)


def name_writer(*, zero: bool) -> Callable[[bytes], None]:
    """Writes a name a line, fit for a terminal; or, with zero, each as it is with a zero byte after it."""
    if not zero:
        return lambda name: click.echo(shown(name))
    sys.stdout.flush()
    return lambda name: click.echo(name + b"\0", nl=False)
