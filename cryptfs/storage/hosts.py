"""The id of this machine, and the owners of state in a vault. Source: docs/FORMAT.md, section 11."""

from __future__ import annotations

import contextlib
import os
import re

from cryptfs.core.names.host import NO_MACHINE_ID, SHARED_STATE, StateNames, host_id, state_of_name
from cryptfs.core.names.names import encode_text
from cryptfs.core.slots.config import VaultConfig
from cryptfs.storage.backing import OPEN_FLAGS
from cryptfs.storage.libc import filesystem_type, statx_birth_time

MACHINE_ID_FILES = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_FLEETING_NUMBERS = frozenset(
    {
        *(0x4D44, 0x2011BAB0),  # FAT, exFAT
        0x65735546,  # FUSE: it does not say
        *(0x517B, 0xFF534D42, 0xFE534D42, 0x01021997),  # SMB, 9p
    }
)
_MACHINE_ID = re.compile(rb"([0-9a-fA-F]{32})\n?")


def machine_id() -> bytes:
    """The machine id of the operating system, 32 hex digits; zeros if it has none."""
    for place in MACHINE_ID_FILES:
        try:
            fd = os.open(place, os.O_RDONLY | OPEN_FLAGS)
        except OSError:
            continue
        try:
            match = _MACHINE_ID.fullmatch(os.read(fd, 64))
        except OSError:
            continue
        finally:
            os.close(fd)
        if match is not None:
            return match[1]
    return NO_MACHINE_ID


def own_state(vault_fd: int, config: VaultConfig) -> StateNames:
    """The names of this machine's files in this vault directory; the names of 0.1 if the vault is of 0.1."""
    if not config.has_machine_state:
        return SHARED_STATE
    return machine_state(vault_fd, bytes.fromhex(config.vault_id))


def machine_state(vault_fd: int, vault_id: bytes) -> StateNames:
    """The names of this machine's files in this vault directory, also if there are none yet."""
    birth_ns = 0
    inode = lasting_inode(vault_fd)
    if inode:
        with contextlib.suppress(OSError):
            birth_ns = statx_birth_time(vault_fd, "") or 0
    return StateNames(host_id(machine_id(), vault_id, inode, birth_ns))


def lasting_inode(fd: int) -> int:
    """The inode number; 0 on a filesystem that gives a file another number at each mount."""
    try:
        if filesystem_type(fd) in _FLEETING_NUMBERS:
            return 0
    except OSError:
        pass
    return os.fstat(fd).st_ino


def set_aside(vault_fd: int, name: str, owner: StateNames) -> str:
    """Rename an invalid file of this machine, so that it stays; returns the new name. Raises: OSError."""
    aside = owner.aside_prefix + encode_text(os.urandom(18))
    os.rename(name, aside, src_dir_fd=vault_fd, dst_dir_fd=vault_fd)
    return aside


def journals_of_others(vault_fd: int, own: StateNames) -> list[StateNames]:
    """Other machines with a journal in the vault directory, in the order of their ids.

    The names of 0.1 count as such a machine if the vault was upgraded. Raises: OSError.
    """
    found = set()
    for name in os.listdir(vault_fd):
        state = state_of_name(name)
        if state is not None and state != own and name in state.journals:
            found.add(state)
    return sorted(found, key=lambda state: state.host)
