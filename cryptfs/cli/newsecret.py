"""The options for a new passphrase: where it comes from, and what a try of it costs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.output import note, size_text
from cryptfs.cli.params import PLACE, ByteSize, Number, Seconds
from cryptfs.cli.prompt import PassphraseSource, forget, passphrase_of
from cryptfs.cli.terminal import has_terminal

if TYPE_CHECKING:
    from cryptfs.unlock.kind import NewKey

_Command = TypeVar("_Command", bound=Callable[..., Any])

_generate_option = click.option(
    "--generate",
    is_flag=True,
    help="Propose a new passphrase of six random words, shown once on the terminal.",
)


@dataclass(frozen=True, slots=True)
class NewPassphrase:
    """Where a new passphrase comes from. generate: random words are proposed on the terminal."""

    source: PassphraseSource
    generate: bool = False

    def __post_init__(self) -> None:
        if self.generate and (self.source.is_option or self.source.named_by):
            raise UsageProblem("--generate makes a new passphrase; do not also say where to read one")
        if self.generate and not has_terminal():
            raise UsageProblem("--generate shows the new passphrase on a terminal, and there is none")

    def beside(self, old: PassphraseSource) -> NewPassphrase:
        """For a command that asks for another passphrase first: the same program asks for this one."""
        if self.source.is_empty and old.askpass is not None:
            return NewPassphrase(PassphraseSource(askpass=old.askpass), self.generate)
        return self

    @contextlib.contextmanager
    def read(self) -> Iterator[bytes]:
        """The new passphrase for as long as a command needs it; then it is overwritten.

        Raises: what read_passphrase raises.
        """
        if not self.generate:
            with passphrase_of(self.source, "New passphrase", confirm=True) as passphrase:
                yield passphrase
            return
        from cryptfs.cli.diceware import proposed_passphrase

        passphrase = proposed_passphrase()
        try:
            yield passphrase
        finally:
            forget(passphrase)


def new_passphrase_options(function: _Command) -> _Command:
    """The options for a new passphrase beside the one that unlocks; the command gets them as `new`."""
    return _generate_option(new_passphrase_sources(function))


def new_passphrase_sources(function: _Command) -> _Command:
    """The same without --generate."""

    @functools.wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        passfile, passcommand = kwargs.pop("new_passfile"), kwargs.pop("new_passcommand")
        if passfile is not None and passcommand is not None:
            raise click.UsageError(
                "choose one of --new-passfile and --new-passcommand", click.get_current_context()
            )
        new = NewPassphrase(PassphraseSource(passfile, passcommand), kwargs.pop("generate", False))
        return function(*args, new=new, **kwargs)

    for add in (
        click.option(
            "--new-passcommand",
            metavar="COMMAND",
            help="Run COMMAND and read the new passphrase from its output.",
        ),
        click.option(
            "--new-passfile",
            type=PLACE,
            metavar="FILE",
            help="Read the new passphrase from the first line of FILE.",
        ),
    ):
        command = add(command)
    return command  # type: ignore[return-value]


def generate_option(function: _Command) -> _Command:
    """`--generate` alone, for a new vault."""
    return _generate_option(function)


def new_key(make: Callable[[], NewKey]) -> NewKey:
    """What a function of unlock/ makes of a new secret. Raises: UsageProblem: the secret cannot be used."""
    try:
        return make()
    except ValueError as error:
        raise UsageProblem(str(error)) from None


# ---- the cost of a try


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a try of a new passphrase, as the command line gives it. memory: bytes."""

    memory: int | None
    passes: int | None
    seconds: float | None

    @property
    def is_given(self) -> bool:
        """Whether the command line says anything about it."""
        return (self.memory, self.passes, self.seconds) != (None, None, None)

    def choose(self, present: tuple[int, int] | None = None) -> tuple[int, int]:
        """(memory, passes): as given, or measured; else as it is, or the default.

        Measuring never chooses less than there is.

        Args: present: of the slot that gets another passphrase.
        """
        from cryptfs.core.slots.kdf import DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES

        memory, passes = present or (DEFAULT_KDF_MEMORY, DEFAULT_KDF_PASSES)
        if self.seconds is not None:
            memory, passes = _measured(self.seconds, present)
        return (
            memory if self.memory is None else self.memory,
            passes if self.passes is None else self.passes,
        )


def _measured(seconds: float, present: tuple[int, int] | None) -> tuple[int, int]:
    from cryptfs.unlock.calibration import calibrate
    from cryptfs.unlock.unlocking import memory_limit

    found = calibrate(seconds, memory_limit())
    memory, passes = found.memory, found.passes
    note(f"A try of {cost_text(memory, passes)} takes {found.seconds:.2g} s on this machine.")
    if present is not None and (memory < present[0] or passes < present[1]):
        memory, passes = max(memory, present[0]), max(passes, present[1])
        cost = cost_text(memory, passes)
        note(f"Only --kdf-memory and --kdf-passes lower a cost, so it becomes {cost}.")
    return memory, passes


def cost_text(memory: int, passes: int) -> str:
    """'256 MiB, 3 passes'."""
    return f"{size_text(memory)}, {passes} passes"


def cost_options(*, memory: str, passes: str) -> Callable[[_Command], _Command]:
    """The cost of one try of a passphrase, with the defaults in words; the command gets it as `cost`."""

    def decorate(function: _Command) -> _Command:
        @functools.wraps(function)
        def command(*args: Any, **kwargs: Any) -> Any:
            cost = Cost(kwargs.pop("kdf_memory"), kwargs.pop("kdf_passes"), kwargs.pop("calibrate"))
            _check_memory(cost.memory)
            if cost.seconds is not None and (cost.memory, cost.passes) != (None, None):
                raise click.UsageError(
                    "give either --calibrate, or --kdf-memory and --kdf-passes",
                    click.get_current_context(),
                )
            return function(*args, cost=cost, **kwargs)

        for add in (
            click.option(
                "--calibrate",
                type=Seconds(0.1, 60),
                metavar="SECONDS",
                help="Measure this machine, and choose memory and passes so that a try takes SECONDS here.",
            ),
            click.option(
                "--kdf-passes",
                type=Number(3, 64),
                metavar="N",
                help=f"Passes of Argon2id over that memory, 3 to 64.  [default: {passes}]",
            ),
            click.option(
                "--kdf-memory",
                type=ByteSize(),
                metavar="SIZE",
                help=f"Memory for each try of a passphrase, 64m to 4g.  [default: {memory}]",
            ),
        ):
            command = add(command)
        return cast("_Command", command)

    return decorate


def _check_memory(memory: int | None) -> None:
    """Compare with the format's limits. memory: bytes; None is not given."""
    from cryptfs.core.slots.kdf import MAX_KDF_MEMORY, MIN_KDF_MEMORY

    if memory is not None and (not MIN_KDF_MEMORY <= memory <= MAX_KDF_MEMORY or memory % 1024):
        raise click.UsageError(
            "--kdf-memory is 64m to 4g, a multiple of 1k", click.get_current_context(silent=True)
        )
