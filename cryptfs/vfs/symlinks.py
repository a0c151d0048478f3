"""Symlinks: the target is sealed and, while the link has one name, bound to where it stands."""

from __future__ import annotations

import os
import stat

from cryptfs.core.aead import SMALL_NONCE_SIZE
from cryptfs.core.keys import Subkeys
from cryptfs.core.names import siv_of
from cryptfs.core.smallvalues import link_aad, open_target, seal_target, unbound_link_aad
from cryptfs.errors import NameError_
from cryptfs.storage.dirs import temp_name
from cryptfs.storage.libc import utimensat
from cryptfs.vfs.directory import Directory


class Symlinks:
    """Make, read and move the symlinks of one vault."""

    def __init__(self, keys: Subkeys) -> None:
        self._key = keys.links_key

    def read(self, directory: Directory, name: bytes) -> bytes:
        """The target.

        Raises: NameError_: it does not authenticate at this place.   OSError: EINVAL for no symlink.
        """
        return self._open(directory, name)[0]

    def _open(self, directory: Directory, name: bytes) -> tuple[bytes, bool]:
        entry_name = directory.entry_name(name)
        text = os.readlink(entry_name, dir_fd=directory.fd)
        try:
            return open_target(text, self._key, directory.dir_id, siv_of(directory.cipher_name(name)))
        except NameError_ as error:
            error.cipher_path = directory.path_of(entry_name)
            raise

    def text_for(self, directory: Directory, name: bytes, target: bytes) -> str:
        """The text of a backing symlink that is to stand under this name."""
        aad = link_aad(directory.dir_id, siv_of(directory.cipher_name(name)))
        return seal_target(target, self._key, aad, os.urandom(SMALL_NONCE_SIZE))

    def unbind(self, directory: Directory, name: bytes) -> None:
        """Seal the target anew without its place, so that the link may have several names."""
        target, bound = self._open(directory, name)
        if bound:
            text = seal_target(target, self._key, unbound_link_aad(), os.urandom(SMALL_NONCE_SIZE))
            self._replace(directory, name, text, directory, name)

    def move(self, source: Directory, name: bytes, target: Directory, new_name: bytes) -> None:
        """Rename a symlink that has one name: sealed anew for its new place, then the old one goes."""
        link_target, bound = self._open(source, name)
        if not bound:
            os.rename(
                source.entry_name(name),
                target.entry_name(new_name),
                src_dir_fd=source.fd,
                dst_dir_fd=target.fd,
            )
            return
        text = self.text_for(target, new_name, link_target)
        self._replace(source, name, text, target, new_name)
        os.unlink(source.entry_name(name), dir_fd=source.fd)

    def _replace(self, source: Directory, name: bytes, text: str, target: Directory, new_name: bytes) -> None:
        """Put a symlink with this text, and owner and times of the old one, in place at once."""
        old = os.stat(source.entry_name(name), dir_fd=source.fd, follow_symlinks=False)
        temporary = temp_name()
        os.symlink(text, temporary, dir_fd=target.fd)
        try:
            if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(temporary, old.st_uid, old.st_gid, dir_fd=target.fd, follow_symlinks=False)
            os.rename(temporary, target.entry_name(new_name), src_dir_fd=target.fd, dst_dir_fd=target.fd)
        except OSError:
            os.unlink(temporary, dir_fd=target.fd)
            raise
        times = (*divmod(old.st_atime_ns, 10**9), *divmod(old.st_mtime_ns, 10**9))
        utimensat(target.fd, target.entry_name(new_name), times)


def is_single_symlink(st: os.stat_result) -> bool:
    """Whether a backing stat is that of a symlink with one name, which a rename must seal anew."""
    return stat.S_ISLNK(st.st_mode) and st.st_nlink == 1
