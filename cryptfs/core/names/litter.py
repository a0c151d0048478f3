"""What desktops and disks leave in every directory, also in those of a vault, under plain names.

None of these names is a cipher name: each has a character that base64url lacks. Litter has no content that
a person misses, and goes with its directory. Source: docs/FORMAT.md, section 11.
"""

from __future__ import annotations

_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".directory"})
_PREFIX = "._"  # what macOS writes beside a file on a disk that is not its own
OF_THE_DISK = "lost+found"
"""In the top directory of ext2, ext3 and ext4: e2fsck wants it there."""
FRONT_END_NAME = "gocryptfs.conf"
"""In the top directory of a vault that a front end for gocryptfs made; it says that a vault is there."""


def is_litter(entry_name: str) -> bool:
    """Whether a file of this name is litter. Windows and macOS do not tell capitals from small letters."""
    return entry_name.lower() in _NAMES or entry_name.startswith(_PREFIX)
