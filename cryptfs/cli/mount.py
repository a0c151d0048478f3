"""`cryptfs mount` and `cryptfs umount`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click

from cryptfs.cli.output import note, warn
from cryptfs.cli.params import (
    PLACE,
    Settings,
    debug_option,
    passphrase_options,
    passphrase_source,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.prompt import PassphraseSource, forget, harden_process, read_passphrase
from cryptfs.cli.vaults import config_of, refuse_locked
from cryptfs.mount.options import (
    DURABILITIES,
    ENGINES,
    KERNEL_OPTIONS,
    MountOptions,
    OptionItem,
    apply_options,
    split_options,
)

if TYPE_CHECKING:
    from cryptfs.mount.daemon import LogTarget
    from cryptfs.vfs.vault import Vault

# Options of the command that fstab can only give within -o.
_COMMAND_OPTIONS = ("passfile", "passcommand", "log_file")


def collect_options(texts: Iterable[str], flags: Mapping[str, object]) -> tuple[MountOptions, dict[str, str]]:
    """MountOptions from the -o strings, with the flags of the command line on top; and what is the command's.

    Raises: ValueError: an unknown or ill-formed option.
    """
    items: list[OptionItem] = []
    ours: dict[str, str] = {}
    for text in texts:
        for item in split_options(text):
            if item.name not in _COMMAND_OPTIONS:
                items.append(item)
            elif not item.value:
                raise ValueError(f"mount option {item.name!r} needs a value: {item.name}=...")
            else:
                ours[item.name] = item.value
    options = apply_options(MountOptions(), items)
    given = {name: value for name, value in flags.items() if value is not None}
    return replace(options, **given), ours  # type: ignore[arg-type]


def remount_options(texts: Iterable[str]) -> str | None:
    """What `-o remount,...` asks to change, without the command's own options; None where it does not."""
    names = [item.name for text in texts for item in split_options(text)]
    if "remount" not in names:
        return None
    known = KERNEL_OPTIONS | {"ro", "rw"}
    return ",".join(name for name in names if name in known)


@click.command()
@vault_argument
@click.argument("mountpoint", type=PLACE, metavar="MOUNTPOINT")
@click.option("-r", "--read-only", is_flag=True, default=None, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, default=None, help="Let other users enter the mount.")
@click.option(
    "--default-permissions/--no-default-permissions",
    default=None,
    help="Let the kernel check modes and owners.  [default: only with --allow-other]",
)
@click.option("--xattrs/--no-xattrs", default=None, help="Extended attributes and ACLs.  [default: yes]")
@click.option(
    "--writeback/--no-writeback", default=None, help="Let the kernel collect small writes.  [default: yes]"
)
@click.option(
    "--exclusive/--no-exclusive",
    default=None,
    help="Nothing else changes the vault while it is mounted: no sync client, no restore. The kernel then "
    "keeps names and attributes for long.  [default: no]",
)
@click.option(
    "--nonempty",
    is_flag=True,
    default=None,
    help="Mount over a directory that is not empty, hiding what it has.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="How to talk to the kernel: itself, or through libfuse.  [default: native on Linux]",
)
@click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    help="What may stop in the middle of a write without damage: the machine (power), cryptfs only "
    "(process), nothing (off).  [default: power]",
)
@click.option(
    "--fast-wake/--no-fast-wake",
    default=None,
    help="As root, in a small virtual machine: keep idle processors awake during bursts of requests.  "
    "[default: yes]",
)
@click.option(
    "--entry-timeout",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="How long the kernel keeps names.",
)
@click.option(
    "--attr-timeout",
    type=click.FloatRange(0, 86_400),
    metavar="SECONDS",
    help="How long the kernel keeps attributes.",
)
@click.option("--max-threads", type=click.IntRange(1, 64), metavar="N", help="At most N requests at once.")
@click.option("--fsname", metavar="TEXT", help="The source shown by mount and df.  [default: VAULT]")
@click.option(
    "-o",
    "--options",
    "option_texts",
    multiple=True,
    metavar="A,B,C=D",
    help="Mount options as in fstab: all of the above with '_' for '-', ro, noxattrs, passfile=FILE, "
    "nosuid, noexec, noatime ...",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; log to stderr.")
@click.option(
    "--log-file",
    type=PLACE,
    metavar="FILE",
    help="Append log lines to FILE.  [default: syslog]",
)
@passphrase_options
@debug_option
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    vault: Path,
    mountpoint: Path,
    option_texts: tuple[str, ...],
    foreground: bool,
    log_file: Path | None,
    passfile: Path | None,
    passcommand: str | None,
    **flags: object,
) -> None:
    """Mount VAULT, so that its files appear in the directory MOUNTPOINT.

    Returns when the files are there; a daemon serves them until `cryptfs umount MOUNTPOINT`.
    """
    from cryptfs.mount.daemon import LogTarget

    try:
        changed = remount_options(option_texts)
        if changed is not None:
            from cryptfs.mount.mounts import remount

            remount(mountpoint, changed)
            return
        options, ours = collect_options(option_texts, flags)
    except ValueError as error:
        raise click.UsageError(f"{error}; `cryptfs mount --help` lists what there is", ctx) from None
    if passfile is None and passcommand is None:
        passfile = Path(ours["passfile"]) if "passfile" in ours else None
        passcommand = ours.get("passcommand")
    source = passphrase_source(ctx, passfile, passcommand)
    log_file = log_file or (Path(ours["log_file"]) if "log_file" in ours else None)
    target = LogTarget(log_file.absolute() if log_file else None, ctx.ensure_object(Settings).debug)
    mount_vault(vault, mountpoint, options, source, target, foreground=foreground)


def mount_vault(
    vault_dir: Path,
    mountpoint: Path,
    options: MountOptions,
    source: PassphraseSource,
    target: LogTarget,
    *,
    foreground: bool,
) -> None:
    """Check what can be checked, ask for the passphrase, unlock, and serve.

    Raises: VaultError, MountError, CommandError; OSError.
    """
    from cryptfs.mount.mounts import absolute
    from cryptfs.mount.recent import KEPT
    from cryptfs.mount.session import check_mountpoint, load_engine, mount_background, mount_foreground

    place = check_mountpoint(vault_dir, mountpoint, nonempty=options.nonempty)
    config = config_of(vault_dir)
    refuse_locked(vault_dir, read_only=options.read_only)
    _warn_if_slow(config.cipher)
    engine = load_engine(options.engine)
    harden_process()
    passphrase = read_passphrase(source)

    def say_mounted() -> None:
        how = f"Unmount with: cryptfs umount {shell_word(mountpoint)}"
        note(f"{shown(vault_dir)} is mounted on {shown(mountpoint)}. {how}")

    with target.findings.listening():
        try:
            opened = _unlock(absolute(vault_dir), passphrase, options)
        finally:
            forget(passphrase)
        if foreground:
            mount_foreground(opened, place, options, engine, target, say_mounted)
            return
        mount_background(opened, place, options, engine, target)
    if target.is_nowhere():
        warn(
            "this system has no syslog. What the mount finds to be damaged is shown by "
            f"`cryptfs status {shell_word(mountpoint)}`, the last {KEPT} findings, until it is unmounted; "
            "to keep all of it, mount with --log-file FILE"
        )
    say_mounted()


def _unlock(vault_dir: Path, passphrase: bytes, options: MountOptions) -> Vault:
    from cryptfs.vfs.redo import Durability
    from cryptfs.vfs.vault import Vault

    durability = Durability(options.durability)
    return Vault.unlock(vault_dir, passphrase, read_only=options.read_only, durability=durability)


def _warn_if_slow(cipher: str) -> None:
    from cryptfs.vfs.vault import has_aes_instructions

    if cipher == "aegis-256" and not has_aes_instructions():
        warn("this CPU has no AES instructions; a vault with xchacha20-poly1305 would be faster here")


@click.command()
@click.argument("mountpoint", type=PLACE, metavar="MOUNTPOINT")
@click.option(
    "-z", "--lazy", is_flag=True, help="Take the mount away now; programs keep the files that they have open."
)
@debug_option
def umount(mountpoint: Path, lazy: bool) -> None:
    """Unmount MOUNTPOINT and wait until its vault is closed.

    When this returns, everything is written and the vault can be mounted again, copied or moved. While
    something else keeps the vault open (a bind mount, a container that has the mount, an open file), it says
    what, and waits for up to two minutes.
    """
    from cryptfs.mount.closing import SAY_AFTER, closing_of, find_keepers, wait_closed
    from cryptfs.mount.mounts import absolute, cryptfs_mount_at, wait_until
    from cryptfs.mount.mounts import unmount as take_away

    mountpoint = absolute(mountpoint)
    os.chdir("/")  # this process itself must not keep the mount busy
    closing = closing_of(cryptfs_mount_at(mountpoint))
    take_away(mountpoint, lazy=lazy)
    if not lazy:
        wait_closed(closing, lambda text: note(f"{text}\nWaiting for that; Ctrl-C ends the waiting only."))
    elif not wait_until(lambda: not closing.is_open(), SAY_AFTER):
        lines = find_keepers(closing.mount.device).lines()
        who = ":\n  " + "\n  ".join(lines) if lines else ""
        gone = f"{shown(mountpoint)} is gone"
        note(f"{gone}; the vault is closed when the last program lets go of its files{who}")
