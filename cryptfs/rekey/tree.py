"""A pass over the tree: begins the change of everything that is old, inside before outside.

A pass looks at every entry, and changes what the old masterkey still opens. A second one over a vault that
is all new changes nothing: that is how the change of the masterkey knows that it is over.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from cryptfs.core.names.dirrecord import DirectoryRecord, open_directory_record
from cryptfs.core.names.host import own_part
from cryptfs.core.names.names import SIDECAR_SUFFIX, siv_of
from cryptfs.errors import DirectoryRecordError, HeaderError, IntegrityError, NameError_
from cryptfs.rekey.aside import Aside
from cryptfs.rekey.both import TEMP_MARK, BothKeys, Located
from cryptfs.rekey.changes import Changes, Linked, OldEntry, is_made, is_plain
from cryptfs.rekey.directory import Dir, give_rights, places_of
from cryptfs.rekey.memory import LinkMemory
from cryptfs.rekey.pipeline import Pipeline, Steps
from cryptfs.rekey.report import Report, Unauthentic
from cryptfs.storage.backing import O_NOATIME, open_backing
from cryptfs.storage.dirs import copied_long_entries, is_leftover, is_long, list_names, open_directory
from cryptfs.storage.libc import UTIME_OMIT, utimensat
from cryptfs.storage.records import read_record
from cryptfs.storage.removal import remove_directory
from cryptfs.vfs.scan.roles import Role, role_of
from cryptfs.vfs.tree.symlinks import long_target_id, read_target


class TreePass:
    """One pass. long_targets: the ids of those that a symlink names."""

    def __init__(
        self,
        both: BothKeys,
        memory: LinkMemory,
        pipeline: Pipeline,
        changes: Changes,
        aside: Aside,
        report: Report,
    ) -> None:
        self.long_targets: set[str] = set()
        self._both = both
        self._memory = memory
        self._pipeline = pipeline
        self._changes = changes
        self._aside = aside
        self._report = report
        self._linking: set[int] = set()

    def run(self) -> None:
        """All of the vault; on return no change is under way. Raises: OSError."""
        self._report.restart()
        stack = [self._opened(Dir.root(self._both, self._memory))]
        while stack:
            directory, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                self._less(directory)
                continue
            self._report.show()
            try:
                child = self._entry(directory, name)
            except PermissionError as error:
                self._unreadable(directory.path_of(name), error)
                continue
            if child is not None:
                directory.pending += 1
                stack.append(self._opened(child))
        self._pipeline.drain()

    def _opened(self, directory: Dir) -> tuple[Dir, Iterator[str]]:
        self._report.directories += 1
        try:
            names = sorted(list_names(directory.fd))
        except PermissionError as error:
            self._unreadable(directory.cipher_path, error)
            names = []
        return directory, iter(names)

    def _unreadable(self, cipher_path: str, error: OSError) -> None:
        self._report.unreadable.append((cipher_path or ".", error.strerror or str(error)))

    def _start(self, directory: Dir, change: Steps, size: int = 0) -> None:
        self._report.changed = True
        directory.pending += 1
        self._pipeline.start(change, size, lambda: self._less(directory))

    def _less(self, directory: Dir) -> None:
        """One thing less that is under way in a directory; the last one makes its own change begin."""
        above: Dir | None = directory
        while above is not None:
            above.pending -= 1
            if above.pending:
                return
            parent = above.parent
            if self._remove_sidecars(above) or self._is_old(above):
                self._report.changed = True
                done = above

                def after(done: Dir = done, parent: Dir | None = parent) -> None:
                    done.close()
                    if parent is not None:
                        self._less(parent)

                self._pipeline.start(self._changes.directory(above), 0, after)
                return
            above.end()
            above.close()
            above = parent

    def _is_old(self, directory: Dir) -> bool:
        """Whether anything of a directory itself is old: its name, its record, its attributes."""
        found, record = directory.located, directory.record
        if found is not None and not found.is_new:
            return True
        if not directory.is_new or (record is not None and record.is_moving):
            return True
        return any(fresh is not None for _, fresh in self._changes.old_xattrs(directory))

    def _remove_sidecars(self, directory: Dir) -> bool:
        """Remove the sidecars of entries that have gone; whether there were any."""
        removed = False
        copied: frozenset[str] | None = None
        for name in directory.sidecars:
            entry_name = name.removesuffix(SIDECAR_SUFFIX)
            if directory.holds(entry_name):
                continue
            if copied is None:
                copied = copied_long_entries(directory.fd)
            if entry_name not in copied:
                directory.begin()
                os.unlink(name, dir_fd=directory.fd)
                removed = True
        return removed

    # ---- entries

    def _entry(self, directory: Dir, name: str) -> Dir | None:
        """One entry: begins its change. Returns a directory to go down into."""
        role = role_of(name)
        if role is Role.SIDECAR:
            directory.sidecars.append(name)
        if role in (Role.SIDECAR, Role.RECORD):
            return None
        try:
            st = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if role is Role.TEMPORARY:
            self._leftover(directory, name, st)
            return None
        found = directory.names.locate(directory.fd, name)
        if found is None:
            if role is Role.ENTRY or (is_long(name) and not name.endswith(SIDECAR_SUFFIX)):
                self._set_aside(directory, name, "the name does not verify")
            return None
        entry = OldEntry(directory, name, found, st)
        if stat.S_ISDIR(st.st_mode):
            return self._directory(entry)
        if found.is_new:
            self._check_new(entry)
        elif directory.holds(entry.new_entry_name):
            self._twice(entry)
        else:
            self._change(entry)
        return None

    def _change(self, entry: OldEntry) -> None:
        st = entry.st
        if is_plain(st.st_mode) or (stat.S_ISREG(st.st_mode) and not st.st_size):
            self._count(st)
            self._start(entry.directory, self._changes.moved(entry))
        elif stat.S_ISLNK(st.st_mode):
            self._symlink(entry)
        else:
            self._file(entry)

    def _count(self, st: os.stat_result) -> None:
        report = self._report
        if stat.S_ISREG(st.st_mode):
            report.files += 1
        elif stat.S_ISLNK(st.st_mode):
            report.symlinks += 1
        else:
            report.others += 1

    def _file(self, entry: OldEntry) -> None:
        try:
            plan = self._changes.plan(entry)
        except IntegrityError as error:
            self._set_aside(entry.directory, entry.entry_name, error.reason)
            return
        self._count(entry.st)
        linked = self._link_of(entry)
        if linked is not None and linked.made:
            fd = open_backing(self._both.rekey_fd, linked.name, os.O_RDONLY | O_NOATIME)[0]
            try:
                fits = is_made(self._both, fd, plan)
            finally:
                os.close(fd)
            if fits:
                self._start(entry.directory, self._changes.linked(entry, linked))
                return
            linked = self._forget_link(linked)
        change = self._changes.resealed(entry, plan, linked)
        self._start_linked(entry, change, linked, entry.st.st_size)

    def _start_linked(self, entry: OldEntry, change: Steps, linked: Linked | None, size: int) -> None:
        """Begin a change that makes the new file of all names of an old one."""
        if linked is None:
            self._start(entry.directory, change, size)
            return
        inode, linking = entry.st.st_ino, self._linking

        def noted() -> Steps:
            linking.add(inode)
            try:
                yield from change
            finally:
                linking.discard(inode)

        self._start(entry.directory, noted(), size)

    def _link_of(self, entry: OldEntry) -> Linked | None:
        """How a file comes to its further names; None if it never had any."""
        inode, links = entry.st.st_ino, self._memory.links
        while inode in self._linking:
            self._pipeline.advance()
        if entry.st.st_nlink == 1 and inode not in links:  # its other names may have gone already
            return None
        return Linked(str(inode), made=inode in links)

    def _forget_link(self, linked: Linked) -> Linked:
        """The new file with an inode's number was that of another old file, which had the number before."""
        os.unlink(linked.name, dir_fd=self._both.rekey_fd)
        self._memory.links.discard(int(linked.name))
        return Linked(linked.name, made=False)

    def _symlink(self, entry: OldEntry) -> None:
        opened = self._target(entry)
        if opened is None:
            self._set_aside(entry.directory, entry.entry_name, "the symlink target does not authenticate")
            return
        self._count(entry.st)
        target, bound = opened
        linked = None if bound else self._link_of(entry)
        if linked is not None and linked.made:
            if self._target_of_text(linked.name, self._both.rekey_fd, b"", b"", new=True) == (target, False):
                self._start(entry.directory, self._changes.linked(entry, linked))
                return
            linked = self._forget_link(linked)
        change = self._changes.symlink(entry, target, bound=bound, linked=linked)
        self._start_linked(entry, change, linked, 0)

    def _target(self, entry: OldEntry, *, new: bool = False) -> tuple[bytes, bool] | None:
        """Target of a symlink, and whether it is bound; None if it does not open.

        Args: new: under the new masterkey, at the new name.
        """
        directory = entry.directory
        if new:
            siv = siv_of(directory.names.new_cipher_name(entry.located))
            dir_id, name = directory.new_dir_id, entry.new_entry_name
        else:
            siv, dir_id, name = siv_of(entry.located.cipher_name), directory.old_dir_id, entry.entry_name
        return self._target_of_text(name, directory.fd, dir_id, siv, new=new)

    def _target_of_text(
        self, name: str, dir_fd: int, dir_id: bytes, siv: bytes, *, new: bool
    ) -> tuple[bytes, bool] | None:
        keys = self._both.new.keys if new else self._both.old.keys
        try:
            text = _text_of(name, dir_fd)
            return read_target(
                text, self._changes.links_fd, keys.links_key, dir_id or bytes(16), siv or bytes(16)
            )
        except (NameError_, OSError):
            return None

    # ---- what a run before this one, or somebody else, has left

    def _check_new(self, entry: OldEntry) -> None:
        """An entry with a new name: so must be its content."""
        directory, name, st = entry.directory, entry.entry_name, entry.st
        self._count(st)
        if stat.S_ISLNK(st.st_mode):
            if self._target(entry, new=True) is None:
                self._set_aside(directory, name, "the symlink target is not of the new masterkey")
                return
            link_id = long_target_id(_text_of(name, directory.fd))
            if link_id is not None:
                self.long_targets.add(link_id)
        elif stat.S_ISREG(st.st_mode) and st.st_size:
            try:
                fd = self._changes.open_old(entry)
                try:
                    self._changes.restore_mode(entry, fd)
                    self._both.new.header_of(fd)
                finally:
                    os.close(fd)
            except IntegrityError as error:
                self._set_aside(directory, name, f"not of the new masterkey: {error.reason}")
                return
            self._report.add_size(st.st_size)

    def _twice(self, entry: OldEntry) -> None:
        """Old and new name are both there: after a kill, or because somebody brought the old one back."""
        if self._was_made(entry):
            self._count(entry.st)
            self._start(entry.directory, self._changes.removed(entry))
        else:
            self._set_aside(entry.directory, entry.entry_name, "another version has its name")

    def _was_made(self, entry: OldEntry) -> bool:
        """Whether the new entry is the one that a run before this one made of the old one."""
        directory, st = entry.directory, entry.st
        there = os.stat(entry.new_entry_name, dir_fd=directory.fd, follow_symlinks=False)
        if stat.S_IFMT(there.st_mode) != stat.S_IFMT(st.st_mode):
            return False
        if stat.S_ISLNK(st.st_mode):
            return self._target(entry) == self._target(entry, new=True) is not None
        if not (stat.S_ISREG(st.st_mode) and st.st_size):
            return os.path.samestat(st, there)
        try:
            plan = self._changes.plan(entry)
        except IntegrityError:
            return False
        made = entry._replace(entry_name=entry.new_entry_name, st=there)
        fd = self._changes.open_old(made)
        try:
            self._changes.restore_mode(made, fd)
            return is_made(self._both, fd, plan)
        finally:
            os.close(fd)

    def _leftover(self, directory: Dir, name: str, st: os.stat_result) -> None:
        """A temporary entry: one of a change of the masterkey goes, another one by what it holds."""
        is_directory = stat.S_ISDIR(st.st_mode)
        if not own_part(name).startswith(TEMP_MARK):
            if not is_leftover(name, st, self._both.owner):
                return
            if self._has_header(directory, name, st):
                self._set_aside(directory, name, "the rest of an interrupted operation")
                return
        directory.begin()
        if not is_directory:
            os.unlink(name, dir_fd=directory.fd)
            return
        try:
            remove_directory(directory.fd, name, self._both.owner)
        except OSError:
            self._set_aside(directory, name, "the rest of an interrupted operation")

    def _has_header(self, directory: Dir, name: str, st: os.stat_result) -> bool:
        if not stat.S_ISREG(st.st_mode):
            return False
        try:
            fd = open_backing(directory.fd, name, os.O_RDONLY)[0]
        except (OSError, IntegrityError):
            return True
        try:
            return self._both.old.header_of(fd) is not None
        except HeaderError:
            return False
        finally:
            os.close(fd)

    # ---- directories

    def _directory(self, entry: OldEntry) -> Dir | None:
        directory, name, found = entry.directory, entry.entry_name, entry.located
        if not found.is_new and directory.holds(entry.new_entry_name):
            self._set_aside(directory, name, "another directory has its name")
            return None
        fd = open_directory(directory.fd, name)
        try:
            self._let_search(fd, entry.st)
            record, is_new = self._record(fd)
            reason = self._misfit(directory, found, record, is_new=is_new)
            if reason:
                raise DirectoryRecordError(reason)
        except DirectoryRecordError as error:
            os.close(fd)
            self._set_aside(directory, name, error.reason)
            return None
        except BaseException:
            os.close(fd)
            raise
        return Dir(self._both, self._memory, fd, directory, name, found, record, is_new=is_new)

    def _let_search(self, fd: int, st: os.stat_result) -> None:
        """A directory that its owner may not read or search: the owner gets the right, until its end."""
        if st.st_mode & (stat.S_IRUSR | stat.S_IXUSR) != stat.S_IRUSR | stat.S_IXUSR and os.geteuid():
            self._memory.directory(st)
            give_rights(fd, st)

    def _record(self, fd: int) -> tuple[DirectoryRecord, bool]:
        """A directory's record, and whether it is new. Raises: DirectoryRecordError: it is neither."""
        raw = read_record(fd)
        with contextlib.suppress(DirectoryRecordError):
            return open_directory_record(raw, self._both.new.keys), True
        return open_directory_record(raw, self._both.old.keys), False

    def _misfit(self, parent: Dir, found: Located, record: DirectoryRecord, *, is_new: bool) -> str:
        """Why a record does not count there; "" if it does."""
        old_place, new_place = places_of(parent, found)
        if not is_new and found.is_new:
            return "an old directory record under a new name"
        rules = self._both.new.config.record_rules
        return rules.misfit(record, new_place if found.is_new else old_place)

    # ---- damage

    def _set_aside(self, directory: Dir, name: str, reason: str) -> None:
        directory.begin()
        self._report.changed = True
        cipher_path = directory.path_of(name)
        aside = self._aside.put(directory.fd, name, cipher_path, reason)
        self._report.damages.append(Unauthentic(cipher_path, reason, aside))


def _text_of(name: str, dir_fd: int) -> str:
    """The text of a symlink, which keeps its time of access."""
    st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    text = os.readlink(name, dir_fd=dir_fd)
    with contextlib.suppress(PermissionError):
        utimensat(dir_fd, name, (*divmod(st.st_atime_ns, 10**9), 0, UTIME_OMIT))
    return text
