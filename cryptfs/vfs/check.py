"""Checks a whole vault: what `cryptfs fsck` does, with or without a repair.

    check = VaultCheck(context, vault_fd, deep=True)
    for finding in check.run():
        ...

Nothing is written unless a Repairer is given. Findings come as they are made; nothing but counters is kept
of what was in order. A vault that is mounted meanwhile can be checked, too: what looks damaged is looked at
again before it counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator

from cryptfs.core.aead import Kind as AadKind
from cryptfs.core.config import CONFIG_NAME
from cryptfs.core.host import StateNames, is_aside, state_of_name
from cryptfs.core.journal import Sessions
from cryptfs.core.names import SIDECAR_SUFFIX
from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.storage.dirs import copied_long_entries, is_leftover, is_long
from cryptfs.storage.sessions import read_sessions_file
from cryptfs.storage.vaultdir import LOCK_NAME, lock_holder
from cryptfs.vfs.check_content import ContentCheck, in_lost_found
from cryptfs.vfs.check_directories import (
    ADOPTION_MARK,
    belongs_elsewhere,
    has_adoption_mark,
    holds_vault_content,
)
from cryptfs.vfs.check_files import Problem
from cryptfs.vfs.check_small import LinkCheck, Owner
from cryptfs.vfs.context import FileContext
from cryptfs.vfs.findings import Counts, Finding, Kind, State
from cryptfs.vfs.lost_found import LOST_FOUND
from cryptfs.vfs.repair import Repairer
from cryptfs.vfs.replay import waiting_journals
from cryptfs.vfs.reporter import Reporter, reason_of
from cryptfs.vfs.roles import Role
from cryptfs.vfs.symlinks import LINKS_DIRECTORY, is_long_target_id, open_links_directory
from cryptfs.vfs.vault import Vault
from cryptfs.vfs.walk import WalkedDirectory, WalkedEntry, Walker

_JOURNAL_NAME = re.compile(r"cryptfs\.(host\.[^.]*\.)?journal.*", re.ASCII | re.DOTALL)


class VaultCheck:
    """One check of a vault; to be run once.

    Args: context: keys and config.   vault_fd: the vault directory; stays the caller's.
          deep: open every chunk of every file.   repairer: mends what is found; None writes nothing.
          is_mounted: whether somebody has the vault mounted now.   workers: threads of a deep check.
          on_progress: called whenever `counts` have changed.
    """

    def __init__(
        self,
        context: FileContext,
        vault_fd: int,
        *,
        deep: bool = False,
        repairer: Repairer | None = None,
        is_mounted: Callable[[], bool] = lambda: False,
        workers: int | None = None,
        on_progress: Callable[[Counts], None] = lambda _: None,
    ) -> None:
        self.counts = Counts()
        self._context = context
        self._vault_fd = vault_fd
        self._on_progress = on_progress
        self._repairer = repairer
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

    def run(self) -> Generator[Finding, None, None]:
        """Check everything; the findings, as they are made. Raises: OSError: the root cannot be read."""
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
            for cipher_path, reason in self._walker.skipped:
                yield Finding(Kind.UNREADABLE, cipher_path, None, reason)
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
                yield reporter.found(Kind.UNREADABLE, directory, reason_of(error))
                return
            assert isinstance(error, DirectoryRecordError)
            yield self._bad_record(directory, error.reason)
        elif has_adoption_mark(self._context, directory):
            yield self._without_names(
                reporter.found(
                    Kind.UNFINISHED_ADOPTION,
                    directory,
                    "",
                    lambda repairer: repairer.directories.adopt(walker, directory),
                ),
                directory,
            )
        elif reporter.seems(lambda: belongs_elsewhere(walker, directory)):
            reason = "it belongs to another directory: no name here verifies with it"
            yield self._without_names(self._bad_record(directory, reason), directory)
        if directory.dir_id is not None:
            owner = Owner(AadKind.XATTR_OF_DIRECTORY, directory.dir_id)
            yield from self._content.xattrs(directory, directory.fd, owner)

    @staticmethod
    def _without_names(finding: Finding, directory: WalkedDirectory) -> Finding:
        """As long as a directory has the wrong dir_id, nothing is said of what would not verify with it."""
        if finding.state is not State.REPAIRED:
            directory.dir_id = directory.names = None
        return finding

    def _bad_record(self, directory: WalkedDirectory, detail: str) -> Finding:
        return self._reporter.found(
            Kind.DIRECTORY_RECORD,
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
                yield self._reporter.found(Kind.CONFLICT_COPY, entry)
                yield from self._named_entry(entry)
            case Role.SIDECAR:
                yield from self._sidecar(entry)
            case Role.TEMPORARY:
                yield from self._leftover(entry)
            case Role.FOREIGN:
                yield self._foreign(entry)
            case _:
                yield from self._internal(entry)

    def _named_entry(self, entry: WalkedEntry) -> Iterator[Finding]:
        if entry.directory.names is not None and entry.damage is not None:
            finding = self._bad_name(entry)
            if finding is None:
                return
            yield finding
            if finding.state is State.REPAIRED and entry.damage is not None:
                entry.descend = False  # now in lost+found, which comes last
                return
        kind = stat.S_IFMT(entry.st.st_mode)
        if kind == stat.S_IFREG:
            yield from self._content.file(entry)
        elif kind == stat.S_IFLNK:
            yield from self._symlink(entry)
        elif kind != stat.S_IFDIR:
            self.counts.others += 1

    def _bad_name(self, entry: WalkedEntry) -> Finding | None:
        """None where the name is all right by now, or the entry gone."""
        assert entry.damage is not None

        def is_bad() -> bool:
            again = self._walker.look_at(entry.directory, entry.entry_name)
            return again is not None and again.damage is not None

        if not self._reporter.seems(is_bad):
            return None
        lost = is_long(entry.entry_name) and entry.cipher_name is None
        return self._reporter.found(
            Kind.SIDECAR if lost else Kind.UNVERIFIED_NAME,
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
            return
        if in_lost_found(entry):
            yield self._reporter.found(Kind.SET_ASIDE, entry, problem.detail)
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
                Kind.ORPHANED_SIDECAR, entry, "", lambda repairer: repairer.remove_own(entry)
            )

    def _leftover(self, entry: WalkedEntry) -> Iterator[Finding]:
        directory = entry.directory
        if entry.entry_name == ADOPTION_MARK and directory.names is None:
            return  # told with its directory
        if not is_leftover(entry.entry_name, entry.st, self._context.owner):
            yield self._reporter.found(Kind.OTHER_UNFINISHED, entry)
            return
        if self._reporter.seems(lambda: directory.holds(entry.entry_name)):
            finding = self._reporter.found(
                Kind.LEFTOVER, entry, "", lambda repairer: repairer.mend_leftover(self._walker, entry)
            )
            self._may_hide_links(entry, finding)
            yield finding

    def _foreign(self, entry: WalkedEntry) -> Finding:
        if not holds_vault_content(self._context, entry):
            return self._reporter.found(Kind.FOREIGN, entry)
        finding = self._reporter.found(Kind.STRAY, entry, "", lambda repairer: repairer.rescue_stray(entry))
        self._may_hide_links(entry, finding)
        return finding

    def _may_hide_links(self, entry: WalkedEntry, finding: Finding) -> None:
        """The walk does not go down there; what a repair moves to lost+found, it meets at the end."""
        if not stat.S_ISREG(entry.st.st_mode) and finding.state is not State.REPAIRED:
            self._links.complete = False

    def _internal(self, entry: WalkedEntry) -> Iterator[Finding]:
        name, mode, found = entry.entry_name, entry.st.st_mode, self._reporter.found
        owner = self._context.owner
        ours = name in (CONFIG_NAME, LOCK_NAME, LINKS_DIRECTORY, *owner.files)
        other = state_of_name(name)
        if entry.directory.is_root and not ours and other is not None and other.host:
            yield from self._of_other_machine(entry, other)
        elif not entry.directory.is_root or not ours:
            journal = _JOURNAL_NAME.fullmatch(name) is not None
            if journal and entry.directory.is_root and other is not None:
                yield from self._of_other_machine(entry, other)
            elif is_aside(name):
                yield found(Kind.SET_ASIDE, entry)
            else:
                yield found(Kind.ORPHANED_JOURNAL if journal else Kind.UNKNOWN_INTERNAL, entry)
        elif stat.S_IFMT(mode) != (stat.S_IFDIR if name == LINKS_DIRECTORY else stat.S_IFREG):
            yield found(Kind.SPECIAL_FILE, entry)
        elif name in owner.journals and not self._reporter.is_mounted():
            yield found(Kind.UNFINISHED_JOURNAL, entry)
        elif name == owner.sessions and self._reporter.seems(self._sessions_are_bad):
            yield found(Kind.SESSIONS, entry, "", lambda repairer: repairer.remove_own(entry))

    def _of_other_machine(self, entry: WalkedEntry, other: StateNames) -> Iterator[Finding]:
        """Journals are told, once for each machine; the rest belongs there where machines share a vault."""
        if entry.entry_name in other.journals and other not in self._others:
            self._others.add(other)
            yield self._reporter.found(Kind.OTHER_SESSION, entry)

    def _sessions_are_bad(self) -> bool:
        try:
            raw = read_sessions_file(self._vault_fd, self._context.owner)
        except (IntegrityError, OSError):
            return True
        return raw is not None and Sessions.unpack(raw, self._context.keys, self._context.owner) is None

    # ---- what can be told only at the end

    def _orphaned_targets(self) -> Iterator[Finding]:
        """Long targets that no symlink names; only told where every symlink was seen and could be read."""
        links = self._links
        if links.links_fd is None or not links.complete or self._walker.skipped:
            return
        if self._reporter.is_mounted():
            return  # there is no telling what was made, or moved, behind the walk
        listing_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=links.links_fd)
        try:
            with os.scandir(listing_fd) as found:
                for item in found:
                    path = f"{LINKS_DIRECTORY}/{item.name}"
                    if not is_long_target_id(item.name):
                        yield Finding(Kind.FOREIGN, path, None)
                    elif not links.is_named(item.name):
                        finding = Finding(Kind.ORPHANED_TARGET, path, None)
                        yield self._reporter.treated(finding, links.removing(item.name))
        finally:
            os.close(listing_fd)


def check_vault(
    vault: Vault,
    *,
    deep: bool = False,
    repair: bool = False,
    on_progress: Callable[[Counts], None] = lambda _: None,
) -> VaultCheck:
    """A check of an unlocked vault.

    Args: vault: to be repaired, with its lock, not read-only, and without a redo log, which would hold
                 files open; else best unlocked without its lock.
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
        is_mounted=lambda: not vault.has_lock and lock_holder(vault.vault_dir) is not None,
        on_progress=on_progress,
    )


def count_content(vault: Vault) -> int:
    """Bytes of plaintext in all files, from their lengths alone: what a deep check has to go through."""
    context = vault.context
    walker = Walker(context, vault.descriptor)
    total = 0
    for directory in walker.directories():
        for entry in walker.entries(directory):
            if entry.role in (Role.ENTRY, Role.CONFLICT) and stat.S_ISREG(entry.st.st_mode):
                total += context.geometry.plain_size_floor(entry.st.st_size)
    return total
