"""The wrapper of every operation of the engine on mfusepy: counts them, and makes them fail with an errno."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from cryptfs.mount.errno_map import errno_of
from cryptfs.mount.opcodes import Op
from cryptfs.storage.libc import os_error
from cryptfs.vfs.tree.identity import stale

P = ParamSpec("P")
R = TypeVar("R")

_GONE = (errno.ENOENT, errno.ESTALE)
_SETTERS = ("chmod", "chown", "utimens", "truncate")  # one request to the kernel


def translated(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Count it, and raise an OSError with the right errno: mfusepy would make EINVAL of others.

    The kernel asks for files that our answers named. If one is gone, somebody else has removed it, and the
    kernel has to look again: it does so at ESTALE, and takes ENOENT for the last word.
    """
    opcode = Op.SETATTR if method.__name__ in _SETTERS else Op[method.__name__.upper()]
    looks = method.__name__ == "getattr"

    @functools.wraps(method)
    def wrapper(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.statistics.counts[opcode] += 1
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            if error.errno in _GONE and not looks:
                self.look_again()
                error = stale()
            self.statistics.failed(error.errno or errno.EIO)
            raise error from None
        except Exception as error:  # noqa: BLE001 - the one place; errno_of logs what is unforeseen
            code = errno_of(error)
            self.statistics.failed(code)
            raise os_error(code) from None

    return wrapper
