"""Symlinks: the target is sealed and, while the link has one name, bound to its place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from cryptfs.core.aead import SMALL_NONCE_SIZE, SMALL_OVERHEAD, seal_small
from cryptfs.core.format.smallvalues import (
    MAX_FITTING_TARGET,
    link_aad,
    open_sealed_target,
    seal_target,
    target_size,
    unbound_link_aad,
)
from cryptfs.core.keys import Subkeys
from cryptfs.core.names.host import SHARED_STATE, StateNames
from cryptfs.core.names.names import decode_text, encode_text, siv_of
from cryptfs.errors import IntegrityError, NameError_, NameTooLongError
from cryptfs.storage.backing import HELD_FILE_FLAGS, create_small, give_to_owner, read_small
from cryptfs.storage.dirs import open_directory, temp_name
from cryptfs.storage.durability import PendingSync
from cryptfs.storage.libc import UTIME_OMIT, keeping_mtime, utimensat
from cryptfs.vfs.tree.directory import NO_NAME, Directory, Unnamed

MAX_TARGET = 4095  # the kernel's limit
LINKS_DIRECTORY = "cryptfs.links"
_LONG_PREFIX = "cryptfs.link."
_ID_SIZE = 18
_LONGEST_TEXT = len(_LONG_PREFIX) + 24 + 1 + 4  # prefix, id, dot, size: shorter than any sealed target


def long_target_id(text: str) -> str | None:
    """The file in `cryptfs.links` that a backing symlink names; None if it holds its target itself."""
    if not text.startswith(_LONG_PREFIX):
        return None
    link_id = text.removeprefix(_LONG_PREFIX).partition(".")[0]
    return link_id if is_long_target_id(link_id) else None


def open_links_directory(vault_fd: int) -> int | None:
    """A descriptor of `cryptfs.links`; None if there is no such directory."""
    try:
        return open_directory(vault_fd, LINKS_DIRECTORY)
    except OSError:
        return None


def is_long_target_id(name: str) -> bool:
    """Whether a file in `cryptfs.links` has a name that a symlink can refer to."""
    return len(decode_text(name) or b"") == _ID_SIZE


def read_long_target(links_fd: int | None, text: str) -> bytes:
    """The sealed target that the text of a backing symlink refers to.

    Args:   links_fd: the directory `cryptfs.links`, or None if there is none.
    Raises: NameError_: its file is missing, damaged or of another length.
    """
    link_id = long_target_id(text)
    try:
        if links_fd is None or link_id is None:
            raise FileNotFoundError
        sealed = read_small(links_fd, link_id, MAX_TARGET + SMALL_OVERHEAD)
    except (FileNotFoundError, IntegrityError):
        raise NameError_("the symlink has lost its target") from None
    if str(len(sealed) - SMALL_OVERHEAD) != text.removeprefix(_LONG_PREFIX).partition(".")[2]:
        raise NameError_("the symlink gives a wrong length for its target")
    return sealed


def sealed_target(text: str, links_fd: int | None) -> bytes:
    """The sealed target of a backing symlink; b'' if it has another text.

    Raises: NameError_: as read_long_target.
    """
    if text.startswith(_LONG_PREFIX):
        return read_long_target(links_fd, text)
    return decode_text(text) or b""


def read_target(
    text: str, links_fd: int | None, links_key: bytes, dir_id: bytes, siv: bytes
) -> tuple[bytes, bool]:
    """Verify and decrypt the target of a backing symlink: (target, whether it is bound to its place).

    Raises: NameError_: it is lost, damaged, forged, or comes from another place.
    """
    return open_sealed_target(sealed_target(text, links_fd), links_key, dir_id, siv)


class Symlinks:
    """Make, read, move and remove the symlinks of one vault.

    If a sealed target does not fit into a backing symlink, a file of its own in `cryptfs.links` holds it, and
    the symlink names that file.

    carry: gives a symlink that replaces another one its attributes; Xattrs.carry, if the vault keeps them.
    lock:  around a change of them, and around a replacement.

    Args: vault_fd: the vault directory.   pending: syncs new files before the next fsync ends.
          owner: this machine's names.
    """

    def __init__(
        self, keys: Subkeys, vault_fd: int, pending: PendingSync, owner: StateNames = SHARED_STATE
    ) -> None:
        self._owner = owner
        self._key = keys.links_key
        self._vault_fd = vault_fd
        self._pending = pending
        self._links_fd = open_links_directory(vault_fd)
        self.carry: Callable[[int, str, Callable[[], tuple[bytes, bytes]]], None] | None = None
        self.lock = threading.Lock()

    def close(self) -> None:
        """The last use."""
        if self._links_fd is not None:
            os.close(self._links_fd)
            self._links_fd = None

    def read(self, directory: Directory, name: bytes, held: Unnamed | None = None) -> bytes:
        """The target.

        Args:   held: the symlink that the caller means by this place; None: the present one.
        Raises: NameError_: it does not authenticate at this place.   OSError: EINVAL: it is not a symlink.
        """
        return self._open(directory, name, held)[0]

    def is_bound(self, directory: Directory, name: bytes, st: os.stat_result) -> bool:
        """Whether a symlink may need another seal before it gets another name. st: of the entry, of any type.

        Its number of names does not tell: a copy of the vault may be made of hard links.

        Raises: NameError_: it is a symlink, and does not authenticate at this place.
        """
        if not stat.S_ISLNK(st.st_mode):
            return False
        if st.st_nlink == 1:
            return True  # `move` and `unbind` look for themselves
        bound = self._open(directory, name)[1]
        if not bound:
            with contextlib.suppress(OSError):  # somebody else's
                _restore_atime(st, directory, name)
        return bound

    def is_the_same_anywhere(self, directory: Directory, name: bytes) -> bool:
        """Whether a symlink has its target under every name: False if it is bound, or does not verify."""
        try:
            return not self._open(directory, name)[1]
        except NameError_:
            return False

    def size(self, directory: Directory, name: bytes, st: os.stat_result) -> int:
        """Bytes of a target, from the backing stat alone unless the target is in a file of its own."""
        return self._size(directory.entry_name(name), directory.fd, st)

    def size_open(self, fd: int, st: os.stat_result) -> int:
        """As size, for a symlink known by an O_PATH descriptor."""
        return self._size("", fd, st)

    @staticmethod
    def _size(entry_name: str, dir_fd: int, st: os.stat_result) -> int:
        if st.st_size > _LONGEST_TEXT:
            return target_size(st.st_size)
        size = os.readlink(entry_name, dir_fd=dir_fd).rpartition(".")[2]
        return int(size) if size.isascii() and size.isdecimal() else 0

    def _open(self, directory: Directory, name: bytes, held: Unnamed | None = None) -> tuple[bytes, bool]:
        entry_name = directory.entry_name(name)
        if held is None:
            text = os.readlink(entry_name, dir_fd=directory.fd)
        else:
            text = os.readlink("", dir_fd=held.fd)
        try:
            siv = siv_of(directory.cipher_name(name))
            return read_target(text, self._links_fd, self._key, directory.dir_id, siv)
        except NameError_ as error:
            error.cipher_path = directory.path_of(entry_name)
            raise

    def sealed_at(self, place: tuple[Directory, bytes] | None, fd: int) -> bytes:
        """The sealed target of a symlink.

        Args:   place: where it is; None if nobody knows: then it must open anywhere.   fd: of it, O_PATH.
        Raises: NameError_: it does not authenticate there.
        """
        dir_id, siv, cipher_path = bytes(16), bytes(16), NO_NAME
        if place is not None:
            directory, name = place
            dir_id, siv = directory.dir_id, siv_of(directory.cipher_name(name))
            cipher_path = directory.path_of(directory.entry_name(name))
        try:
            sealed = sealed_target(os.readlink("", dir_fd=fd), self._links_fd)
            open_sealed_target(sealed, self._key, dir_id, siv)
        except NameError_ as error:
            error.cipher_path = cipher_path
            raise
        return sealed

    def text_for(self, directory: Directory, name: bytes, target: bytes) -> str:
        """The text for a backing symlink under this name; `discard` it if you do not use it."""
        return self.seal(target, link_aad(directory.dir_id, siv_of(directory.cipher_name(name))))

    def seal(self, target: bytes, aad: bytes) -> str:
        """The text for a backing symlink with this AAD; `discard` it if you do not use it.

        Raises: NameTooLongError: no symlink has such a target.
        """
        if len(target) > MAX_TARGET:
            raise NameTooLongError(
                f"a symlink target of {len(target)} bytes is over the limit of {MAX_TARGET}"
            )
        if len(target) <= MAX_FITTING_TARGET:
            return seal_target(target, self._key, aad, os.urandom(SMALL_NONCE_SIZE))
        sealed = seal_small(self._key, target, aad, os.urandom(SMALL_NONCE_SIZE))
        link_id = encode_text(os.urandom(_ID_SIZE))
        self._pending.add(create_small(self._require_links(), link_id, sealed, 0o600))
        return f"{_LONG_PREFIX}{link_id}.{len(target)}"

    def _require_links(self) -> int:
        if self._links_fd is None:
            with contextlib.suppress(FileExistsError), keeping_mtime(self._vault_fd):
                os.mkdir(LINKS_DIRECTORY, 0o700, dir_fd=self._vault_fd)
            self._links_fd = open_directory(self._vault_fd, LINKS_DIRECTORY)
            give_to_owner(self._links_fd, self._vault_fd)
        return self._links_fd

    def discard(self, text: str) -> None:
        """After the last backing symlink with this text has gone: remove its file, if it has one."""
        link_id = long_target_id(text)
        if link_id is not None and self._links_fd is not None:
            with contextlib.suppress(OSError):
                os.unlink(link_id, dir_fd=self._links_fd)

    def text_to_discard(self, directory: Directory, name: bytes) -> str:
        """Before a name goes: the text to `discard` afterwards, '' for none."""
        if self._links_fd is None:
            return ""
        try:
            entry_name = directory.entry_name(name)
            st = os.stat(entry_name, dir_fd=directory.fd, follow_symlinks=False)
            if stat.S_ISLNK(st.st_mode) and st.st_nlink == 1 and st.st_size <= _LONGEST_TEXT:
                return os.readlink(entry_name, dir_fd=directory.fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        return ""

    def unbind(self, directory: Directory, name: bytes) -> None:
        """Seal the target again without its place, so that the link may have several names."""
        with self.lock, _held(directory, name) as held:
            before = os.fstat(held.fd)  # a read of the target moves the time of access
            target, bound = self._open(directory, name, held)
            if bound:
                old = self.text_to_discard(directory, name)
                with keeping_mtime(directory.fd):
                    self._replace(held, before, self.seal(target, unbound_link_aad()), directory, name)
                self.discard(old)
            else:
                _restore_atime(before, directory, name)

    def move(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        """Rename a bound symlink: seal it for its new place, then remove the old name."""
        with self.lock, _held(source, name) as held:
            before = os.fstat(held.fd)
            link_target, bound = self._open(source, name, held)
            if not bound:
                os.rename(
                    source.entry_name(name),
                    target.entry_name(new_name),
                    src_dir_fd=source.fd,
                    dst_dir_fd=target.fd,
                )
                _restore_atime(before, target, new_name)
                return
            old = self.text_to_discard(source, name)
            text = self.text_for(target, new_name, link_target)
            self._replace(held, before, text, target, new_name)
            os.unlink(source.entry_name(name), dir_fd=source.fd)
            self.discard(old)

    def _replace(
        self, held: Unnamed, old: os.stat_result, text: str, target: Directory, new_name: bytes
    ) -> None:
        """Put a symlink in place at once, with this text, and owner, attributes and times of the old one.

        Args: held: the old one.   old: its stat, from before it was read.
        """
        if text.startswith(_LONG_PREFIX):
            self._pending.flush()  # its target: the replaced entry may be on disk
        temporary = temp_name(self._owner)
        try:
            os.symlink(text, temporary, dir_fd=target.fd)
        except BaseException:
            self.discard(text)
            raise
        try:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(temporary, old.st_uid, old.st_gid, dir_fd=target.fd, follow_symlinks=False)
            if self.carry is not None:
                old_text, links_fd = os.readlink("", dir_fd=held.fd), self._links_fd
                self.carry(
                    held.fd,
                    target.proc_path(temporary),
                    lambda: (sealed_target(old_text, links_fd), sealed_target(text, links_fd)),
                )
            os.rename(temporary, target.entry_name(new_name), src_dir_fd=target.fd, dst_dir_fd=target.fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # an interrupt came when it had its name
                os.unlink(temporary, dir_fd=target.fd)
                self.discard(text)
            raise
        times = (*divmod(old.st_atime_ns, 10**9), *divmod(old.st_mtime_ns, 10**9))
        utimensat(target.fd, target.entry_name(new_name), times)


@contextlib.contextmanager
def _held(directory: Directory, name: bytes) -> Iterator[Unnamed]:
    """An entry by an O_PATH descriptor: the same one, whatever takes its name meanwhile."""
    entry_name = directory.entry_name(name)
    fd = os.open(entry_name, HELD_FILE_FLAGS, dir_fd=directory.fd)
    try:
        yield Unnamed(fd, directory.path_of(entry_name))
    finally:
        os.close(fd)


def _restore_atime(before: os.stat_result, directory: Directory, name: bytes) -> None:
    """After a read of a link for ourselves; sets ctime, as the steps before or after it do."""
    utimensat(directory.fd, directory.entry_name(name), (*divmod(before.st_atime_ns, 10**9), 0, UTIME_OMIT))
