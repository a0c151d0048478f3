"""What fsck can find: kinds, how bad they are, what they mean and what a repair does about them.

The words in Kind are stable: scripts may rely on them. No text here holds a plaintext name.
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
    """What became of a finding."""

    FOUND = "found"  # nothing was done: no repair was asked for, or none is possible or needed
    REPAIRED = "repaired"
    FAILED = "failed"  # the repair did not succeed; detail says why


class Kind(StrEnum):
    """What was found. The values are part of the output of `cryptfs fsck --json`."""

    DIRECTORY_RECORD = "directory-record"
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
    OUTSIDE_LINK = "outside-link"
    UNREADABLE = "unreadable"
    SET_ASIDE = "set-aside"


class Description(NamedTuple):
    """What is said of a kind. remedy: what a repair does, '' where it does nothing."""

    severity: Severity
    meaning: str
    remedy: str


_INFO, _WARNING, _ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR

DESCRIPTIONS = {
    Kind.DIRECTORY_RECORD: Description(
        _ERROR,
        "The directory's record is missing or damaged, so nothing in the directory can be reached.",
        "Make the record anew and keep all names in the directory.",
    ),
    Kind.UNFINISHED_ADOPTION: Description(
        _WARNING,
        "A repair of this directory was interrupted.",
        "Finish it: seal the names that are left for the directory's new record.",
    ),
    Kind.UNVERIFIED_NAME: Description(
        _ERROR,
        "The name does not verify here: it was changed, or the entry comes from another directory.",
        "Move the entry to lost+found, under the name that it seems to have.",
    ),
    Kind.SIDECAR: Description(
        _ERROR,
        "The file that holds the rest of a long name is missing or damaged, so the entry has no name.",
        "Restore it where the damage is slight; else move the entry to lost+found under a made-up name.",
    ),
    Kind.ORPHANED_SIDECAR: Description(
        _WARNING,
        "The rest of a long name whose entry is gone. An operation was interrupted.",
        "Remove it.",
    ),
    Kind.HEADER: Description(
        _ERROR,
        "The file's header is damaged, so nothing of the file can be read.",
        "Make the header anew where that is possible; else move the file to lost+found as it is.",
    ),
    Kind.FILE_CUT: Description(
        _ERROR,
        "The file is shorter than it should be: its end was cut off.",
        "Give the file its length again, with zeros for what is lost. What is left can be read again.",
    ),
    Kind.FILE_EMPTIED: Description(
        _ERROR,
        "The file was emptied from outside: its attributes show that it had a header.",
        "Keep the empty file, and remove the attributes, which nobody can read any more.",
    ),
    Kind.CHUNKS: Description(
        _ERROR,
        "Pieces of the file are damaged; reading them is an I/O error.",
        "Put zeros in their place, so that the rest can be read through; "
        "keep the damaged pieces in lost+found.",
    ),
    Kind.SURPLUS: Description(
        _WARNING, "There are bytes behind the end of the file, which nobody reads.", "Cut them off."
    ),
    Kind.NOT_SETTLED: Description(
        _WARNING,
        "The file was being written when its writer ended.",
        "Settle its length: what was written whole stays, a torn piece at the end goes.",
    ),
    Kind.MISSING_JOURNAL: Description(
        _ERROR,
        "The file was being written, and the journal of that session is not here: what was synced by "
        "overwriting may be as it was before. Another machine may be writing to it now.",
        "Take the file as it is and settle its length. What only the journal held is lost.",
    ),
    Kind.SYMLINK: Description(
        _ERROR,
        "The target of the symlink is lost or damaged, or the link was moved here from elsewhere.",
        "Move the link to lost+found as it is.",
    ),
    Kind.ORPHANED_TARGET: Description(_WARNING, "The long target of a symlink that is gone.", "Remove it."),
    Kind.XATTR: Description(
        _ERROR,
        "An extended attribute does not authenticate: it was changed, or belongs to another file.",
        "Remove it, and note its bytes in the report in lost+found.",
    ),
    Kind.ACL: Description(
        _ERROR, "The access control list makes no sense.", "Remove it; the mode bits then decide."
    ),
    Kind.ACL_MODE: Description(
        _WARNING,
        "The mode bits and the access control list disagree.",
        "Set the mode as the list says, which is authenticated.",
    ),
    Kind.LEFTOVER: Description(
        _WARNING, "Something that an interrupted operation left behind.", "Undo the operation."
    ),
    Kind.UNFINISHED_JOURNAL: Description(
        _INFO,
        "The vault was not closed in order; writes that were under way are in its journal.",
        "Replay it, as the next mount does.",
    ),
    Kind.OTHER_SESSION: Description(
        _INFO,
        "An unfinished session of another machine: the vault is mounted there, or was not unmounted. "
        "If nobody will go on there, `cryptfs fsck --repair --other-machines` saves what it had synced.",
        "",
    ),
    Kind.OTHER_UNFINISHED: Description(
        _INFO, "Another machine began something here within a day; it is left alone.", ""
    ),
    Kind.ORPHANED_JOURNAL: Description(
        _WARNING, "A journal where none belongs. Nobody reads it; it is left alone.", ""
    ),
    Kind.SESSIONS: Description(
        _WARNING,
        "The list of sessions is damaged; files that a crash left short may be taken for cut.",
        "Remove it; the next mount makes a new one.",
    ),
    Kind.SPECIAL_FILE: Description(
        _ERROR, "Something that is no regular file stands where one of the vault's own files belongs.", ""
    ),
    Kind.STRAY: Description(
        _WARNING,
        "Content of this vault under a name that cryptfs did not give it, such as a sync tool's copy.",
        "Move it to lost+found, where it can be read.",
    ),
    Kind.CONFLICT_COPY: Description(
        _INFO,
        "Another version of an entry, which a sync client has kept. A mount shows it under its own name.",
        "",
    ),
    Kind.FOREIGN: Description(_INFO, "Not made by cryptfs; it is left alone.", ""),
    Kind.UNKNOWN_INTERNAL: Description(
        _INFO, "A name that is reserved for cryptfs, but unknown to this version; it is left alone.", ""
    ),
    Kind.OUTSIDE_LINK: Description(
        _INFO, "The file has names elsewhere on the disk, outside of what the vault shows.", ""
    ),
    Kind.UNREADABLE: Description(_ERROR, "The operating system refuses to read it.", ""),
    Kind.SET_ASIDE: Description(
        _INFO,
        "Damaged, and set aside by a repair. Restore it from a backup, then remove it.",
        "",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that fsck found.

    cipher_path: relative to the vault, printable.
    plain_path:  as bytes; None where it cannot be told.
    detail:      what exactly, or why a repair failed; '' where there is nothing to add.
    done:        what a repair did, '' before.
    """

    kind: Kind
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
        """What it means, for a person."""
        return DESCRIPTIONS[self.kind].meaning

    @property
    def remedy(self) -> str:
        """What a repair does about it, '' for nothing."""
        return DESCRIPTIONS[self.kind].remedy

    @property
    def remains(self) -> bool:
        """Whether it is an error that is still there."""
        return self.severity is Severity.ERROR and self.state is not State.REPAIRED


@dataclass(slots=True)
class Counts:
    """What was looked at. Sizes are bytes of plaintext."""

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


def escaped(name: bytes) -> str:
    """A plaintext name or path as it can be shown anywhere, and turned back: \\\\, \\xNN, \\uNNNN.

    Whoever chose the name has no say over lines, colours or the direction of text.
    """
    text = name.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )
