"""The kinds of findings of fsck: their severity, their meaning, and the remedy of a repair.

The words in FindingKind are stable: scripts may rely on them. No text here holds a plaintext name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """How bad a finding is."""

    INFO = "info"  # nothing is wrong
    WARNING = "warning"  # untidy, and no data is at risk
    ERROR = "error"  # something cannot be read, or is not what was written


class State(StrEnum):
    """The state of a finding."""

    FOUND = "found"  # not repaired: no repair was asked for, or none is possible or needed
    REPAIRED = "repaired"
    FAILED = "failed"  # the repair did not succeed; detail says why


class FindingKind(StrEnum):
    """The kind of a finding. The values are part of the output of `cryptfs fsck --json`."""

    DIRECTORY_RECORD = "directory-record"
    MISPLACED = "misplaced"
    UNFINISHED_MOVE = "unfinished-move"
    UNFINISHED_ADOPTION = "unfinished-adoption"
    UNVERIFIED_NAME = "unverified-name"
    SIDECAR = "sidecar"
    ORPHANED_SIDECAR = "orphaned-sidecar"
    HEADER = "header"
    FILE_CUT = "file-cut"
    FILE_EMPTIED = "file-emptied"
    CHUNKS = "chunks"
    SURPLUS = "surplus"
    NOT_SETTLED = "not-settled"
    MISSING_JOURNAL = "missing-journal"
    SYMLINK = "symlink"
    ORPHANED_TARGET = "orphaned-target"
    XATTR = "xattr"
    ACL = "acl"
    ACL_MODE = "acl-mode"
    LEFTOVER = "leftover"
    UNFINISHED_JOURNAL = "unfinished-journal"
    OTHER_SESSION = "other-session"
    OTHER_UNFINISHED = "other-unfinished"
    ORPHANED_JOURNAL = "orphaned-journal"
    SESSIONS = "sessions"
    SPECIAL_FILE = "special-file"
    STRAY = "stray"
    CONFLICT_COPY = "conflict-copy"
    FOREIGN = "foreign"
    UNKNOWN_INTERNAL = "unknown-internal"
    STRAY_RECORD = "stray-record"
    OUTSIDE_LINK = "outside-link"
    UNREADABLE = "unreadable"
    SET_ASIDE = "set-aside"
    RECOVERY_RECORD = "recovery-record"


class Description(NamedTuple):
    """The texts about a kind. remedy: the action of a repair, '' if it does nothing."""

    severity: Severity
    meaning: str
    remedy: str


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

DESCRIPTIONS = {
    FindingKind.DIRECTORY_RECORD: Description(
        _ERROR,
        "The directory's record is missing or damaged, so programs cannot reach anything in the directory.",
        "Make a new record and keep all names in the directory.",
    ),
    FindingKind.MISPLACED: Description(
        _ERROR,
        "By its record, the directory belongs to another place, so programs cannot reach anything in it. "
        "Somebody moved it here, or restored an old record, or a sync client has not finished a rename.",
        "Accept the directory where it is. If it belongs elsewhere, move it there afterwards.",
    ),
    FindingKind.UNFINISHED_MOVE: Description(
        _WARNING,
        "A rename of the directory was interrupted, so it counts at its old place as well.",
        "Finish the rename: accept the directory only where it is.",
    ),
    FindingKind.UNFINISHED_ADOPTION: Description(
        _WARNING,
        "A repair of this directory was interrupted.",
        "Finish it: seal the remaining names for the directory's new record.",
    ),
    FindingKind.UNVERIFIED_NAME: Description(
        _ERROR,
        "The name does not verify here: somebody changed it, or the entry comes from another directory.",
        "Move the entry to lost+found, under its likely name.",
    ),
    FindingKind.SIDECAR: Description(
        _ERROR,
        "The file that holds the rest of a long name is missing or damaged, so the entry has no name.",
        "Restore it if the damage is slight; else move the entry to lost+found under a made-up name.",
    ),
    FindingKind.ORPHANED_SIDECAR: Description(
        _WARNING,
        "The rest of a long name, but its entry is missing. An operation was interrupted.",
        "Remove it.",
    ),
    FindingKind.HEADER: Description(
        _ERROR,
        "The file's header is damaged, so the file cannot be read.",
        "Make a new header if that is possible; else move the file to lost+found as it is.",
    ),
    FindingKind.FILE_CUT: Description(
        _ERROR,
        "The file is too short: somebody cut off its end.",
        "Give the file its length again, with zeros for the lost part. The rest can be read again.",
    ),
    FindingKind.FILE_EMPTIED: Description(
        _ERROR,
        "Somebody emptied the file in the vault: its attributes show that it had a header.",
        "Keep the empty file, and remove its attributes: without the header they are unreadable.",
    ),
    FindingKind.CHUNKS: Description(
        _ERROR,
        "Pieces of the file are damaged. Programs that read them get an I/O error.",
        "Put zeros in their place, so that programs can read the rest; "
        "keep the damaged pieces in lost+found.",
    ),
    FindingKind.SURPLUS: Description(
        _WARNING, "There are bytes after the end of the file. No program reads them.", "Cut them off."
    ),
    FindingKind.NOT_SETTLED: Description(
        _WARNING,
        "Writing to the file was interrupted.",
        "Keep all whole chunks, and remove an incomplete one at the end.",
    ),
    FindingKind.MISSING_JOURNAL: Description(
        _ERROR,
        "Writing to the file was interrupted, and the journal is missing: overwritten parts may have their "
        "old content, even if they were synced. Or another machine is writing to the file now.",
        "Accept the file as it is. Data that was only in the journal is lost.",
    ),
    FindingKind.SYMLINK: Description(
        _ERROR,
        "The target of the symlink is lost or damaged, or somebody moved the link here from elsewhere.",
        "Move the link to lost+found as it is.",
    ),
    FindingKind.ORPHANED_TARGET: Description(_WARNING, "The long target of a missing symlink.", "Remove it."),
    FindingKind.XATTR: Description(
        _ERROR,
        "An extended attribute does not authenticate: somebody changed it, or it belongs to another file.",
        "Remove it, and note its bytes in the report in lost+found.",
    ),
    FindingKind.ACL: Description(
        _ERROR, "The access control list is invalid.", "Remove it; then the mode bits decide."
    ),
    FindingKind.ACL_MODE: Description(
        _WARNING,
        "The mode bits and the access control list disagree.",
        "Set the mode by the list, since the list is authenticated.",
    ),
    FindingKind.LEFTOVER: Description(
        _WARNING, "The remains of an interrupted operation.", "Undo the operation."
    ),
    FindingKind.UNFINISHED_JOURNAL: Description(
        _INFO,
        "The vault was not unmounted, and its journal holds writes that were not finished.",
        "Replay it, as the next mount does.",
    ),
    FindingKind.OTHER_SESSION: Description(
        _INFO,
        "An unfinished session of another machine: the vault is mounted there, or was not unmounted. If that "
        "session will not continue, cryptfs fsck --repair --other-machines VAULT saves its synced data.",
        "",
    ),
    FindingKind.OTHER_UNFINISHED: Description(
        _INFO, "Unfinished work of another machine, less than a day old. fsck leaves it alone.", ""
    ),
    FindingKind.ORPHANED_JOURNAL: Description(
        _WARNING, "A journal in the wrong place. No program reads it; fsck leaves it alone.", ""
    ),
    FindingKind.SESSIONS: Description(
        _WARNING,
        "The list of sessions is damaged, so a file that a crash left short may count as cut.",
        "Remove it; the next mount makes a new one.",
    ),
    FindingKind.SPECIAL_FILE: Description(_ERROR, "One of the vault's own files is not a regular file.", ""),
    FindingKind.STRAY: Description(
        _WARNING,
        "Content of this vault under a foreign name, such as a sync tool's copy.",
        "Move it to lost+found, where programs can read it.",
    ),
    FindingKind.CONFLICT_COPY: Description(
        _INFO,
        "Another version of an entry, kept by a sync client. A mount shows it under a readable name.",
        "",
    ),
    FindingKind.FOREIGN: Description(_INFO, "Not made by cryptfs; fsck leaves it alone.", ""),
    FindingKind.UNKNOWN_INTERNAL: Description(
        _INFO, "A name that is reserved for cryptfs, but unknown to this version; fsck leaves it alone.", ""
    ),
    FindingKind.STRAY_RECORD: Description(
        _INFO, "A directory record where none belongs: the root has none. fsck leaves it alone.", ""
    ),
    FindingKind.OUTSIDE_LINK: Description(
        _INFO, "The file also has names that the vault does not show, elsewhere on the disk.", ""
    ),
    FindingKind.UNREADABLE: Description(_ERROR, "The operating system refuses to read it.", ""),
    FindingKind.SET_ASIDE: Description(
        _INFO,
        "Damaged; a repair has set it aside. Restore it from a backup, then remove it.",
        "",
    ),
    FindingKind.RECOVERY_RECORD: Description(
        _WARNING,
        "Recovery words and shares open nothing: their record is missing or damaged. Put a copy of it "
        "back, or make new words with cryptfs recovery words VAULT.",
        "",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that fsck found.

    cipher_path: relative to the vault, printable.
    plain_path:  as bytes; None if unknown.
    detail:      more about it, or why a repair failed; '' if there is nothing to add.
    done:        the action of a repair, '' before.
    """

    kind: FindingKind
    cipher_path: str
    plain_path: bytes | None
    detail: str = ""
    state: State = State.FOUND
    done: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return DESCRIPTIONS[self.kind].severity

    @property
    def meaning(self) -> str:
        """Its meaning, for a person."""
        return DESCRIPTIONS[self.kind].meaning

    @property
    def remedy(self) -> str:
        """The action of a repair, '' for none."""
        return DESCRIPTIONS[self.kind].remedy

    @property
    def remains(self) -> bool:
        """Whether it is an error that is still there."""
        return self.severity is Severity.ERROR and self.state is not State.REPAIRED


@dataclass(slots=True)
class Counts:
    """Counts of all checked entries. Sizes are bytes of plaintext."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    others: int = 0
    size: int = 0
    size_checked: int = 0

    @property
    def entries(self) -> int:
        """All entries together."""
        return self.directories + self.files + self.symlinks + self.others
