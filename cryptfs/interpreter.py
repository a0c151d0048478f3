"""How the Python was built that runs this. On one without PGO, a mount needs more processor time.

It is also a program, which scripts/lib.sh runs with each Python that it finds, before anything is installed:

    PYTHON -I cryptfs/interpreter.py      exit code 0: built with PGO
"""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass

_PROFILE_USED = ("-fprofile-use", "-fprofile-instr-use")  # GCC, Clang


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One Python. pgo, lto: whether profile-guided and link-time optimization had a part in its build."""

    version: str
    path: str
    pgo: bool
    lto: bool


def this_interpreter() -> Interpreter:
    """The Python that runs this."""
    pgo, lto = (True, True) if _is_of_debian() else _as_configured()
    return Interpreter(sys.version.partition(" ")[0], sys.executable, pgo, lto)


def _is_of_debian() -> bool:
    """Debian and Ubuntu build python3 with PGO and LTO; their sysconfig describes libpython.so, without."""
    return sys.base_prefix == "/usr" and "deb_system" in sysconfig.get_scheme_names()


def _as_configured() -> tuple[bool, bool]:
    """PGO and LTO, by what the build was asked for and the flags that it used."""
    asked, *used = (
        str(sysconfig.get_config_var(name) or "")
        for name in ("CONFIG_ARGS", "PY_CFLAGS", "PY_CORE_CFLAGS", "PY_CORE_LDFLAGS")
    )
    flags = " ".join(used).split()
    pgo = "--enable-optimizations" in asked or any(flag.startswith(_PROFILE_USED) for flag in flags)
    without = "--with-lto=no" in asked or "--without-lto" in asked
    lto = ("--with-lto" in asked and not without) or any(flag.startswith("-flto") for flag in flags)
    return pgo, lto


if __name__ == "__main__":
    sys.exit(0 if this_interpreter().pgo else 1)
