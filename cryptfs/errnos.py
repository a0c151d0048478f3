"""Which errno each exception is: one table, for the mounts and for the Python API."""

from __future__ import annotations

import errno

from cryptfs.errors import (
    CryptfsError,
    IntegrityError,
    MountError,
    NameTooLongError,
    ReadOnlyVaultError,
    VaultError,
)

ERRNO_OF: dict[type[CryptfsError], int] = {
    IntegrityError: errno.EIO,
    ReadOnlyVaultError: errno.EROFS,
    NameTooLongError: errno.ENAMETOOLONG,
    VaultError: errno.EIO,
    MountError: errno.EIO,
}
"""For each class itself and what descends from it."""


def code_of(error: CryptfsError) -> int:
    """The errno of an exception of the tree."""
    for kind in type(error).__mro__:
        code = ERRNO_OF.get(kind)
        if code is not None:
            return code
    return errno.EIO
