"""Every exception that cryptfs raises on purpose.

    CryptfsError
      IntegrityError          what is on disk does not authenticate (EIO on a mount)
        HeaderError           a file header, or a file cut short of its authentic length
        ChunkError            a chunk record; carries chunk_index
        NameError_            a cipher name, sidecar, symlink target or xattr
        DirectoryRecordError  a directory record
      VaultError              the vault as a whole; shown to a person, with what to do next
        NotAVaultError  UnsupportedFormatError  WrongPassphraseError  VaultConfigError  VaultLockedError
        ManifestError
      MountError              the mountpoint or FUSE itself; shown to a person
      ReadOnlyVaultError      a change to a vault that is mounted read-only (EROFS)
      NameTooLongError        a name or symlink target that no vault can hold (ENAMETOOLONG)

An OSError of the backing filesystem passes through with its errno. A broken precondition is a
ValueError, outside this tree. The way to an errno is mount/errno_map.py, to an exit code
cli/exit_codes.py; a test asserts that every class here is in both.

No message holds a secret or a plaintext name: cipher paths only.
"""

from __future__ import annotations


class CryptfsError(Exception):
    """Root of the tree."""


class IntegrityError(CryptfsError):
    """Something in the vault is damaged, forged, moved or cut.

    Args: reason: what does not hold, in words.
          cipher_path: place in the vault, relative to its root; '' until a layer that knows it adds it.
          chunk_index: number of the chunk from 0, or None where it is not about a chunk.
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
    """A cipher name, sidecar, symlink target or xattr does not authenticate where it stands."""


class DirectoryRecordError(IntegrityError):
    """A directory record is missing or does not authenticate."""


class VaultError(CryptfsError):
    """The vault as a whole cannot be used; the message says why and what to do next."""


class NotAVaultError(VaultError):
    """The directory is missing or holds no vault, or a new vault cannot be made there."""


class UnsupportedFormatError(VaultError):
    """The vault needs a format version or feature that this program does not know."""


class WrongPassphraseError(VaultError):
    """No key slot accepts the passphrase."""


class VaultConfigError(VaultError):
    """The vault config is damaged, hostile or not authentic."""


class VaultLockedError(VaultError):
    """Another mount holds the vault; the message says who."""


class ManifestError(VaultError):
    """A manifest of `cryptfs snapshot` is none, is damaged or cut, or belongs to another vault."""


class MountError(CryptfsError):
    """The mountpoint cannot be used, or FUSE is missing or refuses."""


class ReadOnlyVaultError(CryptfsError):
    """A change was asked of a vault that is mounted read-only."""


class NameTooLongError(CryptfsError):
    """A name over 255 bytes, or a symlink target or xattr name that does not fit once sealed."""
