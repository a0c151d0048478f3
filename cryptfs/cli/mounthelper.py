"""Being /sbin/mount.fuse.cryptfs: the arguments that mount(8) gives to its helpers.

    mount.fuse.cryptfs SOURCE DIRECTORY [-sfnv] [-N namespace] [-o options] [-t type]

Without such a link mount(8) runs mount.fuse, which runs `cryptfs SOURCE DIRECTORY -o options`; main.py
understands that too. Source: mount(8), EXTERNAL HELPERS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

HELPER_NAMES = frozenset({"mount.fuse.cryptfs", "mount.fuse3.cryptfs", "mount.cryptfs"})
_WITH_VALUE = ("-N", "-t")
_FLAGS = frozenset("sfnv")


def leave_environment() -> None:
    """Start over without PYTHONPATH and the like: mount(8) may run its helpers as root.

    Python has imported this module by that path, so the manual has a script that unsets it before.
    """
    if (
        sys.executable
        and not sys.flags.ignore_environment
        and any(name.startswith("PYTHON") for name in os.environ)
    ):
        os.execv(sys.executable, [sys.executable, "-E", "-P", *sys.argv])


def helper_arguments(args: Sequence[str]) -> list[str] | None:
    """The arguments of a mount helper as arguments of `cryptfs`; None for a rehearsal (-f).

    A helper is silent if all is well: `mount -a` would print a line for each mount. -v lets it speak.
    """
    places: list[str] = []
    options: list[str] = []
    fake = verbose = False
    words = iter(args)
    for word in words:
        if word == "-o":
            options += ["-o", next(words, "")]
        elif word in _WITH_VALUE:
            next(words, None)
        elif word.startswith("-") and len(word) > 1 and set(word[1:]) <= _FLAGS:
            fake = fake or "f" in word
            verbose = verbose or "v" in word
        else:
            places.append(word)
    if fake:
        return None
    return ["mount", *([] if verbose else ["--quiet"]), *options, "--", *places]
