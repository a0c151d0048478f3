"""What a mount keeps of what it found to be wrong."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryptfs.cli.status import finding_lines
from cryptfs.errors import ChunkError, HeaderError
from cryptfs.mount import daemon, recent
from cryptfs.mount.daemon import LogTarget
from cryptfs.mount.errno_map import errno_of
from cryptfs.mount.recent import KEPT, RecentFindings

vfs_log = logging.getLogger("cryptfs.vfs.content.filestate")


@pytest.fixture
def findings() -> Iterator[RecentFindings]:
    made = RecentFindings()
    with made.listening():
        yield made


def kept(findings: RecentFindings) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in each.items() if key not in ("first", "last")}
        for each in findings.snapshot()["findings"]
    ]


def test_the_same_thing_is_kept_once_and_counted(findings: RecentFindings) -> None:
    for _ in range(3):
        errno_of(ChunkError("does not authenticate", cipher_path="a/b", chunk_index=7))
    errno_of(HeaderError("was cut", cipher_path="c"))
    errno_of(ChunkError("does not authenticate", cipher_path="a/b", chunk_index=7))
    vfs_log.warning("%s: removed %d bytes at its end (%s)", "d", 12, "torn")
    vfs_log.warning("the list of sessions does not authenticate")
    assert kept(findings) == [
        {"path": None, "chunk": None, "reason": "the list of sessions does not authenticate", "count": 1},
        {"path": "d", "chunk": None, "reason": "removed 12 bytes at its end (torn)", "count": 1},
        {"path": "a/b", "chunk": 7, "reason": "does not authenticate", "count": 4},
        {"path": "c", "chunk": None, "reason": "was cut", "count": 1},
    ]


def test_what_is_no_damage_is_not_kept(findings: RecentFindings) -> None:
    vfs_log.info("%s: fine", "a")
    logging.getLogger("cryptfs.mount").warning("files on %s are still open", "/private")
    errno_of(FileNotFoundError(2, "a plaintext name"))
    assert kept(findings) == []


def test_an_unforeseen_error_is_kept_without_its_text(findings: RecentFindings) -> None:
    try:
        raise KeyError("a plaintext name")
    except KeyError as error:
        errno_of(error)
    assert [each["reason"] for each in kept(findings)] == ["unexpected error in a request: KeyError"]


def test_it_keeps_so_many_and_says_how_many_more(findings: RecentFindings) -> None:
    for number in range(KEPT + 10):
        vfs_log.warning("%s: damaged", f"file {number}")
    found = findings.snapshot()
    assert [each["path"] for each in found["findings"]] == [
        f"file {number}" for number in range(KEPT + 9, 9, -1)
    ]
    assert found["findings_dropped"] == 10
    lines = list(finding_lines(found, most=2))
    assert "10 older ones are not kept" in lines[0]
    assert lines[1].endswith(f"file {KEPT + 9}: damaged")
    assert lines[-1] == f"  and {KEPT - 2} more"


def test_it_is_small_whatever_is_said(findings: RecentFindings) -> None:
    for number in range(KEPT):
        errno_of(HeaderError(f"{number}" + "r" * 10_000, cipher_path="p" * 100_000))
    total = sum(len(each["path"]) + len(each["reason"]) for each in findings.snapshot()["findings"])
    assert total <= KEPT * (recent._MAX_PATH + recent._MAX_REASON)


def test_afterwards_nobody_listens() -> None:
    made = RecentFindings()
    with made.listening():
        pass
    vfs_log.warning("%s: damaged", "late")
    assert kept(made) == []


def test_without_a_log_python_still_writes_to_stderr(
    findings: RecentFindings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A handler on the logger would otherwise silence what unlocking warns of."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.lastResort, "_stderr", sys.stderr, raising=False)
    vfs_log.warning("%s: ignored", "cryptfs.journal")
    assert "cryptfs.journal: ignored" in capsys.readouterr().err


def test_where_the_log_goes_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "_SYSLOG_SOCKET", tmp_path / "log")
    assert LogTarget().is_nowhere()
    assert not LogTarget(tmp_path / "file").is_nowhere()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        assert not LogTarget().is_nowhere()
    assert LogTarget().is_nowhere()  # its socket stays behind
