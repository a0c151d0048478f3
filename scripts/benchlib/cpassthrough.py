"""libfuse's example of a filesystem in C, which encrypts nothing: a daemon without interpreter and cipher.

Debian's libfuse3-dev brings the source of passthrough_ll.c; it is compiled when it is first needed.
(passthrough_hp.cc is in the sources of fuse3 only.) It holds a descriptor for each inode that the kernel
knows, and finds inodes in a list: with many thousands of files it becomes slower, and then fails.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from benchlib.subjects import Commands, Mounted

SOURCE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
_FLAGS = ("-O2", "-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3")
_LIBRARIES = ("-lfuse3", "-lpthread")
_WITH_ALL_DESCRIPTORS = ("sh", "-c", 'ulimit -n "$(ulimit -Hn)"; exec "$0" "$@"')
_TIMEOUT = 120.0


def build(source: Path, program: Path) -> str | None:
    """Compile it, unless it is there. Returns: what is missing; None: nothing."""
    if program.exists():
        return None
    if not source.exists():
        return f"{source.name} is not here: apt-get install libfuse3-dev"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "there is no C compiler: apt-get install gcc libc6-dev"
    words = (compiler, *_FLAGS, str(source), "-o", str(program), *_LIBRARIES)
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT
    )
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    return f"{source.name} cannot be compiled: {(errors or ['the compiler said nothing'])[0]}"


class CPassThrough(Mounted):
    """A directory by way of passthrough_ll.

    Args: tools: where the program is made; on a filesystem that lets it run.   options: of the program.
    """

    def __init__(self, name: str, tools: Path, options: str = "") -> None:
        self._program = tools / "passthrough_ll"
        words = (
            *_WITH_ALL_DESCRIPTORS,
            str(self._program),
            "-f",
            "-o",
            "source={vault}" + options,
            "{mountpoint}",
        )
        super().__init__(name, Commands(serve=words, package="libfuse3-dev"))

    def missing(self) -> str | None:
        return build(SOURCE, self._program)
