"""Names: a deterministic, verified encryption that hides their length in steps of 16 bytes.

    siv[16]     = keyed BLAKE2b(dir_id | length | padded name)
    ciphertext  = padded name XOR keystream(siv)
    cipher name = base64url(siv | ciphertext), unpadded

The name alone is enough to decrypt it; dir_id verifies that it stands in its own directory. A cipher
name over 255 bytes is in a sidecar, and its entry's name is a hash of it. Source: docs/FORMAT.md,
section 5.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac

from cryptfs.core.keys import DIR_ID_SIZE, Subkeys
from cryptfs.errors import NameError_, NameTooLongError

MAX_NAME_SIZE = 255
SIV_SIZE = 16
PAD_STEP = 16
MAX_PADDED_SIZE = 256
INTERNAL_PREFIX = "cryptfs."  # '.' is not in the alphabet of cipher names
LONG_PREFIX = "cryptfs.long."
LONG_ENTRY_SIZE = len(LONG_PREFIX) + 43  # letters: the prefix, and 32 bytes in base64url
# Without the last '.': a sync client may put the suffix of a conflict copy there.
INTERNAL_STEM = INTERNAL_PREFIX.removesuffix(".")
LONG_STEM = LONG_PREFIX.removesuffix(".")
SIDECAR_SUFFIX = ".name"
TEMP_PREFIX = "cryptfs.tmp."
REKEY_NAME = "cryptfs.rekey"  # directory in the root, while the masterkey is being changed
SET_ASIDE_NAME = "cryptfs.set-aside"  # directory in the root, of entries that the masterkey does not open
XATTR_CONTEXT = b"cryptfs:xattrs\0\0"  # in place of dir_id, for the names of xattrs
_STREAM_BLOCK = 64
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")
_PADDING = (b"", b"===", b"==", b"=")  # behind a text of this many letters, modulo 4
_LAST = ("", "", "AQgw", "AEIMQUYcgkosw048")  # its last letter then; 1 cannot be
_ZEROS = bytes(PAD_STEP)
_LENGTHS = tuple(bytes((size,)) for size in range(MAX_NAME_SIZE + 1))
_FIRST_BLOCK = bytes(4)


def encode_text(data: bytes) -> str:
    """Unpadded base64url (RFC 4648, section 5)."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL, b"=").decode("ascii")


def decode_text(text: str) -> bytes | None:
    """Strict inverse of encode_text: None for a text that encode_text would spell differently."""
    rest = len(text) % 4
    try:
        raw = text.encode("ascii").translate(_FROM_URL) + _PADDING[rest]
        data = binascii.a2b_base64(raw, strict_mode=True)
    except ValueError:
        return None
    # In another alphabet, with padding, or with bits at its end that mean nothing?
    if "+" in text or "/" in text or "=" in text or (rest and text[-1] not in _LAST[rest]):
        return None
    return data


def could_be_cipher_name(text: str) -> bool:
    """Whether a name has the form of a cipher name, authentic or not."""
    data = decode_text(text)
    if data is None:
        return False
    padded_size = len(data) - SIV_SIZE
    return PAD_STEP <= padded_size <= MAX_PADDED_SIZE and padded_size % PAD_STEP == 0


def long_entry_name(cipher_name: str) -> str:
    """The entry's name for a cipher name that does not fit: 'cryptfs.long.' and its BLAKE2b-256."""
    return LONG_PREFIX + encode_text(hashlib.blake2b(cipher_name.encode(), digest_size=32).digest())


class NameCipher:
    """Seals and opens names of one vault."""

    def __init__(self, keys: Subkeys) -> None:
        self._mac = hashlib.blake2b(digest_size=SIV_SIZE, key=keys.names_mac_key, person=b"cryptfs:name")
        self._stream = hashlib.blake2b(
            digest_size=_STREAM_BLOCK, key=keys.names_stream_key, person=b"cryptfs:stream"
        )

    def in_directory(self, dir_id: bytes) -> DirectoryNames:
        """The names of the directory with this dir_id (16 bytes)."""
        if len(dir_id) != DIR_ID_SIZE:
            raise ValueError(f"a dir_id has {DIR_ID_SIZE} bytes, not {len(dir_id)}")
        return DirectoryNames(self, dir_id)

    def of_xattrs(self) -> DirectoryNames:
        """The names of extended attributes."""
        return DirectoryNames(self, XATTR_CONTEXT, path_parts=False)

    def apply_stream(self, siv: bytes, data: bytes) -> bytes:
        """XOR `data` with the keystream of `siv`."""
        size = len(data)
        block = self._stream.copy()
        block.update(siv + _FIRST_BLOCK)
        stream = block.digest()
        for counter in range(1, -(-size // _STREAM_BLOCK)):
            block = self._stream.copy()
            block.update(siv + counter.to_bytes(4, "little"))
            stream += block.digest()
        mixed = int.from_bytes(data, "little") ^ int.from_bytes(stream[:size], "little")
        return mixed.to_bytes(size, "little")

    def open_unverified(self, cipher_name: str) -> tuple[bytes, bytes]:
        """Decrypt without a dir_id, as a repair must: (name, siv).

        Raises: NameError_: it is not the canonical spelling of a name.
        """
        data = decode_text(cipher_name)
        if data is None:
            raise NameError_("the cipher name is not canonical base64url", cipher_path=cipher_name)
        padded_size = len(data) - SIV_SIZE
        if not PAD_STEP <= padded_size <= MAX_PADDED_SIZE or padded_size % PAD_STEP:
            raise NameError_("the cipher name has an impossible length", cipher_path=cipher_name)
        siv = data[:SIV_SIZE]
        name = self.apply_stream(siv, data[SIV_SIZE:]).rstrip(b"\0")
        if not padded_size - PAD_STEP < len(name) <= MAX_NAME_SIZE or not name:
            raise NameError_("the cipher name does not decrypt to a name", cipher_path=cipher_name)
        return name, siv

    def siv_state(self, dir_id: bytes) -> hashlib.blake2b:
        """The keyed hash of a directory's names, ready for length and padded name."""
        state = self._mac.copy()
        state.update(dir_id)
        return state


class DirectoryNames:
    """The names of one directory (or of xattrs): seal, open, verify.

    Args: path_parts: whether they are parts of paths, which excludes '/', '.' and '..'; names of xattrs may
                      have any byte but NUL.
    """

    __slots__ = ("_cipher", "_path_parts", "_state")

    def __init__(self, cipher: NameCipher, dir_id: bytes, *, path_parts: bool = True) -> None:
        self._cipher = cipher
        self._state = cipher.siv_state(dir_id)
        self._path_parts = path_parts

    def _is_name(self, name: bytes) -> bool:
        if not name or b"\0" in name:
            return False
        return not self._path_parts or (b"/" not in name and name not in (b".", b".."))

    def _siv(self, name: bytes) -> bytes:
        size = len(name)
        state = self._state.copy()
        state.update(_LENGTHS[size] + name + _ZEROS[: -size % PAD_STEP])
        return state.digest()

    def seal(self, name: bytes) -> str:
        """The full cipher name, of any length up to 363 characters.

        Raises: NameTooLongError: over 255 bytes.   ValueError: empty, or with NUL; as part of a path also
                '.', '..', or with '/'.
        """
        if not self._is_name(name):
            raise ValueError("not a name of a directory entry or xattr")
        if len(name) > MAX_NAME_SIZE:
            raise NameTooLongError(f"a name of {len(name)} bytes is over the limit of {MAX_NAME_SIZE}")
        siv = self._siv(name)
        return encode_text(siv + self._cipher.apply_stream(siv, name + _ZEROS[: -len(name) % PAD_STEP]))

    def open(self, cipher_name: str) -> bytes:
        """Decrypt and verify a full cipher name.

        Raises: NameError_: not canonical, forged, or of another directory.
        """
        name, siv = self._cipher.open_unverified(cipher_name)
        if not hmac.compare_digest(self._siv(name), siv):
            raise NameError_("the cipher name does not belong to this directory", cipher_path=cipher_name)
        if not self._is_name(name):
            raise NameError_("the cipher name decrypts to no valid name", cipher_path=cipher_name)
        return name


def siv_of(cipher_name: str) -> bytes:
    """The siv at the start of a canonical cipher name."""
    data = decode_text(cipher_name)
    if data is None:
        raise NameError_("the cipher name is not canonical base64url", cipher_path=cipher_name)
    return data[:SIV_SIZE]
