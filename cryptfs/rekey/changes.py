"""The change of one entry, in steps: see pipeline.py. The new one is whole on disk before the old one goes.

Where a kill or a power cut finds a change, the next run goes on from what is there:

    temporary file             removed, begun again
    both names                 the new one stands, if it is what the old one was to become; the old one goes
    directory, new record, two places, old name    it gets its new name
    directory, two places, new name                its record gets the new place alone
"""

from __future__ import annotations

import contextlib
import os
import stat
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from cryptfs.core.aead import Kind
from cryptfs.core.format.smallvalues import link_aad, link_owner, unbound_link_aad
from cryptfs.core.names.dirrecord import (
    RECORD_NAME,
    DirectoryRecord,
    pack_bound_record,
    pack_directory_record,
)
from cryptfs.core.names.names import SIDECAR_SUFFIX, encode_text, siv_of
from cryptfs.core.printable import shown
from cryptfs.errors import HeaderError, NameError_
from cryptfs.rekey.attributes import (
    Attribute,
    AttributeOwner,
    backing_attributes,
    copy_attributes,
    copy_xattrs,
    is_new,
    renewed,
)
from cryptfs.rekey.both import TEMP_MARK, BothKeys, Located
from cryptfs.rekey.content import Plan, Resealer, plan_of, records_end, shares
from cryptfs.rekey.directory import Dir, places_of
from cryptfs.rekey.memory import LinkMemory
from cryptfs.rekey.pipeline import BEGUN, SYNC, Steps
from cryptfs.rekey.report import Report, Unauthentic
from cryptfs.storage.backing import (
    HELD_FILE_FLAGS,
    O_NOATIME,
    create_small,
    open_backing,
    reopen_for_owner,
    write_fully,
)
from cryptfs.storage.dirs import entry_name_of, is_long, read_sidecar, rename_exclusive
from cryptfs.storage.libc import utimensat
from cryptfs.vfs.tree.symlinks import Symlinks, sealed_target
from cryptfs.vfs.tree.xattrs import PREFIX


class OldEntry(NamedTuple):
    """An entry with a name of the old masterkey, or a directory."""

    directory: Dir
    entry_name: str
    located: Located
    st: os.stat_result

    @property
    def cipher_path(self) -> str:
        """For messages."""
        return self.directory.path_of(self.entry_name)

    @property
    def new_entry_name(self) -> str:
        """Its name under the new masterkey."""
        return self.directory.names.new_entry_name(self.located)


class Linked(NamedTuple):
    """How a file with several names comes to its new one. name: in `cryptfs.rekey`.   made: it is there."""

    name: str
    made: bool


class Changes:
    """Makes the changes of entries.

    Args: links: of the new masterkey.   links_fd: `cryptfs.links`, None if there is none.
    """

    def __init__(
        self,
        both: BothKeys,
        memory: LinkMemory,
        report: Report,
        executor: ThreadPoolExecutor,
        links: Symlinks,
        links_fd: int | None,
    ) -> None:
        self._both = both
        self._memory = memory
        self._report = report
        self._executor = executor
        self._links = links
        self.links_fd = links_fd

    def temp_name(self) -> str:
        """A fresh name for an unfinished file, which a later run removes."""
        return f"{self._both.owner.temp_prefix}{TEMP_MARK}{encode_text(os.urandom(9))}"

    def _damage(self, entry: OldEntry, reason: str) -> None:
        self._report.damages.append(Unauthentic(entry.cipher_path, reason))

    # ---- what can be done at once

    def put(self, dir_fd: int, name: str, content: bytes) -> None:
        """Make or replace a small file; it is on disk after the next sync."""
        temporary = self.temp_name()
        os.close(create_small(dir_fd, temporary, content, 0o600))
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def write_sidecar(self, directory: Dir, found: Located) -> None:
        """The sidecar of an entry's new name, if that is long."""
        cipher_name = directory.names.new_cipher_name(found)
        entry_name = entry_name_of(cipher_name)
        if is_long(entry_name):
            with contextlib.suppress(NameError_):
                read_sidecar(directory.fd, entry_name)
                return
            self.put(directory.fd, entry_name + SIDECAR_SUFFIX, cipher_name.encode("ascii"))

    # ---- entries

    def moved(self, entry: OldEntry) -> Steps:
        """Nothing in it is sealed: an empty file, a FIFO, a socket, a device. It gets its new name."""
        directory = entry.directory
        directory.begin()
        self.write_sidecar(directory, entry.located)
        yield SYNC
        rename_exclusive(directory.fd, entry.entry_name, directory.fd, entry.new_entry_name)

    def removed(self, entry: OldEntry) -> Steps:
        """The new one is there, of an earlier run: the old one goes, once the new one is on disk."""
        entry.directory.begin()
        yield SYNC
        self._memory.forget_file(entry.st.st_ino)
        os.unlink(entry.entry_name, dir_fd=entry.directory.fd)

    def _replaced(self, entry: OldEntry, temporary: str, linked: Linked | None) -> Steps:
        """From a temporary file, which is whole, to the new name alone."""
        directory = entry.directory
        try:
            yield SYNC
            if linked is not None and not linked.made:
                os.link(
                    temporary,
                    linked.name,
                    src_dir_fd=directory.fd,
                    dst_dir_fd=self._both.rekey_fd,
                    follow_symlinks=False,
                )
                self._memory.links.add(entry.st.st_ino)
            rename_exclusive(directory.fd, temporary, directory.fd, entry.new_entry_name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory.fd)
            raise
        yield SYNC
        self._memory.forget_file(entry.st.st_ino)
        os.unlink(entry.entry_name, dir_fd=directory.fd)

    def linked(self, entry: OldEntry, linked: Linked) -> Steps:
        """One more name of a file that was sealed again under its first name."""
        directory = entry.directory
        directory.begin()
        self.write_sidecar(directory, entry.located)
        temporary = self.temp_name()
        os.link(
            linked.name,
            temporary,
            src_dir_fd=self._both.rekey_fd,
            dst_dir_fd=directory.fd,
            follow_symlinks=False,
        )
        self._report.add_size(entry.st.st_size)
        yield from self._replaced(entry, temporary, linked)

    # ---- files

    def open_old(self, entry: OldEntry) -> int:
        """A descriptor for reading, whatever the mode says to the file's owner. Raises: OSError."""
        directory = entry.directory
        for flags in (os.O_RDONLY | O_NOATIME, os.O_RDONLY):
            try:
                return open_backing(directory.fd, entry.entry_name, flags)[0]
            except PermissionError:
                continue
        probe = os.open(entry.entry_name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        try:
            if entry.st.st_uid == os.geteuid():
                self._memory.note_file_mode(entry.st)
            return reopen_for_owner(probe)
        finally:
            os.close(probe)

    def restore_mode(self, entry: OldEntry, fd: int) -> None:
        """After a look at a new file: a kill may have left it with the right to be read. fd: of it."""
        mode = self._memory.file_mode(entry.st)
        if mode is not None:
            os.fchmod(fd, mode)
            self._memory.forget_file(entry.st.st_ino)

    def plan(self, entry: OldEntry) -> Plan:
        """How to seal a file again. Raises: HeaderError: it does not verify.   OSError."""
        fd = self.open_old(entry)
        try:
            return plan_of(self._both, fd, os.fstat(fd).st_size)
        finally:
            os.close(fd)

    def resealed(self, entry: OldEntry, plan: Plan, linked: Linked | None) -> Steps:
        """A file with content: a new one beside it, chunk run by chunk run, and then in its place."""
        directory = entry.directory
        directory.begin()
        self.write_sidecar(directory, entry.located)
        temporary = self.temp_name()
        source = self.open_old(entry)
        try:
            target = open_backing(directory.fd, temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)[0]
            try:
                yield from self._filled(entry, plan, source, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory.fd)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)
        yield from self._replaced(entry, temporary, linked)

    def _filled(self, entry: OldEntry, plan: Plan, source: int, target: int) -> Steps:
        write_fully(target, (self._both.new.pack_header(plan.header),), 0)
        os.ftruncate(target, records_end(self._both, plan))
        pieces = list(shares(self._both, plan))
        sizes = self._both.new.geometry

        def work(first: int, last: int) -> list[int]:
            damaged = Resealer(self._both, source, target, plan).run(first, last)
            self._report.add_size(sizes.records_size(sizes.run_length(first, last, plan.size)))
            return damaged

        futures: list[Future[list[int]]] = []
        try:
            futures = [self._executor.submit(work, *piece) for piece in pieces]
            yield BEGUN
            damaged = []
            for future in futures:
                damaged += future.result()
                self._report.show()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)
        if plan.damage:
            self._damage(entry, plan.damage)
        if damaged:
            self._damage(entry, _chunks(damaged))
        file_id = plan.header.file_id
        for name in copy_xattrs(
            self._both, source, target, AttributeOwner(Kind.XATTR_OF_FILE, file_id, file_id)
        ):
            self._damage(entry, f"the xattr {shown(name)} does not authenticate")
        copy_attributes(entry.st, target, self._memory.file_mode(entry.st))

    # ---- symlinks

    def symlink(self, entry: OldEntry, target: bytes, *, bound: bool, linked: Linked | None) -> Steps:
        """A symlink: a new one with the target sealed again. target: as it was opened."""
        directory = entry.directory
        directory.begin()
        self.write_sidecar(directory, entry.located)
        siv = siv_of(directory.names.new_cipher_name(entry.located))
        aad = link_aad(directory.new_dir_id, siv) if bound else unbound_link_aad()
        old_text = os.readlink(entry.entry_name, dir_fd=directory.fd)
        text = self._links.seal(target, aad)
        temporary = self.temp_name()
        os.symlink(text, temporary, dir_fd=directory.fd)
        st = entry.st
        if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):
                os.chown(temporary, st.st_uid, st.st_gid, dir_fd=directory.fd, follow_symlinks=False)
        if self._both.new.config.record_rules.bound:
            self._copy_link_xattrs(entry, temporary)
        times = (*divmod(st.st_atime_ns, 10**9), *divmod(st.st_mtime_ns, 10**9))
        utimensat(directory.fd, temporary, times)
        yield from self._replaced(entry, temporary, linked)
        if st.st_nlink == 1:
            self._links.discard(old_text)

    def _copy_link_xattrs(self, entry: OldEntry, temporary: str) -> None:
        """The attributes of a symlink for the new one. Only root sees them."""
        both, dir_fd = self._both, entry.directory.fd
        with contextlib.ExitStack() as stack:
            fds: list[int] = []
            ids: list[bytes] = []
            for name, keys in ((entry.entry_name, both.old.keys), (temporary, both.new.keys)):
                fds.append(os.open(name, HELD_FILE_FLAGS, dir_fd=dir_fd))
                stack.callback(os.close, fds[-1])
                sealed = sealed_target(os.readlink("", dir_fd=fds[-1]), self.links_fd)
                ids.append(link_owner(keys.xattrs_key, sealed))
            owner = AttributeOwner(Kind.XATTR_OF_LINK, ids[0], ids[1])
            for name in copy_xattrs(both, fds[0], fds[1], owner):
                self._damage(entry, f"the xattr {shown(name)} does not authenticate")

    # ---- directories

    def directory(self, child: Dir) -> Steps:
        """A directory whose entries are all new: its attributes, its record and its name."""
        child.begin()
        old_attributes = self._renew_xattrs(child)
        parent, found = child.parent, child.located
        if parent is None or found is None:
            yield SYNC
        else:
            yield from self._record_and_name(parent, child, found)
        path = f"/proc/self/fd/{child.fd}"
        for name in old_attributes:
            os.removexattr(path, name)
        child.end()

    def _record_and_name(self, parent: Dir, child: Dir, found: Located) -> Steps:
        old_place, new_place = places_of(parent, found)
        assert child.record is not None
        dir_id, keys = child.new_dir_id, self._both.new.keys
        bound = self._both.new.config.record_rules.bound
        if not child.is_new:
            places = (old_place, new_place)
            moving = DirectoryRecord(dir_id, places, self._both.owner.digest)
            raw = pack_bound_record(moving, keys) if bound else pack_directory_record(dir_id, keys)
            yield from self._new_record(child, raw)
        if not found.is_new:
            parent.begin()
            self.write_sidecar(parent, found)
            yield SYNC
            new_name = parent.names.new_entry_name(found)
            rename_exclusive(parent.fd, child.entry_name, parent.fd, new_name)
            child.entry_name = new_name
        if bound and not (found.is_new and child.is_new and not child.record.is_moving):
            yield from self._new_record(child, pack_bound_record(DirectoryRecord(dir_id, (new_place,)), keys))
        else:
            yield SYNC

    def _new_record(self, child: Dir, raw: bytes) -> Steps:
        temporary = self.temp_name()
        os.close(create_small(child.fd, temporary, raw, 0o600))
        yield SYNC
        os.rename(temporary, RECORD_NAME, src_dir_fd=child.fd, dst_dir_fd=child.fd)

    def old_xattrs(self, child: Dir) -> list[tuple[Attribute, Attribute | None]]:
        """The attributes of a directory that are not new, with the new one; None for damage."""
        owner = AttributeOwner(Kind.XATTR_OF_DIRECTORY, child.old_dir_id, child.new_dir_id)
        return [
            (attribute, renewed(self._both, attribute, owner))
            for attribute in backing_attributes(child.fd)
            if attribute.name.startswith(PREFIX) and not is_new(self._both, attribute, owner)
        ]

    def _renew_xattrs(self, child: Dir) -> list[str]:
        """Set the new ones beside the old ones; returns the names of the old ones."""
        path, old = f"/proc/self/fd/{child.fd}", []
        for attribute, fresh in self.old_xattrs(child):
            if fresh is not None:
                os.setxattr(path, fresh.name, fresh.value)
                old.append(attribute.name)
        return old


def _chunks(damaged: list[int]) -> str:
    """Damaged chunks in words."""
    some = ", ".join(map(str, damaged[:8])) + (" ..." if len(damaged) > 8 else "")
    return f"{len(damaged)} chunks do not open: {some}" if len(damaged) > 1 else f"chunk {some} does not open"


def is_made(both: BothKeys, new_fd: int, plan: Plan) -> bool:
    """Whether a new file is what a plan was to make. new_fd: for reading."""
    try:
        header = both.new.header_of(new_fd)
    except HeaderError:
        return False
    wanted = plan.header
    return header is not None and (header.file_id, header.epoch, header.generation, header.size) == (
        wanted.file_id,
        wanted.epoch,
        wanted.generation,
        wanted.size,
    )


def is_plain(mode: int) -> bool:
    """Whether nothing in an entry of this type is sealed."""
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
