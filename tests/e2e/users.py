"""Acting as several users, and seeing which times an operation moved: for differential cases as root."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.e2e.trace import Trace

_CLOCK_REALTIME_COARSE = 5  # linux/time.h; Python has no name for it
OLD_NS = 1_000_000_000 * 10**9  # in 2001: before everything that a test does


class User(NamedTuple):
    """Somebody on the system; needs no line in /etc/passwd."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User("root", 0, 0)
OWNER = User("owner", 64001, 64001)
MEMBER = User("member", 64002, 64002, (64001,))
OTHER = User("other", 64003, 64003)
USERS = (OWNER, MEMBER, OTHER, ROOT)

Target = bytes | int


def as_user(t: Trace, user: User, work: Callable[[Trace], None]) -> None:
    """Run `work` as the user; what it notes is noted in `t`. Only the saved ids stay root's, to come back."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        work(t)
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])


def do_as(
    t: Trace, user: User, label: str, function: Callable[..., Any], *arguments: Any, **named: Any
) -> None:
    """One call as a user; records its result or errno."""
    as_user(t, user, lambda trace: trace.do(label, function, *arguments, **named))


def _stat(target: Target) -> os.stat_result:
    return os.fstat(target) if isinstance(target, int) else os.lstat(target)


def stamp(target: Target) -> os.stat_result:
    """Set atime and mtime to OLD_NS, wait until a change of now gets a later ctime; the stat after it."""
    if isinstance(target, int):
        os.utime(target, ns=(OLD_NS, OLD_NS))
    else:
        os.utime(target, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    found = _stat(target)
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= found.st_ctime_ns:
        pass  # one tick: a few milliseconds
    return found


def moved(target: Target, before: os.stat_result) -> str:
    """Which times are later than they were: any of 'a', 'm', 'c'; 'gone' for a name that is no more."""
    try:
        now = _stat(target)
    except FileNotFoundError:
        return "gone"
    pairs = {
        "a": (before.st_atime_ns, now.st_atime_ns),
        "m": (before.st_mtime_ns, now.st_mtime_ns),
        "c": (before.st_ctime_ns, now.st_ctime_ns),
    }
    assert all(then <= later for then, later in pairs.values()), f"a time of {target!r} went back"
    return "".join(letter for letter, (then, later) in pairs.items() if then < later)


def watch(
    t: Trace,
    label: str,
    targets: Sequence[Target],
    function: Callable[..., Any],
    *arguments: Any,
    user: User = ROOT,
    **named: Any,
) -> None:
    """Call as a user; record the result, and which times it moved of each target.

    The targets stay in the kernel's cache meanwhile: with the writeback cache their ctime is kept there,
    and is a few milliseconds another in the vault.
    """
    flags = os.O_PATH | os.O_NOFOLLOW
    pins = [os.open(target, flags) for target in targets if isinstance(target, bytes)]
    try:
        before = [stamp(target) for target in targets]
        if user is ROOT:
            t.do(label, function, *arguments, **named)
        else:
            do_as(t, user, label, function, *arguments, **named)
        found = [moved(target, then) for target, then in zip(targets, before, strict=True)]
    finally:
        for pin in pins:
            os.close(pin)
    t.note(f"{label}: times moved", found)
