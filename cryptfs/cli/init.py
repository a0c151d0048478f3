"""`cryptfs init`."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import InitError
from cryptfs.cli.keyslots import check_label_text
from cryptfs.cli.newsecret import Cost, NewPassphrase, cost_options, generate_option
from cryptfs.cli.offers import new_vault_options
from cryptfs.cli.output import note, say, size_text
from cryptfs.cli.params import (
    ByteSize,
    debug_option,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.pinning import PinChoice
from cryptfs.cli.prompt import PassphraseSource
from cryptfs.core.geometry import is_chunk_size
from cryptfs.errors import NotAVaultError

if TYPE_CHECKING:
    from cryptfs.unlock.recovering import HeldSecret

# core.config has the same names, but to import it loads libsodium; a test compares.
CIPHERS = ("aegis-256", "xchacha20-poly1305")


CHUNK_SIZES = {"databases": 4 * 1024}
"""What `--for` chooses, in bytes; `--chunk-size` overrules it."""

_CHUNK_SIZE = 16 * 1024


def _check_chunk_size(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value is not None and not is_chunk_size(value):
        raise click.BadParameter("a chunk size is a power of two from 4k to 1m", ctx, param)
    return value


def check_place(vault_dir: Path) -> None:
    """Refuse a place for a new vault before a passphrase is asked for.

    Raises: NotAVaultError: it is not a directory or not empty, or its parent is missing.
            InitError: it cannot be read.
    """
    from cryptfs.mount.mounts import mount_at
    from cryptfs.storage.noconfig import vault_around
    from cryptfs.storage.vaultdir import in_the_way

    mount = mount_at(vault_dir)
    if mount is not None and mount.is_cryptfs:
        raise NotAVaultError(
            f"{shown(vault_dir)} is a mountpoint: the vault {shown(mount.source)} is mounted there. A new "
            "vault needs a directory of its own"
        )
    try:
        found = in_the_way(vault_dir)
        if "cryptfs.json" in found:
            raise NotAVaultError(
                f"{vault_dir}: already a vault; mount it with: "
                f"cryptfs mount {shell_word(vault_dir)} MOUNTPOINT"
            )
        if found:
            from cryptfs.storage.noconfig import mistaken

            raise NotAVaultError(
                mistaken(vault_dir, found)
                or f"{shown(vault_dir)} is not empty: it holds {shown(found[0])}"
                f"{f' and {len(found) - 1} more' if len(found) > 1 else ''}. A new vault needs an empty "
                "directory, or one that does not exist"
            )
    except FileNotFoundError:
        if not vault_dir.parent.is_dir():
            raise NotAVaultError(
                f"{vault_dir}: the directory above it does not exist; "
                f"create it with: mkdir -p {shell_word(vault_dir.parent)}"
            ) from None
    except NotADirectoryError:
        raise NotAVaultError(f"{vault_dir}: not a directory") from None
    except OSError as error:
        raise InitError(f"{vault_dir}: cannot be read: {error.strerror}") from None
    around = vault_around(vault_dir)
    if around is not None:
        raise NotAVaultError(
            f"{shown(vault_dir)} is inside the vault {shown(around)}. A new vault needs a "
            "directory of its own"
        )
    place = vault_dir if vault_dir.is_dir() else vault_dir.parent
    if not os.access(place, os.W_OK | os.X_OK):
        reason = os.strerror(errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES)
        raise NotAVaultError(f"{shown(vault_dir)} cannot be made a vault: {reason}")


@contextlib.contextmanager
def _new_words(vault: Path) -> Iterator[HeldSecret]:
    """A recovery secret, whose words the person has seen and repeated; nothing is made before.

    Raises: PassphraseUnreadableError: they were not repeated.
    """
    from cryptfs.cli.recoverywords import give_words
    from cryptfs.core.slots.recovery import RecoveryKind
    from cryptfs.storage.libc import wipe
    from cryptfs.unlock.recovering import draw_secret

    held = draw_secret(RecoveryKind.WORDS)
    try:
        give_words(held, vault, None)
        yield held
    finally:
        wipe(held.secret)


@command()
@vault_argument
@click.option(
    "--cipher",
    type=click.Choice(CIPHERS),
    help="How files are encrypted.  [default: aegis-256 if the CPU has AES instructions, else the other]",
)
@click.option(
    "--chunk-size",
    type=ByteSize(),
    callback=_check_chunk_size,
    help="Bytes encrypted together: a power of two, 4k to 1m. Small chunks suit random writes, large "
    "chunks bulk data.  [default: 16k]",
)
@click.option(
    "--for",
    "purpose",
    type=click.Choice(tuple(CHUNK_SIZES)),
    help="databases: chunks of 4k, for files that programs change in small pieces. Large files then take "
    "more processor time, and 1.2 % more room.",
)
@click.option("--label", default="", metavar="TEXT", help="A name for the passphrase's key slot.")
@click.option(
    "--no-recovery", is_flag=True, help="Make no recovery words. Without a terminal, init makes none anyway."
)
@click.option(
    "--delta-journal",
    is_flag=True,
    help="Write only the changed part of a chunk to the journal: for databases and logs.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print only warnings about the loss of files.")
@cost_options(memory="256m", passes="3")
@generate_option
@new_vault_options
@debug_option
def init(
    vault: Path,
    cipher: str | None,
    chunk_size: int | None,
    purpose: str | None,
    label: str,
    no_recovery: bool,
    delta_journal: bool,
    quiet: bool,
    cost: Cost,
    generate: bool,
    source: PassphraseSource,
) -> None:
    """Make a new vault in the directory VAULT.

    If VAULT does not exist, the command creates it; it may also be an empty directory. If you type the
    passphrase at a terminal, you get recovery words: 24 words to write on paper, which open VAULT without the
    passphrase.
    """
    check_label_text(label)
    new = NewPassphrase(source, generate)
    vault_dir = vault.absolute()
    check_place(vault_dir)
    with_words = not no_recovery and (source.is_person or generate) and sys.stdout.isatty()
    if source.named_by:
        note(f"The new passphrase comes from {source.name}.")
    memory, passes = cost.choose()
    with new.read() as passphrase, contextlib.ExitStack() as stack:
        from cryptfs.vfs.vault import Vault

        held = stack.enter_context(_new_words(vault)) if with_words else None
        try:
            config = Vault.create(
                vault_dir,
                passphrase,
                cipher=cipher,
                chunk_size=chunk_size or CHUNK_SIZES.get(purpose or "", _CHUNK_SIZE),
                label=label,
                kdf_memory=memory,
                kdf_passes=passes,
                recovery=held,
                pin=PinChoice().pin(),
                deltas=delta_journal,
            )
        except OSError as error:
            place = error.filename or vault_dir
            raise InitError(f"{place}: cannot make the vault: {error.strerror}") from None
        except ValueError as error:
            raise InitError(f"{vault_dir}: cannot make the vault: {error}") from None
    if not quiet:
        note(f"Made a vault in {shown(vault)}: {config.cipher}, chunks of {size_text(config.chunk_size)}.")
    if with_words:
        export = f"cryptfs recovery export {shell_word(vault)} FILE"
        say(
            "There is no way in without the passphrase or the words: keep them safe.\n"
            f"Keep a copy of the recovery record as well, away from the vault: {export}"
        )
    else:
        say(
            "There is no way in without the passphrase: write it down and keep it safe.\n"
            f"Back up {shown(vault / 'cryptfs.json')} as well: if it is lost, the files are lost with it."
        )
        if not quiet:
            note(f"Recovery words help with both. To make some: cryptfs recovery words {shell_word(vault)}")
    if not quiet:
        mount = f"  cryptfs mount {shell_word(vault)} MOUNTPOINT"
        note(f"Next, mount it on an empty directory, or a new one:\n{mount}")
