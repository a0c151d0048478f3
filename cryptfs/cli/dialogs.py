"""Windows that ask a person and show errors: zenity or kdialog, for commands that a desktop starts.

All texts are plain: none of the programs may take a part of a name for markup.
"""

from __future__ import annotations

import contextlib
import html
import os
import shutil
import signal
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cryptfs.cli.exit_codes import NoWindowError
from cryptfs.core.printable import fit_for_terminal, shown
from cryptfs.storage.libc import end_with_parent

QUESTION = "{question}"
"""In the words of a program that asks: its question comes here."""
_PROGRAMS = ("zenity", "kdialog")
_TITLE = "cryptfs"
_GIVES_UP = {"zenity": (0, 1), "kdialog": (2,)}
"""Exit codes of a notice if a person pressed Cancel, or closed it. kdialog has a button Continue as well."""
_END_SECONDS = 2.0
_NO_DISPLAY = (b"cannot open display", b"could not connect to display", b"Failed to create wl_display")
"""What GTK and Qt say, in every language."""
_MOST_SAID = 64 * 1024
_WRAP = textwrap.TextWrapper(
    80, break_long_words=False, break_on_hyphens=False, expand_tabs=False, replace_whitespace=False
)


def has_display() -> bool:
    """Whether there is a desktop to show windows on."""
    return bool(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"))


def end_with_cryptfs() -> None:
    """Before a program of a window begins: a question of a killed cryptfs must not stay on the screen."""
    end_with_parent(signal.SIGTERM)


@contextlib.contextmanager
def said_by_window() -> Iterator[int]:
    """A descriptor for the stderr of a window's program.

    Raises: NoWindowError: at the end, if the program said that it cannot reach the display: its exit code may
            be that of a window which a person closed.
    """
    descriptor = os.memfd_create("cryptfs")
    try:
        yield descriptor
        if _is_without_display(descriptor):
            display = shown(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY", ""))
            raise NoWindowError(
                f"the display {display} cannot be reached, so there is no window; "
                "give --no-window to be asked here"
            )
    finally:
        os.close(descriptor)


def _is_without_display(said: int) -> bool:
    text = os.pread(said, _MOST_SAID, 0)
    return any(words in text for words in _NO_DISPLAY)


def notify(text: str) -> None:
    """Tell a person what no window can tell, by the first program that is there."""
    text = fit_for_terminal(text)
    ways = (
        ("notify-send", f"--app-name={_TITLE}", _TITLE, html.escape(text, quote=False)),
        ("xmessage", "-center", "-title", _TITLE, text),
    )
    words = next((each for each in ways if shutil.which(each[0])), None)
    if words is not None and has_display():
        subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            preexec_fn=end_with_cryptfs,
        )


class Dialogs:
    """The windows of one program. Raises: NoWindowError: no display, or no program for it."""

    def __init__(self) -> None:
        if not has_display():
            raise NoWindowError(
                "there is no display for a window; give --no-window to be asked on the terminal"
            )
        found = next((name for name in self._preferred() if shutil.which(name)), None)
        if found is None:
            raise NoWindowError("no program that shows windows is installed; install zenity or kdialog")
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
        if self._is_zenity:  # its windows become as wide as the longest line
            text = "\n".join(_WRAP.fill(line) for line in text.split("\n"))
        text = text.replace("\\", "\\\\")  # both take \\n for a line break
        if not self._is_zenity:  # Qt guesses whether a text is HTML; so it is
            return f"<qt>{html.escape(text, quote=False)}</qt>".replace("\n", "<br>")
        return text.replace("_", "__") if entry else text

    def secret(self, about: str) -> tuple[str, ...]:
        """The words of a program that asks for a passphrase or the like, for PassphraseSource.window."""
        text = self._plain(f"{about}\n{QUESTION}", entry=True)
        if self._is_zenity:
            return ("zenity", "--entry", "--hide-text", f"--title={_TITLE}", f"--text={text}")
        return ("kdialog", "--title", _TITLE, "--password", text)

    @contextlib.contextmanager
    def notice(self, text: str, cancel: Callable[[], None]) -> Iterator[None]:
        """Show a text with a button `Cancel` for as long as the context lasts.

        Args: cancel: called, from a thread, when the person presses that or closes the window.
        """
        text = self._plain(text)
        if self._is_zenity:
            words = ["--info", "--no-markup", "--width=400", f"--title={_TITLE}", f"--text={text}"]
            words += ["--ok-label=Cancel"]
        else:
            words = ["--title", _TITLE, "--warningcontinuecancel", text]
        said = os.memfd_create("cryptfs")
        window = subprocess.Popen(
            [self._name, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            preexec_fn=end_with_cryptfs,
        )
        is_over = threading.Event()

        def wait() -> None:
            gives_up = window.wait() in _GIVES_UP[self._name]
            if gives_up and not _is_without_display(said) and not is_over.is_set():
                cancel()

        waiter = threading.Thread(target=wait, name="cryptfs-notice", daemon=True)
        waiter.start()
        try:
            yield
        finally:
            is_over.set()
            window.terminate()
            waiter.join(_END_SECONDS)
            if waiter.is_alive():
                window.kill()
                waiter.join()  # nothing runs beside the fork of a daemon
            os.close(said)

    def error(self, text: str) -> None:
        """Show an error, and wait until the person has seen it."""
        text = self._plain(text)
        if self._is_zenity:
            self._answer("--error", "--no-markup", "--width=500", f"--title={_TITLE}", f"--text={text}")
        else:
            self._answer("--title", _TITLE, "--error", text)

    def choose(self, vaults: Sequence[Path], other: str) -> int | None:
        """Let a person choose a vault; len(vaults) is `other`, None is nothing."""
        rows = [*((shown(each.name), shown(each)) for each in vaults), (other, "")]
        typed = ""
        if self._is_zenity:
            words = ["--list", f"--title={_TITLE}", "--text=Open a vault", "--width=600", "--height=400"]
            words += ["--column=Number", "--column=Name", "--column=Vault"]
            words += ["--hide-column=1", "--print-column=1"]
            # On stdin, a line for each cell: on the command line `-name` is an option, and `--` a cell.
            typed = "".join(f"{cell}\n" for number, row in enumerate(rows) for cell in (str(number), *row))
        else:
            words = ["--title", _TITLE, "--menu", "Open a vault"]
            for number, (name, place) in enumerate(rows):
                words += [str(number), place or name]
        answer = self._answer(*words, typed=typed)
        return int(answer) if answer.isdigit() and int(answer) <= len(vaults) else None

    def directory(self) -> Path | None:
        """Let a person choose a directory; None is nothing."""
        home = os.path.expanduser("~")
        if self._is_zenity:  # without a place, it shows what programs used last
            words = ("--file-selection", "--directory", "--title=Open a vault", f"--filename={home}/")
            answer = self._answer(*words)
        else:
            answer = self._answer("--title", _TITLE, "--getexistingdirectory", home)
        return Path(answer) if answer else None

    def _answer(self, *words: str, typed: str = "") -> str:
        """The last line that the program prints; '' if the person closed the window.

        Args: typed: for its stdin.   Raises: NoWindowError.
        """
        with said_by_window() as said:
            done = subprocess.run(
                [self._name, *words],
                input=typed.encode(),
                stdout=subprocess.PIPE,
                stderr=said,
                check=False,
                preexec_fn=end_with_cryptfs,
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
