"""Checks a whole vault: `cryptfs fsck`, with or without a repair.

    check = VaultCheck(context, vault_fd, deep=True)
    for finding in check.run():
        ...

A check writes nothing unless it gets a Repairer. It yields each finding at once, and keeps only counters of
entries in order. It can also check a mounted vault: before damage there counts, the check looks again.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator

from cryptfs.core.aead import Kind
from cryptfs.core.format.journal import Sessions
from cryptfs.core.names.dirrecord import RECORD_NAME
from cryptfs.core.names.host import StateNames, is_aside, state_of_name
from cryptfs.core.names.litter import FRONT_END_NAME, OF_THE_DISK
from cryptfs.core.names.names import SET_ASIDE_NAME, SIDECAR_SUFFIX
from cryptfs.core.printable import shown
from cryptfs.core.slots.checks import CONFIG_NAME, NEXT_RECOVERY_NAME, RECOVERY_NAME
from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.fsck.content import ContentCheck, in_lost_found
from cryptfs.fsck.directories import (
    ADOPTION_MARK,
    belonging,
    belongs_elsewhere,
    has_adoption_mark,
    holds_vault_content,
)
from cryptfs.fsck.files import Problem
from cryptfs.fsck.findings import Counts, Finding, FindingKind, State
from cryptfs.fsck.lost_found import LOST_FOUND, LostAndFound
from cryptfs.fsck.repair import Repairer
from cryptfs.fsck.reporter import Reporter, reason_of
from cryptfs.fsck.small import LinkCheck, Owner
from cryptfs.storage.dirs import copied_long_entries, is_leftover, is_long, list_names, open_directory
from cryptfs.storage.records import is_in_parent
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import LOCK_NAME, lock_holder
from cryptfs.vfs.content.context import FileContext
from cryptfs.vfs.recovery.replay import waiting_journals
from cryptfs.vfs.scan.roles import Role
from cryptfs.vfs.scan.walk import WalkedDirectory, WalkedEntry, Walker
from cryptfs.vfs.tree.symlinks import LINKS_DIRECTORY, is_long_target_id, open_links_directory
from cryptfs.vfs.vault import Vault

_JOURNAL_NAME = re.compile(r"cryptfs\.(host\.[^.]*\.)?journal.*", re.ASCII | re.DOTALL)


class VaultCheck:
    """One check of a vault; to be run once.

    Args: context: keys and config.   vault_fd: the vault directory; stays the caller's.
          deep: open every chunk of every file.   repairer: repairs findings; None writes nothing.
          with_others: finish what other machines began as well.
          words_are_lost: whether the recovery record did not fit when the vault was unlocked.
          is_mounted: whether the vault is mounted now.   workers: threads of a deep check.
          on_progress: called whenever `counts` have changed.
    """

    def __init__(
        self,
        context: FileContext,
        vault_fd: int,
        *,
        deep: bool = False,
        repairer: Repairer | None = None,
        with_others: bool = False,
        words_are_lost: bool = False,
        is_mounted: Callable[[], bool] = lambda: False,
        workers: int | None = None,
        on_progress: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._context = context
        self._vault_fd = vault_fd
        self._on_progress = on_progress
        self._repairer = repairer
        self._with_others = with_others
        self._words_are_lost = words_are_lost
        self._reporter = Reporter(repairer, is_mounted)
        self._others: set[StateNames] = set()
        self._walker = walker = Walker(context, vault_fd)
        walker.last = walker.name_cipher.in_directory(context.keys.root_dir_id).seal(LOST_FOUND)
        self._links = LinkCheck(context, open_links_directory(vault_fd))
        self._content = ContentCheck(
            context,
            walker.name_cipher.of_xattrs(),
            self._reporter,
            self.counts,
            waiting=lambda: waiting_journals(context, vault_fd),
            deep=deep,
            workers=workers,
            on_progress=on_progress,
        )

    @property
    def lost_found(self) -> LostAndFound | None:
        """What a repair puts in lost+found; None without a repair."""
        return None if self._repairer is None else self._repairer.lost_found

    def run(self) -> Generator[Finding, None, None]:
        """Check everything; yields each finding at once. Raises: OSError: the root cannot be read."""
        try:
            with contextlib.closing(self._walker.directories()) as directories:
                for directory in directories:
                    self.counts.directories += 1
                    yield from self._directory(directory)
                    with contextlib.closing(self._walker.entries(directory)) as entries:
                        for entry in entries:
                            yield from self._entry(entry)
                            self._on_progress(self.counts)
            yield from self._content.conclude_files(0)
            yield from self._orphaned_targets()
            if self._words_are_lost:
                yield Finding(FindingKind.RECOVERY_RECORD, RECOVERY_NAME, None)
            for cipher_path, reason in self._walker.skipped:
                yield Finding(FindingKind.UNREADABLE, cipher_path, None, reason)
            yield from self._content.outside_links()
        finally:
            self._content.close()
            self._links.close()
            if self._repairer is not None:
                self._repairer.close()

    # ---- directories

    def _directory(self, directory: WalkedDirectory) -> Iterator[Finding]:
        walker, reporter = self._walker, self._reporter

        def record_is_bad() -> bool:
            if directory.damage is not None:
                walker.read_record(directory)
            return directory.damage is not None and directory.exists()

        if reporter.seems(record_is_bad):
            error = directory.damage
            if isinstance(error, OSError):
                yield reporter.found(FindingKind.UNREADABLE, directory, reason_of(error))
                return
            assert isinstance(error, DirectoryRecordError)
            yield self._bad_record(directory, error.reason)
        elif has_adoption_mark(self._context, directory):
            yield from self._place(directory)
            yield self._without_names(
                reporter.found(
                    FindingKind.UNFINISHED_ADOPTION,
                    directory,
                    "",
                    lambda repairer: repairer.directories.adopt(walker, directory),
                ),
                directory,
            )
        elif reporter.seems(lambda: belongs_elsewhere(walker, directory)):
            reason = "it belongs to another directory: no name here verifies with it"
            yield self._without_names(self._bad_record(directory, reason), directory)
        else:
            yield from self._place(directory)
        if directory.dir_id is not None:
            owner = Owner(Kind.XATTR_OF_DIRECTORY, directory.dir_id)
            yield from self._content.xattrs(directory, directory.fd, owner)

    def _place(self, directory: WalkedDirectory) -> Iterator[Finding]:
        """Whether the record of a directory counts where the directory is."""
        rules, place = self._context.config.record_rules, directory.place

        def misfit() -> str:
            return "" if directory.record is None else rules.misfit(directory.record, place)

        def is_misplaced() -> bool:
            self._walker.read_record(directory)
            # A mount may have moved it behind the walk.
            return bool(misfit()) and is_in_parent(directory.fd, directory.cipher_path.rpartition("/")[2])

        def bind(repairer: Repairer) -> str:
            return repairer.directories.bind(self._walker, directory)

        if directory.is_root or place is None:
            return
        if misfit() and self._reporter.seems(is_misplaced):
            detail = (belonging(self._walker, directory) if rules.bound else "") or misfit()
            yield self._reporter.found(FindingKind.MISPLACED, directory, detail, bind)
        elif directory.record is not None and directory.record.is_moving and not self._reporter.is_mounted():
            ours = directory.record.host == self._context.owner.digest or self._with_others
            detail = "" if ours else "another machine began it: see --other-machines"
            yield self._reporter.found(FindingKind.UNFINISHED_MOVE, directory, detail, bind if ours else None)

    @staticmethod
    def _without_names(finding: Finding, directory: WalkedDirectory) -> Finding:
        """The directory has the wrong dir_id: report no entry of it, since none verifies with it."""
        if finding.state is not State.REPAIRED:
            directory.dir_id = directory.names = None
        return finding

    def _bad_record(self, directory: WalkedDirectory, detail: str) -> Finding:
        return self._reporter.found(
            FindingKind.DIRECTORY_RECORD,
            directory,
            detail,
            lambda repairer: repairer.directories.mend_record(self._walker, directory),
        )

    # ---- entries

    def _entry(self, entry: WalkedEntry) -> Iterator[Finding]:
        match entry.role:
            case Role.ENTRY:
                yield from self._named_entry(entry)
            case Role.CONFLICT:
                yield self._reporter.found(FindingKind.CONFLICT_COPY, entry)
                yield from self._named_entry(entry)
            case Role.SIDECAR:
                yield from self._sidecar(entry)
            case Role.TEMPORARY:
                yield from self._leftover(entry)
            case _ if entry.role is Role.FOREIGN or is_long(entry.entry_name):
                of_the_disk = entry.directory.is_root and entry.entry_name == OF_THE_DISK
                if not (of_the_disk and stat.S_ISDIR(entry.st.st_mode)):
                    yield from self._foreign(entry)
            case _:
                yield from self._internal(entry)

    def _named_entry(self, entry: WalkedEntry) -> Iterator[Finding]:
        if entry.directory.names is not None and entry.damage is not None:
            finding = self._bad_name(entry)
            if finding is None:
                return
            yield finding
            if finding.state is State.REPAIRED and entry.damage is not None:
                entry.descend = False  # now in lost+found, which the walk reaches last
                return
        kind = stat.S_IFMT(entry.st.st_mode)
        if kind == stat.S_IFREG:
            yield from self._content.file(entry)
        elif kind == stat.S_IFLNK:
            yield from self._symlink(entry)
        elif kind != stat.S_IFDIR:
            self.counts.others += 1

    def _bad_name(self, entry: WalkedEntry) -> Finding | None:
        """None if the name is right now, or the entry is gone."""
        assert entry.damage is not None

        def is_bad() -> bool:
            again = self._walker.look_at(entry.directory, entry.entry_name)
            return again is not None and again.damage is not None

        if not self._reporter.seems(is_bad):
            return None
        lost = is_long(entry.entry_name) and entry.cipher_name is None
        return self._reporter.found(
            FindingKind.SIDECAR if lost else FindingKind.UNVERIFIED_NAME,
            entry,
            entry.damage.reason,
            lambda repairer: repairer.mend_name(self._walker, entry),
        )

    def _symlink(self, entry: WalkedEntry) -> Iterator[Finding]:
        self.counts.symlinks += 1
        problem: Problem | None = None

        def is_bad() -> bool:
            nonlocal problem
            try:
                problem = self._links.check(entry)
            except OSError:
                problem = None  # gone, or something else by now
            return problem is not None

        if not self._reporter.seems(is_bad) or problem is None:
            if self._context.config.record_rules.bound:
                yield from self._content.xattrs_of_link(entry, self._links.owner)
            return
        if in_lost_found(entry):
            yield self._reporter.found(FindingKind.SET_ASIDE, entry, problem.detail)
        else:
            yield self._reporter.found(
                problem.kind, entry, problem.detail, lambda repairer: repairer.set_aside(entry)
            )

    def _sidecar(self, entry: WalkedEntry) -> Iterator[Finding]:
        directory, owner = entry.directory, entry.entry_name.removesuffix(SIDECAR_SUFFIX)

        def is_orphaned() -> bool:
            if directory.holds(owner) or not directory.holds(entry.entry_name):
                return False
            return owner not in copied_long_entries(directory.fd)

        if self._reporter.seems(is_orphaned):
            yield self._reporter.found(
                FindingKind.ORPHANED_SIDECAR, entry, "", lambda repairer: repairer.remove_own(entry)
            )

    def _leftover(self, entry: WalkedEntry) -> Iterator[Finding]:
        directory = entry.directory
        if entry.entry_name == ADOPTION_MARK and directory.names is None:
            return  # reported with its directory
        if not is_leftover(entry.entry_name, entry.st, self._context.owner):
            yield self._reporter.found(FindingKind.OTHER_UNFINISHED, entry)
            return
        if self._reporter.seems(lambda: directory.holds(entry.entry_name)):
            finding = self._reporter.found(
                FindingKind.LEFTOVER, entry, "", lambda repairer: repairer.mend_leftover(self._walker, entry)
            )
            self._may_hide_links(entry, finding)
            yield finding

    def _foreign(self, entry: WalkedEntry) -> Iterator[Finding]:
        if not holds_vault_content(self._context, entry):
            if not (entry.directory.is_root and entry.entry_name == FRONT_END_NAME):
                yield self._reporter.found(FindingKind.FOREIGN, entry)
            return
        finding = self._reporter.found(
            FindingKind.STRAY, entry, "", lambda repairer: repairer.rescue_stray(entry)
        )
        self._may_hide_links(entry, finding)
        yield finding

    def _may_hide_links(self, entry: WalkedEntry, finding: Finding) -> None:
        """The walk does not go down there, but at the end it reaches what a repair moved to lost+found."""
        if not stat.S_ISREG(entry.st.st_mode) and finding.state is not State.REPAIRED:
            self._links.complete = False

    def _internal(self, entry: WalkedEntry) -> Iterator[Finding]:
        name, mode, found = entry.entry_name, entry.st.st_mode, self._reporter.found
        owner = self._context.owner
        recovery = (RECOVERY_NAME, NEXT_RECOVERY_NAME)
        ours = name in (CONFIG_NAME, LOCK_NAME, LINKS_DIRECTORY, *recovery, *owner.files)
        other = state_of_name(name)
        if entry.directory.is_root and name == SET_ASIDE_NAME and stat.S_ISDIR(mode):
            yield from self._set_aside_by_rekey(entry)
        elif entry.directory.is_root and not ours and other is not None and other.host:
            yield from self._of_other_machine(entry, other)
        elif not entry.directory.is_root or not ours:
            journal = _JOURNAL_NAME.fullmatch(name) is not None
            if journal and entry.directory.is_root and other is not None:
                yield from self._of_other_machine(entry, other)
            elif is_aside(name):
                yield found(FindingKind.SET_ASIDE, entry)
            elif name == RECORD_NAME:
                yield found(FindingKind.STRAY_RECORD, entry)
            else:
                yield found(FindingKind.ORPHANED_JOURNAL if journal else FindingKind.UNKNOWN_INTERNAL, entry)
        elif stat.S_IFMT(mode) != (stat.S_IFDIR if name == LINKS_DIRECTORY else stat.S_IFREG):
            yield found(FindingKind.SPECIAL_FILE, entry)
        elif name in owner.journals and not self._reporter.is_mounted():
            yield found(FindingKind.UNFINISHED_JOURNAL, entry)
        elif name == owner.sessions and self._reporter.seems(self._sessions_are_bad):
            yield found(FindingKind.SESSIONS, entry, "", lambda repairer: repairer.remove_own(entry))

    def _set_aside_by_rekey(self, entry: WalkedEntry) -> Iterator[Finding]:
        """The entries that the masterkey of their time did not open."""
        fd = open_directory(entry.directory.fd, entry.entry_name)
        try:
            names = sorted(list_names(fd))
        finally:
            os.close(fd)
        for name in names:
            if f"{name}.txt" in names:
                path = f"{entry.cipher_path}/{shown(name)}"
                yield Finding(FindingKind.SET_ASIDE, path, None, f"{path}.txt says where it was")

    def _of_other_machine(self, entry: WalkedEntry, other: StateNames) -> Iterator[Finding]:
        """Report journals, once for each machine; the other files belong there if machines share a vault."""
        if entry.entry_name in other.journals and other not in self._others:
            self._others.add(other)
            yield self._reporter.found(FindingKind.OTHER_SESSION, entry)

    def _sessions_are_bad(self) -> bool:
        try:
            raw = read_sessions_file(self._vault_fd, self._context.owner)
        except (IntegrityError, OSError):
            return True
        return raw is not None and Sessions.unpack(raw, self._context.keys, self._context.owner) is None

    # ---- findings that need the whole walk

    def _orphaned_targets(self) -> Iterator[Finding]:
        """Long targets that no symlink names; only if the check has read every symlink."""
        links = self._links
        if links.links_fd is None or not links.complete or self._walker.skipped:
            return
        if self._reporter.is_mounted():
            return  # programs may have made or moved entries behind the walk
        listing_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=links.links_fd)
        try:
            with os.scandir(listing_fd) as found:
                for item in found:
                    path = f"{LINKS_DIRECTORY}/{item.name}"
                    if not is_long_target_id(item.name):
                        yield Finding(FindingKind.FOREIGN, path, None)
                    elif links.is_named(item.name):
                        pass
                    elif item.is_dir(follow_symlinks=False):
                        yield Finding(
                            FindingKind.SPECIAL_FILE, path, None
                        )  # somebody else's, perhaps with content
                    else:
                        finding = Finding(FindingKind.ORPHANED_TARGET, path, None)
                        yield self._reporter.treated(finding, links.removing(item.name))
        finally:
            os.close(listing_fd)


def check_vault(
    vault: Vault,
    *,
    deep: bool = False,
    repair: bool = False,
    other_machines: bool = False,
    on_progress: Callable[[Counts], None] = lambda _: None,
) -> VaultCheck:
    """A check of an unlocked vault.

    Args: vault: for a repair with its lock, not read-only, and without a redo log, which would hold
                 files open; for a check best without its lock.
    """
    repairer = None
    if repair:
        vault.tree.require_writable()
        repairer = Repairer(vault.tree, vault.descriptor)
    return VaultCheck(
        vault.context,
        vault.descriptor,
        deep=deep,
        repairer=repairer,
        with_others=other_machines,
        words_are_lost=vault.words_are_lost,
        is_mounted=lambda: not vault.has_lock and lock_holder(vault.vault_dir) is not None,
        on_progress=on_progress,
    )


def count_content(vault: Vault) -> int:
    """Bytes of plaintext in all files, from their lengths alone: the work of a deep check."""
    context = vault.context
    walker = Walker(context, vault.descriptor)
    total = 0
    for directory in walker.directories():
        for entry in walker.entries(directory):
            if entry.role in (Role.ENTRY, Role.CONFLICT) and stat.S_ISREG(entry.st.st_mode):
                total += context.geometry.plain_size_floor(entry.st.st_size)
    return total
