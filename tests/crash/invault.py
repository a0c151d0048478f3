"""Programs carried out in a vault that is open in this process, and what is found in one afterwards."""

from __future__ import annotations

import contextlib
import os
import stat

from cryptfs.errors import DirectoryRecordError, IntegrityError
from cryptfs.vfs.content import ranges
from cryptfs.vfs.content.openfile import OpenFile
from tests.crash.history import Damaged, FileHistory, Folder, Found, Link, Rules
from tests.crash.program import Operation, Program
from tests.support import BareVault


class InVault:
    """Does the operations of a program. Files stay open from one to the next, as in a program that works."""

    def __init__(self, vault: BareVault, program: Program) -> None:
        self.vault = vault
        self.program = program
        self._open: dict[FileHistory, OpenFile] = {}

    def step(self) -> Operation:
        """One operation, and the promise that goes with it."""
        operation = self.program.next()
        self._do(operation)
        self.program.returned(operation)
        return operation

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self.vault.tree.release(self._open.popitem()[1])

    def _handle(self, history: FileHistory, name: bytes) -> OpenFile:
        known = self._open.get(history)
        if known is None:
            known = self._open[history] = self.vault.tree.open(self.vault.root, name, os.O_RDWR)
        return known

    def _do(self, operation: Operation) -> None:
        tree, root, name, other = self.vault.tree, self.vault.root, operation.name, operation.other
        match operation.kind:
            case "create":
                file = tree.create(root, name, os.O_RDWR | os.O_EXCL, 0o600)
                self._open[self.program.file(name)] = file
            case "symlink":
                tree.make_symlink(root, name, other)
            case "mkdir":
                tree.make_directory(root, name, 0o755)
            case "rmdir":
                tree.remove_directory(root, name)
            case "unlink":
                tree.unlink(root, name)
            case "link":
                tree.link(root, name, root, other)
            case "rename":
                tree.rename(root, name, root, other)
            case "sync directory":
                tree.sync_directory(root)
            case "reopen":
                handle = self._open.pop(self.program.file(name), None)
                if handle is not None:
                    tree.release(handle)
            case _:
                self._do_file(operation, self._handle(self.program.file(name), name))

    def _do_file(self, operation: Operation, file: OpenFile) -> None:
        match operation.kind:
            case "write":
                file.write(operation.offset, operation.content)
            case "truncate":
                file.truncate(operation.length)
            case "allocate":
                ranges.allocate(file, operation.mode, operation.offset, operation.length)
            case _:
                self.vault.tree.sync_file(file, data_only=operation.kind == "fdatasync")


def chunks_in_vault(vault: BareVault, name: bytes) -> list[bytes | None]:
    """The chunks of a file; None for one that does not authenticate, or for a file that cannot be opened."""
    chunk_size = vault.config.chunk_size
    found: list[bytes | None] = []
    try:
        file = vault.tree.open(vault.root, name, os.O_RDONLY)
    except IntegrityError:
        return [None]
    try:
        with contextlib.suppress(IntegrityError):
            file.read(0, 1)
        size = file.state.size if file.state.damage is None else max(vault.tree.stat_open(file).size, 1)
        for start in range(0, size, chunk_size):
            try:
                found.append(file.read(start, chunk_size))
            except IntegrityError:
                found.append(None)
    finally:
        vault.tree.release(file)
    return found


def find(vault: BareVault) -> dict[bytes, Found]:
    """Everything in a vault's root."""
    found: dict[bytes, Found] = {}
    for entry in vault.tree.list(vault.root):
        kind = vault.tree.stat(vault.root, entry.name).st.st_mode
        if stat.S_ISLNK(kind):
            found[entry.name] = Link(vault.tree.symlinks.read(vault.root, entry.name))
        elif stat.S_ISDIR(kind):
            found[entry.name] = _folder(vault, entry.name)
        else:
            found[entry.name] = chunks_in_vault(vault, entry.name)
    return found


def _folder(vault: BareVault, name: bytes) -> Folder | Damaged:
    try:
        assert not list(vault.tree.list(vault.tree.directory(vault.root, name)))
    except DirectoryRecordError:
        return Damaged()
    return Folder()


def findings(vault: BareVault, program: Program, rules: Rules) -> list[str]:
    """What is wrong with a vault that a program was interrupted in."""
    try:
        found = find(vault)
    except (IntegrityError, OSError) as error:
        return [f"{type(error).__name__}: {error}"]
    return program.names.findings(found, rules)
