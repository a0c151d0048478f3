"""Options of mount and umount about unmounting, without a mount."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from cryptfs.cli.mount import mount
from cryptfs.cli.wishes import collect_options
from tests.commands import Run, runner


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def parsed(*words: str) -> dict[str, object]:
    return mount.make_context("cryptfs mount", [*words, "vault", "mountpoint"]).params


def test_completion_of_reasons_to_unmount() -> None:
    option = next(each for each in mount.params if each.name == "unmount_on")
    context = click.Context(mount)
    for begun, proposed in (
        ("", ["sleep", "lock", "logout"]),
        ("lo", ["lock", "logout"]),
        ("lock,", ["lock,sleep", "lock,logout"]),
        ("sleep,lock,l", ["sleep,lock,logout"]),
        ("x", []),
    ):
        assert [each.value for each in option.shell_complete(context, begun)] == proposed


def test_the_command_line_is_above_fstab() -> None:
    found = parsed("--idle", "1h30m", "--unmount-on", "Sleep,lock", "--detach-busy")
    flags = {name: found[name] for name in ("idle", "unmount_on", "detach_busy")}
    options, ours = collect_options(["idle=5m,unmount_on=logout,before_unmount=a b"], flags)
    assert (options.idle, options.unmount_on, options.detach_busy) == (5400.0, ("sleep", "lock"), True)
    assert (options.before_unmount, options.after_mount, ours) == ("a b", "", {})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--idle", "0"), "give a time from 1s to 30d"),
        (("--idle", "31d"), "give a time from 1s to 30d"),
        (("--idle", "soon"), "'soon' is not a time; write for example 90s, 10m or 1h30m"),
        (("--unmount-on", ""), "give one or more of sleep, lock, logout, separated by commas"),
        (("--unmount-on", "lock,dinner"), "give one or more of sleep, lock, logout, separated by commas"),
        (("--before-unmount", "a 'b"), "before_unmount: No closing quotation"),
        (("-o", "after_mount= "), "after_mount: the command is empty"),
    ],
)
def test_options_that_are_wrong(words: tuple[str, ...], why: str, tmp_path: Path, run: Run) -> None:
    told = run("mount", *words, tmp_path, tmp_path / "m")
    assert told.code == 1
    assert why in told.err


def test_restore_needs_a_place(run: Run, tmp_path: Path) -> None:
    assert run("umount", "--restore").err == (
        "cryptfs: name a directory: cryptfs umount --restore MOUNTPOINT\n"
    )
    assert run("umount", "--all", tmp_path).code == 1
    assert run("umount", "--all", "--restore").code == 1
