"""Sealed symlink targets and xattr values. Source: docs/FORMAT.md, sections 7 and 8."""

from __future__ import annotations

from cryptfs.core.aead import SMALL_OVERHEAD, Kind, aad_prefix, open_small, seal_small
from cryptfs.core.keys import derive
from cryptfs.core.names.names import decode_text, encode_text
from cryptfs.errors import NameError_, NameTooLongError

MAX_STORED_TARGET = 4095  # the limit of a backing symlink
MAX_FITTING_TARGET = MAX_STORED_TARGET * 3 // 4 - SMALL_OVERHEAD  # 3031; a longer one has its own file
_OWNER_SIZE = 32


def link_aad(dir_id: bytes, siv: bytes) -> bytes:
    """AAD of the target of a symlink with one name."""
    return aad_prefix(Kind.LINK) + dir_id + siv


def unbound_link_aad() -> bytes:
    """AAD of the target of a symlink that has, or had, several names."""
    return aad_prefix(Kind.LINK_UNBOUND)


def seal_target(target: bytes, links_key: bytes, aad: bytes, nonce: bytes) -> str:
    """The text of a backing symlink.

    Raises: NameTooLongError: the sealed target does not fit into a backing symlink.
    """
    text = encode_text(seal_small(links_key, target, aad, nonce))
    if len(text) > MAX_STORED_TARGET:
        raise NameTooLongError("the symlink target does not fit into a backing symlink once sealed")
    return text


def open_target(text: str, links_key: bytes, dir_id: bytes, siv: bytes) -> tuple[bytes, bool]:
    """Verify and decrypt the text of a backing symlink: (target, whether it is bound to its name).

    Raises: NameError_: damaged, forged, or from another place.
    """
    return open_sealed_target(decode_text(text) or b"", links_key, dir_id, siv)


def open_sealed_target(sealed: bytes, links_key: bytes, dir_id: bytes, siv: bytes) -> tuple[bytes, bool]:
    """As open_target, for a sealed target in bytes."""
    target = open_small(links_key, sealed, link_aad(dir_id, siv))
    if target is not None:
        return target, True
    target = open_small(links_key, sealed, unbound_link_aad())
    if target is not None:
        return target, False
    raise NameError_("the symlink target does not authenticate")


def target_size(stored_size: int) -> int:
    """Plaintext bytes of a target from the length of the backing symlink's text."""
    return max(stored_size * 3 // 4 - SMALL_OVERHEAD, 0)


def xattr_aad(kind: Kind, owner_id: bytes, name: bytes) -> bytes:
    """AAD of an xattr value: kind, version, owner, name.

    Args: owner_id: file_id, link_owner, or dir_id, after which 16 zeros follow.
    """
    return aad_prefix(kind) + owner_id.ljust(_OWNER_SIZE, b"\0") + name


def link_owner(xattrs_key: bytes, sealed_target: bytes) -> bytes:
    """The owner of a symlink's xattrs, 32 bytes: it follows from the sealed target, nonce and tag included.

    So a value opens on this link alone, and no longer once the target is sealed again.
    """
    return derive(xattrs_key, b"linkattr", sealed_target)
