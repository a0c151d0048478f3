"""What a daemon logs fails the test that caused it: the watch itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mounting import LogWatch, Mounted, MountSpec, assert_log_file_quiet, scratch_directory


@pytest.fixture
def logged() -> Iterator[Mounted]:
    """A mount that never starts, with a log that the test writes."""
    mount = Mounted(MountSpec(), scratch_directory(tmpfs=True))
    mount.watch()
    yield mount
    mount.abandon()


def say(mount: Mounted, line: str) -> None:
    with mount.log_path.open("a") as log:
        log.write(line + "\n")


def test_a_line_fails_the_test_once(logged: Mounted) -> None:
    watch = LogWatch()
    watch.before_the_call()
    watch.check()
    say(logged, "WARNING x: something is odd")
    with pytest.raises(AssertionError, match="something is odd"):
        watch.check()
    watch.check()


def test_what_a_test_allows_is_allowed_to_it_alone(logged: Mounted) -> None:
    watch = LogWatch()
    watch.before_the_call()
    logged.allow_log("something is odd")
    say(logged, "WARNING x: something is odd")
    watch.after_the_teardown()
    say(logged, "WARNING x: something is odd")
    with pytest.raises(AssertionError, match="something is odd"):
        LogWatch().check()


def test_a_mount_that_is_gone_counts(logged: Mounted) -> None:
    say(logged, "WARNING x: something is odd")
    logged.abandon()
    with pytest.raises(AssertionError, match="something is odd"):
        LogWatch().check()
    LogWatch().check()


@pytest.mark.parametrize(
    "line", ["Nov 29 cryptfs WARNING x: odd", "Nov 29 cryptfs ERROR x: odd", "Traceback (most"]
)
def test_a_log_file_is_looked_at(line: str, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    assert_log_file_quiet(log_file)
    log_file.write_text(f"Nov 29 cryptfs INFO x: mounted\n{line}\n")
    with pytest.raises(AssertionError, match=r"odd|most"):
        assert_log_file_quiet(log_file)
    assert_log_file_quiet(log_file, ["odd", "^Traceback"])
