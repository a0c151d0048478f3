"""Format 1 once more, written from docs/FORMAT.md and without cryptfs.

It only writes, it knows no limits, and it builds what is asked of it, right or wrong: a vector for a
reader's refusal often needs a structure with a valid mac over nonsense.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import struct
from typing import Any

from nacl.bindings import (
    crypto_aead_aegis256_encrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.pwhash import argon2id

CIPHERS = {"aegis-256": (1, 32, 32), "xchacha20-poly1305": (2, 24, 16)}  # id, nonce bytes, tag bytes
CHUNK, HEADER, LINK, LINK_UNBOUND, XATTR_OF_FILE, XATTR_OF_DIRECTORY, SLOT = range(1, 8)
JOURNAL_RECORD, JOURNAL_HEAD, SESSIONS = range(8, 11)
SLOT_VERSION_2 = 12
RECOVERY_SECRET, RECOVERY_RECORD = 13, 14
WORDS, SHARES = 1, 2
DELTA_KIND, OLD_MASTERKEY, XATTR_OF_LINK = 15, 16, 17
WRITE, SHRINK, PUNCH, DELTA = 1, 2, 3, 4
CLEAN, SPARSE, VOID, HOST = 1, 2, 4, 8
XATTR_CONTEXT = b"cryptfs:xattrs\0\0"


def fixed(label: str, size: int) -> bytes:
    """Stands in for randomness: the same bytes in every run, others for every label."""
    return hashlib.shake_256(b"cryptfs vectors: " + label.encode()).digest(size)


MASTERKEY = bytes(range(32))
FILE_ID = fixed("file_id", 32)
OTHER_FILE_ID = fixed("other file_id", 32)
DIR_ID = fixed("dir_id", 16)
OTHER_DIR_ID = fixed("other dir_id", 16)
JOURNAL_ID = fixed("journal_id", 16)
OTHER_JOURNAL_ID = fixed("other journal_id", 16)
MACHINE_ID = fixed("machine_id", 16).hex().encode()


def flip(data: bytes, offset: int) -> bytes:
    """`data` with the lowest bit of one byte turned over; a negative offset counts from the end."""
    changed = bytearray(data)
    changed[offset] ^= 1
    return bytes(changed)


def keyed(key: bytes, purpose: str, data: bytes = b"", size: int = 32) -> bytes:
    """The keyed BLAKE2b of section 2."""
    person = (b"cryptfs:" + purpose.encode()).ljust(16, b"\0")
    return hashlib.blake2b(data, digest_size=size, key=key, person=person).digest()


def subkey(purpose: str, masterkey: bytes = MASTERKEY) -> bytes:
    """A subkey of the masterkey."""
    return keyed(masterkey, purpose)


def root_dir_id(masterkey: bytes = MASTERKEY) -> bytes:
    """The dir_id of the root directory, which has no record."""
    return keyed(masterkey, "rootdir", size=16)


def file_key(cipher: str, chunk_size: int, epoch: int, file_id: bytes, masterkey: bytes = MASTERKEY) -> bytes:
    """The key of one file's chunks in one epoch."""
    log2 = chunk_size.bit_length() - 1
    data = struct.pack("<BBI32s", CIPHERS[cipher][0], log2, epoch, file_id)
    return keyed(subkey("content", masterkey), "file", data)


def nonce_for(size: int, key: bytes, plain: bytes, aad: bytes) -> bytes:
    """Stands in for a fresh nonce: another one for whatever is sealed."""
    return fixed(f"nonce for {key.hex()} {plain.hex()} {aad.hex()}", size)


def seal_small(key: bytes, plain: bytes, aad: bytes, nonce: bytes = b"") -> bytes:
    """A sealed small value, section 3."""
    nonce = nonce or nonce_for(24, key, plain, aad)
    sealed: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, key)
    return nonce + sealed


def seal_record(cipher: str, key: bytes, chunk_index: int, plain: bytes, kind: int = CHUNK) -> bytes:
    """One chunk record, section 4; or another value that the vault's cipher seals."""
    encrypt = (
        crypto_aead_aegis256_encrypt if cipher == "aegis-256" else crypto_aead_xchacha20poly1305_ietf_encrypt
    )
    aad = struct.pack("<BB6xQ", kind, 1, chunk_index)
    nonce = nonce_for(CIPHERS[cipher][1], key, plain, aad)
    sealed: bytes = encrypt(plain, aad, nonce, key)
    return nonce + sealed


def pack_header(
    cipher: str,
    chunk_size: int,
    *,
    magic: bytes = b"CRYPTFS",
    version: int = 1,
    zeros: int = 0,
    epoch: int = 0,
    file_id: bytes = FILE_ID,
    size: int = 0,
    size_min: int = 0,
    generation: int = 0,
    flags: int = 0,
    journal_id: bytes = bytes(16),
    journal_floor: int = 0,
    reserved: bytes = bytes(84),
    sealed_for: bytes | None = None,
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """A file header, section 4. sealed_for: another AAD for the state than the header's own."""
    log2 = chunk_size.bit_length() - 1
    clear = struct.pack("<7sBBBHI32s", magic, version, CIPHERS[cipher][0], log2, zeros, epoch, file_id)
    state = struct.pack(
        "<QQQI16sQ84s", size, size_min, generation, flags, journal_id, journal_floor, reserved
    )
    aad = bytes((HEADER, 1)) + clear if sealed_for is None else sealed_for
    body = clear + seal_small(subkey("header", masterkey), state, aad)
    return body + keyed(subkey("hdrmac", masterkey), "hdrmac", body)


def base64url(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def pad(name: bytes) -> bytes:
    """A name filled with zeros to a multiple of 16."""
    return name + bytes(-len(name) % 16)


def keystream(siv: bytes, size: int, masterkey: bytes = MASTERKEY) -> bytes:
    """The first bytes of the stream that hides a name, section 5."""
    key = subkey("namestrm", masterkey)
    blocks = [keyed(key, "stream", siv + struct.pack("<I", i), 64) for i in range(-(-size // 64))]
    return b"".join(blocks)[:size]


def seal_name(
    name: bytes,
    dir_id: bytes,
    *,
    length: int | None = None,
    padded: bytes | None = None,
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """siv and ciphertext of a name, section 5; length and padded replace the right ones."""
    filled = pad(name) if padded is None else padded
    count = len(name) if length is None else length
    siv = keyed(subkey("namemac", masterkey), "name", dir_id + bytes((count,)) + filled, 16)
    stream = keystream(siv, len(filled), masterkey)
    return siv + bytes(a ^ b for a, b in zip(filled, stream, strict=True))


def cipher_name(name: bytes, dir_id: bytes) -> str:
    """The full cipher name."""
    return base64url(seal_name(name, dir_id))


def long_hash(full_name: str) -> str:
    """What stands for a cipher name that is too long."""
    return base64url(hashlib.blake2b(full_name.encode("ascii"), digest_size=32).digest())


def directory_record(dir_id: bytes, *, version: int = 1, masterkey: bytes = MASTERKEY) -> bytes:
    """A directory record, section 6."""
    body = b"CRYPTDIR" + bytes((version,)) + bytes(7) + dir_id
    return body + keyed(subkey("dirs", masterkey), "dirmac", body)


def place(dir_id: bytes, name: bytes) -> bytes:
    """Where a directory stands, section 6."""
    return dir_id + seal_name(name, dir_id)[:16]


def bound_record(
    dir_id: bytes,
    places: list[bytes],
    host: bytes = b"",
    *,
    version: int = 2,
    count: int | None = None,
    zeros: bytes = bytes(6),
    more_zeros: bytes = bytes(20),
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """A directory record that names places, section 6; the rest replaces what belongs there."""
    body = b"CRYPTDIR" + bytes((version, len(places) if count is None else count)) + zeros + dir_id
    body += host.ljust(12, b"\0") + more_zeros + b"".join(places).ljust(64, b"\0")
    return body + keyed(subkey("dirs", masterkey), "dirbind", body)


def link_aad(dir_id: bytes, name: bytes) -> bytes:
    """AAD of the target of a link called `name`."""
    return bytes((LINK, 1)) + dir_id + seal_name(name, dir_id)[:16]


def xattr_aad(kind: int, owner_id: bytes, name: bytes) -> bytes:
    """AAD of an xattr's value."""
    return bytes((kind, 1)) + owner_id.ljust(32, b"\0") + name


def link_owner(sealed_target: bytes) -> bytes:
    """The owner of the xattrs of a symlink."""
    return keyed(subkey("xattrs"), "linkattr", sealed_target)


def canonical(value: Any) -> bytes:
    """Canonical JSON, section 9."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@functools.cache
def slot_key(passphrase: bytes, salt: bytes, memory: int, passes: int) -> bytes:
    """Argon2id, one lane, 32 bytes."""
    key: bytes = argon2id.kdf(32, passphrase, salt, opslimit=passes, memlimit=memory)
    return key


def make_slot(config: dict[str, Any], slot_id: int, passphrase: bytes, label: str) -> dict[str, Any]:
    """A passphrase slot at the lowest allowed cost, section 9."""
    salt = fixed(f"salt of slot {slot_id}", 16)
    if config["version"] == 2:
        params = {"kdf": "argon2id", "memory": 64 << 20, "passes": 3, "salt": salt.hex()}
        return seal_slot(
            config, slot_id, "passphrase", label, params, slot_key(passphrase, salt, 64 << 20, 3)
        )
    kdf = {"memory": 64 << 20, "name": "argon2id", "passes": 3, "salt": salt.hex()}
    key = slot_key(passphrase, salt, 64 << 20, 3)
    static_names = ("chunk_size", "cipher", "features", "format", "vault_id", "version")
    static = canonical({name: config[name] for name in static_names})
    aad = struct.pack("<BBI", SLOT, 1, slot_id) + canonical(kdf) + static
    wrapped = seal_small(keyed(key, "wrap"), MASTERKEY, aad)
    return {
        "commitment": keyed(key, "commit").hex(),
        "id": slot_id,
        "kdf": kdf,
        "kind": "passphrase",
        "label": label,
        "wrapped": wrapped.hex(),
    }


def seal_slot(
    config: dict[str, Any],
    slot_id: int,
    kind: str,
    label: str,
    params: dict[str, Any],
    key: bytes,
    masterkey: bytes = MASTERKEY,
) -> dict[str, Any]:
    """A key slot of version 2 from its slot key."""
    suite = bytes((CIPHERS[config["cipher"]][0], config["chunk_size"].bit_length() - 1))
    aad = struct.pack("<BBHI", SLOT_VERSION_2, 1, 0, slot_id) + bytes.fromhex(config["vault_id"]) + suite
    aad += bytes(5) + bytes((len(kind),)) + kind.encode() + canonical(params)
    return {
        "commitment": keyed(key, "commit").hex(),
        "id": slot_id,
        "kind": kind,
        "label": label,
        "params": params,
        "wrapped": seal_small(keyed(key, "wrap"), masterkey, aad).hex(),
    }


def seal_old_masterkey(old: bytes, new: bytes, vault_id: bytes) -> bytes:
    """The old masterkey under the new one, section 14.7."""
    return seal_small(keyed(new, "rekey"), old, bytes((OLD_MASTERKEY, 1)) + vault_id)


def key_file(secret: bytes) -> bytes:
    """A key file that cryptfs made, section 9."""
    return f"cryptfs-key-1:{secret.hex()}:{keyed(secret, 'keycheck', size=8).hex()}\n".encode()


def config_mac(config: dict[str, Any]) -> str:
    """The mac of a config under the masterkey of the vectors, in hex."""
    body = canonical({name: value for name, value in config.items() if name != "mac"})
    return keyed(subkey("config"), "confmac", body).hex()


def recovery_body(
    features: list[str],
    *,
    cipher: str = "aegis-256",
    chunk_size: int = 16384,
    config_version: int = 2,
    generation: int = 1,
    old: bytes = bytes(32),
    zeros: bytes = bytes(4),
    count: int | None = None,
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """The body of a recovery record, section 9; count replaces the right one."""
    suite = (CIPHERS[cipher][0], chunk_size.bit_length() - 1)
    number = len(features) if count is None else count
    raw = masterkey + old + bytes((*suite, config_version, number)) + zeros + struct.pack("<Q", generation)
    return raw + b"".join(bytes((len(name),)) + name.encode() for name in features)


def recovery_record(
    secrets: list[tuple[bytes, tuple[int, int, int], bytes]],
    body: bytes,
    vault_id: bytes,
    *,
    magic: bytes = b"CRYPTREC",
    version: int = 1,
    count: int | None = None,
    zeros: bytes = bytes(6),
    entry_zeros: bytes = bytes(5),
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """A recovery record, section 9. secrets: recovery_id, kind with k and n, and the secret, of each."""
    record_key = fixed(f"record key for {body.hex()} and {len(secrets)}", 32)
    number = len(secrets) if count is None else count
    head = magic + bytes((version, number)) + zeros + vault_id
    clear = head
    for recovery_id, numbers, secret in secrets:
        entry = recovery_id + bytes(numbers) + entry_zeros + keyed(secret, "recommit")
        clear += entry
        clear += seal_small(subkey("recsec", masterkey), secret, bytes((RECOVERY_SECRET, 1)) + head + entry)
        aad = bytes((RECOVERY_RECORD, 1, 0)) + head + entry
        clear += seal_small(keyed(secret, "recwrap"), record_key, aad)
    return clear + seal_small(record_key, body, bytes((RECOVERY_RECORD, 1, 1)) + clear)


def journal_head(
    number: int,
    first_seq: int,
    root_inode: int,
    *,
    journal_id: bytes = JOURNAL_ID,
    padding: bytes = bytes(424),
    masterkey: bytes = MASTERKEY,
    host: str = "",
    version: int = 1,
) -> bytes:
    """The head of a journal file, section 10; of a machine where a host id is given.

    version: of its AAD; 2 in a vault with delta-journal.
    """
    clear = b"CRYPTFSJ" + journal_id
    state = struct.pack("<QQQ", number, first_seq, root_inode)
    aad = bytes((JOURNAL_HEAD, version)) + clear + host.encode()
    return clear + seal_small(subkey("journal", masterkey), state, aad) + padding


def ends(cipher: str, sealed: bytes) -> bytes:
    """Nonce and tag of a chunk record or a delta."""
    _, nonce_size, tag_size = CIPHERS[cipher]
    return sealed[:nonce_size] + sealed[-tag_size:]


def seal_delta(
    cipher: str, key: bytes, chunk_index: int, fields: tuple[int, int], base: bytes, data: bytes
) -> bytes:
    """A delta, section 10. key: of the file's chunks.   fields: bytes before, offset.   base: see ends."""
    plain = struct.pack("<II", *fields) + base + data
    return seal_record(cipher, keyed(key, "delta"), chunk_index, plain, DELTA_KIND)


def payload_digest(path: bytes, records: list[tuple[bytes, bytes, bytes]]) -> bytes:
    """The digest of a journal record; records: nonce, ciphertext and tag of each chunk record."""
    parts = [struct.pack("<I", len(path)), path]
    for nonce, ciphertext, tag in records:
        parts += [struct.pack("<I", len(nonce) + len(ciphertext) + len(tag)), nonce, tag]
    return hashlib.blake2b(b"".join(parts), digest_size=32).digest()


def split_records(cipher: str, chunk_size: int, payload: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """Chunk records one behind the other, taken apart."""
    _, nonce_size, tag_size = CIPHERS[cipher]
    size = chunk_size + nonce_size + tag_size
    records = [payload[start : start + size] for start in range(0, len(payload), size)]
    return [(record[:nonce_size], record[nonce_size:-tag_size], record[-tag_size:]) for record in records]


def journal_record(
    cipher: str,
    chunk_size: int,
    offset: int,
    *,
    seq: int,
    operation: int,
    first: int,
    size: int,
    payload: bytes = b"",
    path: bytes = b"",
    previous: int = 0,
    epoch: int = 0,
    file_id: bytes = FILE_ID,
    inode: int = 0,
    zeros: bytes = bytes(3),
    journal_id: bytes = JOURNAL_ID,
    masterkey: bytes = MASTERKEY,
) -> bytes:
    """A journal record, section 10."""
    counted = max(len(payload), chunk_size) if operation == DELTA else chunk_size
    digest = payload_digest(path, split_records(cipher, counted, payload))
    fields = struct.pack(
        "<QQB3sI32sQQQ32s", seq, previous, operation, zeros, epoch, file_id, inode, first, size, digest
    )
    clear = b"CRYPTFSR" + struct.pack("<HI", len(path), len(payload))
    aad = bytes((JOURNAL_RECORD, 1)) + journal_id + struct.pack("<Q", offset) + clear
    return clear + seal_small(subkey("journal", masterkey), fields, aad) + path + payload


def host_id(machine_id: bytes, vault_id: bytes, inode: int, birth: int) -> str:
    """The host id of section 11."""
    data = machine_id + vault_id + struct.pack("<QQ", inode, birth)
    return base64url(hashlib.blake2b(data, digest_size=12, person=b"cryptfs:host").digest())


def sessions(
    last: int, crashed: list[bytes], *, count: int | None = None, masterkey: bytes = MASTERKEY, host: str = ""
) -> bytes:
    """The list of sessions, section 10; count replaces the right one."""
    state = struct.pack("<QH", last, len(crashed) if count is None else count) + b"".join(crashed)
    return seal_small(subkey("journal", masterkey), state, bytes((SESSIONS, 1)) + host.encode())
