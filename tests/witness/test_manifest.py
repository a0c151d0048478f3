"""Manifests that are not what they should be, and the parts that make them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cryptfs.core.format.manifest import digest_state
from cryptfs.errors import ManifestError
from cryptfs.storage.libc import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, fallocate
from cryptfs.vfs.content.context import FileContext
from cryptfs.witness import observation
from cryptfs.witness.digests import digest_of_records
from cryptfs.witness.spill import Sorter
from cryptfs.witness.verification import Change
from tests.support import CIPHERS, KIB, MIB, BareVault, pattern
from tests.witness.scene import Witnessed

CHUNK = 4 * KIB


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Witnessed]:
    vault = BareVault(tmp_path / "vault")
    for number in range(400):
        vault.put(b"a file with a long name %d" % number + b"x" * 100, b"content")
    made = Witnessed(vault)
    made.snapshot()
    yield made
    vault.close()


def test_every_part_of_a_manifest_matters(scene: Witnessed) -> None:
    """A header and two blocks: flipped here and there, cut at and beside their borders, exchanged."""
    good = scene.manifest
    block = 65536 + 40
    assert len(good) > 64 + block
    borders = [0, 1, 63, 64, 65, 64 + block - 1, 64 + block, 64 + block + 1, len(good) - 1]
    for cut in borders:
        with pytest.raises(ManifestError):
            scene.run(good[:cut])
    for place in (*borders, 8, 16, 40, 64 + 30, 64 + block + 30):
        flipped = bytearray(good)
        flipped[place] ^= 1
        with pytest.raises(ManifestError):
            scene.run(bytes(flipped))
    first, second = good[64 : 64 + block], good[64 + block :]
    for other in (good + b"\0", good[:64] + second, good[:64] + second + first, good + second):
        with pytest.raises(ManifestError):
            scene.run(other)
    assert scene.run(good)[0] == []


def test_blocks_of_another_manifest_do_not_fit(scene: Witnessed) -> None:
    old = scene.manifest
    scene.snapshot()
    block = 65536 + 40
    with pytest.raises(ManifestError):
        scene.run(scene.manifest[: 64 + block] + old[64 + block :])


def test_manifest_of_another_vault(scene: Witnessed, tmp_path: Path) -> None:
    other = BareVault(tmp_path / "other", masterkey=bytes(32))
    with pytest.raises(ManifestError, match="damaged, cut short, or from before"):
        Witnessed(other).run(scene.manifest)  # the same vault_id, other keys
    other.close()


def test_nothing_of_a_name_or_of_content_shows(scene: Witnessed) -> None:
    for secret in (b"a file with", b"content", b"xxxxxxxx"):
        assert secret not in scene.manifest
    (entry,) = {scene.vault.entry(b"a file with a long name 7" + b"x" * 100)}
    assert entry.encode() not in scene.manifest


def test_many_findings_come_in_order_and_once(scene: Witnessed, monkeypatch: pytest.MonkeyPatch) -> None:
    """With runs so small that everything goes through the file."""
    monkeypatch.setattr(observation, "Sorter", lambda: Sorter(run_size=2000))
    names = scene.vault.names()
    for name in names[:100]:
        scene.vault.tree.unlink(scene.vault.root, name)
    for name in names[100:200]:
        scene.vault.tree.rename(scene.vault.root, name, scene.vault.root, b"new " + name[:50])
    findings, counts, totals = scene.run()
    assert counts == {Change.DELETED: 100, Change.MOVED: 100}
    assert [each.change for each in findings] == [Change.DELETED] * 100 + [Change.MOVED] * 100
    assert {each.path for each in findings[:100]} == set(names[:100])
    assert {each.was for each in findings[100:]} == set(names[100:200])
    assert totals.entries == 300


def test_files_that_are_being_written_are_witnessed_by_their_generation(scene: Witnessed) -> None:
    (name, *_) = scene.vault.names()
    file = scene.vault.tree.open(scene.vault.root, name, os.O_RDWR)
    file.write(0, b"first")
    assert scene.snapshot().unsettled == 1
    file.write(0, b"other")
    assert scene.run()[2].unsettled == 1
    assert scene.run()[:2] == ([], {})
    scene.vault.tree.release(file)
    assert scene.run()[1] == {Change.CHANGED: 1}  # settled now


def test_a_file_that_changes_while_it_is_read_is_read_again(
    scene: Witnessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: what is found then counts. Each time: noted as not settled, and no alarm either way."""
    (name, *_) = scene.vault.names()
    looks = 0
    limit = 1

    def digest(state: object, context: FileContext, fd: int, size: int) -> bytes:
        nonlocal looks
        found = digest_of_records(digest_state(context.keys), context, fd, size)
        if os.fstat(fd).st_ino == scene.vault.backing(name).stat().st_ino and looks < limit:
            looks += 1
            scene.rewrite(name, pattern(7, looks))
        return found

    monkeypatch.setattr(observation, "digest_of_records", digest)
    assert scene.snapshot().unsettled == 0
    assert looks == 1
    looks, limit = 0, 100
    assert scene.snapshot().unsettled == 1
    assert looks == 3
    assert scene.run()[0] == []
    looks = limit
    assert scene.run()[0] == []


# ---- digests


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_digest_covers_every_nonce_and_tag(tmp_path: Path, cipher: str, size: int) -> None:
    vault = BareVault(tmp_path / "vault", cipher=cipher)
    vault.put(b"x", pattern(size))
    path, suite, geometry = vault.backing(b"x"), vault.config.suite, vault.geometry
    raw = path.read_bytes()

    def digest(content: bytes) -> bytes:
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        try:
            return digest_of_records(digest_state(vault.keys), vault.context, fd, size)
        finally:
            os.close(fd)

    seen = {digest(raw)}
    for index in range(geometry.chunk_count(size)):
        start = geometry.record_offset(index)
        end = geometry.cipher_size(min(size, (index + 1) * CHUNK))
        for place in (start, start + suite.nonce_size - 1, end - suite.tag_size, end - 1):
            changed = bytearray(raw)
            changed[place] ^= 1
            found = digest(bytes(changed))
            assert found not in seen
            seen.add(found)
    vault.close()


def test_digest_of_holes_is_the_same_however_they_are_stored(tmp_path: Path) -> None:
    vault = BareVault(tmp_path / "vault")
    vault.put(b"x", pattern(CHUNK))
    size = 200 * CHUNK + 5
    with vault.opened(b"x") as file:
        file.truncate(size)
        file.write(77 * CHUNK, pattern(2 * CHUNK, 2))
    path = vault.backing(b"x")
    digests = set()
    for form in ("as it is", "zeros written", "holes punched"):
        if form == "zeros written":
            path.write_bytes(path.read_bytes())
        fd = os.open(path, os.O_RDWR)
        if form == "holes punched":
            place = vault.geometry.record_offset(90)
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, place, 50 * vault.geometry.record_size)
        digests.add(digest_of_records(digest_state(vault.keys), vault.context, fd, size))
        os.close(fd)
    assert len(digests) == 1
    vault.close()


def test_digest_of_a_large_hole_is_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many reads as there is data, whatever the length."""
    vault = BareVault(tmp_path / "vault")
    vault.put(b"x", b"start")
    with vault.opened(b"x") as file:
        file.truncate(1 << 40)
    calls = 0
    read = os.preadv

    def counting(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", counting)
    witnessed = Witnessed(vault)
    witnessed.snapshot()
    assert calls < 50
    vault.close()


# ---- sorting


@pytest.mark.parametrize(
    ("count", "run_size"), [(0, 1000), (1, 1000), (5, 1), (3000, 5000), (3000, 10 * MIB)]
)
def test_sorter(count: int, run_size: int) -> None:
    random = Random(count)
    records = [random.randbytes(random.choice((0, 1, 50, 300))) for _ in range(count)]
    with Sorter(run_size) as sorter:
        for record in records:
            sorter.add(record)
        assert list(sorter.sorted()) == sorted(records)


def test_sorter_merges_runs_when_there_are_too_many() -> None:
    random = Random(1)
    records = [random.randbytes(20) for _ in range(1000)]
    with Sorter(run_size=200) as sorter:
        for record in records:
            sorter.add(record)
            assert len(sorter._runs) <= 64
        assert list(sorter.sorted()) == sorted(records)
