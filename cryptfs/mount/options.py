"""The options of a mount, and the parser of `-o a,b,c=d` strings.

The same names work on the command line, in fstab and in `mount -t fuse.cryptfs -o`. Engines read
MountOptions and nothing else.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptfs.mount.leaving.hooks import split_command

if TYPE_CHECKING:
    from cryptfs.vfs.content.context import FileContext

ENGINES = ("native", "fusepy")
DEFAULT_ENGINE = "native" if sys.platform == "linux" else "fusepy"
DURABILITIES = ("power", "process", "off")  # as in vfs/content/redo.py, which is slow to import
MAX_TIMEOUT = 86_400.0
MAX_THREADS = 64
LEAVE_REASONS = ("sleep", "lock", "logout")  # as in leaving/desktop.py
MIN_IDLE, MAX_IDLE = 1.0, 30 * 86_400.0
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII | re.IGNORECASE)
_UNITS = (86_400, 3600, 60, 1)  # seconds
FRESH_SECONDS = 1.0  # that the kernel keeps names and attributes of a vault which others may change

# These go to the kernel as they are.
KERNEL_OPTIONS = frozenset(
    {
        "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "nodiratime", "sync", "async",
        "dirsync", "nosymfollow", "symfollow",
    }
)  # fmt: skip
UNKNOWN_TO_LIBFUSE = frozenset({"nodiratime", "nosymfollow", "symfollow"})  # and to fusermount
# fstab, mount(8) and programs that mount put these in. They mean nothing to a filesystem, or not to this one:
# the disk with the vault decides about times of access, and the type of the mount is always fuse.cryptfs.
IGNORED_OPTIONS = frozenset(
    {
        "defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "nofail", "_netdev",
        "atime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
        "nolazytime", "silent", "loud", "quiet", "iversion", "noiversion", "mand", "nomand",
    }
)  # fmt: skip
IGNORED_PREFIXES = ("x-", "X-", "comment=", "subtype=")


class OptionItem(NamedTuple):
    """One piece of an option string; value is None if there was no '='."""

    name: str
    value: str | None


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount a vault.

    Args: read_only: refuse every change.
          allow_other: other users may enter the mount.
          default_permissions: the kernel checks modes; None does so only together with allow_other.
          xattrs: support extended attributes and ACLs. Costs a round trip before each write(2) on
              an engine without HANDLE_KILLPRIV_V2.
          writeback: let the kernel collect small writes.
          exclusive: nothing else changes the vault while it is mounted, so the kernel may keep names and
              attributes for long.
          nonempty: mount over a directory that has entries.
          engine: one of ENGINES: native speaks to the Linux kernel itself, fusepy goes through libfuse.
          durability: one of DURABILITIES: what may crash during a write without damage: the machine, this
              process, or nothing.
          fast_wake: keep idle processors awake during bursts of requests, if that helps and is allowed.
          entry_timeout, attr_timeout: seconds that the kernel may keep names and attributes; None
              takes the engine's default.
          max_threads: at most so many requests at once; None takes the engine's default.
          idle: seconds without use, after which the vault is unmounted; None is never.
          unmount_on: some of LEAVE_REASONS, for which the vault is unmounted.
          detach_busy: for such a reason, take the mount away even if programs use it.
          after_mount, before_unmount: commands to run, or ''.
          fsname: the source shown in /proc/self/mountinfo; '' takes the vault's path.
          extra: options for the kernel, such as nosuid or noatime.
    """

    read_only: bool = False
    allow_other: bool = False
    default_permissions: bool | None = None
    xattrs: bool = True
    writeback: bool = True
    exclusive: bool = False
    nonempty: bool = False
    engine: str = DEFAULT_ENGINE
    durability: str = "power"
    fast_wake: bool = True
    entry_timeout: float | None = None
    attr_timeout: float | None = None
    max_threads: int | None = None
    idle: float | None = None
    unmount_on: tuple[str, ...] = ()
    detach_busy: bool = False
    after_mount: str = ""
    before_unmount: str = ""
    fsname: str = ""
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"there is no engine {self.engine!r}; known: {', '.join(ENGINES)}")
        if self.durability not in DURABILITIES:
            known = ", ".join(DURABILITIES)
            raise ValueError(f"there is no durability {self.durability!r}; known: {known}")
        for name in ("entry_timeout", "attr_timeout"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds <= MAX_TIMEOUT:
                raise ValueError(f"{name} must be from 0 to {MAX_TIMEOUT:.0f} seconds, not {seconds}")
        if self.max_threads is not None and not 1 <= self.max_threads <= MAX_THREADS:
            raise ValueError(f"max_threads must be from 1 to {MAX_THREADS}, not {self.max_threads}")
        unknown = [name for name in self.extra if name not in KERNEL_OPTIONS]
        if unknown:
            raise ValueError(f"unknown mount option {unknown[0]!r}")
        if self.idle is not None and not MIN_IDLE <= self.idle <= MAX_IDLE:
            raise ValueError(f"idle must be from 1 second to 30 days, not {self.idle:g} seconds")
        unknown = [reason for reason in self.unmount_on if reason not in LEAVE_REASONS]
        if unknown:
            raise ValueError(f"unmount_on takes {', '.join(LEAVE_REASONS)}, not {unknown[0]!r}")
        for name in ("after_mount", "before_unmount"):
            try:
                if command := getattr(self, name):
                    split_command(command)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        if "\0" in f"{self.fsname}{self.after_mount}{self.before_unmount}":
            raise ValueError("a mount option holds a NUL byte")

    @property
    def entry_seconds(self) -> float:
        """How long the kernel may keep names."""
        return self._kept_for(self.entry_timeout)

    @property
    def attr_seconds(self) -> float:
        """How long the kernel may keep attributes."""
        return self._kept_for(self.attr_timeout)

    def _kept_for(self, wanted: float | None) -> float:
        if wanted is not None:
            return wanted
        return MAX_TIMEOUT if self.exclusive else FRESH_SECONDS

    @property
    def for_libfuse(self) -> tuple[str, ...]:
        """The kernel's options that libfuse and fusermount understand."""
        return tuple(name for name in self.extra if name not in UNKNOWN_TO_LIBFUSE)

    @property
    def follows_no_symlinks(self) -> bool:
        """Whether the kernel refuses to follow symlinks on the mount."""
        return [name for name in self.extra if name.endswith("symfollow")][-1:] == ["nosymfollow"]

    @property
    def kernel_checks_permissions(self) -> bool:
        """Whether default_permissions goes to the kernel."""
        return self.allow_other if self.default_permissions is None else self.default_permissions

    def apply_to(self, context: FileContext) -> None:
        """Tell the files of a vault what of this is about them, before the first is opened."""
        context.exclusive = self.exclusive
        context.noatime = "noatime" in self.extra
        context.nodiratime = context.noatime or "nodiratime" in self.extra


def escape_value(value: str) -> str:
    """An option's value as libfuse and split_options read it back: backslash before ',' and itself."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


def split_options(text: str) -> list[OptionItem]:
    """Split `a,b=c` at its commas; a backslash takes the next character as it is.

    Raises: ValueError: a lone backslash at the end, or a value without a name.
    """
    items: list[OptionItem] = []
    name: str | None = None
    piece: list[str] = []
    characters = iter(text)

    def finish() -> None:
        nonlocal name
        if name is not None:
            items.append(OptionItem(name, "".join(piece)))
        elif piece:
            items.append(OptionItem("".join(piece), None))
        name = None
        piece.clear()

    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                raise ValueError("the mount options end in a lone backslash")
            piece.append(escaped)
        elif character == ",":
            finish()
        elif character == "=" and name is None:
            name = "".join(piece)
            piece.clear()
            if not name:
                raise ValueError("a mount option has a value but no name")
        else:
            piece.append(character)
    finish()
    return items


def _plain(value: str) -> str:
    """The same text. Raises: ValueError: it has digits of another script, which Python takes as well."""
    if not value.isascii():
        raise ValueError("digits from 0 to 9")
    return value


def _seconds(name: str, value: str) -> float:
    try:
        return float(_plain(value))
    except ValueError:
        raise ValueError(f"{name} needs a number of seconds, not {value!r}") from None


def _count(name: str, value: str) -> int:
    try:
        return int(_plain(value))
    except ValueError:
        raise ValueError(f"{name} needs a whole number, not {value!r}") from None


def _text(_name: str, value: str) -> str:
    return value


def duration(text: str) -> float:
    """Seconds of '90', '90s', '10m', '1h30m' or '2d'.

    Raises: ValueError: it is no such time.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a time; write for example 90s, 10m or 1h30m")
    return sum(float(number) * unit for number, unit in zip(match.groups(), _UNITS, strict=True) if number)


def _duration(_name: str, value: str) -> float:
    return duration(value)


def reasons(text: str) -> tuple[str, ...]:
    """The reasons in 'sleep,lock'; ':' serves as well, as ',' separates mount options."""
    return tuple(dict.fromkeys(text.strip().replace(":", ",").lower().split(",")))


def _reasons(_name: str, value: str) -> tuple[str, ...]:
    return reasons(value)


_FLAGS = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "default_permissions": ("default_permissions", True),
    "no_default_permissions": ("default_permissions", False),
    "xattrs": ("xattrs", True),
    "noxattrs": ("xattrs", False),
    "writeback": ("writeback", True),
    "nowriteback": ("writeback", False),
    "exclusive": ("exclusive", True),
    "noexclusive": ("exclusive", False),
    "fast_wake": ("fast_wake", True),
    "nofast_wake": ("fast_wake", False),
    "nonempty": ("nonempty", True),
    "detach_busy": ("detach_busy", True),
}
_VALUES: dict[str, Callable[[str, str], object]] = {
    "engine": _text,
    "durability": _text,
    "entry_timeout": _seconds,
    "attr_timeout": _seconds,
    "max_threads": _count,
    "idle": _duration,
    "unmount_on": _reasons,
    "after_mount": _text,
    "before_unmount": _text,
    "fsname": _text,
}


def apply_options(base: MountOptions, items: Iterable[OptionItem]) -> MountOptions:
    """`base` with the items of an option string applied from left to right; the last one wins.

    Raises: ValueError: an unknown option, or a value that is missing, superfluous or out of range; the
            text names the option.
    """
    changes: dict[str, Any] = {}
    extra = list(base.extra)
    for name, value in items:
        if name in IGNORED_OPTIONS or name.startswith(IGNORED_PREFIXES) or f"{name}=" in IGNORED_PREFIXES:
            continue
        if name in _VALUES:
            if value is None:
                raise ValueError(f"mount option {name!r} needs a value: {name}=...")
            changes[name] = _VALUES[name](name, value)
            continue
        if name not in _FLAGS and name not in KERNEL_OPTIONS:
            raise ValueError(f"unknown mount option {name!r}")
        if value is not None:
            raise ValueError(f"mount option {name!r} takes no value")
        if name in _FLAGS:
            field, wanted = _FLAGS[name]
            changes[field] = wanted
        else:
            extra = [other for other in extra if other != name]
            extra.append(name)
    return replace(base, extra=tuple(extra), **changes)


def parse_options(text: str, base: MountOptions | None = None) -> MountOptions:
    """MountOptions from a `-o` string; ValueError where one is unknown or ill-formed."""
    return apply_options(MountOptions() if base is None else base, split_options(text))
