"""Every exception that cryptfs raises on purpose.

    CryptfsError
      IntegrityError          data on disk does not authenticate (EIO on a mount)
        HeaderError           a file header, or a file cut short of its authentic length
        ChunkError            a chunk record; carries chunk_index
        NameError_            a cipher name, sidecar, symlink target or xattr
        DirectoryRecordError  a directory record
      VaultError              the vault as a whole; shown to a person, with what to do next
        NotAVaultError  UnsupportedFormatError  NoKeyError  VaultLockedError  ManifestError
        UnexpectedVaultError
        TokenError
          AbsentTokenError
        WrongPassphraseError
          MistypedWordsError  recovery words or shares with a mistake in them
        VaultConfigError
          RecoveryRecordError
      MountError              the mountpoint or FUSE itself; shown to a person
      ReadOnlyVaultError      a change to a vault that is mounted read-only (EROFS)
      NameTooLongError        a name or symlink target that no vault can hold (ENAMETOOLONG)

An OSError of the backing filesystem passes through with its errno. A broken precondition is a ValueError,
outside this tree. errnos.py has the errno of an exception, and cli/exit_codes.py its exit code; a test
asserts that every class here is in both.

No message holds a secret or a plaintext name: cipher paths only.
"""

from __future__ import annotations


class CryptfsError(Exception):
    """Root of the tree."""


class IntegrityError(CryptfsError):
    """Something in the vault is damaged, forged, moved or cut.

    Args: reason: the problem in words.
          cipher_path: place in the vault, relative to its root; '' until a layer that knows it adds it.
          chunk_index: number of the chunk from 0; None if it is not about a chunk.
    """

    def __init__(self, reason: str, *, cipher_path: str = "", chunk_index: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cipher_path = cipher_path
        self.chunk_index = chunk_index

    def __str__(self) -> str:
        where = self.cipher_path or "?"
        if self.chunk_index is not None:
            where += f", chunk {self.chunk_index}"
        return f"{where}: {self.reason}"


class HeaderError(IntegrityError):
    """A file header does not authenticate, or the file is shorter than its authentic length."""


class ChunkError(IntegrityError):
    """A chunk record is damaged, forged, moved or of impossible length."""


class NameError_(IntegrityError):  # noqa: N801 - the name is fixed by the glossary; NameError is Python's
    """A cipher name, sidecar, symlink target or xattr does not authenticate in its place."""


class DirectoryRecordError(IntegrityError):
    """A directory record is missing or does not authenticate."""


class VaultError(CryptfsError):
    """The vault as a whole cannot be used; the message says why and what to do next."""


class NotAVaultError(VaultError):
    """The directory is missing or is not a vault, or cannot become one."""


class UnsupportedFormatError(VaultError):
    """The vault needs a format version or feature that this version does not know."""


class WrongPassphraseError(VaultError):
    """No key slot accepts the passphrase."""


class MistypedWordsError(WrongPassphraseError):
    """Recovery words or a share with a slip of the pen: one that is in no list, too few, a wrong checksum.

    Args: reason: the problem, without any of the words.
          hint: the word as it was typed and the closest one, for the person who typed it and for no log.
    """

    def __init__(self, reason: str, *, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class NoKeyError(VaultError):
    """Nothing was offered that a key slot of the vault takes."""


class TokenError(VaultError):
    """A FIDO2 token is missing, was not touched, or refuses; the message says which, and what to do."""


class AbsentTokenError(TokenError):
    """Every FIDO2 token that is plugged in answered, and none belongs to the key slots."""


class VaultConfigError(VaultError):
    """The vault config is damaged, hostile or not authentic."""


class RecoveryRecordError(VaultConfigError):
    """The recovery record is damaged, not authentic, or of another masterkey."""


class VaultLockedError(VaultError):
    """Another mount holds the vault; the message names the process."""


class ManifestError(VaultError):
    """The file is not a manifest, or a damaged or cut one, or belongs to another vault."""


class UnexpectedVaultError(VaultError):
    """Another vault, or one with an older config, than this machine has seen there or a person expects."""


class MountError(CryptfsError):
    """The mountpoint cannot be used, or FUSE is missing or refuses."""


class ReadOnlyVaultError(CryptfsError):
    """A change to a vault that is mounted read-only."""


class NameTooLongError(CryptfsError):
    """A name over 255 bytes, or a symlink target or xattr name that does not fit once sealed."""
