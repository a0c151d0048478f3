"""Passphrases as editors, password managers and other systems write them, on real mounts."""

from __future__ import annotations

import shlex
import unicodedata
from pathlib import Path

import pytest

from tests.e2e.test_cli_mount import Place, place

__all__ = ["place"]

pytestmark = [
    pytest.mark.waits,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
]


def print_of(content: bytes) -> str:
    """A --passcommand that prints these bytes."""
    octal = "".join(f"\\{byte:03o}" for byte in content)
    return f"printf {shlex.quote(octal)}"


def test_what_was_read_is_tried_first_and_then_its_first_line(place: Place) -> None:
    words = ("mount", place.vault, place.mountpoint, "--log-file", place.log_file)
    for content, said in (
        (b"correct horse\nuser: me\nurl: x\n", "its first line alone"),
        (b"\xef\xbb\xbfcorrect horse\r\n", "without its byte order mark"),
    ):
        told = place.cryptfs(*words, "--passcommand", print_of(content)).stderr
        assert f"The passphrase did not open the vault as it was read; this did: {said}" in told
        assert "correct" not in told
        place.umount()
    place.passfile.write_bytes(b"\xef\xbb\xbfcorrect horse\n")
    assert "byte order mark" in place.mount().stderr
    place.umount()
    place.passfile.write_bytes(b"correct horse\n")
    assert "did not open" not in place.mount().stderr
    place.umount()


def test_accents_of_another_system(place: Place) -> None:
    nfc = "correct horsé"
    new = place.vault.parent / "new"
    new.touch(mode=0o600)
    new.write_text(f"{nfc}\n", encoding="utf-8")
    given = ("--passfile", place.passfile, "--new-passfile", new, "--kdf-memory", "64m")
    place.cryptfs("passwd", place.vault, *given)
    place.passfile.write_text(unicodedata.normalize("NFD", nfc) + "\n", encoding="utf-8")
    assert "with composed letters (Unicode NFC)" in place.mount().stderr
    place.umount()
    for command in ("fsck", "snapshot"):
        output = ("--output", place.vault.parent / "manifest") if command == "snapshot" else ()
        assert "NFC" in place.cryptfs(command, place.vault, "--passfile", place.passfile, *output).stderr


def test_a_new_one_is_the_first_line_of_a_text_and_all_of_a_key(tmp_path: Path) -> None:
    for content, stored in (
        (b"correct horse\nuser: me\n", b"correct horse\n"),
        (b"k\n\xff\x00random key\n", b"k\n\xff\x00random key\n"),
    ):
        place = Place(tmp_path / f"vault{len(content)}", tmp_path, tmp_path / "unused")
        made = place.cryptfs("init", place.vault, "--kdf-memory", "64m", "--passcommand", print_of(content))
        assert ("prints several lines" in made.stderr) is (content != stored)
        again = place.cryptfs("fsck", place.vault, "--passcommand", print_of(stored))
        assert "did not open" not in again.stderr
