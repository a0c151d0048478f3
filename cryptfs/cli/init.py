"""`cryptfs init`."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from cryptfs.cli.exit_codes import InitError
from cryptfs.cli.output import note, size_text
from cryptfs.cli.params import (
    ByteSize,
    debug_option,
    kdf_costs,
    kdf_options,
    passphrase_options,
    passphrase_source,
    shell_word,
    vault_argument,
)
from cryptfs.cli.prompt import forget, harden_process, read_passphrase
from cryptfs.core.geometry import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE
from cryptfs.errors import NotAVaultError

# core.config has the same names, but to import it loads libsodium; a test compares.
CIPHERS = ("aegis-256", "xchacha20-poly1305")


def _check_chunk_size(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if not MIN_CHUNK_SIZE <= value <= MAX_CHUNK_SIZE or value & (value - 1):
        raise click.BadParameter("a chunk size is a power of two from 4k to 1m", ctx, param)
    return value


def check_place(vault_dir: Path) -> None:
    """Refuse a place for a new vault before a passphrase is asked for.

    Raises: NotAVaultError: it is no directory or not empty, or its parent is missing.
            InitError: it cannot be looked into.
    """
    try:
        found = {entry.name for entry in vault_dir.iterdir()}
        if "cryptfs.json" in found:
            raise NotAVaultError(
                f"{vault_dir}: a vault already; mount it with: "
                f"cryptfs mount {shell_word(vault_dir)} MOUNTPOINT"
            )
        if found:
            raise NotAVaultError(
                f"{vault_dir}: not empty; a new vault needs an empty directory, or one that does not exist"
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
        raise InitError(f"{vault_dir}: cannot look into it: {error.strerror}") from None


@click.command()
@vault_argument
@click.option(
    "--cipher",
    type=click.Choice(CIPHERS),
    help="How files are sealed.  [default: aegis-256 where the CPU has AES instructions, else the other]",
)
@click.option(
    "--chunk-size",
    type=ByteSize(),
    default="16k",
    show_default=True,
    callback=_check_chunk_size,
    help="Bytes sealed together: a power of two, 4k to 1m. Smaller suits random writes, larger bulk.",
)
@click.option("--label", default="", metavar="TEXT", help="A name for the passphrase's key slot.")
@kdf_options
@passphrase_options
@debug_option
@click.pass_context
def init(
    ctx: click.Context,
    vault: Path,
    cipher: str | None,
    chunk_size: int,
    label: str,
    kdf_memory: int | None,
    kdf_passes: int | None,
    passfile: Path | None,
    passcommand: str | None,
) -> None:
    """Make a new vault in the directory VAULT.

    VAULT is created if it does not exist; if it does, it has to be empty.
    """
    source = passphrase_source(ctx, passfile, passcommand)
    memory, passes = kdf_costs(ctx, kdf_memory, kdf_passes)
    vault_dir = vault.absolute()
    check_place(vault_dir)
    harden_process()
    passphrase = read_passphrase(source, "New passphrase", confirm=True)
    from cryptfs.vfs.vault import Vault

    try:
        config = Vault.create(
            vault_dir,
            passphrase,
            cipher=cipher,
            chunk_size=chunk_size,
            label=label,
            kdf_memory=memory,
            kdf_passes=passes,
        )
    except OSError as error:
        raise InitError(f"{error.filename or vault_dir}: cannot make the vault: {error.strerror}") from None
    except ValueError as error:
        raise InitError(f"{vault_dir}: cannot make the vault: {error}") from None
    finally:
        forget(passphrase)
    note(
        f"Made a vault in {vault}: {config.cipher}, chunks of {size_text(config.chunk_size)}.\n"
        f"Without the passphrase nobody can read it, you included: keep a copy in a safe place.\n"
        f"Next, mount it on an empty directory:\n"
        f"  cryptfs mount {shell_word(vault)} MOUNTPOINT"
    )
