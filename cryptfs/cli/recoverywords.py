"""Recovery words and shares at the terminal and in files: shown once, asked back, and read for unlocking."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cryptfs.cli.exit_codes import CommandError, PassphraseUnreadableError, UsageProblem
from cryptfs.cli.newfile import refuse_no_file
from cryptfs.cli.output import say
from cryptfs.cli.params import PLACE, Decorated, shown
from cryptfs.cli.prompt import TRIES, line_of, read_secret_text
from cryptfs.cli.terminal import stdin_is_terminal
from cryptfs.cli.vaults import is_inside
from cryptfs.errors import MistypedWordsError, WrongPassphraseError

if TYPE_CHECKING:
    from cryptfs.unlock.offer import Offer
    from cryptfs.unlock.recovering import HeldSecret

_COLUMNS = 4
_ASKED_BACK = 2

_Used = TypeVar("_Used")


@dataclass(frozen=True, slots=True)
class RecoverySource:
    """What the command line said about words and shares.

    words, shares: a person types them.   words_file, share_files: read them there; '-' is stdin.
    """

    words: bool = False
    words_file: Path | None = None
    shares: bool = False
    share_files: tuple[Path, ...] = ()

    @property
    def is_given(self) -> bool:
        """Whether the vault is to be opened by them."""
        return self.words or self.shares or self.words_file is not None or bool(self.share_files)

    @property
    def is_typed(self) -> bool:
        """Whether a person types them."""
        return self.words or self.shares


RECOVERY_OPTIONS = ("typed_words", "words_file", "typed_shares", "share_files")
RECOVERY_ADDERS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option("--words", "typed_words", is_flag=True, help="Ask for recovery words at the terminal."),
    click.option(
        "--words-file", type=PLACE, metavar="FILE", help="Read recovery words from FILE; '-' is stdin."
    ),
    click.option("--shares", "typed_shares", is_flag=True, help="Ask for shares at the terminal."),
    click.option(
        "--share-file",
        "share_files",
        type=PLACE,
        metavar="FILE",
        multiple=True,
        help="Read a share from FILE; give it once for each share. '-' is stdin.",
    ),
)
"""Open the vault by its recovery record; those in RECOVERY_OPTIONS, in their order."""


def recovery_options(function: Decorated) -> Decorated:
    """The four options, for a command that takes words or shares alone."""
    for option in reversed(RECOVERY_ADDERS):
        function = option(function)
    return function


def recovery_source(given: Mapping[str, Any]) -> RecoverySource:
    """From the four options; missing is not given. Raises: UsageProblem: several of them are set."""
    words, words_file, shares, share_files = (given.get(name) for name in RECOVERY_OPTIONS)
    source = RecoverySource(bool(words), words_file, bool(shares), tuple(share_files or ()))
    if sum(map(bool, (words, words_file, shares, share_files))) > 1:
        raise UsageProblem("choose one of --words, --words-file, --shares and --share-file")
    return source


@contextlib.contextmanager
def recovery_offer(source: RecoverySource) -> Iterator[Offer]:
    """Words or shares for as long as a command needs them; afterwards they are overwritten.

    Raises: MistypedWordsError: of those in a file; at the terminal a person types the line again.
            PassphraseUnreadableError: they cannot be read.
    """
    from cryptfs.unlock.offer import Offer

    if source.is_typed and not stdin_is_terminal():
        raise PassphraseUnreadableError("there is no terminal to ask on; use --words-file or --share-file")
    if source.words:
        offer = Offer(words=_typed_words())
    elif source.shares:
        offer = Offer(shares=_typed_shares())
    elif source.words_file is not None:
        offer = Offer(words=read_secret_text(source.words_file, "recovery words"))
    else:
        offer = Offer(shares=tuple(read_secret_text(place, "share") for place in source.share_files))
    try:
        yield offer
    finally:
        offer.wipe()


def with_recovery(recovery: RecoverySource, use: Callable[[Offer], _Used]) -> _Used:
    """Read words or shares, and use them. A person at a terminal has TRIES tries.

    Raises: what `use` raises, and what recovery_offer raises.
    """
    left = TRIES - 1 if recovery.is_typed else 0
    while True:
        with recovery_offer(recovery) as offer:
            try:
                return use(offer)
            except WrongPassphraseError as error:
                if not left:
                    raise
                problem = error
        say(f"{problem}. Try again ({left} left).")
        left -= 1


def _typed_words() -> bytes:
    """24 words from the terminal, on one line or several; a line with an unknown word is asked for again."""
    from cryptfs.unlock.carriers.words import WORD_COUNT, parse_words

    return " ".join(_typed("Recovery words", WORD_COUNT, parse_words)).encode()


def _typed(prompt: str, count: int, parse: Callable[[bytes], list[str]]) -> list[str]:
    words: list[str] = []
    say(f"{prompt}: type {count} words, on one line or several.")
    while len(words) < count:
        with line_of(f"From word {len(words) + 1}") as line:
            try:
                words += parse(line)
            except MistypedWordsError as error:
                say(f"cryptfs did not take that line: {error}. {error.hint}".rstrip())
    return words


def _typed_shares() -> tuple[bytes, ...]:
    """As many shares as it takes; the first one says how many."""
    from cryptfs.unlock.carriers.shares import WORDS_OF_SHARE, parse_share, share_words

    found: dict[int, bytes] = {}
    needed = 1
    while len(found) < needed:
        number = len(found) + 1
        of = f" of {needed}" if found else ""
        text = " ".join(_typed(f"Share {number}{of}", WORDS_OF_SHARE, share_words)).encode()
        try:
            share = parse_share(text, number)
        except MistypedWordsError as error:
            say(f"{error}. Type this share again.")
            continue
        if share.index in found:
            say("You typed that share already; type another one.")
        needed = share.member_threshold
        found[share.index] = text
    return tuple(found.values())


# ---- new ones


def require_place(vault: Path, output: Path | None, *, is_directory: bool = False) -> None:
    """Refuse before a passphrase is asked for. Words go to a terminal or into a file, and never into a pipe.

    Nor do they go into the vault: its storage, and each copy of it, could open it then.

    Args:   is_directory: the output is a directory, for shares.

    Raises: UsageProblem.
    """
    if output is None and not (sys.stdout is not None and sys.stdout.isatty()):
        raise UsageProblem(
            "stdout is not a terminal, and anybody who reads it could open the vault. Use --output FILE: it "
            "makes a file that only you can read"
        )
    if output is None:
        return
    if is_inside(vault, output):
        raise UsageProblem(
            f"{shown(output)} is in the vault itself, so it would open each copy of the vault. Choose "
            "another place"
        )
    refuse_no_file(output, is_directory=is_directory)


def give_words(held: HeldSecret, vault: Path, output: Path | None) -> None:
    """Hand new words to a person: on the terminal, once, with two asked back; or in a file.

    Raises: PassphraseUnreadableError: they were not repeated.   CommandError: the file cannot be written.
    """
    from cryptfs.unlock.carriers.words import words_of

    words = words_of(held.secret).split()
    if output is not None:
        write_secret(output, " ".join(words))
        return
    title = f"Recovery words {held.about.short_id} of {shown(vault)}"
    _show(title, words)
    _ask_back(words, _ASKED_BACK)


def give_shares(held: HeldSecret, vault: Path, output: Path | None) -> None:
    """As give_words, each share by itself; output: a directory, with a file for each.

    Raises: PassphraseUnreadableError, CommandError.
    """
    from cryptfs.unlock.carriers.shares import split

    texts = split(held.secret, held.about.needed, held.about.shares)
    count = len(texts)
    if output is not None:
        try:
            output.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{shown(output)}: cannot be made: {error.strerror}") from None
        for number, text in enumerate(texts, 1):
            write_secret(output / f"share-{held.about.short_id}-{number}-of-{count}", text)
        return
    for number, text in enumerate(texts, 1):
        words = text.split()
        about = f"{held.about.short_id}; it takes {held.about.needed}"
        _show(f"Share {number} of {count} of {shown(vault)} ({about})", words)
        _ask_back(words, 1)
        if number < count and stdin_is_terminal():
            with line_of("Press Enter for the next share"):
                pass


def _show(title: str, words: Sequence[str]) -> None:
    """Numbered words on stdout, downwards in columns."""
    click.echo(f"\n{title}\n")
    rows = -(-len(words) // _COLUMNS)
    width = max(map(len, words))
    for row in range(rows):
        cells = (f"{place + 1:3}. {words[place]:{width}}" for place in range(row, len(words), rows))
        click.echo("".join(cells).rstrip())
    click.echo("")


def _ask_back(words: Sequence[str], count: int) -> None:
    """Let a person repeat some of the words. Without a terminal to type on nobody is asked.

    Raises: PassphraseUnreadableError: wrong three times.
    """
    import random

    if not stdin_is_terminal():
        return
    say(
        "Write them on paper and keep it safe: they are not shown again, and anybody who has them can open "
        "the vault."
    )
    for place in sorted(random.SystemRandom().sample(range(len(words)), count)):
        for left in range(TRIES - 1, -1, -1):
            with line_of(f"To be sure, type word {place + 1}") as line:
                is_right = line.decode(errors="replace").strip().casefold() == words[place]
            if is_right:
                break
            if not left:
                raise PassphraseUnreadableError("that is another word; nothing was changed")
            say(f"That is not word {place + 1}. Look again.")


def write_secret(place: Path, text: str) -> None:
    """A new file that only its owner can read. Raises: CommandError: it exists, or cannot be written."""
    from cryptfs.storage.libc import wipe

    data = text.encode() + b"\n"
    try:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
    except FileExistsError:
        raise CommandError(f"{shown(place)} exists already; nothing was changed") from None
    except OSError as error:
        raise CommandError(f"{shown(place)}: cannot be written: {error.strerror}") from None
    finally:
        wipe(data)
