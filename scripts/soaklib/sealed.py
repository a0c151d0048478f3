"""Authentic ciphertext made beside every mount: what another machine with the same vault would have made.

It is sealed with the pure core alone, so that no lock, journal or cache of a mount has a part in it.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptfs.core.aead import SMALL_NONCE_SIZE, ChunkCipher
from cryptfs.core.format.header import FileHeader, HeaderFlag
from cryptfs.core.geometry import HEADER_SIZE
from cryptfs.core.keys import DIR_ID_SIZE, FILE_ID_SIZE, file_content_key
from cryptfs.core.names.dirrecord import (
    RECORD_NAME,
    DirectoryRecord,
    pack_bound_record,
    pack_directory_record,
    unpack_directory_record,
)
from cryptfs.core.names.names import (
    LONG_PREFIX,
    SIDECAR_SUFFIX,
    DirectoryNames,
    NameCipher,
    long_entry_name,
    siv_of,
)
from cryptfs.errors import IntegrityError
from cryptfs.vfs.vault import Vault

MAX_ENTRY_NAME = 255


class Sealer:
    """Names, files and directory records of one vault. Close it when done.

    Args: vault_dir: where the names are looked up.   passphrase: opens the vault.
    """

    def __init__(self, vault_dir: Path, passphrase: bytes) -> None:
        self.vault_dir = vault_dir
        self._vault = Vault.unlock(vault_dir, passphrase, read_only=True, lock=False)
        self._config = self._vault.config
        self.geometry = self._config.geometry
        self._keys = self._vault.context.keys
        self._cipher = ChunkCipher(self._config.suite, self.geometry)
        self._names = NameCipher(self._keys)
        self._log2 = self._config.chunk_size.bit_length() - 1

    def record(self, backing: Path, dir_id: bytes = b"") -> bytes:
        """A directory record for this place. dir_id: empty for a fresh one."""
        dir_id = dir_id or os.urandom(DIR_ID_SIZE)
        if not self._config.record_rules.bound:
            return pack_directory_record(dir_id, self._keys)
        name = backing.name
        if name.startswith(LONG_PREFIX):
            name = backing.with_name(name + SIDECAR_SUFFIX).read_text("ascii")
        place = self.dir_id_of(backing.parent) + siv_of(name)
        return pack_bound_record(DirectoryRecord(dir_id, (place,)), self._keys)

    def was_moved(self, backing: Path) -> None:
        """A directory gets the record of its new place, as from the machine that moved it."""
        replace(backing / RECORD_NAME, self.record(backing, self.dir_id_of(backing)))

    def dir_id_of(self, backing: Path) -> bytes:
        """The dir_id of a backing directory. Raises: OSError, IntegrityError: its record is gone or false."""
        if backing == self.vault_dir:
            return self._keys.root_dir_id
        return unpack_directory_record((backing / RECORD_NAME).read_bytes(), self._keys)

    def close(self) -> None:
        """Wipe the keys."""
        self._vault.close()

    # ---- names

    def names_in(self, backing: Path) -> DirectoryNames:
        """The names of a backing directory. Raises: OSError, IntegrityError: its record is gone or false."""
        return self._names.in_directory(self.dir_id_of(backing))

    def entry(self, path: str) -> Path:
        """The backing path of a plaintext path below the vault; all but its last part must exist."""
        backing = self.vault_dir
        for part in path.split("/"):
            backing /= _entry_name(self.names_in(backing).seal(part.encode()))
        return backing

    def entry_in(self, backing: Path, name: str) -> Path:
        """The backing path of a name in a backing directory."""
        return backing / _entry_name(self.names_in(backing).seal(name.encode()))

    def listing(self, backing: Path) -> dict[str, Path]:
        """Plaintext names and their backing paths; what does not verify is left out, long names too."""
        names, found = self.names_in(backing), {}
        for entry in sorted(backing.iterdir()):
            try:
                found[names.open(entry.name).decode()] = entry
            except IntegrityError:
                continue
        return found

    def plain_path(self, cipher_path: str) -> str:
        """The plaintext path of a cipher path. Raises: OSError, IntegrityError: a part does not verify."""
        backing, parts = self.vault_dir, []
        for entry_name in cipher_path.split("/"):
            parts.append(self.names_in(backing).open(entry_name).decode())
            backing /= entry_name
        return "/".join(parts)

    def new_directory(self, backing: Path) -> None:
        """Make a directory, with the record of a new dir_id, before it becomes visible."""
        hidden = backing.with_name(f".outside.{os.urandom(6).hex()}")
        hidden.mkdir()
        (hidden / RECORD_NAME).write_bytes(self.record(backing))
        hidden.rename(backing)

    # ---- files

    def seal(self, content: bytes, *, like: bytes = b"", new_epoch: bool = True) -> bytes:
        """A closed file of this content.

        Args: like: an earlier version in ciphertext, whose file_id is kept; empty: a new file.
              new_epoch: as after a truncate to zero; else the chunks of both versions have one key.
        """
        if like:
            before = self.header(like)
            header = before.changed(
                epoch=before.epoch + new_epoch, generation=before.generation + 1, flags=HeaderFlag.CLEAN
            )
        else:
            header = FileHeader(
                self._config.suite.cipher_id,
                self._log2,
                os.urandom(FILE_ID_SIZE),
                generation=1,
                flags=HeaderFlag.CLEAN,
            )
        header = header.changed(size=len(content), size_min=len(content))
        return self.pack(header) + self._records(header, content)

    def pack(self, header: FileHeader) -> bytes:
        """The 256 bytes of a header."""
        return header.pack(self._keys, os.urandom(SMALL_NONCE_SIZE))

    def _records(self, header: FileHeader, content: bytes) -> bytes:
        if not content:
            return b""
        out = bytearray(self.geometry.records_size(len(content)))
        count = self.geometry.chunk_count(len(content))
        nonces = os.urandom(count * self._config.suite.nonce_size)
        self._cipher.seal_run(self._key(header), 0, content, nonces, memoryview(out))
        return bytes(out)

    def _key(self, header: FileHeader) -> bytes:
        return file_content_key(
            self._keys.content_key, header.cipher_id, header.log2_chunk_size, header.epoch, header.file_id
        )

    def header(self, raw: bytes) -> FileHeader:
        """The header of a backing file's bytes. Raises: HeaderError."""
        cipher_id = self._config.suite.cipher_id
        return FileHeader.unpack(raw[:HEADER_SIZE], self._keys, cipher_id, self._log2, machine_state=True)

    def content(self, raw: bytes) -> bytes:
        """All that a backing file's bytes hold; surplus behind a closed file counts for nothing.

        Raises: IntegrityError: damaged, or not what the header says.
        """
        if not raw:
            return b""
        header = self.header(raw)
        sealed = raw[HEADER_SIZE:]
        if header.is_void:
            return b""
        if header.is_clean:
            sealed = sealed[: self.geometry.records_size(header.size)]
        out = bytearray(self.geometry.plain_length(len(sealed)))
        if out:
            self._cipher.open_run(
                self._key(header), 0, memoryview(sealed), memoryview(out), holes=header.is_sparse
            )
        if header.is_clean and len(out) != header.size:
            raise IntegrityError(f"{len(out)} bytes, where the header says {header.size}")
        return bytes(out)

    def settled(self, raw: bytes) -> bool:
        """Whether these are the bytes of a closed file, whole."""
        if not raw:
            return True
        try:
            return self.header(raw).is_clean and self.content(raw) is not None
        except IntegrityError:
            return False


def _entry_name(cipher_name: str) -> str:
    return cipher_name if len(cipher_name) <= MAX_ENTRY_NAME else long_entry_name(cipher_name)


def replace(target: Path, raw: bytes) -> None:
    """Put bytes into a file's place at once, as sync clients do."""
    temporary = target.with_name(f".outside.{os.urandom(6).hex()}")
    temporary.write_bytes(raw)
    temporary.chmod(0o755)
    temporary.rename(target)


def replace_with_inode(target: Path, raw: bytes, inode: int, tries: int = 400) -> bool:
    """As `replace`, by a file that has this inode number, which must be free. False: it never came."""
    made: list[Path] = []
    try:
        for _ in range(tries):
            temporary = target.with_name(f".outside.{os.urandom(6).hex()}")
            temporary.touch()
            if temporary.stat().st_ino == inode:
                temporary.write_bytes(raw)
                temporary.chmod(0o755)
                temporary.rename(target)
                return True
            made.append(temporary)
        replace(target, raw)
        return False
    finally:
        for path in made:
            path.unlink()


def rewrite(target: Path, raw: bytes, *, block: int = 0) -> None:
    """Change a file in its place, as `rsync --inplace` does: all of it, or the blocks that differ."""
    before = target.read_bytes()
    fd = os.open(target, os.O_RDWR)
    try:
        step = block or max(len(raw), 1)
        for at in range(0, len(raw), step):
            piece = raw[at : at + step]
            if not block or piece != before[at : at + step]:
                os.pwrite(fd, piece, at)
        os.ftruncate(fd, len(raw))
    finally:
        os.close(fd)
