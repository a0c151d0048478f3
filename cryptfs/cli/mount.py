"""`cryptfs mount`."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cryptfs.cli.commands import command
from cryptfs.cli.exit_codes import CommandError, UsageProblem
from cryptfs.cli.offers import OfferSource, say_opened, unlock_options, with_offer
from cryptfs.cli.output import note, size_text, warn
from cryptfs.cli.params import (
    PLACE,
    ByteSize,
    Duration,
    Number,
    Reasons,
    Seconds,
    debug_option,
    shell_word,
    shown,
    vault_argument,
)
from cryptfs.cli.vaults import config_of, naming, refuse_locked
from cryptfs.cli.wishes import collect_options, remount_options, wish_of
from cryptfs.mount.options import DURABILITIES, ENGINES, MountOptions

if TYPE_CHECKING:
    from cryptfs.mount.daemon import LogTarget
    from cryptfs.mount.life import Made
    from cryptfs.unlock.offer import Offer
    from cryptfs.vfs.vault import Vault

_GROUPS = {
    "Where passphrase and keys come from": (
        "--passfile", "--passcommand", "--passfd", "--askpass", "--keyfile", "--identity", "--fido2",
        "--slot", "--words", "--words-file", "--shares", "--share-file",
    ),
    "Which vault it must be": ("--expect-identity", "--accept", "--no-pin"),
    "Access": ("--read-only", "--allow-other", "--default-permissions", "--nonempty"),
    "Data": ("--durability", "--xattrs", "--exclusive", "--writeback"),
    "Unmounting by itself": ("--idle", "--unmount-on", "--detach-busy", "--after-mount", "--before-unmount"),
    "Messages": ("--quiet", "--foreground", "--log-file", "--log-size", "--debug"),
    "Speed, and the kernel": (
        "--engine", "--fast-wake", "--entry-timeout", "--attr-timeout", "--max-threads", "--fsname",
        "--options",
    ),
}  # fmt: skip


@command(option_groups=_GROUPS)
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
    help="Promise that nothing else changes the vault while it is mounted: no sync client, no restore. The "
    "kernel then keeps names and attributes for a long time.  [default: no]",
)
@click.option(
    "--nonempty",
    is_flag=True,
    default=None,
    help="Mount over a directory that is not empty; the mount hides its content.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    help="How to talk to the kernel: directly (native) or through libfuse (fusepy).  "
    "[default: native on Linux]",
)
@click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    help="Protect overwritten data against a crash of the machine (power), only of cryptfs (process), "
    "or not at all (off).  [default: power]",
)
@click.option(
    "--fast-wake/--no-fast-wake",
    default=None,
    help="In a small virtual machine: keep idle processors awake during bursts of requests.  [default: yes]",
)
@click.option(
    "--entry-timeout",
    type=Seconds(0, 86_400),
    metavar="SECONDS",
    help="How long the kernel keeps names.",
)
@click.option(
    "--attr-timeout",
    type=Seconds(0, 86_400),
    metavar="SECONDS",
    help="How long the kernel keeps attributes.",
)
@click.option("--max-threads", type=Number(1, 64), metavar="N", help="At most N requests at once.")
@click.option(
    "--idle",
    type=Duration(),
    metavar="TIME",
    help="Unmount when no program has used the vault for TIME: 90s, 10m, 1h30m.",
)
@click.option(
    "--unmount-on",
    type=Reasons(),
    metavar="A,B",
    help="Unmount when the machine goes to sleep, the screen is locked, or the session ends: one or more "
    "of sleep, lock, logout.",
)
@click.option(
    "--detach-busy",
    is_flag=True,
    default=None,
    help="With --unmount-on: unmount even if programs use the mount; they keep their open files.",
)
@click.option("--after-mount", metavar="COMMAND", help="Run COMMAND when the files are ready to use.")
@click.option(
    "--before-unmount",
    metavar="COMMAND",
    help="Run COMMAND before cryptfs unmounts the vault.",
)
@click.option("--fsname", metavar="TEXT", help="The source shown by mount and df.  [default: VAULT]")
@click.option(
    "-o",
    "--options",
    "option_texts",
    multiple=True,
    metavar="A,B,C=D",
    help="Mount options as in fstab: the options above with '_' for '-', except words and shares; also ro, "
    "noxattrs, passfile=FILE, nosuid, noexec, noatime ...",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground; log to stderr.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing if all is well.")
@click.option(
    "--log-file",
    type=PLACE,
    metavar="FILE",
    help="Append log lines to FILE.  [default: the journal, or syslog]",
)
@click.option(
    "--log-size",
    type=ByteSize(),
    metavar="SIZE",
    help="With --log-file: begin a new file when FILE reaches SIZE; 0 means no limit.  [default: 10m]",
)
@unlock_options
@debug_option
@click.pass_context
def mount(
    ctx: click.Context,
    /,
    vault: Path,
    mountpoint: Path,
    source: OfferSource,
    **values: Any,
) -> None:
    """Mount VAULT: show its files in the directory MOUNTPOINT.

    VAULT may be a name from the config file; then you may leave out MOUNTPOINT. The command returns when the
    files are ready to use. A daemon serves them until `cryptfs umount MOUNTPOINT`.

    If MOUNTPOINT does not exist, the command makes it, and nobody can write to it while no vault is mounted
    on it.
    """
    try:
        changed = remount_options(values["option_texts"])
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None
    if changed is not None:
        from cryptfs.mount.mounts import remount

        remount(mountpoint, changed)
        return
    wish = wish_of(ctx, source, values)
    mount_vault(
        vault,
        mountpoint,
        wish.options,
        wish.source,
        wish.target,
        foreground=wish.foreground,
        quiet=wish.quiet,
    )


def mount_vault(
    vault_dir: Path,
    mountpoint: Path,
    options: MountOptions,
    source: OfferSource,
    target: LogTarget,
    *,
    foreground: bool,
    quiet: bool = False,
) -> None:
    """Check what can be checked, ask for the passphrase, unlock, and serve.

    quiet: say nothing of a mount as it should be; warnings of this vault come all the same.

    Raises: VaultError, MountError, CommandError; OSError.
    """
    from cryptfs.mount.ending import current_umask, hook_of
    from cryptfs.mount.leaving.desktop import Desktop
    from cryptfs.mount.life import (
        check_mountpoint,
        load_engine,
        made_mountpoint,
        mount_background,
        mount_foreground,
    )
    from cryptfs.mount.mounts import absolute
    from cryptfs.mount.recent import KEPT
    from cryptfs.mount.service.logfile import open_log
    from cryptfs.vfs.ciphers import require_cipher

    if options.follows_no_symlinks and os.geteuid() != 0:
        raise UsageProblem("only root can mount with -o nosymfollow")
    config = config_of(vault_dir)
    place = check_mountpoint(vault_dir, mountpoint, nonempty=options.nonempty)
    if options.nonempty and not quiet:
        _warn_of_files(place)
    if options.unmount_on:
        Desktop(options.unmount_on, lambda *_: None).close()  # what is missing is said before the passphrase
    require_cipher(config)
    refuse_locked(vault_dir)
    _warn_if_slow(config.cipher)
    _warn_of_limits()
    if target.file is not None:
        os.close(open_log(target.file))
    engine = load_engine(options.engine)

    hook = hook_of(options.after_mount, absolute(vault_dir), place, current_umask())

    def say_mounted(made: Made) -> None:
        if not quiet:
            how = f"Unmount with: cryptfs umount {shell_word(mountpoint)}"
            note(f"{shown(vault_dir)} is mounted on {shown(mountpoint)}. {how}")
            _say_made(mountpoint, made)
            if options.allow_other:
                _say_closed(mountpoint, place, read_only=options.read_only)
        problem = hook.run("mount", None) if hook is not None else ""
        if problem:
            raise CommandError(f"the vault is mounted, but there was a problem with --after-mount: {problem}")

    def say_in_foreground(made: Made) -> None:
        try:
            say_mounted(made)
        except CommandError as error:
            warn(str(error))

    with target.findings.listening(), naming(vault_dir, if_full="mount with --read-only"):
        opened = with_offer(source, config, lambda offer: _unlock(absolute(vault_dir), offer, options))
        say_opened(opened.config, opened.slot, opened.spelling, quiet=quiet)
        with made_mountpoint(place) as made:
            if foreground:
                mount_foreground(opened, place, options, engine, target, lambda: say_in_foreground(made))
                return
            mount_background(opened, place, options, engine, target)
    if not quiet and target.is_nowhere():
        warn(
            f"this system has no syslog. `cryptfs status {shell_word(mountpoint)}` shows the last {KEPT} "
            "findings of damage until you unmount; to keep all of them, mount with --log-file FILE"
        )
    say_mounted(made)


def wrong_options(words: list[str]) -> str:
    """A message about wrong options of `cryptfs mount`, without running it; '' if they are right."""
    try:
        ctx = mount.make_context("cryptfs mount", words)
        texts = ctx.params["option_texts"]
        if remount_options(texts) is None:
            collect_options(texts, {})
    except click.ClickException as error:
        return error.format_message()
    except ValueError as error:
        return str(error)
    return ""


def _warn_of_files(place: Path) -> None:
    """About files in a directory over which a vault is mounted."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        if next(entries, None) is not None:
            warn(
                f"{shown(place)} has files in it. They are NOT encrypted, and the mount hides them. To "
                "encrypt them, unmount, move them away, mount, and move them in"
            )


def _say_made(mountpoint: Path, made: Made) -> None:
    """About a mountpoint that did not exist."""
    if made.is_protected:
        note(f"{shown(mountpoint)} is new. Nobody can write to it while no vault is mounted on it.")
    elif made.is_new:
        warn(
            f"{shown(mountpoint)} is new, but this filesystem cannot protect it: while no vault is mounted "
            "on it, files that programs write there are NOT encrypted"
        )


def _say_closed(mountpoint: Path, place: Path, *, read_only: bool) -> None:
    """Say what still keeps other users out of a mount that is made for them: a mode without x for them."""
    for directory in (place, *place.parents):
        with contextlib.suppress(OSError):
            mode = stat.S_IMODE(directory.stat().st_mode)
            if mode & (stat.S_IXGRP | stat.S_IXOTH):
                continue
            if directory == place:
                where = " on a writable mount" if read_only else ""
                note(
                    f"Other users cannot enter yet: the root of the vault has mode {mode:04o}. "
                    f"Allow it{where}: chmod 755 {shell_word(mountpoint)}"
                )
            else:
                note(f"Other users cannot reach it: {shown(directory)} has mode {mode:04o}.")


def _unlock(vault_dir: Path, offer: Offer, options: MountOptions) -> Vault:
    from cryptfs.vfs.content.redo import Durability
    from cryptfs.vfs.vault import Vault

    durability = Durability(options.durability)
    return Vault.unlock(vault_dir, offer, read_only=options.read_only, durability=durability)


def _warn_if_slow(cipher: str) -> None:
    from cryptfs.vfs.ciphers import has_aes_instructions

    if cipher == "aegis-256" and not has_aes_instructions():
        warn("this CPU has no AES instructions; a vault with xchacha20-poly1305 would be faster here")


def _warn_of_limits() -> None:
    """A shell's limits that a daemon of this user keeps, though it works for all programs on the mount."""
    from cryptfs.mount.resources import remaining_limits

    limits = remaining_limits()
    if "-f" in limits:
        warn(
            f"this shell limits files to {size_text(limits['-f'])} (ulimit -f), and so does the mount. "
            "If that is too small, mount from a shell without this limit"
        )
    if "-t" in limits:
        warn(
            f"this shell limits processor time to {limits['-t']} s (ulimit -t); after that the mount ends. "
            "To avoid that, mount from a shell without this limit"
        )
