"""A daemon for the end-to-end tests: unlocks one vault and serves it until it is unmounted.

It is told what to do by one JSON argument, says `ready` on stdout, and logs to stderr: there every line
is a warning or worse, so that a test can fail on a line that it did not expect.
"""

from __future__ import annotations

import codecs
import importlib
import json
import logging
import os
import sys
from pathlib import Path

from cryptfs.mount.daemon import harden_process
from cryptfs.mount.options import parse_options
from cryptfs.mount.repeats import RepeatFilter
from cryptfs.vfs.vault import Vault


def become(uid: int, gid: int) -> None:
    """Give up root for good. The interpreter may lie where the user cannot read: load what comes late."""
    for encoding in ("ascii", "latin-1", "utf-8", "unicode_escape"):
        codecs.lookup(encoding)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def main(order: str) -> None:
    """Serve as the order says: vault_dir, mountpoint, passphrase, options, uid, gid."""
    what = json.loads(order)
    options = parse_options(what["options"])
    engine = importlib.import_module(f"cryptfs.mount.{options.engine}")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger().handlers[0].addFilter(RepeatFilter())  # as every mount has it
    harden_process()
    if what["uid"] is not None:
        become(what["uid"], what["gid"])
    mountpoint = Path(what["mountpoint"])
    read_only = options.read_only
    with Vault.unlock(Path(what["vault_dir"]), what["passphrase"].encode(), read_only=read_only) as vault:
        os.umask(0)
        vault.announce(str(mountpoint))
        vault.start()
        engine.run(vault, mountpoint, options, lambda *_: os.write(1, b"ready\n"))


if __name__ == "__main__":
    main(sys.argv[1])
