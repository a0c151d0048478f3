"""From an exception to the errno that the kernel gets, by the table in errnos.py: one place for all engines.

Detected damage goes to the log here, once for each request that meets it: cipher path, chunk, reason. The
log shows the same line once a minute (repeats.py).
"""

from __future__ import annotations

import errno
import logging

from cryptfs.errnos import code_of
from cryptfs.errors import CryptfsError

log = logging.getLogger(__name__)


def errno_of(error: Exception) -> int:
    """The errno for any exception from the vfs; an unexpected one is EIO, with its traceback in the log."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, CryptfsError):
        code = code_of(error)
        if code == errno.EIO:
            log.error("%s", error)
        return code
    if isinstance(error, ValueError | OverflowError):  # also a number that no system call takes
        return errno.EINVAL
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    log.error("unexpected error in a request", exc_info=error)
    return errno.EIO
