"""Names of conflict copies, by themselves: what is one, how it is shown, and the way back."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptfs.core.keys import Subkeys
from cryptfs.core.names.conflicts import (
    copies_of_entry,
    copies_of_name,
    entries_of_copy,
    is_copy_of_internal,
    kept_name,
    long_original,
    may_be_cut,
    shown_name,
)
from cryptfs.core.names.names import NameCipher, long_entry_name
from cryptfs.storage.dirs import entry_name_of, holds_plaintext

SUFFIXES = {
    ".sync-conflict-20261129-131011-ABCDEFG": b"report.sync-conflict-20261129-131011-ABCDEFG.odt",
    " (bob's PC's conflicted copy 2026-11-29)": b"report (bob's PC's conflicted copy 2026-11-29).odt",
    " (HOST's conflicted copy 2026-11-29 (2))": b"report (HOST's conflicted copy 2026-11-29 (2)).odt",
    " (conflicted copy 2026-11-29 131011)": b"report (conflicted copy 2026-11-29 131011).odt",
    " (conflicted copy alice 2026-11-29 131011)": b"report (conflicted copy alice 2026-11-29 131011).odt",
    "_conflict-20261129-131011": b"report_conflict-20261129-131011.odt",
    "-LAPTOP-7": b"report (conflict copy of LAPTOP-7).odt",
    " (1)": b"report (conflict copy 1).odt",
    ".conflict1": b"report.conflict1.odt",
    "..path2": b"report (conflict copy from path2).odt",
    " (SFConflict bob@example.org 2026-11-29-13-10-11)": (
        b"report (SFConflict bob@example.org 2026-11-29-13-10-11).odt"
    ),
    " (SFConflict 2026-11-29-13-10-11)": b"report (SFConflict 2026-11-29-13-10-11).odt",
    " (In Konflikt stehende Kopie von HOST 2026-11-29)": (
        b"report (conflict copy: In Konflikt stehende Kopie von HOST 2026-11-29).odt"
    ),
    "-laptop-safeBackup-0001": b"report (conflict copy of laptop-safeBackup-0001).odt",
    " 2": b"report (conflict copy number 2).odt",
}
HASH = "cryptfs.long." + "h" * 43

suffixes = st.one_of(
    st.sampled_from(sorted(SUFFIXES)),
    st.from_regex(re.compile(r"-[A-Za-z0-9]([A-Za-z0-9-]{0,20}[A-Za-z0-9])?\Z"), fullmatch=True),
    st.integers(0, 999).map(lambda number: f" ({number})"),
    st.from_regex(re.compile(r"\.sync-conflict-[0-9]{8}-[0-9]{6}-[A-Z2-7]{7}\Z"), fullmatch=True),
)
plain_names = st.binary(min_size=1, max_size=150).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..")
)


@pytest.mark.parametrize(("suffix", "shown"), SUFFIXES.items())
def test_a_suffix_is_shown_before_the_extension(suffix: str, shown: bytes) -> None:
    assert shown_name(b"report.odt", suffix) == shown
    assert (b"report.odt", suffix) in copies_of_name(shown)


@given(plain_names, suffixes)
def test_a_shown_name_leads_back(name: bytes, suffix: str) -> None:
    shown = shown_name(name, suffix)
    assert shown is not None and shown != name
    assert (name, suffix) in copies_of_name(shown)


@given(plain_names, suffixes)
def test_every_reading_of_a_name_is_shown_as_that_name(name: bytes, suffix: str) -> None:
    shown = shown_name(name, suffix)
    assert shown is not None
    assert {shown_name(*copy) for copy in copies_of_name(shown)} == {shown}


@given(st.binary(min_size=1, max_size=255), suffixes)
def test_an_entry_leads_back(name: bytes, suffix: str) -> None:
    name = name.replace(b"\0", b"0").replace(b"/", b"s")
    name = name if name not in (b".", b"..") else b"a"
    entry_name = entry_name_of(
        NameCipher(Subkeys.from_masterkey(bytes(32))).in_directory(bytes(16)).seal(name)
    )
    for copy in entries_of_copy(entry_name, suffix):
        assert (entry_name, suffix) in copies_of_entry(copy)
        assert holds_plaintext(copy)


@given(st.binary(min_size=1, max_size=255))
def test_random_names_mean_themselves(name: bytes) -> None:
    assert copies_of_name(name) == []


@pytest.mark.parametrize(
    "name",
    [
        b"conflict",
        b"a conflict (1).txt",
        b"report (conflict 2026-11-29 13.10.11).odt",
        b".sync-conflict-20261129-131011-ABCDEFG",
        b" (conflicted copy 2026-11-29 131011).txt",
        b"a.sync-conflict-20261129-131011-ABCDEFG.b.c",
        b"a (conflict copy of ).txt",
        b"a (conflict copy 1000).txt",
        b"a (bob\xc3\xb6's conflicted copy 2026-11-29)",
        b"a.conflict",
        b"a.conflict1000.txt",
        b"a (conflict copy from path3).txt",
        b"a (conflict copy number 1).txt",
        b"a (conflict copy: 2026-11-29).txt",
        b"a (SFConflict bob 2026-11-29).txt",
        b"a..path1",
    ],
)
def test_names_that_only_look_alike(name: bytes) -> None:
    assert copies_of_name(name) == []


@pytest.mark.parametrize(
    "entry_name",
    [
        "A" * 43,
        "A" * 43 + ".txt",
        "A" * 44 + ".sync-conflict-20261129-131011-ABCDEFG",
        "A" * 43 + ".sync-conflict-20261129-131011-ABCDEFG\n",
        "A" * 43 + " (conflicted copy \x1b[2J 2026-11-29 131011)",
        "A" * 43 + " (" + "x" * 65 + "'s conflicted copy 2026-11-29)",
        "A" * 43 + " (a/b's conflicted copy 2026-11-29)",
        "A" * 43 + "-",
        "A" * 43 + "-" + "x" * 64,
        "A" * 43 + " (1000)",
        "A" * 43 + ".conflict",
        "A" * 43 + "..path3",
        "A" * 43 + " 1",
        "A" * 43 + " 02",
        "A" * 43 + " (2026-11-29)",
        "A" * 43 + " (copy)",
        "A" * 43 + "~",
        "A" * 43 + ".part",
        HASH + ".name",
        HASH,
        "cryptfs.dir (1)",
    ],
)
def test_entries_that_are_none(entry_name: str) -> None:
    assert copies_of_entry(entry_name) == []


def test_a_long_name_has_its_suffix_before_the_hash_or_behind() -> None:
    for suffix in SUFFIXES:
        before, behind = HASH.replace(".long", ".long" + suffix), HASH + suffix
        assert set(entries_of_copy(HASH, suffix)) == {before, behind}
        assert long_original(before) == long_original(behind) == HASH
    assert long_original(HASH) == HASH


@pytest.mark.parametrize(("size", "letters"), [(128, 192), (129, 214), (144, 214), (145, 235), (160, 235)])
def test_a_suffix_has_room_behind_the_names_that_the_documents_say(size: int, letters: int) -> None:
    """With more letters than 255 there is no such name, so docs/SYNC.md says from which length on."""
    entry_name = NameCipher(Subkeys.from_masterkey(bytes(32))).in_directory(bytes(16)).seal(b"n" * size)
    suffix = ".sync-conflict-20261129-131011-ABCDEFG"
    assert (len(entry_name), len(suffix)) == (letters, 38)
    assert bool(entries_of_copy(entry_name, suffix)) == (size < 145)


@given(st.binary(min_size=235, max_size=255), suffixes)
def test_a_name_that_would_be_too_long_is_cut(name: bytes, suffix: str) -> None:
    name = name.replace(b"\0", b"0").replace(b"/", b"s")
    shown = shown_name(name, suffix)
    assert shown is not None and len(shown) <= 255
    assert may_be_cut(shown) or (name, suffix) in copies_of_name(shown)


def test_other_long_names_are_not_taken_for_cut_ones() -> None:
    assert not may_be_cut(b"a" * 255)
    assert not may_be_cut(b"conflict" * 31)
    assert not may_be_cut(b"a (conflict copy 1)")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_copies_of_internal_files(suffix: str) -> None:
    sidecar = long_entry_name("x" * 300)
    for name in (
        f"cryptfs{suffix}.dir",
        f"cryptfs.dir{suffix}",
        f"{sidecar}{suffix}.name",
        f"{sidecar}.name{suffix}",
    ):
        assert is_copy_of_internal(name)
        assert not holds_plaintext(name)
    for name in ("cryptfs.dir", f"{sidecar}.name", sidecar, f"{sidecar}{suffix}", f"x{suffix}.dir"):
        assert not is_copy_of_internal(name)


@given(plain_names.map(lambda name: name * 2).filter(lambda name: len(name) < 256), st.integers(1, 99))
def test_a_kept_name_is_a_name(name: bytes, number: int) -> None:
    kept = kept_name(name, "2026-11-29 13.10.11", number)
    assert len(kept) <= 255 and kept != name and b"conflict 2026" in kept
    assert copies_of_name(kept) == []


def test_a_kept_name_is_cut_between_letters() -> None:
    kept = kept_name("ö".encode() * 127, "2026-11-29 13.10.11", 1)
    assert kept.decode().startswith("öö") and len(kept) in (254, 255)
    assert kept_name(b"report.odt", "2026-11-29 13.10.11", 1) == b"report (conflict 2026-11-29 13.10.11).odt"
    assert (
        kept_name(b"report.odt", "2026-11-29 13.10.11", 2) == b"report (conflict 2026-11-29 13.10.11 2).odt"
    )
    assert os.path.splitext(kept_name(b"a" * 250 + b".odt", "2026-11-29 13.10.11", 1))[1] == b".odt"
