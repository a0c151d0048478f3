"""A daemon for the end-to-end tests: unlocks one vault and serves it until it is unmounted.

It is told what to do by one JSON argument, says `ready` on stdout, and logs to stderr: there every line
is a warning or worse, so that a test can fail on a line that it did not expect. At SIGUSR1 it says how many
nodes it keeps, at SIGUSR2 what its threads do.
"""

from __future__ import annotations

import codecs
import faulthandler
import gc
import importlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

from cryptfs.mount.daemon import harden_process
from cryptfs.mount.native.nodes import NodeTable
from cryptfs.mount.options import parse_options
from cryptfs.mount.repeats import RepeatFilter
from cryptfs.mount.resources import claim_resources
from cryptfs.vfs.content.redo import Durability
from cryptfs.vfs.vault import Vault
from tests import derived


def become(uid: int, gid: int) -> None:
    """Give up root for good. The interpreter may lie where the user cannot read: load what comes late."""
    for encoding in ("ascii", "latin-1", "utf-8", "unicode_escape"):
        codecs.lookup(encoding)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def say_nodes(*_: object) -> None:
    """A line on stdout with the number of nodes."""
    (table,) = (found for found in gc.get_objects() if isinstance(found, NodeTable))
    os.write(1, b"%d\n" % len(table))


def main(order: str) -> None:
    """Serve as the order says: vault_dir, mountpoint, passphrase, options, uid, gid, constants."""
    what = json.loads(order)
    options = parse_options(what["options"])
    for module, name, value in what["constants"]:
        setattr(importlib.import_module(module), name, value)
    signal.signal(signal.SIGUSR1, say_nodes)
    faulthandler.register(signal.SIGUSR2)
    derived.begin()
    engine = importlib.import_module(f"cryptfs.mount.{options.engine}.engine")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].addFilter(RepeatFilter())  # as every mount has it
    harden_process()
    claim_resources()
    if what["uid"] is not None:
        become(what["uid"], what["gid"])
    mountpoint = Path(what["mountpoint"])
    read_only = options.read_only
    passphrase, durability = what["passphrase"].encode(), Durability(options.durability)
    with Vault.unlock(
        Path(what["vault_dir"]), passphrase, read_only=read_only, durability=durability
    ) as vault:
        os.umask(0)
        vault.announce(str(mountpoint))
        vault.start()
        engine.run(vault, mountpoint, options, lambda *_: os.write(1, b"ready\n"))


if __name__ == "__main__":
    main(sys.argv[1])
