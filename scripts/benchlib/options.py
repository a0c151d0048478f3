"""The command line of scripts/bench."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchlib import curves, targets
from benchlib.material import ROOT, default_tree
from benchlib.peers import OTHERS
from benchlib.quantities import Workload
from benchlib.run import Sizes
from benchlib.users import find_user
from benchlib.workloads import BY_NAME, WORKLOADS

TMPFS, DISK = Path("/dev/shm"), Path("/var/tmp")
ROUNDS = 3
QUICK_SCALE, QUICK_LIMIT = 0.03, 0.4
_DESCRIPTION = "Measure mounts of cryptfs against its peers, bare pass-throughs and a plain directory."


def parser() -> argparse.ArgumentParser:
    """What there is."""
    made = argparse.ArgumentParser(prog="scripts/bench", description=_DESCRIPTION)
    what = made.add_argument_group("what to measure")
    what.add_argument(
        "--quick", action="store_true", help="small sizes, one round, tmpfs only: a few minutes"
    )
    what.add_argument("--rounds", type=int, metavar="N", help=f"rounds; {ROUNDS} unless said")
    what.add_argument("--scale", type=float, metavar="X", help="all sizes times X")
    what.add_argument(
        "--limit", type=float, metavar="SECONDS", help="longest time of one loop; 1.5 unless said"
    )
    what.add_argument(
        "--dir", type=Path, action="append", metavar="DIRECTORY",
        help=f"where vaults are made; may be repeated; {TMPFS} (the processor's cost) and {DISK} unless said",
    )  # fmt: skip
    what.add_argument(
        "--workload", action="append", choices=list(BY_NAME), help="only these; may be repeated"
    )
    what.add_argument(
        "--peer", action="append", choices=OTHERS, help="only these beside cryptfs; may be repeated"
    )
    what.add_argument(
        "--variant", action="append", metavar="NAME:INIT:MOUNT",
        help="cryptfs with options of init and mount, such as 'c64:--chunk-size 64k:--no-xattrs'; repeatable",
    )  # fmt: skip
    what.add_argument("--focus", metavar="NAME", help="the variant that ratios are of; the first unless said")
    what.add_argument(
        "--curves", nargs="*", metavar="NAME", help="curves, all or of these: " + ", ".join(curve_names())
    )
    what.add_argument(
        "--big", action="store_true", help="curves up to 8 GiB and 1,000,000 entries; takes long"
    )
    what.add_argument(
        "--targets",
        action="store_true",
        help="only what the targets of the design are about, and their table",
    )
    what.add_argument(
        "--handlers", action="store_true",
        help="processor time of each handler of the native engine, without a mount; also --rounds, --dir",
    )  # fmt: skip
    what.add_argument(
        "--against", type=Path, metavar="TREE",
        help="with --handlers: another checkout of cryptfs, which takes turns with this one",
    )  # fmt: skip
    how = made.add_argument_group("how")
    how.add_argument(
        "--tree", type=Path, default=default_tree(), help="a source tree; Python's own unless said"
    )
    how.add_argument("--repository", type=Path, default=ROOT, help="a git repository; this one unless said")
    how.add_argument(
        "--user", metavar="NAME",
        help="who mounts and works, if root starts this: daemons, peers and workloads run as that user",
    )  # fmt: skip
    how.add_argument(
        "--wait-idle", type=float, default=0.0, metavar="SECONDS",
        help="before each turn wait until nobody else uses the processors, SECONDS at most",
    )  # fmt: skip
    how.add_argument(
        "--longest", type=float, default=120.0, metavar="SECONDS", help="of one turn, then it has failed"
    )
    out = made.add_argument_group("what to make of it")
    out.add_argument("--json", type=Path, metavar="FILE", help="write everything measured to FILE")
    out.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables to FILE as Markdown")
    out.add_argument(
        "--plots", type=Path, metavar="DIRECTORY", help="draw bars and curves there (needs matplotlib)"
    )
    out.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="FILE",
        help="measure nothing: show what an earlier --json wrote",
    )
    return made


def curve_names() -> list[str]:
    """What can be said after --curves."""
    return [*(spec.name for spec in curves.SPECS), "chunk-size"]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line and fill in what was not said."""
    made = parser()
    found = made.parse_args(words)
    if found.curves == []:
        found.curves = curve_names()
    for name in found.curves or []:
        if name not in curve_names():
            made.error(f"--curves: {name!r} is none of {', '.join(curve_names())}")
    found.rounds = found.rounds or (1 if found.quick else ROUNDS)
    found.dir = found.dir or ([TMPFS] if found.quick else [TMPFS, DISK])
    # A process that becomes another user works elsewhere.
    found.dir = [each.absolute() for each in found.dir]
    found.tree, found.repository = found.tree.absolute(), found.repository.absolute()
    try:
        found.user = None if found.user is None else find_user(found.user)
    except ValueError as error:
        made.error(f"--user: {error}")
    if found.against is not None:
        found.against = found.against.resolve()
        if not found.handlers:
            made.error("--against goes with --handlers")
        if not (found.against / "cryptfs" / "__init__.py").exists():
            made.error(f"--against: {found.against} is no checkout of cryptfs")
    found.variant = found.variant or ["cryptfs::"]
    names = [variant.partition(":")[0] for variant in found.variant]
    found.focus = found.focus or names[0]
    if found.focus not in names:
        made.error(f"--focus: {found.focus!r} is none of {', '.join(names)}")
    return found


def sizes_of(options: argparse.Namespace) -> Sizes:
    """How much is done."""
    factor = options.scale if options.scale is not None else (QUICK_SCALE if options.quick else 1.0)
    made = Sizes().scaled(factor)
    limit = options.limit if options.limit is not None else (QUICK_LIMIT if options.quick else made.limit)
    return Sizes(**{**{name: getattr(made, name) for name in made.__dataclass_fields__}, "limit": limit})


def workloads_of(options: argparse.Namespace) -> list[Workload]:
    """Which of them; none where only curves or handlers are asked for."""
    if options.workload:
        return [BY_NAME[name] for name in BY_NAME if name in options.workload]
    if options.targets:
        needed = targets.needed()
        return [each for each in WORKLOADS if any(one.title in needed for one in each.quantities)]
    return [] if options.curves or options.handlers else list(WORKLOADS)
