"""One target under atheris, which looks for inputs that reach code not seen yet. scripts/fuzz runs it.

    python -m tests.fuzz.guided TARGET [--seconds N] [--corpus DIR] [--findings DIR]

Exit code 0 after N seconds without a finding. A finding ends it with another code, a traceback, and a file
in the findings directory; give that file in place of --seconds as --replay FILE to see it again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

MAX_INPUT = 16 * 1024
HANG_SECONDS = 20  # that one input may take


def fuzz(name: str, seconds: int, corpus: Path, findings: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cryptfs"]):
        from tests.fuzz.all_targets import TARGETS
    target = TARGETS[name]()
    for number, sample in enumerate(target.samples):
        (corpus / f"sample-{number}").write_bytes(sample)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-max_len={MAX_INPUT}",
        f"-timeout={HANG_SECONDS}",
        f"-artifact_prefix={findings}{os.sep}{name}-",
        "-verbosity=0",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()


def replay(name: str, file: Path) -> None:
    """Run one input again, without atheris."""
    from tests.fuzz.all_targets import TARGETS

    target = TARGETS[name]()
    try:
        target.run(file.read_bytes())
    finally:
        target.close()


def main(words: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.guided", description=__doc__)
    parser.add_argument("target", help="a name from tests/fuzz/all_targets.py, or 'list'")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="kept between runs; a fresh directory otherwise")
    parser.add_argument("--findings", type=Path, default=Path.cwd())
    parser.add_argument("--replay", type=Path, metavar="FILE")
    options = parser.parse_args(words)
    if options.target == "list":
        from tests.fuzz.all_targets import TARGETS

        print("\n".join(TARGETS))
    elif options.replay is not None:
        replay(options.target, options.replay)
    else:
        corpus = options.corpus or Path(tempfile.mkdtemp(prefix="cryptfs-corpus-"))
        corpus.mkdir(parents=True, exist_ok=True)
        fuzz(options.target, options.seconds, corpus, options.findings)


if __name__ == "__main__":
    main(sys.argv[1:])
