"""Directory streams of the C library; Python has no seekdir."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _function in (_libc.readdir64, _libc.telldir, _libc.closedir, _libc.rewinddir):
    _function.argtypes = (ctypes.c_void_p,)
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Stream:
    """opendir(3) with all that goes with it."""

    def __init__(self, path: Path) -> None:
        self._stream = _libc.opendir(os.fsencode(path))
        assert self._stream, os.strerror(ctypes.get_errno())

    def read(self) -> bytes | None:
        """The next name; None at the end."""
        entry = _libc.readdir64(self._stream)
        return ctypes.string_at(entry + 19) if entry else None  # d_name in struct dirent64

    def rest(self) -> list[bytes]:
        """All names from here on."""
        return list(iter(self.read, None))

    def tell(self) -> int:
        place: int = _libc.telldir(self._stream)
        return place

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, place)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)
