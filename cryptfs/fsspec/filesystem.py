"""The filesystem with the protocol `cryptfs` of fsspec: a vault without a mount.

fs = fsspec.filesystem("cryptfs", vault="~/vault", passfile="~/.vault.pass")
pandas.read_csv("cryptfs://a/b.csv", storage_options={"vault": "~/vault", "passfile": "~/.vault.pass"})
fsspec.open("cryptfs://a/b.csv::/home/ana/vault")
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from cryptfs.fsspec.access import VaultAccess
from cryptfs.fsspec.files import AnyFile, Deferred, buffered, copy_content, described, range_of
from cryptfs.fsspec.secret import OPTIONS
from cryptfs.transfer.fileio import BUFFER_SIZE, flags_of
from cryptfs.transfer.pathvault import PathVault

try:
    from fsspec.spec import AbstractFileSystem
    from fsspec.utils import stringify_path
except ImportError as error:
    raise ImportError(
        "this needs the package fsspec; install it with: pip install 'cryptfs[fsspec]'"
    ) from error

_LOCAL = (None, "file", "local")
_OF_FSSPEC = frozenset(
    {
        "use_listings_cache",
        "listings_expiry_time",
        "max_paths",
        "asynchronous",
        "loop",
        "add_docs",
        "add_aliases",
    }
)
"""Options that every filesystem of fsspec takes; here they change nothing."""


class CryptfsFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """A vault. Paths are below its root, without a slash before them. Safe from many threads.

    The vault opens at the first use, once for all filesystems of a process, and closes with the last of them:
    at `close`, or at the end of the process. A pickle has the storage options, but no passphrase and no key.

    Args: vault: the vault directory.
          passphrase: text or bytes. It is not pickled and not kept; the other options are, so prefer them.
          passfile, passcommand, keyfile, identity, slot, expect_identity: as the options of `cryptfs mount`.
          read_only: share the vault with other processes that read it.
          auto_mkdir: whether the directory of a new file is made.
          fo, target_protocol, target_options: how fsspec says `cryptfs://path::/the/vault`.
    """

    protocol = "cryptfs"
    root_marker = ""

    def __init__(
        self,
        vault: str | os.PathLike[str] | None = None,
        *,
        passphrase: str | bytes | None = None,
        passfile: str | None = None,
        passcommand: str | None = None,
        keyfile: str | None = None,
        identity: str | None = None,
        slot: int | None = None,
        expect_identity: str | None = None,
        read_only: bool = False,
        auto_mkdir: bool = True,
        fo: str | None = None,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        if unknown := sorted(set(more) - _OF_FSSPEC):
            raise TypeError(f"cryptfs has no storage option {unknown[0]!r}")
        super().__init__(**more)
        if target_protocol not in _LOCAL:
            raise ValueError(f"a vault has to be in a local directory, not behind {target_protocol}://")
        if vault is not None and fo is not None:
            raise ValueError("the vault is named twice: in the path after '::', and as a storage option")
        place = fo if vault is None else vault
        if not place:
            raise ValueError(
                "which vault? Give the storage option vault=DIRECTORY, or a path like cryptfs://a/b.txt::/the/vault"
            )
        given = (passphrase, passfile, passcommand, keyfile, identity, slot, expect_identity)
        # A process may change its directory; a pickle goes to another process.
        self.vault_dir = Path(os.path.abspath(Path(place).expanduser()))
        self.auto_mkdir = auto_mkdir
        options = dict(zip(OPTIONS, given, strict=True))
        self._access = VaultAccess(self.vault_dir, options, read_only=read_only)

    def __repr__(self) -> str:
        return f"<cryptfs.CryptfsFileSystem of {str(self.vault_dir)!r}>"

    # ---- the vault, and what identifies it

    @property
    def opened(self) -> PathVault:
        """The vault, opened if it is not.

        Raises: VaultError: it cannot be opened.   ValueError: this filesystem is closed.
        """
        return self._access.opened

    @property
    def _writable(self) -> PathVault:
        """The vault, to change it. Raises: OSError: EROFS; as `opened`."""
        return self._access.writable

    def close(self) -> None:
        """Close its files, and the vault if no other filesystem has it. The filesystem cannot be used again.

        Raises: OSError: a file could not be written.
        """
        cls = type(self)
        for token in [token for token, each in list(cls._cache.items()) if each is self]:
            cls._cache.pop(token, None)
        self._access.close()

    def __enter__(self) -> CryptfsFileSystem:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def storage_options(self) -> dict[str, Any]:
        """The options that a pickle keeps: all but the passphrase."""
        return self._storage_options

    @storage_options.setter
    def storage_options(self, given: dict[str, Any]) -> None:
        kept = {name: value for name, value in given.items() if name != "passphrase"}
        if "vault" in kept:
            kept["vault"] = str(self.vault_dir)
        self._storage_options = kept

    @property
    def _fs_token(self) -> str:
        """For dask, which shows it: so it has nothing of a passphrase."""
        said = repr((str(self.vault_dir), self._access.read_only, self._access.named))
        return hashlib.blake2b(said.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    @property
    def fsid(self) -> str:
        """Of the vault."""
        return f"cryptfs_{self.opened.config.vault_id}"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        text: str = stringify_path(path)
        return text.removeprefix("cryptfs://").strip("/")

    # ---- looking

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size in bytes, type and attributes; of what a symlink leads to. Raises: OSError."""
        name = self._strip_protocol(path)
        st = self.opened.lstat(name)
        if not stat.S_ISLNK(st.st_mode):
            return described(name, st)
        return described(name, self.opened.stat(name), self.opened.readlink(name))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """The entries of a directory, or the file itself. Raises: OSError."""
        name, vault = self._strip_protocol(path), self.opened
        if not vault.is_dir(name):
            about = self.info(name)
            return [about] if detail else [about["name"]]
        found: list[Any] = []
        for entry in vault.scandir(name):
            if not detail:
                found.append(entry.path)
                continue
            with contextlib.suppress(FileNotFoundError):  # somebody removed it meanwhile
                found.append(self._listed(entry.path, entry.stat(follow_symlinks=False)))
        return found

    def _listed(self, name: str, st: os.stat_result) -> dict[str, Any]:
        """A symlink to a directory has the type "other", so that no walk follows it in a circle."""
        if not stat.S_ISLNK(st.st_mode):
            return described(name, st)
        target = self.opened.readlink(name)
        try:
            behind = self.opened.stat(name)
        except OSError:
            return {**described(name, st, target), "size": 0}
        return described(name, behind if stat.S_ISREG(behind.st_mode) else st, target)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is something; also not through a broken symlink."""
        return self.opened.exists(self._strip_protocol(path))

    def lexists(self, path: str, **_: Any) -> bool:
        """The same, without following a symlink."""
        try:
            self.opened.lstat(self._strip_protocol(path))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether it is a directory, or a symlink to one."""
        return self.opened.is_dir(self._strip_protocol(path))

    def isfile(self, path: str) -> bool:
        """Whether it is a regular file, or a symlink to one."""
        return self.opened.is_file(self._strip_protocol(path))

    def islink(self, path: str) -> bool:
        """Whether it is a symlink."""
        name = self._strip_protocol(path)
        return self.lexists(name) and stat.S_ISLNK(self.opened.lstat(name).st_mode)

    def created(self, path: str) -> datetime.datetime:
        """The time of the last change of its attributes, as a local filesystem of fsspec has it. UTC."""
        return _time(self.info(path)["created"])

    def modified(self, path: str) -> datetime.datetime:
        """The time of the last change of its content, UTC."""
        return _time(self.info(path)["mtime"])

    # ---- files

    def _open(
        self, path: str, mode: str = "rb", block_size: Any = None, autocommit: bool = True, **_: Any
    ) -> AnyFile:
        name = self._strip_protocol(path)
        vault = self.opened if flags_of(mode) & os.O_ACCMODE == os.O_RDONLY else self._writable
        size = block_size if isinstance(block_size, int) and block_size > 1 else BUFFER_SIZE
        deferred = None
        raw: Any
        if creates := bool({*"wax"} & {*mode}):
            self._make_parent(name)
        if creates and not autocommit:
            deferred = Deferred(vault, name, mode)
            raw = deferred.raw
        else:
            raw = vault.open(name, mode, buffering=0)
        file = buffered(raw, self, name, size, deferred)
        self._access.files.add(file)
        return file

    def _make_parent(self, name: str) -> None:
        parent = self._parent(name)
        if self.auto_mkdir and not self.opened.is_dir(parent):
            self._writable.makedirs(parent, exist_ok=True)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file, or of a part of it; negative offsets count from its end. Raises: OSError."""
        with self.opened.open(self._strip_protocol(path), "rb", buffering=0) as file:
            return range_of(file, start, end)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Parts of files, each file opened once for parts that follow each other.

        Args:   starts, ends: one for each path, or one for all.   on_error: "return" gives an error in the
                place of the bytes, "raise" raises it.
        """
        if not isinstance(paths, list):
            raise TypeError("paths is a list")
        starts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        ends = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("paths, starts and ends are not of one length")
        found: list[Any] = []
        with contextlib.ExitStack() as stack:
            name, file = None, None
            for path, start, end in zip(paths, starts, ends, strict=True):
                try:
                    if file is None or name != path:
                        stack.close()
                        file = None
                        file = stack.enter_context(
                            self.opened.open(self._strip_protocol(path), "rb", buffering=0)
                        )
                        name = path
                    found.append(range_of(file, start, end))
                except OSError as error:
                    if on_error != "return":
                        raise
                    found.append(error)
        return found

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy a file; the copy has its name when it is whole. A directory is made. Raises: OSError."""
        source, target, vault = self._strip_protocol(path1), self._strip_protocol(path2), self._writable
        if vault.is_dir(source):
            self.makedirs(target, exist_ok=True)
            return
        vault.stat(source)
        self._make_parent(target)
        copy = Deferred(vault, target, "wb")
        try:
            with copy.raw:
                copy_content(vault, source, copy.raw)
            copy.commit()
        except BaseException:
            copy.discard()
            raise

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """An empty file; with truncate=False, a file that is there only gets the present time."""
        name = self._strip_protocol(path)
        if not truncate and self.opened.exists(name):
            now = time.time_ns()
            self._writable.utime(name, ns=(now, now))
            return
        self._make_parent(name)
        self._writable.open(name, "wb").close()

    # ---- names

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Make a directory. Raises: FileExistsError, and other OSError."""
        name = self._strip_protocol(path)
        if create_parents:
            self._writable.makedirs(name)
        else:
            self._writable.mkdir(name)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a directory and those above it. Raises: FileExistsError, and other OSError."""
        name = self._strip_protocol(path)
        if name or not exist_ok:  # the root is there
            self._writable.makedirs(name, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory. Raises: OSError."""
        self._writable.rmdir(self._strip_protocol(path))

    def rm_file(self, path: str) -> None:
        """Remove a file or a symlink. Raises: OSError."""
        self._writable.unlink(self._strip_protocol(path))

    _rm = rm_file

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove files, by patterns as well; with recursive, directories and what is in them.

        Raises: OSError: the first that could not be removed; ENOTEMPTY also of a directory with an entry that
                does not authenticate.   ValueError: a directory, without recursive.
        """
        if maxdepth is None and not isinstance(path, list):
            name = self._strip_protocol(path)
            path = [name] if self.lexists(name) else self.expand_path(name)
        else:
            path = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        for name in reversed(path):
            if not self.isdir(name) or self.islink(name):
                self.rm_file(name)
            elif not recursive:
                raise ValueError(f"{name!r} is a directory: to remove it, set recursive=True")
            elif maxdepth is None:
                self._rm_below(name)
            elif not self.opened.listdir(name):
                self.rmdir(name)

    def _rm_below(self, name: str) -> None:
        vault = self._writable
        for here, directories, others in vault.walk(name, topdown=False, onerror=_raise):
            for each in others:
                vault.unlink(os.path.join(here, each))
            for each in directories:
                path = os.path.join(here, each)
                if stat.S_ISLNK(vault.lstat(path).st_mode):
                    vault.unlink(path)
                else:
                    vault.rmdir(path)
        if name:
            vault.rmdir(name)

    def mv(
        self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **more: Any
    ) -> None:
        """Move: a file or directory by a rename; lists and patterns one by one. Raises: OSError."""
        is_one = isinstance(path1, str | os.PathLike) and isinstance(path2, str | os.PathLike)
        source = self._strip_protocol(path1) if is_one else ""
        if not is_one or maxdepth is not None or not self.lexists(source):
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **more)
            return
        into = stringify_path(path2).endswith("/")
        target = self._strip_protocol(path2)
        if into or self.isdir(target):
            target = os.path.join(target, os.path.basename(source))
        self._make_parent(target)
        self._writable.rename(source, target)

    def link(self, src: str, dst: str, **_: Any) -> None:
        """A second name of a file. Raises: OSError."""
        self._writable.link(self._strip_protocol(src), self._strip_protocol(dst))

    def symlink(self, src: str, dst: str, **_: Any) -> None:
        """A symlink at dst that says src, as it stands. Raises: OSError."""
        self._writable.symlink(src, self._strip_protocol(dst))

    def chmod(self, path: str, mode: int) -> None:
        """As os.chmod. Raises: OSError."""
        self._writable.chmod(self._strip_protocol(path), mode)


def _raise(error: OSError) -> NoReturn:
    raise error


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
