"""What is fuzzed: each target takes any bytes and raises where something does not hold.

A target allows the errors that its code promises, and nothing else: no other exception, no hang, and
never a byte that is not authentic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptfs.core import acl as acls
from cryptfs.core.aead import SUITES, ChunkCipher, CipherSuite, Kind, open_small, seal_small
from cryptfs.core.format.header import NO_FLAGS, FileHeader, HeaderFlag
from cryptfs.core.format.smallvalues import link_aad, open_target, seal_target, unbound_link_aad, xattr_aad
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.dirrecord import pack_directory_record, unpack_directory_record
from cryptfs.core.names.names import NameCipher, decode_text, encode_text
from cryptfs.core.slots.config import VaultConfig, authenticate, config_mac, decode_config
from cryptfs.errors import (
    ChunkError,
    DirectoryRecordError,
    HeaderError,
    NameError_,
    NameTooLongError,
    VaultError,
)
from tests.tamper.config_sample import KEYS as CONFIG_KEYS
from tests.tamper.config_sample import sample_config

KEYS = Subkeys.from_masterkey(hashlib.sha256(b"fuzz").digest())
DIR_ID = bytes(range(16))
FILE_ID = bytes(range(32))
KEY = hashlib.sha256(b"a file's content key").digest()


def fixed(size: int, what: str) -> bytes:
    """Bytes that look random and are the same in every run: a nonce for samples, never for use."""
    return hashlib.shake_128(what.encode()).digest(size)


@dataclass(frozen=True)
class Target:
    """Something to fuzz. samples: valid inputs to begin with.   close: after the last run."""

    name: str
    run: Callable[[bytes], None]
    samples: list[bytes]
    close: Callable[[], None] = field(default=lambda: None)


def config_target() -> Target:
    """Any `cryptfs.json`: refused, or decoded to what encodes to itself; the mac holds for one only."""
    good = sample_config()
    canonical = config_mac(good, CONFIG_KEYS)

    def run(data: bytes) -> None:
        try:
            config = decode_config(data)
        except VaultError as error:
            assert str(error).isprintable()  # it is shown to a person before anything is authenticated
            return
        assert decode_config(config.encode()) == config
        if config_mac(config, CONFIG_KEYS) == canonical:
            assert config == good or authenticate(config, CONFIG_KEYS) == good

    samples = [good.encode(), _compact(good), b"{}", b'{"format": "cryptfs", "version": 2}']
    return Target("config", run, samples)


def _compact(config: VaultConfig) -> bytes:
    import msgspec

    return msgspec.json.encode(config)


def header_target() -> Target:
    """Any 256 bytes: one of the samples, bit for bit, or HeaderError."""
    made: dict[bytes, FileHeader] = {}
    for number, flags in enumerate((NO_FLAGS, HeaderFlag.CLEAN, HeaderFlag.SPARSE | HeaderFlag.CLEAN)):
        header = FileHeader(1, 12, FILE_ID, epoch=number, size=5000, size_min=100, generation=7, flags=flags)
        made[header.pack(KEYS, fixed(24, f"header {number}"))] = header

    def run(data: bytes) -> None:
        try:
            header = FileHeader.unpack(data, KEYS, 1, 12)
        except HeaderError:
            assert data not in made
        else:
            assert made[data] == header

    return Target("header", run, list(made))


def _record_run(suite: CipherSuite) -> Target:
    geometry = ChunkGeometry(4096, suite.overhead)
    cipher = ChunkCipher(suite, geometry)
    plain = fixed(4096 + 4096 + 10, "plaintext")
    sealed = bytearray(geometry.records_size(len(plain)))
    cipher.seal_run(KEY, 0, plain, fixed(3 * suite.nonce_size, "nonces"), memoryview(sealed))
    guard = b"\xa5" * 64

    def run(data: bytes) -> None:
        holes = bool(data) and data[-1] & 1 == 1
        room = geometry.plain_length(len(data))
        out = bytearray(guard + bytes(room) + guard)
        view = memoryview(out)
        try:
            done = cipher.open_run(
                KEY, 0, memoryview(data), view[len(guard) : len(guard) + room], holes=holes
            )
        except ChunkError as error:
            assert error.chunk_index is not None
            done = geometry.chunk_start(error.chunk_index)
            assert not any(out[len(guard) + done : -len(guard)])  # nothing of the bad chunk, nor behind it
        assert out[: len(guard)] == out[-len(guard) :] == guard
        for start in range(0, done, geometry.chunk_size):
            got = out[len(guard) + start : len(guard) + min(start + geometry.chunk_size, done)]
            assert got == plain[start : start + len(got)] or (holes and not any(got))

    whole = bytes(sealed)
    samples = [whole, whole[: geometry.record_size], whole[2 * geometry.record_size :], bytes(len(whole))]
    return Target(f"records-{suite.name}", run, samples)


def name_target() -> Target:
    """Any text in the place of a cipher name: a name that seals to just this text, or NameError_."""
    names = NameCipher(KEYS).in_directory(DIR_ID)
    plain = [b"a", b"sixteen bytes ok", b"n" * 160, b"n" * 161, b"\xff" * 255]

    def run(data: bytes) -> None:
        for text in (data.decode("latin-1"), data.decode("utf-8", "surrogateescape")):
            try:
                name = names.open(text)
            except NameError_ as error:
                assert error.reason
            else:
                assert names.seal(name) == text
                assert name in plain  # nobody without the keys makes another
            decoded = decode_text(text)
            assert decoded is None or encode_text(decoded) == text

    return Target("cipher-name", run, [names.seal(name).encode() for name in plain])


def plain_name_target() -> Target:
    """Any bytes as a plain name: refused, or sealed to what opens to it, here and nowhere else."""
    cipher = NameCipher(KEYS)
    here, elsewhere, xattrs = cipher.in_directory(DIR_ID), cipher.in_directory(bytes(16)), cipher.of_xattrs()

    def run(data: bytes) -> None:
        for names in (here, xattrs):
            try:
                sealed = names.seal(data)
            except NameTooLongError:
                assert len(data) > 255
            except ValueError:
                assert (
                    not data or b"\0" in data or (names is here and (b"/" in data or data in (b".", b"..")))
                )
            else:
                assert names.open(sealed) == data
                assert len(sealed) <= 363 and "." not in sealed
                try:
                    elsewhere.open(sealed)
                except NameError_:
                    continue
                raise AssertionError("a name verifies in a directory that is not its own")

    return Target("plain-name", run, [b"a", b"..", b"a/b", b"x" * 255, b"x" * 256])


def directory_record_target() -> Target:
    """Any bytes as `cryptfs.dir`."""
    good = pack_directory_record(DIR_ID, KEYS)

    def run(data: bytes) -> None:
        try:
            dir_id = unpack_directory_record(data, KEYS)
        except DirectoryRecordError:
            assert data != good
        else:
            assert data == good and dir_id == DIR_ID

    return Target("directory-record", run, [good])


def small_value_target() -> Target:
    """Any bytes as a sealed small value: opens as what it is, under no other kind."""
    aads = {
        Kind.LINK: link_aad(DIR_ID, fixed(16, "siv")),
        Kind.LINK_UNBOUND: unbound_link_aad(),
        Kind.XATTR_OF_FILE: xattr_aad(Kind.XATTR_OF_FILE, FILE_ID, b"user.a"),
        Kind.XATTR_OF_DIRECTORY: xattr_aad(Kind.XATTR_OF_DIRECTORY, DIR_ID, b"user.a"),
        Kind.XATTR_OF_LINK: xattr_aad(Kind.XATTR_OF_LINK, FILE_ID, b"user.a"),
    }
    made = {
        seal_small(KEY, b"value of " + kind.name.encode(), aad, fixed(24, kind.name)): kind
        for kind, aad in aads.items()
    }

    def run(data: bytes) -> None:
        for kind, aad in aads.items():
            opened = open_small(KEY, data, aad)
            assert (opened is not None) == (made.get(data) is kind)
            assert opened is None or opened == b"value of " + kind.name.encode()

    return Target("small-value", run, list(made))


def link_target() -> Target:
    """Any text of a backing symlink."""
    siv = fixed(16, "siv")
    bound = seal_target(b"/target", KEYS.links_key, link_aad(DIR_ID, siv), fixed(24, "bound"))
    unbound = seal_target(b"other", KEYS.links_key, unbound_link_aad(), fixed(24, "unbound"))
    made = {bound: (b"/target", True), unbound: (b"other", False)}

    def run(data: bytes) -> None:
        text = data.decode("utf-8", "surrogateescape")
        try:
            found = open_target(text, KEYS.links_key, DIR_ID, siv)
        except NameError_:
            assert text not in made
        else:
            assert made[text] == found

    return Target("link", run, [bound.encode(), unbound.encode(), b"cryptfs.link.AAAA.5", b"/etc/passwd"])


def acl_target() -> Target:
    """Any value of system.posix_acl_access: refused, or an ACL that packs to itself."""

    def run(data: bytes) -> None:
        try:
            found = acls.unpack_acl(data)
        except ValueError:
            return
        assert acls.unpack_acl(acls.pack_acl(found)) == found
        for mode in (0, 0o777, 0o640):
            assert 0 <= acls.mode_from_acl(found, mode) <= 0o7777
            acls.unpack_acl(acls.pack_acl(acls.acl_after_chmod(found, mode)))
            inherited, granted = acls.inherited_acl(found, mode)
            acls.unpack_acl(acls.pack_acl(inherited))
            assert 0 <= granted <= 0o7777

    entry = acls.AclEntry
    simple = (entry(acls.USER_OBJ, 7), entry(acls.GROUP_OBJ, 5), entry(acls.OTHER, 0))
    named = (*simple[:1], entry(acls.USER, 6, 1000), *simple[1:2], entry(acls.MASK, 4), *simple[2:])
    return Target("acl", run, [acls.pack_acl(simple), acls.pack_acl(named)])


CORE_TARGETS: dict[str, Callable[[], Target]] = {
    "config": config_target,
    "header": header_target,
    **{f"records-{suite.name}": (lambda suite=suite: _record_run(suite)) for suite in SUITES.values()},  # type: ignore[misc]
    "cipher-name": name_target,
    "plain-name": plain_name_target,
    "directory-record": directory_record_target,
    "small-value": small_value_target,
    "link": link_target,
    "acl": acl_target,
}
