"""Files encrypted in one directory (the vault), shown in another (the mountpoint).

    Vault        make and unlock vaults; open, list and change what is in them without a mount
    Offer        what opens a vault besides a passphrase: key files, tokens, identities, words, shares
    mount_vault  mount a vault in the background; returns a MountedVault
    errors       every exception, each also importable from here

Each part loads at its first use: `import cryptfs` loads neither libsodium nor FUSE.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cryptfs.errors import (
    AbsentTokenError,
    ChunkError,
    CryptfsError,
    DirectoryRecordError,
    HeaderError,
    IntegrityError,
    ManifestError,
    MistypedWordsError,
    MountError,
    NameError_,
    NameTooLongError,
    NoKeyError,
    NotAVaultError,
    ReadOnlyVaultError,
    RecoveryRecordError,
    TokenError,
    UnexpectedVaultError,
    UnsupportedFormatError,
    VaultConfigError,
    VaultError,
    VaultLockedError,
    WrongPassphraseError,
)
from cryptfs.version import VERSION

if TYPE_CHECKING:
    from cryptfs.mount.background import MountedVault, mount_vault
    from cryptfs.mount.options import MountOptions
    from cryptfs.transfer.pathvault import PathVault as Vault
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.vault import change_passphrase
else:
    _MODULE_OF = {
        "MountedVault": "cryptfs.mount.background",
        "mount_vault": "cryptfs.mount.background",
        "MountOptions": "cryptfs.mount.options",
        "Offer": "cryptfs.unlock.offer",
        "Vault": "cryptfs.transfer.pathvault:PathVault",
        "change_passphrase": "cryptfs.vfs.vault",
    }

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'cryptfs' has no attribute {name!r}")
        module, _, attribute = _MODULE_OF[name].partition(":")
        value = getattr(importlib.import_module(module), attribute or name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


__version__ = VERSION

__all__ = [
    "AbsentTokenError",
    "ChunkError",
    "CryptfsError",
    "DirectoryRecordError",
    "HeaderError",
    "IntegrityError",
    "ManifestError",
    "MistypedWordsError",
    "MountError",
    "MountOptions",
    "MountedVault",
    "NameError_",
    "NameTooLongError",
    "NoKeyError",
    "NotAVaultError",
    "Offer",
    "ReadOnlyVaultError",
    "RecoveryRecordError",
    "TokenError",
    "UnexpectedVaultError",
    "UnsupportedFormatError",
    "Vault",
    "VaultConfigError",
    "VaultError",
    "VaultLockedError",
    "WrongPassphraseError",
    "__version__",
    "change_passphrase",
    "mount_vault",
]
