"""The state of one machine: its host id, and the names of the files that only this machine trusts.

    host_id     = base64url(BLAKE2b-96("cryptfs:host"; machine_id | vault_id | inode u64 | birth time u64))
    files       cryptfs.host.<host_id>.journal.a, .journal.b, .sessions, .unsettled, .lock
    temporary   cryptfs.tmp.<host_id>.<random>

So two machines with one vault in a synced folder have separate files, and so have two copies of a vault on
one machine. In a vault without the feature, all machines share the names of version 0.1. Source:
docs/FORMAT.md, section 11.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass

from cryptfs.core.names.names import TEMP_PREFIX, decode_text, encode_text

MACHINE_STATE = "machine-state"  # the feature's name in the config
HOST_PREFIX = "cryptfs.host."
MACHINE_ID_SIZE = 32  # hex digits
NO_MACHINE_ID = b"0" * MACHINE_ID_SIZE
MARK_SIZE = 8
_HOST_DIGEST = 12
_PLACE = struct.Struct("<QQ")
_HOST = r"([A-Za-z0-9_-]{16})\."
_TEMPORARY = re.compile(re.escape(TEMP_PREFIX) + _HOST, re.ASCII)
_ASIDE = re.compile(re.escape(HOST_PREFIX) + _HOST + r"aside\.[A-Za-z0-9_-]{24}", re.ASCII)
_NAME = re.compile(re.escape(HOST_PREFIX) + _HOST + r"(journal\.[ab]|sessions|unsettled|lock)", re.ASCII)


def host_id(machine_id: bytes, vault_id: bytes, inode: int, birth_ns: int) -> str:
    """The id of one machine's use of one vault directory; 16 letters.

    Args: machine_id: 32 hex digits in ASCII.   vault_id: 16 bytes.
          inode, birth_ns: of the vault directory; birth_ns 0 if the filesystem keeps no time of birth.
    Raises: ValueError: an id has another length.
    """
    if len(machine_id) != MACHINE_ID_SIZE or len(vault_id) != 16:
        raise ValueError("a machine_id has 32 bytes and a vault_id 16")
    data = machine_id + vault_id + _PLACE.pack(inode, birth_ns % 2**64)
    return encode_text(hashlib.blake2b(data, digest_size=_HOST_DIGEST, person=b"cryptfs:host").digest())


@dataclass(frozen=True, slots=True)
class StateNames:
    """The names of one machine's files.

    host: its id; "" for the names of 0.1, which are the same everywhere.
    """

    host: str = ""

    @property
    def _prefix(self) -> str:
        return f"{HOST_PREFIX}{self.host}." if self.host else "cryptfs."

    @property
    def journals(self) -> tuple[str, str]:
        """The two files of the journal."""
        return f"{self._prefix}journal.a", f"{self._prefix}journal.b"

    @property
    def sessions(self) -> str:
        """The list of sessions that are over."""
        return f"{self._prefix}sessions"

    @property
    def unsettled(self) -> str:
        """The mark that files wait to be settled after a crash."""
        return f"{self._prefix}unsettled"

    @property
    def lock(self) -> str:
        """The lock file, which names the holder of the vault on this machine."""
        return f"{self._prefix}lock"

    @property
    def temp_prefix(self) -> str:
        """The prefix of this machine's unfinished files."""
        return f"{TEMP_PREFIX}{self.host}." if self.host else TEMP_PREFIX

    @property
    def aad(self) -> bytes:
        """Seals the state to this machine: a renamed file does not open."""
        return self.host.encode("ascii")

    @property
    def digest(self) -> bytes:
        """The 12 bytes of the id; zeros if machines share their state."""
        return (decode_text(self.host) or b"") if self.host else bytes(_HOST_DIGEST)

    @property
    def mark(self) -> bytes:
        """The first 8 bytes of the id's digest, for manifests; zeros if machines share their state."""
        return self.digest[:MARK_SIZE]

    @property
    def aside_prefix(self) -> str:
        """The prefix of this machine's files that did not open and were set aside."""
        return f"{self._prefix}aside."

    @property
    def files(self) -> tuple[str, ...]:
        """All names in the root of the vault."""
        return (*self.journals, self.sessions, self.unsettled, self.lock)


SHARED_STATE = StateNames()


def is_aside(entry_name: str) -> bool:
    """Whether a file did not open, and its machine set it aside."""
    return _ASIDE.fullmatch(entry_name) is not None


def is_of_some_host(entry_name: str) -> bool:
    """Whether a temporary name names its machine; those of 0.1 do not."""
    return _TEMPORARY.match(entry_name) is not None


def own_part(temporary: str) -> str:
    """The part of a temporary name behind its prefix and, if it names one, its machine."""
    match = _TEMPORARY.match(temporary)
    return temporary[match.end() :] if match is not None else temporary.removeprefix(TEMP_PREFIX)


def state_of_name(entry_name: str) -> StateNames | None:
    """The owner of a state file in the vault's root, by its name; None if it is not a state file."""
    match = _NAME.fullmatch(entry_name)
    if match is not None:
        return StateNames(match[1])
    return SHARED_STATE if entry_name in SHARED_STATE.files else None
