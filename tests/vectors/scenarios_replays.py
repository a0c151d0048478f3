"""Scenarios of section 10: whole vaults as a crash leaves them, and what they hold after the replay."""

from __future__ import annotations

from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_files import CHUNK_SIZE, SHORT, record
from tests.vectors.vector import Scenarios, Vector, bad, good

_CIPHER = "xchacha20-poly1305"  # the smaller records
_WHOLE = ref.fixed("a whole chunk", CHUNK_SIZE)
_OTHER = ref.fixed("another chunk", CHUNK_SIZE)
_NAME, _SECOND = "file", "second"
_NEW = b"twenty-one bytes more"
_OTHER_NEW = b"twenty-one bytes else"
_LEFT_OVER = ref.fixed("what stands between records", 512)


def _path(name: str) -> str:
    return ref.cipher_name(name.encode(), ref.root_dir_id())


def _file(records: bytes, **fields: Any) -> bytes:
    """A backing file whose header names the journal."""
    defaults: dict[str, Any] = {"generation": 2, "journal_id": ref.JOURNAL_ID, "journal_floor": 1}
    return ref.pack_header(_CIPHER, CHUNK_SIZE, **(defaults | fields)) + records


def _sealed(chunk_index: int, plain: bytes, epoch: int = 0, file_id: bytes = ref.FILE_ID) -> bytes:
    key = ref.file_key(_CIPHER, CHUNK_SIZE, epoch, file_id)
    return ref.seal_record(_CIPHER, key, chunk_index, plain)


def _journal(*changes: dict[str, Any], first_seq: int = 1, number: int = 7, **head: Any) -> bytes:
    """A journal file: a head, and records with something meaningless between them."""
    raw = ref.journal_head(number, first_seq, 2, **head)
    for change in changes:
        raw += _LEFT_OVER
        fields = {"path": _path(_NAME).encode(), **change}
        raw += ref.journal_record(_CIPHER, CHUNK_SIZE, len(raw), **fields)
        raw += bytes(-len(raw) % 512)
    return raw


def _write(seq: int, first: int, plain: bytes, **more: Any) -> dict[str, Any]:
    """A record of one chunk."""
    payload = _sealed(first, plain, more.get("epoch", 0), more.get("file_id", ref.FILE_ID))
    size = first * CHUNK_SIZE + len(plain)
    return {"seq": seq, "operation": ref.WRITE, "first": first, "size": size, "payload": payload} | more


def _vault(
    journal_a: bytes, journal_b: bytes = b"", *, files: dict[str, bytes], last: int = 6
) -> dict[str, Any]:
    found = {_path(name): raw for name, raw in files.items()}
    found |= {"cryptfs.journal.a": journal_a, "cryptfs.sessions": ref.sessions(last, [])}
    if journal_b:
        found["cryptfs.journal.b"] = journal_b
    return {
        "masterkey": ref.MASTERKEY,
        "cipher": _CIPHER,
        "chunk_size": CHUNK_SIZE,
        "files": {name: raw.hex() for name, raw in found.items()},
    }


def _replayed(
    about: str, inputs: dict[str, Any], contents: dict[str, bytes], *, crashed: bool = True, last: int = 7
) -> Vector:
    """Session 7 crashed, or nothing was replayed."""
    return good(
        about,
        "replay_vault",
        inputs,
        contents={name: plain.hex() for name, plain in contents.items()},
        last=last,
        crashed=[ref.JOURNAL_ID.hex()] if crashed else [],
    )


def replay_scenarios() -> Scenarios:
    """Vaults after a crash."""
    return _redone() | _ignored() | _unsynced() | _deltas_redone() | _deltas_ignored()


def _redone() -> Scenarios:
    short = _file(_sealed(0, SHORT), size_min=len(SHORT))
    long = _file(_sealed(0, _WHOLE) + _sealed(1, _WHOLE) + _sealed(2, SHORT), size_min=10)
    sparse = _file(_sealed(0, _WHOLE) + _sealed(1, _WHOLE) + _sealed(2, SHORT), flags=ref.SPARSE)
    torn = _file(ref.flip(_sealed(0, SHORT), 40), size_min=len(SHORT))
    in_second = {"file_id": ref.OTHER_FILE_ID, "path": _path(_SECOND).encode()}
    second = _file(_sealed(0, SHORT, 0, ref.OTHER_FILE_ID), file_id=ref.OTHER_FILE_ID)
    shrink = {"operation": ref.SHRINK, "first": 0, "size": 10, "payload": _sealed(0, _WHOLE[:10])}
    punch = {"operation": ref.PUNCH, "first": 1, "size": 2}
    return {
        "overwritten": _replayed(
            "One chunk was overwritten, and is in the journal only.",
            _vault(_journal(_write(1, 0, _NEW)), files={_NAME: short}),
            {_NAME: _NEW},
        ),
        "torn-place": _replayed(
            "It was being written to its place as well, and tore there.",
            _vault(_journal(_write(1, 0, _NEW)), files={_NAME: torn}),
            {_NAME: _NEW},
        ),
        "grown-in-two-steps": _replayed(
            "The last chunk grew twice; the second record names the first one.",
            _vault(
                _journal(_write(1, 0, SHORT + _NEW), _write(2, 0, SHORT + _NEW + SHORT, previous=1)),
                files={_NAME: short},
            ),
            {_NAME: SHORT + _NEW + SHORT},
        ),
        "shrunk": _replayed(
            "The file was about to be cut to ten bytes.",
            _vault(_journal({"seq": 1, **shrink}), files={_NAME: long}),
            {_NAME: _WHOLE[:10]},
        ),
        "punched": _replayed(
            "Chunk 1 of a file with SPARSE was about to become a hole.",
            _vault(_journal({"seq": 1, **punch}), files={_NAME: sparse}),
            {_NAME: _WHOLE + bytes(CHUNK_SIZE) + SHORT},
        ),
        "two-journal-files": _replayed(
            "Records in both files. The first file was left when what it holds of 'second' was in place.",
            _vault(
                _journal(_write(4, 0, _NEW), first_seq=4),
                _journal(_write(5, 0, _NEW + SHORT, previous=4), first_seq=5),
                files={_NAME: short},
            ),
            {_NAME: _NEW + SHORT},
        ),
        "before-the-oldest": _replayed(
            "The record before is in no file any more: it was in its place when its file was used again.",
            _vault(_journal(_write(9, 0, _NEW, previous=3), first_seq=8), files={_NAME: short}),
            {_NAME: _NEW},
        ),
        "renamed": _replayed(
            "The file has another name than in the record.",
            _vault(_journal(_write(1, 0, _NEW)), files={_SECOND: short}),
            {_SECOND: _NEW},
        ),
        "two-files-of-one-file-id": _replayed(
            "A copy of a file, with its file_id, was overwritten as well: each record is redone in its own.",
            _vault(
                _journal(
                    _write(1, 0, _NEW, inode=77),
                    _write(2, 0, _OTHER_NEW, inode=78, path=_path(_SECOND).encode()),
                ),
                files={_NAME: short, _SECOND: short},
            ),
            {_NAME: _NEW, _SECOND: _OTHER_NEW},
        ),
        "conflict-copy": _replayed(
            "Beside a file lies a copy with its file_id, which is not touched.",
            _vault(_journal(_write(1, 0, _NEW)), files={_NAME: short, _SECOND: short}),
            {_NAME: _NEW, _SECOND: SHORT},
        ),
        "renamed-beside-a-copy": _replayed(
            "The file is not where the record says, and two have its file_id: there is no telling which.",
            _vault(_journal(_write(1, 0, _NEW, path=b"gone")), files={_NAME: short, _SECOND: short}),
            {_NAME: SHORT, _SECOND: SHORT},
        ),
        "damage-in-another-file": _replayed(
            "The payload of one file's record is damaged; the other file's is redone.",
            _vault(
                _journal(
                    _write(1, 0, _NEW) | {"payload": ref.flip(_sealed(0, _NEW), 30)},
                    _write(2, 0, _NEW, **in_second),
                ),
                files={_NAME: short, _SECOND: second},
            ),
            {_NAME: SHORT, _SECOND: _NEW},
        ),
        "shorter-than-its-place": _replayed(
            "A last chunk grew twice and is in its place; the second record does not open any more.",
            _vault(
                _journal(_write(1, 0, SHORT), _write(2, 0, _WHOLE, previous=1, masterkey=bytes(32))),
                files={_NAME: _file(_sealed(0, _WHOLE))},
            ),
            {_NAME: _WHOLE},
        ),
    }


def _ignored() -> Scenarios:
    def kept(about: str, journal: bytes, last: int = 6, **fields: Any) -> Vector:
        """A file of one short chunk that the journal does not change."""
        raw = _file(record(_CIPHER, 0, SHORT, fields.get("epoch", 0)), size_min=len(SHORT), **fields)
        over = last >= 7
        inputs = _vault(journal, files={_NAME: raw}, last=last)
        return _replayed(about, inputs, {_NAME: SHORT}, crashed=not over, last=max(last, 7))

    write, cut = _write(1, 0, _NEW), _sealed(0, SHORT[:10])
    return {
        "below-the-floor": kept("A record below the floor.", _journal(write), journal_floor=2),
        "other-epoch": kept("A record from before a truncate to zero.", _journal(write), epoch=1),
        "other-journal": kept(
            "The file names another session's journal.", _journal(write), journal_id=ref.OTHER_JOURNAL_ID
        ),
        "session-over": kept("An old journal, put back after the unmount.", _journal(write), last=7),
        "below-first-seq": kept("Left over from the last lap.", _journal(write, first_seq=2)),
        "gap": kept(
            "The record before is missing: it was never synced, so this one was not promised, either.",
            _journal(_write(2, 0, _NEW, previous=1)),
        ),
        "shrink-not-announced": kept(
            "A shrink below size_min: the header that announces it is not on disk, so nothing was cut.",
            _journal({"seq": 1, "operation": ref.SHRINK, "first": 0, "size": 10, "payload": cut}),
        ),
        "growth-under-clean": kept(
            "A growth under a CLEAN header: the one that announces it is not on disk.",
            _journal(_write(1, 0, _WHOLE)),
            size=len(SHORT),
            flags=ref.CLEAN,
        ),
        "beyond-the-end": kept(
            "A chunk that the file does not reach to: what comes before it is not on disk.",
            _journal(_write(1, 1, _NEW)),
        ),
        "punch-without-sparse": kept(
            "A file without SPARSE has no holes.",
            _journal({"seq": 1, "operation": ref.PUNCH, "first": 0, "size": 1}),
        ),
    }


def _unsynced() -> Scenarios:
    size = 2 * CHUNK_SIZE + len(SHORT)
    cut = _file(_sealed(0, _WHOLE) + _sealed(1, _OTHER)[:-9], size=size, size_min=CHUNK_SIZE, flags=ref.CLEAN)
    below = _file(_sealed(0, _WHOLE)[:-9], size=size, size_min=CHUNK_SIZE, flags=ref.CLEAN)
    return {
        "closed-and-cut": _replayed(
            "Closed in the session that crashed, never synced: it ends where the disk ends.",
            _vault(_journal(), files={_NAME: cut}),
            {_NAME: _WHOLE},
        ),
        "closed-and-cut-below-size-min": bad(
            "Less than was known to be on disk: somebody cut it.",
            "replay_vault",
            _vault(_journal(), files={_NAME: below}),
            "HeaderError",
            "cut",
        ),
        "closed-and-cut-after-the-unmount": bad(
            "The session ended by an unmount, which syncs: somebody cut it.",
            "replay_vault",
            _vault(_journal(), files={_NAME: cut}, last=7),
            "HeaderError",
            "cut",
        ),
    }


# ---- with delta-journal

_PART = ref.fixed("a part", 1024)
_LATER = ref.fixed("a later part", 1024)


def _of_deltas(*changes: dict[str, Any], first_seq: int = 1) -> bytes:
    return _journal(*changes, first_seq=first_seq, version=2)


def _delta(
    seq: int, base: dict[str, Any], length: int, offset: int, data: bytes, *, chunk: int = 0, **more: Any
) -> dict[str, Any]:
    """A delta on the result of another record, which is its file's record before."""
    key = ref.file_key(_CIPHER, CHUNK_SIZE, more.get("epoch", 0), ref.FILE_ID)
    sealed = ref.seal_delta(_CIPHER, key, chunk, (length, offset), ref.ends(_CIPHER, base["payload"]), data)
    size = chunk * CHUNK_SIZE + max(length, offset + len(data))
    fields = {"seq": seq, "previous": base["seq"], "operation": ref.DELTA, "first": chunk, "size": size}
    return fields | {"payload": sealed} | more


def _patched(plain: bytes, offset: int, data: bytes) -> bytes:
    return plain[:offset] + data + plain[offset + len(data) :]


def _deltas_redone() -> Scenarios:
    def redone(about: str, place: bytes, contents: bytes, *journals: bytes, **fields: Any) -> Vector:
        files = {_NAME: _file(place, size_min=len(SHORT), **fields)}
        return _replayed(about, _vault(*journals, files=files) | {"deltas": True}, {_NAME: contents})

    write = _write(1, 0, _WHOLE)
    one = _delta(2, write, CHUNK_SIZE, 1024, _PART)
    two = _delta(3, one, CHUNK_SIZE, 1536, _LATER)
    first = _patched(_WHOLE, 1024, _PART)
    both = _patched(first, 1536, _LATER)
    journal = _of_deltas(write, one, two)
    short = _write(1, 0, SHORT)
    append = _delta(2, short, len(SHORT), len(SHORT), _NEW)
    grown = _delta(3, append, len(SHORT + _NEW), 4, _PART)
    in_other = _write(2, 1, _OTHER, previous=1)
    places = {
        "deltas-twice": ("A chunk and two changes of parts of it are in the journal only.", _OTHER),
        "delta-place-between": ("The place has the content of the first change.", first),
        "delta-place-after": ("The newest content is in its place.", both),
    }
    found = {name: redone(about, _sealed(0, plain), both, journal) for name, (about, plain) in places.items()}
    return found | {
        "delta-torn-place": redone(
            "The place tore when the newest content was written there.",
            ref.flip(_sealed(0, both), 200),
            both,
            journal,
        ),
        "delta-cut-place": redone(
            "The last chunk was growing in its place, and only a part of it reached the disk.",
            _sealed(0, _patched(SHORT + _NEW, 4, _PART))[:300],
            _patched(SHORT + _NEW, 4, _PART),
            _of_deltas(short, append, grown),
        ),
        "delta-growth": redone(
            "A last chunk got longer twice.",
            _sealed(0, SHORT),
            _patched(SHORT + _NEW, 4, _PART),
            _of_deltas(short, append, grown),
        ),
        "delta-beside-another-chunk": redone(
            "Between a chunk and the change of a part of it stands the record of another chunk.",
            _sealed(0, _OTHER) + _sealed(1, SHORT),
            first + _OTHER,
            _of_deltas(write, in_other, _delta(3, write, CHUNK_SIZE, 1024, _PART, previous=2)),
        ),
        "delta-in-the-other-file": redone(
            "No writer does it, but it verifies: the delta stands in the other journal file.",
            _sealed(0, _OTHER),
            first,
            _of_deltas(write),
            _of_deltas(one, first_seq=2),
        ),
        "delta-then-whole": redone(
            "After the delta a whole record again, and a delta on that.",
            _sealed(0, _OTHER),
            _patched(_OTHER, 0, _PART),
            _of_deltas(
                write,
                one,
                again := _write(3, 0, _OTHER, previous=2),
                _delta(4, again, CHUNK_SIZE, 0, _PART),
            ),
        ),
        "delta-in-a-later-epoch": redone(
            "A delta is sealed under the key of the epoch.",
            _sealed(0, SHORT, 3),
            SHORT + _NEW,
            _of_deltas(
                later := _write(1, 0, SHORT, epoch=3), _delta(2, later, len(SHORT), len(SHORT), _NEW, epoch=3)
            ),
            epoch=3,
        ),
    }


def _deltas_ignored() -> Scenarios:
    def kept(about: str, *changes: dict[str, Any], plain: bytes = _WHOLE, **fields: Any) -> Vector:
        """The delta changes nothing; what comes before it counts."""
        files = {_NAME: _file(_sealed(0, SHORT), size_min=len(SHORT), **fields)}
        inputs = _vault(_of_deltas(*changes), files=files) | {"deltas": True}
        return _replayed(about, inputs, {_NAME: plain})

    write = _write(1, 0, _WHOLE)
    one = _delta(2, write, CHUNK_SIZE, 1024, _PART)
    alone = one | {"previous": 0}
    cut = {"seq": 2, "previous": 1, "operation": ref.SHRINK, "first": 0, "size": 21}
    shrink = cut | {"payload": _sealed(0, _WHOLE[:21])}
    in_one = _vault(_journal(write), files={_NAME: _file(_sealed(0, SHORT), size_min=21)})
    return {
        "delta-without-a-base": kept("Its base is missing.", alone, plain=SHORT),
        "delta-on-the-place": kept(
            "Its base is the record in the place. A replay never reads that.",
            _delta(2, {"seq": 0, "payload": _sealed(0, SHORT)}, len(SHORT), 0, b"new"),
            plain=SHORT,
        ),
        "delta-base-below-the-floor": kept(
            "Its base is below the floor, and was not redone.", write, one, plain=SHORT, journal_floor=2
        ),
        "delta-on-an-older-base": kept(
            "A second delta on the same base.",
            write,
            one,
            _delta(3, write, CHUNK_SIZE, 0, _LATER, previous=2),
            plain=_patched(_WHOLE, 1024, _PART),
        ),
        "delta-moved-to-another-chunk": kept(
            "The record says another chunk than its delta was sealed for.", write, one | {"first": 1}
        ),
        "delta-with-another-size": kept("`size` is not that of the result.", write, one | {"size": 21}),
        "delta-with-another-length": kept(
            "The chunk before it has another length.", write, _delta(2, write, CHUNK_SIZE - 1, 1024, _PART)
        ),
        "delta-damaged": kept(
            "A bit of the delta was turned over; what follows is not redone, either.",
            write,
            one | {"payload": ref.flip(one["payload"], 100)},
            _write(3, 0, _OTHER, previous=2),
        ),
        "delta-after-a-shrink": kept(
            "A shrink of its chunk came between.",
            write,
            shrink,
            one | {"seq": 3, "previous": 2},
            plain=_WHOLE[:21],
        ),
        "delta-growth-under-clean": kept(
            "A growth under a CLEAN header.",
            short := _write(1, 0, SHORT),
            _delta(2, short, len(SHORT), len(SHORT), _NEW),
            plain=SHORT,
            size=len(SHORT),
            flags=ref.CLEAN,
        ),
        "delta-journal-from-before-an-upgrade": _replayed(
            "The journal's head is that of a vault without delta-journal: it counts.",
            in_one | {"deltas": True},
            {_NAME: _WHOLE},
        ),
        "delta-journal-in-an-older-vault": _replayed(
            "The journal's head is that of a vault with delta-journal, and this one has none.",
            _vault(_of_deltas(write), files={_NAME: _file(_sealed(0, SHORT), size_min=21)}),
            {_NAME: SHORT},
            crashed=False,
            last=6,
        ),
    }
