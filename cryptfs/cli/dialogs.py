"""Windows that ask a person and show errors: zenity or kdialog, for commands that a desktop starts.

All texts are plain: none of the programs may take a part of a name for markup.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cryptfs.cli.exit_codes import NoWindowError
from cryptfs.core.printable import fit_for_terminal, shown

QUESTION = "{question}"
"""In the words of a program that asks: its question comes here."""
_PROGRAMS = ("zenity", "kdialog")
_TITLE = "cryptfs"


def has_display() -> bool:
    """Whether there is a desktop to show windows on."""
    return bool(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"))


class Dialogs:
    """The windows of one program. Raises: NoWindowError: no display, or no program for it."""

    def __init__(self) -> None:
        if not has_display():
            raise NoWindowError("there is no display for a window; give --no-window to be asked here")
        found = next((name for name in self._preferred() if shutil.which(name)), None)
        if found is None:
            raise NoWindowError("no program for windows is installed; install zenity or kdialog")
        self._name = found

    @staticmethod
    def _preferred() -> Sequence[str]:
        is_kde = "KDE" in os.environ.get("XDG_CURRENT_DESKTOP", "").split(":")
        return tuple(reversed(_PROGRAMS)) if is_kde else _PROGRAMS

    @property
    def _is_zenity(self) -> bool:
        return self._name == "zenity"

    def _plain(self, text: str, *, entry: bool = False) -> str:
        """A text that the program shows as it is. entry: of a field, where zenity looks for shortcuts."""
        text = fit_for_terminal(text)
        if not self._is_zenity:  # Qt takes a text with a tag for HTML
            return text.replace("<", "(").replace(">", ")")
        text = text.replace("\\", "\\\\")
        return text.replace("_", "__") if entry else text

    def passphrase(self, vault: Path) -> tuple[str, ...]:
        """The words of a program that prints a passphrase, for PassphraseSource.window."""
        about = self._plain(f"The vault {shown(vault)}:", entry=True) + f"\n{QUESTION}"
        if self._is_zenity:
            return ("zenity", "--entry", "--hide-text", f"--title={_TITLE}", f"--text={about}")
        return ("kdialog", "--title", _TITLE, "--password", about)

    def error(self, text: str) -> None:
        """Show an error, and wait until the person has seen it."""
        text = self._plain(text)
        if self._is_zenity:
            self._answer("--error", "--no-markup", "--width=500", f"--title={_TITLE}", f"--text={text}")
        else:
            self._answer("--title", _TITLE, "--error", text)

    def choose(self, vaults: Sequence[Path], other: str) -> int | None:
        """Let a person choose a vault; len(vaults) is `other`, None is nothing."""
        rows = [*((each.name, shown(each)) for each in vaults), (other, "")]
        if self._is_zenity:
            words = ["--list", f"--title={_TITLE}", "--text=Open a vault", "--width=600", "--height=400"]
            words += ["--column=Number", "--column=Name", "--column=Vault"]
            words += ["--hide-column=1", "--print-column=1", "--"]
            for number, row in enumerate(rows):
                words += [str(number), *map(fit_for_terminal, row)]
        else:
            words = ["--title", _TITLE, "--menu", "Open a vault"]
            for number, (name, place) in enumerate(rows):
                words += [str(number), self._plain(place or name)]
        answer = self._answer(*words)
        return int(answer) if answer.isdigit() and int(answer) <= len(vaults) else None

    def directory(self) -> Path | None:
        """Let a person choose a directory; None is nothing."""
        if self._is_zenity:
            answer = self._answer("--file-selection", "--directory", "--title=Open a vault")
        else:
            answer = self._answer("--title", _TITLE, "--getexistingdirectory", os.path.expanduser("~"))
        return Path(answer) if answer else None

    def _answer(self, *words: str) -> str:
        """The last line that the program prints; '' if the person closed the window."""
        done = subprocess.run(
            [self._name, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return os.fsdecode(done.stdout).removesuffix("\n") if done.returncode == 0 else ""


def browse(place: Path) -> None:
    """Show a directory in the file manager; nothing waits for it, and nothing happens without one."""
    opener = shutil.which("xdg-open")
    if opener is not None and has_display():
        subprocess.Popen(
            [opener, str(place)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
