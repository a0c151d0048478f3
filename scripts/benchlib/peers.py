"""Who is compared: the plain directory, a bare pass-through, cryptfs, and its peers from Debian's packages.

Peers run with their defaults, but for key derivation, which is made cheap where there is an option for it:
only a start pays for it.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from benchlib.carriers import COMMANDS, RCLONE, CryptfsCommands, Rclone
from benchlib.cpassthrough import CPassThrough
from benchlib.subjects import PASSPHRASE, Commands, Mounted, PlainDirectory, Subject

PEERS = ("gocryptfs", "securefs", "encfs", "cryfs")
PASS_THROUGH = "pass-through"  # noqa: S105 - a name
C_PASS_THROUGHS = {"c-pass-through": "", "c-writeback": ",writeback"}
"""The pass-through in C, with its defaults, and with the writeback cache as cryptfs has it: its options."""
PLAIN = "plain"
CARRIERS = {COMMANDS: CryptfsCommands, RCLONE: Rclone}
"""Those without a mount: only beside the others where trees are carried in and out."""
OTHERS = (PLAIN, PASS_THROUGH, *C_PASS_THROUGHS, *PEERS, *CARRIERS)
_KDF_MEMORY = 64 * 1024 * 1024
_KDF_PASSES = 3


def gocryptfs() -> Mounted:
    """AES-GCM."""
    return Mounted(
        "gocryptfs",
        Commands(
            init=("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", "{passfile}", "{vault}"),
            serve=(
                *("gocryptfs", "-fg", "-q", "-nosyslog", "-passfile", "{passfile}"),
                *("{vault}", "{mountpoint}"),
            ),
            package="gocryptfs",
        ),
    )


def securefs() -> Mounted:
    """The lite format, its default."""
    return Mounted(
        "securefs",
        Commands(
            init=("securefs", "create", "-r", "1", "--pass", PASSPHRASE, "{vault}"),
            serve=("securefs", "mount", "--pass", PASSPHRASE, "{vault}", "{mountpoint}"),
            package="securefs",
        ),
    )


def encfs() -> Mounted:
    """The standard configuration; the first start makes the vault."""
    words = ("encfs", "-f", "-S", "{vault}", "{mountpoint}")
    first = (words[0], "--standard", *words[1:])
    return Mounted(
        "encfs",
        Commands(serve=words, first=first, package="encfs", stdin=PASSPHRASE + "\n"),
    )


def cryfs() -> Mounted:
    """XChaCha20-Poly1305 in blocks of 16 KiB; the first start makes the vault."""
    environment = {
        "CRYFS_FRONTEND": "noninteractive",
        "CRYFS_NO_UPDATE_CHECK": "true",
        "CRYFS_LOCAL_STATE_DIR": "{state}",
    }
    return Mounted(
        "cryfs",
        Commands(
            serve=("cryfs", "-f", "{vault}", "{mountpoint}"),
            package="cryfs",
            stdin=PASSPHRASE + "\n",
            environment=environment,
        ),
    )


def pass_through() -> Mounted:
    """Our engine without any cryptography: what it can give at best."""
    return Mounted(
        PASS_THROUGH,
        Commands(serve=(sys.executable, "-m", "benchlib.passthrough", "{vault}", "{mountpoint}")),
    )


def derivation() -> float:
    """Seconds that Argon2id takes here, with what cryptfs is given by this bench."""
    from cryptfs.core.keys import ARGON2_SALT_SIZE, passphrase_key

    start = time.perf_counter()
    passphrase_key(PASSPHRASE.encode(), os.urandom(ARGON2_SALT_SIZE), _KDF_MEMORY, _KDF_PASSES)
    return time.perf_counter() - start


def cryptfs(name: str = "cryptfs", init_options: str = "", mount_options: str = "") -> Mounted:
    """cryptfs with options as on the command line."""
    program = (sys.executable, "-m", "cryptfs")
    return Mounted(
        name,
        Commands(
            init=(
                *(*program, "init", "--kdf-memory", "64m", "--passfile", "{passfile}"),
                *(*shlex.split(init_options), "{vault}"),
            ),
            serve=(
                *(*program, "mount", "--foreground", "--passfile", "{passfile}"),
                *(*shlex.split(mount_options), "{vault}", "{mountpoint}"),
            ),
            derivation=derivation,
        ),
    )


MAKERS = {
    "gocryptfs": gocryptfs,
    "securefs": securefs,
    "encfs": encfs,
    "cryfs": cryfs,
    PASS_THROUGH: pass_through,
}


def chosen(
    variants: list[str], names: list[str] | None, tools: Path, *, carry: bool = False
) -> list[Subject]:
    """The plain directory, the pass-throughs, the variants of cryptfs, and the peers.

    Args:   variants: NAME:INIT:MOUNT.   names: which of the others; None: all.
            tools: a directory for programs that are made here.   carry: also those without a mount.
    Raises: ValueError: an unknown name.
    """
    wanted = list(OTHERS) if names is None else names
    for name in wanted:
        if name not in OTHERS:
            raise ValueError(f"{name!r} is none of {', '.join(OTHERS)}")
    found: list[Subject] = [PlainDirectory(PLAIN)] if PLAIN in wanted else []
    if PASS_THROUGH in wanted:
        found.append(pass_through())
    found += [CPassThrough(name, tools, words) for name, words in C_PASS_THROUGHS.items() if name in wanted]
    for variant in variants:
        name, init_options, mount_options = (*variant.split(":"), "", "")[:3]
        found.append(cryptfs(name, init_options, mount_options))
    found += [MAKERS[name]() for name in wanted if name in PEERS]
    return found + [CARRIERS[name]() for name in wanted if name in CARRIERS and carry]
