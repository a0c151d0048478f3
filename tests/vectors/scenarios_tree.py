"""Scenarios of sections 5 to 8: names, directory records, symlinks, xattrs."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.vector import Scenarios, Vector, bad, good


def _name(cipher_name: str, dir_id: bytes = ref.DIR_ID) -> dict[str, Any]:
    return {"masterkey": ref.MASTERKEY, "dir_id": dir_id, "cipher_name": cipher_name}


def name_scenarios() -> Scenarios:
    """Names of directory entries."""
    plain_names = {
        "one-byte": b"a",
        "15-bytes": b"fifteen-bytes-1",
        "16-bytes": b"sixteen-bytes-12",
        "17-bytes": b"seventeen-bytes-1",
        "not-utf-8": b"caf\xe9\xff\x01",
        "utf-8": "smørrebrød.txt".encode(),
        "internal-look": b"cryptfs.dir",
        "160-bytes-the-longest-short": b"n" * 160,
        "161-bytes-the-shortest-long": b"n" * 161,
        "255-bytes": bytes(range(1, 47)) + bytes(range(48, 256)) + b"!",
    }
    found: Scenarios = {}
    for name, plain_name in plain_names.items():
        full = ref.cipher_name(plain_name, ref.DIR_ID)
        is_long = len(full) > 255
        entry = "cryptfs.long." + ref.long_hash(full) if is_long else full
        found[name] = good(
            f"A name of {len(plain_name)} bytes, {len(full)} characters when sealed.",
            "open_name",
            _name(full),
            plain_name=plain_name,
            entry_name=entry,
            sidecar_name=entry + ".name" if is_long else None,
        )
    return found | _spelled_wrongly() | _forged_names()


def _refused(about: str, cipher_name: str, why: str, dir_id: bytes = ref.DIR_ID) -> Vector:
    return bad(about, "open_name", _name(cipher_name, dir_id), "NameError_", why)


def _spelled_wrongly() -> Scenarios:
    full = ref.cipher_name(b"a", ref.DIR_ID)  # 32 bytes, so 43 characters: the last holds two unused bits
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    unused_bit = full[:-1] + alphabet[alphabet.index(full[-1]) + 1]
    spelled = "canonical"
    number = next(i for i in range(1000) if "-" in ref.cipher_name(b"%d" % i, ref.DIR_ID))
    dashed = ref.cipher_name(b"%d" % number, ref.DIR_ID)
    return {
        "unused-bits-set": _refused("The unused bits of the last character.", unused_bit, spelled),
        "with-padding": _refused("'=' at the end.", full + "=", spelled),
        "other-alphabet": _refused("'+' for '-'.", dashed.replace("-", "+"), spelled),
        "with-newline": _refused("A newline at the end.", full + "\n", spelled),
        "with-dot": _refused("A character outside the alphabet.", full[:-1] + ".", spelled),
        "not-ascii": _refused("A letter outside ASCII.", full[:-1] + "é", spelled),
        "impossible-characters": _refused("4n + 1 characters.", full + "AA", spelled),
        "empty": _refused("No character at all.", "", "length"),
        "too-short": _refused("A siv and nothing else.", ref.base64url(bytes(16)), "length"),
        "not-a-step": _refused("15 bytes behind the siv.", ref.base64url(bytes(31)), "length"),
        "between-steps": _refused("17 bytes behind the siv.", ref.base64url(bytes(33)), "length"),
        "too-long": _refused("272 bytes behind the siv.", ref.base64url(bytes(288)), "length"),
    }


def _forged_names() -> Scenarios:
    sealed = ref.seal_name(b"report.txt", ref.DIR_ID)

    def forged(about: str, why: str, name: bytes, **fields: Any) -> Vector:
        return _refused(about, ref.base64url(ref.seal_name(name, ref.DIR_ID, **fields)), why)

    flipped_end = ref.flip(ref.seal_name(b"0123456789abcdef", ref.DIR_ID), -1)
    return {
        "flipped-siv": _refused(
            "A bit of the siv was turned over.", ref.base64url(ref.flip(sealed, 0)), "name"
        ),
        "flipped-ciphertext": _refused(
            "A bit of the first letter was turned over.", ref.base64url(ref.flip(sealed, 16)), "belong"
        ),
        "flipped-last-letter": _refused(
            "A bit of the last letter of a name that fills its 16 bytes.",
            ref.base64url(flipped_end),
            "belong",
        ),
        "flipped-padding": _refused(
            "A bit of the last byte of padding was turned over.",
            ref.base64url(ref.flip(sealed, -1)),
            "belong",
        ),
        "other-directory": _refused(
            "An entry moved to another directory.", ref.base64url(sealed), "belong", ref.OTHER_DIR_ID
        ),
        "padded-a-step-too-far": forged(
            "16 zeros more than the step asks for, under a valid siv.",
            "decrypt to a name",
            b"a",
            padded=b"a" + bytes(31),
        ),
        "only-padding": forged(
            "An empty name under a valid siv.", "decrypt to a name", b"", padded=bytes(16)
        ),
        "256-bytes": forged("A name of 256 bytes under a valid siv.", "to a name", b"n" * 256, length=255),
        "wrong-length-in-siv": forged("The siv is over another length.", "belong", b"abc", length=4),
        "dot-dot": forged("'..' under a valid siv.", "no valid name", b".."),
        "dot": forged("'.' under a valid siv.", "no valid name", b"."),
        "slash": forged("A name with '/' under a valid siv.", "no valid name", b"../../etc/passwd"),
        "nul-inside": forged("A name with NUL inside under a valid siv.", "no valid name", b"a\0b"),
    }


def directory_scenarios() -> Scenarios:
    """Directory records."""
    raw = ref.directory_record(ref.DIR_ID)

    def unpacked(about: str, changed: bytes, why: str = "authenticate") -> Vector:
        inputs = {"masterkey": ref.MASTERKEY, "raw": changed}
        return bad(about, "open_directory_record", inputs, "DirectoryRecordError", why)

    return {
        "ok": good(
            "A directory record.",
            "open_directory_record",
            {"masterkey": ref.MASTERKEY, "raw": raw},
            dir_id=ref.DIR_ID,
        ),
        "flipped-magic": unpacked("A bit of the magic was turned over.", ref.flip(raw, 0)),
        "flipped-dir-id": unpacked("A bit of the dir_id was turned over.", ref.flip(raw, 16)),
        "flipped-mac": unpacked("A bit of the mac was turned over.", ref.flip(raw, -1)),
        "cut": unpacked("The last byte is missing.", raw[:-1], "63 bytes"),
        "surplus": unpacked("A newline too many.", raw + b"\n", "65 bytes"),
        "empty": unpacked("No byte at all.", b"", "0 bytes"),
        "other-vault": unpacked(
            "A record under another masterkey.", ref.directory_record(ref.DIR_ID, masterkey=bytes(32))
        ),
        "valid-mac-later-version": unpacked(
            "Version 2 under a valid mac.", ref.directory_record(ref.DIR_ID, version=2), "version"
        ),
    }


_PARENT, _NAME, _NEW_NAME = ref.OTHER_DIR_ID, b"photos", b"pictures"
_BOUND = ["bound-dirs", "machine-state"]
_HOST = bytes(range(101, 113))


def _accepting(
    raw: bytes, features: list[str], name: bytes = _NAME, parent: bytes = _PARENT
) -> dict[str, Any]:
    return {
        "masterkey": ref.MASTERKEY,
        "features": features,
        "raw": raw,
        "parent_dir_id": parent,
        "name": name,
    }


def _accepted(about: str, raw: bytes, features: list[str], name: bytes = _NAME) -> Vector:
    inputs = _accepting(raw, features, name)
    return good(about, "accept_directory", inputs, dir_id=ref.DIR_ID)


def _not_accepted(
    about: str, raw: bytes, why: str, features: list[str] | None = None, **where: bytes
) -> Vector:
    inputs = _accepting(raw, _BOUND if features is None else features, **where)
    return bad(about, "accept_directory", inputs, "DirectoryRecordError", why)


def bound_directory_scenarios() -> Scenarios:
    """Directory records of version 2, and where each version counts."""
    here, there = ref.place(_PARENT, _NAME), ref.place(_PARENT, _NEW_NAME)
    one = ref.bound_record(ref.DIR_ID, [here])
    two = ref.bound_record(ref.DIR_ID, [here, there], _HOST)
    first = ref.directory_record(ref.DIR_ID)
    upgrading = [*_BOUND, "upgrading"]
    impossible = {
        "bound-no-place": ref.bound_record(ref.DIR_ID, [], count=0),
        "bound-three-places": ref.bound_record(ref.DIR_ID, [here, there], _HOST, count=3),
        "bound-one-of-two-places": ref.bound_record(ref.DIR_ID, [here, there], _HOST, count=1),
        "bound-two-equal-places": ref.bound_record(ref.DIR_ID, [here, here], _HOST),
        "bound-host-with-one-place": ref.bound_record(ref.DIR_ID, [here], _HOST),
        "bound-reserved": ref.bound_record(ref.DIR_ID, [here], zeros=b"\0\0\0\0\0\1"),
        "bound-reserved-too": ref.bound_record(ref.DIR_ID, [here], more_zeros=b"\1" + bytes(19)),
    }
    return {
        "bound-ok": good(
            "A record of version 2.",
            "open_bound_record",
            {"masterkey": ref.MASTERKEY, "raw": one},
            dir_id=ref.DIR_ID,
            places=[here.hex()],
            host=b"",
        ),
        "bound-moving": good(
            "A record of version 2 during a rename.",
            "open_bound_record",
            {"masterkey": ref.MASTERKEY, "raw": two},
            dir_id=ref.DIR_ID,
            places=[here.hex(), there.hex()],
            host=_HOST,
        ),
        "bound-accepted": _accepted("The place is the one in the record.", one, _BOUND),
        "bound-accepted-at-the-old-place": _accepted("Before the rename.", two, _BOUND),
        "bound-accepted-at-the-new-place": _accepted("After the rename.", two, _BOUND, _NEW_NAME),
        "bound-accepted-while-upgrading": _accepted("During an upgrade.", one, upgrading),
        "first-accepted-while-upgrading": _accepted("Version 1 during an upgrade.", first, upgrading),
        "first-accepted-without-the-feature": _accepted("Version 1 as in 0.1.", first, []),
        "first-in-a-bound-vault": _not_accepted("Version 1, where all are bound.", first, "belongs"),
        "bound-without-the-feature": _not_accepted("Version 2 by an older config.", one, "version 2", []),
        "bound-other-name": _not_accepted("At another name.", one, "another place", name=_NEW_NAME),
        "bound-other-parent": _not_accepted("In another parent.", one, "another place", parent=ref.DIR_ID),
        "bound-other-name-while-upgrading": _not_accepted(
            "At another name, during an upgrade.", one, "another place", upgrading, name=_NEW_NAME
        ),
        "bound-third-name": _not_accepted("At neither name.", two, "another place", name=b"elsewhere"),
        "bound-flipped-place": _not_accepted("A bit of the place.", ref.flip(one, 70), "authenticate"),
        "bound-flipped-host": _not_accepted("A bit of the host.", ref.flip(two, 32), "authenticate"),
        "bound-flipped-mac": _not_accepted("A bit of the mac.", ref.flip(one, -1), "authenticate"),
        "bound-cut": _not_accepted("The last byte is missing.", one[:-1], "159 bytes"),
        "bound-version-3": _not_accepted(
            "Version 3 under a valid mac.", ref.bound_record(ref.DIR_ID, [here], version=3), "version"
        ),
        "bound-other-vault": _not_accepted(
            "A record under another masterkey.",
            ref.bound_record(ref.DIR_ID, [here], masterkey=bytes(32)),
            "authenticate",
        ),
        **{name: _not_accepted("Under a valid mac.", raw, "impossible") for name, raw in impossible.items()},
    }


_LINK = b"shortcut"
_TARGET = b"../papers/thesis.tex"


def _link(text: str, dir_id: bytes = ref.DIR_ID, name: bytes = _LINK) -> dict[str, Any]:
    return {"masterkey": ref.MASTERKEY, "dir_id": dir_id, "link_name": name, "text": text}


def link_scenarios() -> Scenarios:
    """Symlink targets."""
    key = ref.subkey("links")
    sealed = ref.seal_small(key, _TARGET, ref.link_aad(ref.DIR_ID, _LINK))
    unbound = ref.base64url(ref.seal_small(key, _TARGET, bytes((ref.LINK_UNBOUND, 1))))
    text = ref.base64url(sealed)
    posing_aad = ref.xattr_aad(ref.XATTR_OF_DIRECTORY, ref.DIR_ID, _LINK)
    posing = ref.base64url(ref.seal_small(ref.subkey("xattrs"), _TARGET, posing_aad))
    longest = b"t" * 3031
    longest_text = ref.base64url(ref.seal_small(key, longest, ref.link_aad(ref.DIR_ID, _LINK)))

    def opened(about: str, inputs: dict[str, Any]) -> Vector:
        return bad(about, "open_link", inputs, "NameError_", "authenticate")

    def right(about: str, inputs: dict[str, Any], target: bytes, bound: bool) -> Vector:
        return good(about, "open_link", inputs, target=target, bound=bound)

    return {
        "bound": right("A link with one name.", _link(text), _TARGET, True),
        "longest": right("The longest target that fits.", _link(longest_text), longest, True),
        "unbound": right("A link with several names.", _link(unbound), _TARGET, False),
        "unbound-elsewhere": right(
            "The same under another name in another directory.",
            _link(unbound, ref.OTHER_DIR_ID, b"other"),
            _TARGET,
            False,
        ),
        "bound-other-directory": opened("A link moved to another directory.", _link(text, ref.OTHER_DIR_ID)),
        "bound-other-name": opened("A link's text under another name.", _link(text, name=b"other")),
        "flipped-ciphertext": opened("A bit was turned over.", _link(ref.base64url(ref.flip(sealed, 30)))),
        "cut": opened("The last character is missing.", _link(text[:-1])),
        "with-padding": opened("'=' at the end: another spelling.", _link(text + "=")),
        "plaintext": opened("A target that nobody sealed.", _link("/etc/passwd")),
        "empty": opened("No text.", _link("")),
        "xattr-posing-as-link": opened("An xattr value posing as a target.", _link(posing)),
    }


_ATTR = b"user.comment"
_VALUE = b"seen and approved"


def _xattr(sealed: bytes, kind: int = ref.XATTR_OF_FILE, **fields: Any) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "masterkey": ref.MASTERKEY,
        "kind": kind,
        "owner_id": ref.FILE_ID,
        "name": _ATTR,
    } | fields
    cipher_name = ref.cipher_name(inputs["name"], ref.XATTR_CONTEXT)
    namespace = "trusted" if kind == ref.XATTR_OF_LINK else "user"
    if len(cipher_name) <= 235:
        inputs |= {"backing_name": namespace + ".cryptfs." + cipher_name, "backing_value": sealed}
    else:
        start = len(cipher_name).to_bytes(2, "little") + cipher_name.encode("ascii")
        inputs |= {
            "backing_name": namespace + ".cryptfs.long." + ref.long_hash(cipher_name),
            "backing_value": start + sealed,
        }
    return inputs


def _xattr_value(kind: int, owner_id: bytes, name: bytes = _ATTR, value: bytes = _VALUE) -> bytes:
    return ref.seal_small(ref.subkey("xattrs"), value, ref.xattr_aad(kind, owner_id, name))


def _link_xattr(target: bytes, value: bytes, name: bytes = b"trusted.comment") -> dict[str, Any]:
    """On a symlink with this sealed target."""
    inputs = _xattr(value, ref.XATTR_OF_LINK, name=name, sealed_target=target)
    del inputs["owner_id"]
    return inputs


def _link_xattr_scenarios() -> Scenarios:
    name, key = b"trusted.comment", ref.subkey("links")
    aad, unbound_aad = ref.link_aad(ref.DIR_ID, _LINK), bytes((ref.LINK_UNBOUND, 1))
    target, again = ref.seal_small(key, _TARGET, aad), ref.seal_small(key, _TARGET, aad, bytes(24))
    unbound, far = ref.seal_small(key, _TARGET, unbound_aad), ref.seal_small(key, b"t" * 3500, aad)

    def value(of: bytes, attribute: bytes = name, kind: int = ref.XATTR_OF_LINK) -> bytes:
        return _xattr_value(kind, ref.link_owner(of), attribute)

    def opened(about: str, inputs: dict[str, Any]) -> Vector:
        return bad(about, "open_xattr", inputs, "refused", "tag")

    def right(about: str, inputs: dict[str, Any]) -> Vector:
        return good(about, "open_xattr", inputs, value=_VALUE)

    long_name = b"trusted." + b"x" * 153
    return {
        "of-link": right("An attribute of a symlink.", _link_xattr(target, value(target))),
        "of-unbound-link": right("Of a symlink with several names.", _link_xattr(unbound, value(unbound))),
        "of-long-link": right("Of a symlink with a long target.", _link_xattr(far, value(far))),
        "of-link-name-of-161-bytes": right(
            "The shortest name that is stored in front of the value.",
            _link_xattr(target, value(target, long_name), long_name),
        ),
        "link-sealed-again": opened(
            "The same target at the same place, sealed again.", _link_xattr(again, value(target))
        ),
        "other-link": opened("A value moved to another symlink.", _link_xattr(far, value(target))),
        "link-other-name": opened(
            "A value under another attribute's name.", _link_xattr(target, value(target), b"trusted.other")
        ),
        "file-value-on-link": opened(
            "A file's value on a symlink with an owner that is its file_id.",
            _link_xattr(target, value(target, name, ref.XATTR_OF_FILE)),
        ),
    }


def xattr_scenarios() -> Scenarios:
    """Extended attributes: name and value as they stand on the backing file."""
    sealed = _xattr_value(ref.XATTR_OF_FILE, ref.FILE_ID)
    of_directory = _xattr_value(ref.XATTR_OF_DIRECTORY, ref.DIR_ID)
    directory: dict[str, Any] = {"kind": ref.XATTR_OF_DIRECTORY, "owner_id": ref.DIR_ID}
    short_name, long_name = b"user." + b"x" * 155, b"user." + b"x" * 156
    slashed = b"user./../\xff\n"

    def opened(about: str, inputs: dict[str, Any]) -> Vector:
        return bad(about, "open_xattr", inputs, "refused", "tag")

    def right(about: str, inputs: dict[str, Any], value: bytes = _VALUE) -> Vector:
        return good(about, "open_xattr", inputs, value=value)

    return {
        "of-file": right("An attribute of a file.", _xattr(sealed)),
        "of-directory": right("An attribute of a directory.", _xattr(of_directory, **directory)),
        "empty-value": right(
            "An empty value.", _xattr(_xattr_value(ref.XATTR_OF_FILE, ref.FILE_ID, value=b"")), b""
        ),
        "name-of-160-bytes": right(
            "The longest name that is stored in the backing name.",
            _xattr(_xattr_value(ref.XATTR_OF_FILE, ref.FILE_ID, short_name), name=short_name),
        ),
        "name-of-161-bytes": right(
            "The shortest name that is stored in front of the value.",
            _xattr(_xattr_value(ref.XATTR_OF_FILE, ref.FILE_ID, long_name), name=long_name),
        ),
        "name-with-slash": right(
            "A name that no file could have: any byte but NUL.",
            _xattr(_xattr_value(ref.XATTR_OF_FILE, ref.FILE_ID, slashed), name=slashed),
        ),
        "other-file": opened("A value moved to another file.", _xattr(sealed, owner_id=ref.OTHER_FILE_ID)),
        "other-name": opened("A value under another attribute's name.", _xattr(sealed, name=b"user.other")),
        "directory-value-on-file": opened(
            "A directory's value on a file whose file_id starts with the dir_id.",
            _xattr(of_directory, owner_id=ref.DIR_ID + bytes(16)),
        ),
        "file-value-on-directory": opened("A file's value on a directory.", _xattr(sealed, **directory)),
        "flipped-value": opened("A bit was turned over.", _xattr(ref.flip(sealed, 30))),
        "cut-value": opened("The last byte is missing.", _xattr(sealed[:-1])),
        **_link_xattr_scenarios(),
    }
