"""The one table from errors to exit codes.

Where gocryptfs has a number for the same thing, it is this number, so that scripts carry over; those
that only cryptfs has begin at 40. The man page cryptfs(1) lists them too, and a test compares.
"""

from __future__ import annotations

from enum import IntEnum

import cryptfs.errors as errors


class ExitCode(IntEnum):
    """What the command `cryptfs` ends with."""

    OK = 0
    USAGE = 1
    VAULT_DIR = 6
    INIT = 7
    CONFIG_INVALID = 8
    PASSPHRASE_UNREADABLE = 9
    MOUNTPOINT = 10
    OTHER = 11
    WRONG_PASSPHRASE = 12
    EMPTY_PASSPHRASE = 22
    CONFIG_UNREADABLE = 23
    CONFIG_UNWRITABLE = 24
    DAMAGE = 26
    UNSUPPORTED_FORMAT = 27
    TOKEN = 31
    VAULT_LOCKED = 40
    ROLLED_BACK = 41
    MANIFEST_INVALID = 42
    UNEXPECTED_VAULT = 43
    INTERRUPTED = 130
    BROKEN_PIPE = 141


MEANINGS = {
    ExitCode.OK: "success",
    ExitCode.USAGE: "the command line or the config file is wrong",
    ExitCode.VAULT_DIR: "the vault directory is missing, holds no vault, or (init) is not empty",
    ExitCode.INIT: "cryptfs could not make a new vault",
    ExitCode.CONFIG_INVALID: "the config or recovery record is damaged, or somebody without a key changed it",
    ExitCode.PASSPHRASE_UNREADABLE: "the passphrase or the key file cannot be read",
    ExitCode.MOUNTPOINT: "the mountpoint cannot be used, or FUSE refuses",
    ExitCode.OTHER: "another error; the message names it",
    ExitCode.WRONG_PASSPHRASE: "the passphrase or another key is wrong, or the vault takes no such key",
    ExitCode.EMPTY_PASSPHRASE: "the passphrase is empty",
    ExitCode.CONFIG_UNREADABLE: "the vault config cannot be read",
    ExitCode.CONFIG_UNWRITABLE: "the vault config cannot be written",
    ExitCode.DAMAGE: "something in the vault does not authenticate",
    ExitCode.UNSUPPORTED_FORMAT: "the vault needs a newer cryptfs",
    ExitCode.TOKEN: "the FIDO2 token is missing, was not touched, or refuses",
    ExitCode.VAULT_LOCKED: "the vault is in use by another mount",
    ExitCode.ROLLED_BACK: "verify found something that was rolled back, replaced or copied",
    ExitCode.MANIFEST_INVALID: "the manifest is damaged, cut, or of another vault",
    ExitCode.UNEXPECTED_VAULT: "the vault is not the expected one, or its config is older than one seen",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C",
    ExitCode.BROKEN_PIPE: "the reader of the output went away",
}


class CommandError(Exception):
    """An error that only the command line has; the text says what is wrong and what to do next."""


class UsageProblem(CommandError):
    """An argument is wrong in a way that click cannot tell."""


class ConfigFileError(CommandError):
    """The config file of a person is not as it should be, or others can change it."""


class PassphraseUnreadableError(CommandError):
    """No passphrase could be had: no terminal, a missing file, a failed command, two that differ."""


class NothingTypedError(PassphraseUnreadableError):
    """A person closed the window that asked for the passphrase."""


class EmptyPassphraseError(CommandError):
    """The passphrase has no bytes."""


class NoWindowError(CommandError):
    """There is no display, or no program that shows windows."""


class InitError(CommandError):
    """The place for a new vault cannot be used."""


class ConfigUnreadableError(CommandError):
    """The operating system refuses to read the vault config."""


class ConfigUnwritableError(CommandError):
    """The operating system refuses to write the vault config."""


EXIT_CODES: dict[type[BaseException], ExitCode] = {
    errors.CryptfsError: ExitCode.OTHER,
    errors.IntegrityError: ExitCode.DAMAGE,
    errors.HeaderError: ExitCode.DAMAGE,
    errors.ChunkError: ExitCode.DAMAGE,
    errors.NameError_: ExitCode.DAMAGE,
    errors.DirectoryRecordError: ExitCode.DAMAGE,
    errors.VaultError: ExitCode.OTHER,
    errors.NotAVaultError: ExitCode.VAULT_DIR,
    errors.UnsupportedFormatError: ExitCode.UNSUPPORTED_FORMAT,
    errors.WrongPassphraseError: ExitCode.WRONG_PASSPHRASE,
    errors.MistypedWordsError: ExitCode.WRONG_PASSPHRASE,
    errors.NoKeyError: ExitCode.WRONG_PASSPHRASE,
    errors.TokenError: ExitCode.TOKEN,
    errors.AbsentTokenError: ExitCode.TOKEN,
    errors.VaultConfigError: ExitCode.CONFIG_INVALID,
    errors.RecoveryRecordError: ExitCode.CONFIG_INVALID,
    errors.VaultLockedError: ExitCode.VAULT_LOCKED,
    errors.ManifestError: ExitCode.MANIFEST_INVALID,
    errors.UnexpectedVaultError: ExitCode.UNEXPECTED_VAULT,
    errors.MountError: ExitCode.MOUNTPOINT,
    errors.ReadOnlyVaultError: ExitCode.OTHER,
    errors.NameTooLongError: ExitCode.OTHER,
    CommandError: ExitCode.OTHER,
    UsageProblem: ExitCode.USAGE,
    ConfigFileError: ExitCode.USAGE,
    PassphraseUnreadableError: ExitCode.PASSPHRASE_UNREADABLE,
    NothingTypedError: ExitCode.PASSPHRASE_UNREADABLE,
    EmptyPassphraseError: ExitCode.EMPTY_PASSPHRASE,
    NoWindowError: ExitCode.OTHER,
    InitError: ExitCode.INIT,
    ConfigUnreadableError: ExitCode.CONFIG_UNREADABLE,
    ConfigUnwritableError: ExitCode.CONFIG_UNWRITABLE,
    OSError: ExitCode.OTHER,
    MemoryError: ExitCode.OTHER,
    KeyboardInterrupt: ExitCode.INTERRUPTED,
}


def exit_code_of(error: BaseException) -> ExitCode | None:
    """The code of an error's nearest class in the table; None for a bug."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    return None
