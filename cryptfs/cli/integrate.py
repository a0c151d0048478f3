"""`cryptfs integrate`: man pages, completion, the unit and the desktop entry, for one user.

A wheel puts them below its prefix. If pipx made that prefix, nothing looks for them there. So each file gets
a link in the user's data directory. A link leads to the file of the next version as well, and shows whose it
is.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, UsageProblem
from cryptfs.cli.output import answer_json, note, warn
from cryptfs.cli.params import debug_option, shell_word, shown

PARTS = {
    "man pages": ("man/man*/*cryptfs*",),
    "completion for bash": ("bash-completion/completions/cryptfs",),
    "completion for fish": ("fish/vendor_completions.d/cryptfs.fish",),
    "completion for zsh": ("zsh/site-functions/_cryptfs",),
    "unit for systemd": ("systemd/user/cryptfs@.service",),
    "desktop entry": (
        "applications/cryptfs.desktop",
        "icons/*/*/apps/cryptfs.svg",
        "mime/packages/cryptfs.xml",
    ),
}
"""The files by what they are, as patterns below share/."""
_ALWAYS_THERE = "cryptfs/json-schema.json"  # below each share/ of cryptfs
_DATABASES = (("mime", "mime"), ("desktop", "applications"))
_SYSTEM = "/usr/local/share:/usr/share"


class LinkState(StrEnum):
    """Of the place where programs look for a file."""

    INSTALLED = "installed"
    MISSING = "missing"
    OTHER_INSTALLATION = "other-installation"  # a link to the same file of another cryptfs, which may be gone
    FOREIGN = "foreign"  # not made by this command


@dataclass(frozen=True, slots=True)
class File:
    """A file of this installation, and its place. inner: its path below share/."""

    part: str
    inner: str
    source: Path
    target: Path

    @property
    def state(self) -> LinkState:
        """As it is now."""
        if not os.path.lexists(self.target):
            return LinkState.MISSING
        with contextlib.suppress(OSError):
            if self.target.samefile(self.source):
                return LinkState.INSTALLED
        if self.target.is_symlink() and str(self.target.readlink()).endswith(f"/share/{self.inner}"):
            return LinkState.OTHER_INSTALLATION
        return LinkState.FOREIGN

    def install(self) -> bool:
        """Whether something changed. Raises: OSError."""
        if self.state not in (LinkState.MISSING, LinkState.OTHER_INSTALLATION):
            return False
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.state is LinkState.OTHER_INSTALLATION:
            self.target.unlink()
        self.target.symlink_to(self.source)
        return True

    def remove(self) -> bool:
        """Whether something changed: only a link goes, and one to another cryptfs only if that is gone.

        Raises: OSError.
        """
        is_ours = self.state is LinkState.INSTALLED or not self.target.exists()
        if not (self.target.is_symlink() and is_ours and self.state is not LinkState.FOREIGN):
            return False
        self.target.unlink()
        return True


@command()
@click.option(
    "--list", "lists", is_flag=True, help="Change nothing: list the files, and which are installed."
)
@click.option("--uninstall", is_flag=True, help="Remove what this command has installed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: each file, and its state.")
@debug_option
def integrate(lists: bool, uninstall: bool, as_json: bool) -> None:
    """Install man pages, completion, the unit for systemd and the desktop entry for this user.

    Run this after an installation by pipx or pip, which leave these files where nothing finds them. The
    command makes a link to each of them below ~/.local/share. It replaces no file that it did not make.

    Run it again after an upgrade, because a new version may have more files. Run it with --uninstall
    before you uninstall cryptfs.

    The Debian package installs these files for all users.
    """
    if lists and uninstall:
        raise UsageProblem("--list and --uninstall exclude each other")
    share, data = share_directory(), data_directory()
    files = list(files_of(share, data))
    foreign: list[File] = []
    if not lists:
        changed = [each for each in files if (each.remove() if uninstall else each.install())]
        foreign = [each for each in files if each.state is LinkState.FOREIGN and not uninstall]
        if changed:
            _refresh(data)
        _say(changed, share, uninstall=uninstall)
    if as_json:
        _answer(share, files)
    elif lists:
        _list(files)
    if foreign:
        places = "\n  ".join(shell_word(each.target) for each in foreign)
        raise CommandError(
            f"this command did not make these files, and does not replace them:\n  {places}\n"
            "To have those of cryptfs, remove them, and run it again"
        )


def share_directory() -> Path:
    """The directory share/ of this installation. Raises: CommandError."""
    for parent in Path(__file__).resolve().parents[2:]:
        if (parent / "share" / _ALWAYS_THERE).is_file():
            return parent / "share"
    raise CommandError(
        "this installation has no man pages and no other files for a system: install the wheel"
    )


def data_directory() -> Path:
    """Where programs look for files of this user. Raises: UsageProblem: it belongs to another user."""
    base = os.environ.get("XDG_DATA_HOME", "")
    place = Path(base if base.startswith("/") else f"{_home()}/.local/share")
    nearest = next(each for each in (place, *place.parents) if each.exists())
    if nearest.stat().st_uid != os.geteuid():
        raise UsageProblem(f"{shown(nearest)} belongs to another user: run this as that user, without sudo")
    return place


def _home() -> Path:
    home = os.path.expanduser("~")
    if not home.startswith("/"):
        raise UsageProblem("this user has no home directory")
    return Path(home)


def files_of(share: Path, data: Path) -> Iterator[File]:
    """All files with their places: where they are, if programs look there anyway."""
    system = os.environ.get("XDG_DATA_DIRS") or _SYSTEM
    is_found = str(share) in (str(data), *system.split(":"), *_SYSTEM.split(":"))
    for part, patterns in PARTS.items():
        # man(1) knows no XDG_DATA_HOME: it looks beside the directories of PATH.
        place = _home() / ".local" / "share" if part == "man pages" else data
        for pattern in patterns:
            for source in sorted(share.glob(pattern)):
                inner = source.relative_to(share)
                yield File(part, str(inner), source, source if is_found else place / inner)


def _refresh(data: Path) -> None:
    """Have programs look at the files again, if the programs are there."""
    calls: list[tuple[str, ...]] = [
        (f"update-{name}-database", str(data / place))
        for name, place in _DATABASES
        if (data / place).is_dir()
    ]
    if Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere", "systemd").is_dir():
        calls.append(("systemctl", "--user", "daemon-reload"))
    for call in calls:
        with contextlib.suppress(FileNotFoundError):  # it is not installed
            done = subprocess.run(call, capture_output=True, text=True, check=False)
            if done.returncode:
                warn(f"{call[0]} failed: {shown(done.stderr.strip())}")


def _say(changed: list[File], share: Path, *, uninstall: bool) -> None:
    if not changed:
        note(f"There is nothing to {'remove' if uninstall else 'install'}: cryptfs integrate --list")
        return
    parts = ", ".join(dict.fromkeys(each.part for each in changed))
    note(
        f"{'Removed' if uninstall else 'Installed'} {len(changed)} links to files in {shown(share)}: {parts}."
    )
    if uninstall:
        return
    if str(_home() / ".local" / "bin") not in os.environ.get("PATH", "").split(":"):
        note("man finds the pages if ~/.local/bin is in PATH.")
    for each in changed:
        if each.part == "completion for zsh":
            line = f"fpath+=({shell_word(each.target.parent)})"
            note(f"For zsh, write this line into ~/.zshrc, before compinit: {line}")


def _list(files: list[File]) -> None:
    groups: dict[tuple[LinkState, str], list[File]] = {}
    for each in files:
        groups.setdefault((each.state, each.part), []).append(each)
    for (state, part), found in groups.items():
        place = os.path.commonpath([each.target for each in found])
        what = part if len(found) == 1 else f"{part} ({len(found)} files)"
        click.echo(f"{state.value:20}{what:28}{shown(place)}")


def _answer(share: Path, files: list[File]) -> None:
    found = [
        {
            "part": each.part,
            "path": shown(each.target),
            "source": shown(each.source),
            "state": each.state.value,
        }
        for each in files
    ]
    answer_json({"share": shown(share), "files": found})
