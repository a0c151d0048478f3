"""Repairs the findings of a check: `cryptfs fsck --repair`.

Every step may be the last: a repair removes or overwrites only useless data, or data that lost+found already
has, and a second run goes on where a killed one stopped. Each method returns its action in words, or raises
OSError or an error of ours; then it did nothing, or something that a later repair can finish.
"""

from __future__ import annotations

import contextlib
import os
import stat

from cryptfs.core.acl import acl_after_chmod, pack_acl, unpack_acl
from cryptfs.core.aead import SMALL_NONCE_SIZE, open_small, seal_small
from cryptfs.core.format.salvage import salvage_cipher_name
from cryptfs.core.format.smallvalues import xattr_aad
from cryptfs.core.names.dirrecord import RECORD_SIZES
from cryptfs.core.names.names import SIDECAR_SUFFIX, siv_of
from cryptfs.core.printable import shown
from cryptfs.errors import IntegrityError, NameError_
from cryptfs.fsck.directories import holds_vault_content
from cryptfs.fsck.files import FileReport
from cryptfs.fsck.findings import Finding, FindingKind, Severity
from cryptfs.fsck.lost_found import LostAndFound, numbered
from cryptfs.fsck.mend_directories import DirectoryMender
from cryptfs.fsck.mend_files import FileMender, Origin
from cryptfs.fsck.small import BadXattr, Owner, backing_xattrs
from cryptfs.storage.backing import read_small
from cryptfs.storage.dirs import MAX_CIPHER_NAME, is_long, open_directory
from cryptfs.storage.removal import remove_directory
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry, Walker
from cryptfs.vfs.tree.directory import printable
from cryptfs.vfs.tree.symlinks import open_links_directory, read_target
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.tree.xattrs import open_attribute

_READ_BEYOND = 2 * MAX_CIPHER_NAME
_SHOWN_OF_NAME = 8
_MAX_NOTED = 4096


class Repairer:
    """Repairs one vault; the caller holds its lock.

    Args: tree: of the vault, open for writing.   vault_fd: the vault directory.
    """

    def __init__(self, tree: VaultTree, vault_fd: int) -> None:
        self._tree = tree
        self._context = tree.context
        self._vault_fd = vault_fd
        self.lost_found = self._lost = LostAndFound(tree)
        self.directories = DirectoryMender(tree, self._lost)
        self._files = FileMender(tree.context, self._lost)

    def close(self) -> None:
        """The last repair is done: bring everything to disk. Raises: OSError."""
        self.directories.close()
        self._lost.close()
        self._tree.sync_all()

    def note(self, finding: Finding) -> None:
        """Add a repaired error to the report; not a warning."""
        if finding.severity is Severity.ERROR:
            path = shown(finding.plain_path) if finding.plain_path else finding.cipher_path
            detail = f" ({finding.detail})" if finding.detail else ""
            self._lost.note(f"{path}: {finding.meaning}{detail} Done: {finding.done}.")

    def has_open(self, st: os.stat_result) -> bool:
        """Whether a file is open in the tree, such as the report itself."""
        return self._tree.files.find(st) is not None

    # ---- names

    def mend_name(self, walker: Walker, entry: WalkedEntry) -> str:
        """The name of an entry does not verify: restore it, or move the entry to lost+found."""
        if is_long(entry.entry_name) and entry.cipher_name is None and self._restore_sidecar(entry):
            entry.cipher_name, entry.name, entry.damage = walker.open_name(entry.directory, entry.entry_name)
            if entry.damage is None:
                return "restored the name"
        return self.set_aside(entry)

    def _restore_sidecar(self, entry: WalkedEntry) -> bool:
        directory, sidecar = entry.directory, entry.entry_name + SIDECAR_SUFFIX
        try:
            raw = read_small(directory.fd, sidecar, _READ_BEYOND)
        except FileNotFoundError:
            return False
        except IntegrityError:
            self._remove_whatever(directory, sidecar)
            return False
        cipher_name = salvage_cipher_name(raw, entry.entry_name)
        if cipher_name is None:
            return False
        with self._tree.sidecars.lock:
            self._tree.sidecars.write(directory.fd, cipher_name)
        return True

    def set_aside(self, entry: WalkedEntry) -> str:
        """Move an entry to lost+found; make a readable symlink again there."""
        wanted = entry.name if entry.name is not None else self._made_up_name(entry)
        if stat.S_ISLNK(entry.st.st_mode):
            target = self._target_of(entry)
            if target is not None:
                path = self._lost.make_link(entry.directory.plain_path, wanted, target)
                self._unlink(entry)
                return f"moved to {shown(path)}"
        path = self._lost.move_in(entry, wanted)
        return f"moved to {shown(path)}"

    @staticmethod
    def _made_up_name(entry: WalkedEntry) -> bytes:
        name = entry.entry_name.rpartition(".")[2] or entry.entry_name
        return b"unnamed-" + name[:_SHOWN_OF_NAME].encode("ascii", "backslashreplace")

    def _target_of(self, entry: WalkedEntry) -> bytes | None:
        if entry.directory.dir_id is None or entry.cipher_name is None:
            return None
        text = os.readlink(entry.entry_name, dir_fd=entry.directory.fd)
        links_fd = open_links_directory(self._vault_fd)
        try:
            siv = siv_of(entry.cipher_name)
            return read_target(text, links_fd, self._context.keys.links_key, entry.directory.dir_id, siv)[0]
        except NameError_:
            return None
        finally:
            if links_fd is not None:
                os.close(links_fd)

    def _unlink(self, entry: WalkedEntry) -> None:
        os.unlink(entry.entry_name, dir_fd=entry.directory.fd)
        if is_long(entry.entry_name):
            self._tree.sidecars.remove_if_orphaned(entry.directory.fd, entry.entry_name)

    def remove_own(self, entry: WalkedEntry) -> str:
        """Remove a useless file of the vault's own."""
        self._remove_whatever(entry.directory, entry.entry_name)
        return "removed"

    @staticmethod
    def _remove_whatever(directory: WalkedDirectory, name: str) -> None:
        """Remove a file, or an empty directory planted in its place. Raises: OSError: ENOTEMPTY."""
        try:
            os.unlink(name, dir_fd=directory.fd)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=directory.fd)

    def rescue_stray(self, entry: WalkedEntry) -> str:
        """Move content of the vault under a foreign name to lost+found, under a similar name."""
        raw = os.fsencode(entry.entry_name)
        return f"moved to {shown(self._lost.move_in(entry, numbered(raw, b'')))}"

    # ---- leftovers

    def mend_leftover(self, walker: Walker, entry: WalkedEntry) -> str:
        """Remains of an interrupted operation: undo it, remove them, or keep their content."""
        mode = entry.st.st_mode
        if stat.S_ISDIR(mode):
            return self._mend_leftover_directory(walker, entry)
        if stat.S_ISREG(mode):
            if entry.st.st_size in RECORD_SIZES:
                dir_id = self.directories.record_in(entry.directory, entry.entry_name)
                own = dir_id == entry.directory.dir_id  # from a rename of that directory
                if dir_id is not None and not own and self.directories.put_back(walker, entry, dir_id):
                    return "moved it back into its directory; the removal of that directory was interrupted"
            if holds_vault_content(self._context, entry):
                return self.set_aside(entry)
        os.unlink(entry.entry_name, dir_fd=entry.directory.fd)
        return "removed"

    def _mend_leftover_directory(self, walker: Walker, entry: WalkedEntry) -> str:
        fd = open_directory(entry.directory.fd, entry.entry_name)
        inside = WalkedDirectory(fd, entry.cipher_path, None, verified=False)
        worth_keeping = any(each.role not in (Role.TEMPORARY, Role.SIDECAR) for each in walker.scan(inside))
        if worth_keeping:
            return self.set_aside(entry)
        with self._tree.sidecars.lock:
            remove_directory(entry.directory.fd, entry.entry_name, self._context.owner)
        return "removed"

    # ---- files

    def mend_file(self, entry: WalkedEntry, fd: int, report: FileReport, kind: FindingKind) -> str:
        """Repair one problem of a file."""
        place = self._place(entry)
        if kind is not FindingKind.HEADER:
            return self._files.mend(fd, report, place, kind)
        done = self._files.restore_header(fd, report, place)
        return self.set_aside(entry) if done is None else done

    def _place(self, entry: WalkedEntry) -> Origin:
        name = entry.name if entry.name is not None else self._made_up_name(entry)
        return Origin(entry.directory.plain_path, name)

    # ---- extended attributes

    def mend_xattr(self, where: WalkedEntry | WalkedDirectory, fd: int, owner: Owner, bad: BadXattr) -> str:
        """Remove an attribute that does not verify; make an ACL agree with the mode."""
        path = f"/proc/self/fd/{fd}"
        if bad.problem.kind is FindingKind.ACL_MODE:
            os.setxattr(path, bad.backing_name, self._acl_like_mode(owner, bad, os.fstat(fd).st_mode))
            return "made the list agree with the mode bits"
        self._note_xattr(where, bad.backing_name, bad.stored)
        os.removexattr(path, bad.backing_name)
        return "removed"

    def _acl_like_mode(self, owner: Owner, bad: BadXattr, mode: int) -> bytes:
        attribute, sealed = open_attribute(
            self._tree.opener.name_cipher.of_xattrs(), bad.backing_name, bad.stored
        )
        aad, key = xattr_aad(owner.kind, owner.id, attribute), self._context.keys.xattrs_key
        acl = unpack_acl(open_small(key, sealed, aad) or b"")
        value = seal_small(key, pack_acl(acl_after_chmod(acl, mode)), aad, os.urandom(SMALL_NONCE_SIZE))
        return bad.stored[: len(bad.stored) - len(sealed)] + value

    def drop_all_xattrs(self, entry: WalkedEntry, fd: int) -> str:
        """Remove the attributes of a file without a header: they are unreadable."""
        for backing_name, stored in list(backing_xattrs(fd)):
            self._note_xattr(entry, backing_name, stored)
            with contextlib.suppress(FileNotFoundError):
                os.removexattr(f"/proc/self/fd/{fd}", backing_name)
        return "removed the attributes; the content is lost"

    def _note_xattr(self, where: WalkedEntry | WalkedDirectory, backing_name: str, stored: bytes) -> None:
        path = shown(where.plain_path) if where.plain_path else where.cipher_path or "."
        value = stored[:_MAX_NOTED].hex()
        self._lost.note(
            f"{path}: removed the xattr {printable(backing_name)}, which was {value}", synced=True
        )
