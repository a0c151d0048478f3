"""Does with cryptfs what a vector asks for. One function an operation; each returns its results.

A reader of whole files belongs to the vfs; the one here is the shortest that follows FORMAT.md, section 4.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptfs.core.aead import SUITES, ChunkCipher, Kind, open_small, seal_small
from cryptfs.core.format.header import FileHeader
from cryptfs.core.format.journal import (
    PREFIX_SIZE,
    JournalHead,
    Operation,
    Sessions,
    payload_digest,
    record_lengths,
    unpack_record,
)
from cryptfs.core.format.manifest import HEADER_SIZE as MANIFEST_HEADER
from cryptfs.core.format.manifest import SEALED_BLOCK_SIZE, ManifestCipher, ManifestReader
from cryptfs.core.format.smallvalues import (
    link_aad,
    link_owner,
    open_target,
    seal_target,
    target_size,
    unbound_link_aad,
    xattr_aad,
)
from cryptfs.core.geometry import HEADER_SIZE, ChunkGeometry
from cryptfs.core.keys import Subkeys, file_content_key, passphrase_key
from cryptfs.core.names.dirrecord import (
    RecordRules,
    pack_bound_record,
    pack_directory_record,
    unpack_directory_record,
)
from cryptfs.core.names.dirrecord import open_directory_record as open_record
from cryptfs.core.names.host import StateNames, host_id, state_of_name
from cryptfs.core.names.names import (
    LONG_PREFIX,
    MAX_NAME_SIZE,
    SIDECAR_SUFFIX,
    NameCipher,
    decode_text,
    long_entry_name,
    siv_of,
)
from cryptfs.errors import ChunkError, DirectoryRecordError, HeaderError
from tests.support import BareVault
from tests.vectors import delta_runner, recovery_runner, slots_runner
from tests.vectors.delta_runner import Refused

Inputs = dict[str, Any]


def _hex(inputs: Inputs, name: str) -> bytes:
    return bytes.fromhex(inputs[name])


def _keys(inputs: Inputs) -> Subkeys:
    return Subkeys.from_masterkey(_hex(inputs, "masterkey"))


def _log2(chunk_size: int) -> int:
    return chunk_size.bit_length() - 1


def _cipher(inputs: Inputs) -> ChunkCipher:
    suite = SUITES[inputs["cipher"]]
    return ChunkCipher(suite, ChunkGeometry(inputs["chunk_size"], suite.overhead))


def subkeys(inputs: Inputs) -> Inputs:
    """Every subkey by its purpose."""
    keys = _keys(inputs)
    by_purpose = {
        "content": keys.content_key,
        "header": keys.header_key,
        "hdrmac": keys.header_mac_key,
        "namemac": keys.names_mac_key,
        "namestrm": keys.names_stream_key,
        "dirs": keys.dirs_key,
        "links": keys.links_key,
        "xattrs": keys.xattrs_key,
        "journal": keys.journal_key,
        "config": keys.config_key,
        "manifest": keys.manifest_key,
    }
    return {
        "subkeys": {purpose: subkey.hex() for purpose, subkey in by_purpose.items()},
        "root_dir_id": keys.root_dir_id.hex(),
    }


def derive_passphrase_key(inputs: Inputs) -> Inputs:
    """Argon2id."""
    key = passphrase_key(_hex(inputs, "passphrase"), _hex(inputs, "salt"), inputs["memory"], inputs["passes"])
    return {"slot_key": key.hex()}


def file_key(inputs: Inputs) -> Inputs:
    """The key of a file's chunks."""
    suite = SUITES[inputs["cipher"]]
    key = file_content_key(
        _keys(inputs).content_key,
        suite.cipher_id,
        _log2(inputs["chunk_size"]),
        inputs["epoch"],
        _hex(inputs, "file_id"),
    )
    return {"file_key": key.hex()}


def open_small_value(inputs: Inputs) -> Inputs:
    """Open, and seal again with the same nonce."""
    key, aad, sealed = (_hex(inputs, name) for name in ("key", "aad", "sealed"))
    plain = open_small(key, sealed, aad)
    if plain is None:
        raise Refused("the tag does not verify")
    assert seal_small(key, plain, aad, sealed[:24]) == sealed
    return {"plain": plain.hex()}


def open_chunks(inputs: Inputs) -> Inputs:
    """Open a run; seal it again with the same nonces where it has no holes."""
    cipher, sealed = _cipher(inputs), _hex(inputs, "sealed")
    geometry = cipher.geometry
    key = bytes.fromhex(file_key(inputs)["file_key"])
    out = bytearray(geometry.plain_length(len(sealed)))
    first_index, view = inputs["first_index"], memoryview(sealed)
    assert cipher.open_run(key, first_index, view, memoryview(out), holes=inputs["sparse"]) == len(out)
    if not inputs["sparse"]:
        starts = range(0, len(sealed), geometry.record_size)
        nonces = b"".join(sealed[at : at + cipher.suite.nonce_size] for at in starts)
        again = bytearray(len(sealed))
        assert cipher.seal_run(key, first_index, out, nonces, memoryview(again)) == len(sealed)
        assert again == sealed
    return {"plain": out.hex()}


def open_header(inputs: Inputs) -> Inputs:
    """Unpack, and pack again with the same nonce."""
    suite, raw, keys = SUITES[inputs["cipher"]], _hex(inputs, "raw"), _keys(inputs)
    own = inputs.get("machine_state", False)
    header = FileHeader.unpack(raw, keys, suite.cipher_id, _log2(inputs["chunk_size"]), machine_state=own)
    assert header.pack(keys, raw[48:72], machine_state=own) == raw
    return {
        "file_id": header.file_id.hex(),
        "epoch": header.epoch,
        "size": header.size,
        "size_min": header.size_min,
        "generation": header.generation,
        "flags": int(header.flags),
        "journal_id": header.journal_id.hex(),
        "journal_floor": header.journal_floor,
    }


def read_file(inputs: Inputs) -> Inputs:
    """The plaintext of a whole backing file, after recovery where that is due."""
    raw = _hex(inputs, "raw")
    if not raw:
        return {"plain": ""}
    cipher = _cipher(inputs)
    geometry = cipher.geometry
    log2 = _log2(inputs["chunk_size"])
    header = FileHeader.unpack(raw[:HEADER_SIZE], _keys(inputs), cipher.suite.cipher_id, log2)
    key = bytes.fromhex(
        file_key(inputs | {"epoch": header.epoch, "file_id": header.file_id.hex()})["file_key"]
    )
    holes = header.is_sparse

    def opened(first_index: int, plain_size: int) -> bytes:
        records = raw[geometry.record_offset(first_index) : geometry.cipher_size(plain_size)]
        out = bytearray(geometry.plain_length(len(records)))
        cipher.open_run(key, first_index, memoryview(records), memoryview(out), holes=holes)
        return bytes(out)

    def authentic(chunk_index: int, plain_size: int) -> bool:
        try:
            opened(chunk_index, plain_size)
        except ChunkError:
            return False
        return True

    size = geometry.plain_size_floor(len(raw))
    if header.is_void or (header.is_clean and not header.size):
        size = _recovered_size(geometry, size, 0, lambda *place: any(raw[HEADER_SIZE:]) and authentic(*place))
    elif header.is_clean:
        if size < header.size:
            raise HeaderError("the file was cut")
        size = header.size
    else:
        size = _recovered_size(geometry, size, header.size_min, authentic)
    return {"plain": opened(0, size).hex()}


def _recovered_size(
    geometry: ChunkGeometry, size: int, size_min: int, authentic: Callable[[int, int], bool]
) -> int:
    while size and not authentic(last := geometry.chunk_count(size) - 1, size):
        start = geometry.chunk_start(last)
        if start < size_min <= size and authentic(last, size_min):
            return size_min
        if start < size_min:
            break
        size = start
    if size < size_min:
        raise HeaderError("the file was cut")
    return size


def open_name(inputs: Inputs) -> Inputs:
    """Verify a cipher name, seal it again, and name its entry."""
    names = NameCipher(_keys(inputs)).in_directory(_hex(inputs, "dir_id"))
    full = inputs["cipher_name"]
    plain_name = names.open(full)
    assert names.seal(plain_name) == full
    is_long = len(full) > MAX_NAME_SIZE
    entry = long_entry_name(full) if is_long else full
    return {
        "plain_name": plain_name.hex(),
        "entry_name": entry,
        "sidecar_name": entry + SIDECAR_SUFFIX if is_long else None,
    }


def open_directory_record(inputs: Inputs) -> Inputs:
    """Unpack, and pack again."""
    raw = _hex(inputs, "raw")
    dir_id = unpack_directory_record(raw, _keys(inputs))
    assert pack_directory_record(dir_id, _keys(inputs)) == raw
    return {"dir_id": dir_id.hex()}


def open_bound_record(inputs: Inputs) -> Inputs:
    """Unpack, and pack again."""
    raw = _hex(inputs, "raw")
    record = open_record(raw, _keys(inputs))
    assert pack_bound_record(record, _keys(inputs)) == raw
    places = [place.hex() for place in record.places]
    return {"dir_id": record.dir_id.hex(), "places": places, "host": record.host.hex()}


def accept_directory(inputs: Inputs) -> Inputs:
    """Whether a directory with a record counts at a place, by the features of the config."""
    keys, parent, features = _keys(inputs), _hex(inputs, "parent_dir_id"), inputs["features"]
    record = open_record(_hex(inputs, "raw"), keys)
    place = parent + siv_of(NameCipher(keys).in_directory(parent).seal(_hex(inputs, "name")))
    misfit = RecordRules("bound-dirs" in features, "upgrading" in features).misfit(record, place)
    if misfit:
        raise DirectoryRecordError(misfit)
    return {"dir_id": record.dir_id.hex()}


def open_link(inputs: Inputs) -> Inputs:
    """Open the text of a backing symlink, and seal it again with the same nonce."""
    keys, dir_id, text = _keys(inputs), _hex(inputs, "dir_id"), inputs["text"]
    siv = siv_of(NameCipher(keys).in_directory(dir_id).seal(_hex(inputs, "link_name")))
    target, bound = open_target(text, keys.links_key, dir_id, siv)
    aad = link_aad(dir_id, siv) if bound else unbound_link_aad()
    nonce = (decode_text(text) or b"")[:24]
    assert seal_target(target, keys.links_key, aad, nonce) == text
    assert target_size(len(text)) == len(target)
    return {"target": target.hex(), "bound": bound}


def open_xattr(inputs: Inputs) -> Inputs:
    """Check the backing name, open the backing value, and seal both again."""
    keys, name = _keys(inputs), _hex(inputs, "name")
    namespace = "trusted" if inputs["kind"] == Kind.XATTR_OF_LINK else "user"
    if "sealed_target" in inputs:
        owner_id = link_owner(keys.xattrs_key, _hex(inputs, "sealed_target"))
    else:
        owner_id = _hex(inputs, "owner_id")
    stored, sealed = inputs["backing_name"], _hex(inputs, "backing_value")
    names = NameCipher(keys).of_xattrs()
    full = names.seal(name)
    if stored.startswith(f"{namespace}.cryptfs.long."):
        assert stored == f"{namespace}.cryptfs.long." + long_entry_name(full).removeprefix(LONG_PREFIX)
        length = int.from_bytes(sealed[:2], "little")
        full, sealed = sealed[2 : 2 + length].decode("ascii"), sealed[2 + length :]
    else:
        full = stored.removeprefix(f"{namespace}.cryptfs.")
    assert names.open(full) == name
    assert len(stored) <= MAX_NAME_SIZE
    aad = xattr_aad(Kind(inputs["kind"]), owner_id, name)
    value = open_small(keys.xattrs_key, sealed, aad)
    if value is None:
        raise Refused("the tag does not verify")
    assert seal_small(keys.xattrs_key, value, aad, sealed[:24]) == sealed
    return {"value": value.hex()}


def make_host_id(inputs: Inputs) -> Inputs:
    """The id, and the names that it is in."""
    made = host_id(inputs["machine_id"].encode(), _hex(inputs, "vault_id"), inputs["inode"], inputs["birth"])
    names = StateNames(made)
    assert all(state_of_name(name) == names for name in names.files)
    return {"host_id": made, "names": [*names.journals, names.sessions]}


def open_journal_head(inputs: Inputs) -> Inputs:
    """Unpack, and pack again with the same nonce."""
    keys, raw = _keys(inputs), _hex(inputs, "raw")
    owner = StateNames(inputs.get("host", ""))
    deltas = inputs.get("deltas", False)
    head = JournalHead.unpack(raw, keys, owner, deltas=deltas)
    if head is None:
        raise Refused("no head of a journal of this vault")
    assert raw in [head.pack(keys, raw[24:48], owner, deltas=each) for each in {False, deltas}]
    return {
        "journal_id": head.journal_id.hex(),
        "number": head.number,
        "first_seq": head.first_seq,
        "root_inode": head.root_inode,
    }


def open_journal_record(inputs: Inputs) -> Inputs:
    """Unpack a record, compare its digest, and pack it again with the same nonce."""
    keys, suite, raw = _keys(inputs), SUITES[inputs["cipher"]], _hex(inputs, "raw")
    journal_id, offset = _hex(inputs, "journal_id"), inputs["offset"]
    lengths = record_lengths(raw)
    if lengths is None:
        raise Refused("no record")
    path_size, payload_size = lengths
    path = raw[PREFIX_SIZE : PREFIX_SIZE + path_size]
    payload = raw[PREFIX_SIZE + path_size :][:payload_size]
    deltas = inputs.get("deltas", False)
    record = unpack_record(raw[:PREFIX_SIZE], path, keys, journal_id, offset, deltas=deltas)
    if record is None:
        raise Refused("the record does not open")
    is_delta = record.operation is Operation.DELTA
    record_size = len(payload) if is_delta else inputs["chunk_size"] + suite.overhead
    if payload_digest(path, payload, record_size, suite.nonce_size, suite.tag_size) != record.digest:
        raise Refused("path or payload do not have the digest")
    assert record.pack(keys, raw[14:38], journal_id, offset, len(payload)) + payload == raw
    return {
        "seq": record.seq,
        "previous": record.previous,
        "record_operation": int(record.operation),
        "epoch": record.epoch,
        "file_id": record.file_id.hex(),
        "inode": record.inode,
        "first": record.first,
        "size": record.size,
        "path": record.path.hex(),
        "payload": payload.hex(),
    }


def open_sessions(inputs: Inputs) -> Inputs:
    """Unpack, and pack again with the same nonce."""
    keys, raw = _keys(inputs), _hex(inputs, "raw")
    owner = StateNames(inputs.get("host", ""))
    sessions = Sessions.unpack(raw, keys, owner)
    if sessions is None:
        raise Refused("no list of sessions of this vault")
    assert sessions.pack(keys, raw[:24], owner) == raw
    return {"last": sessions.last, "crashed": [each.hex() for each in sessions.crashed]}


def replay_vault(inputs: Inputs) -> Inputs:
    """Lay a vault out, unlock it, and read everything."""
    with tempfile.TemporaryDirectory(prefix="vectors-") as place:
        vault_dir = Path(place)
        for name, content in inputs["files"].items():
            (vault_dir / name).write_bytes(bytes.fromhex(content))
        vault = BareVault(
            vault_dir,
            cipher=inputs["cipher"],
            chunk_size=inputs["chunk_size"],
            masterkey=_hex(inputs, "masterkey"),
            deltas=inputs.get("deltas", False),
        )
        try:
            contents = {name.decode(): vault.get(name).hex() for name in vault.names()}
        finally:
            vault.close()
        assert not [path for path in vault_dir.iterdir() if path.name.startswith("cryptfs.journal")]
        raw = (vault_dir / "cryptfs.sessions").read_bytes()
    return {"contents": contents} | open_sessions(inputs | {"raw": raw.hex()})


def read_manifest(inputs: Inputs) -> Inputs:
    """Every record of a manifest, with the head's fields."""
    raw, block = _hex(inputs, "raw"), SEALED_BLOCK_SIZE
    cipher = ManifestCipher.of_header(_keys(inputs), _hex(inputs, "vault_id"), raw[:MANIFEST_HEADER])
    starts = range(MANIFEST_HEADER, max(len(raw), MANIFEST_HEADER + 1), block)
    reader = ManifestReader(
        cipher.open(index, raw[start : start + block], last=start + block >= len(raw))
        for index, start in enumerate(starts)
    )
    records = [
        {name: value.hex() if isinstance(value, bytes) else value for name, value in record._asdict().items()}
        for record in reader.records()
    ]
    head, tail = reader.head, reader.tail
    assert tail is not None
    return {
        "config_generation": head.config_generation,
        "config_mac": head.config_mac.hex(),
        "sessions": head.sessions,
        "created": head.created,
        "records": records,
        "skipped": tail.skipped,
    }


OPERATIONS: dict[str, Callable[[Inputs], Inputs]] = {
    "subkeys": subkeys,
    "passphrase_key": derive_passphrase_key,
    "file_key": file_key,
    "open_small": open_small_value,
    "open_chunks": open_chunks,
    "open_header": open_header,
    "read_file": read_file,
    "open_name": open_name,
    "open_directory_record": open_directory_record,
    "open_bound_record": open_bound_record,
    "accept_directory": accept_directory,
    "open_link": open_link,
    "open_xattr": open_xattr,
    **slots_runner.OPERATIONS,
    **recovery_runner.OPERATIONS,
    "host_id": make_host_id,
    "open_journal_head": open_journal_head,
    "open_journal_record": open_journal_record,
    "open_delta": delta_runner.open_delta,
    "open_sessions": open_sessions,
    "replay_vault": replay_vault,
    "read_manifest": read_manifest,
}
