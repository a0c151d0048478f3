"""The engine on the Linux kernel's own FUSE protocol, spoken on /dev/fuse."""

from __future__ import annotations

import os
from pathlib import Path

from cryptfs.mount.native.device import open_mount
from cryptfs.mount.native.requests import Requests
from cryptfs.mount.native.session import Session
from cryptfs.mount.options import MountOptions
from cryptfs.mount.session import EngineReady
from cryptfs.vfs.vault import Vault


def run(vault: Vault, mountpoint: Path, options: MountOptions, on_ready: EngineReady) -> None:
    """Mount a vault and serve it until it is unmounted.

    Args:   mountpoint: absolute.   on_ready: called once, when requests are answered.
    Raises: MountError: /dev/fuse, the kernel or fusermount refuse.
    """
    fd = open_mount(options.fsname or str(vault.vault_dir), mountpoint, options)
    requests = Requests(vault, options)
    try:
        session = Session(fd, requests, options, lambda: on_ready(requests.statistics))
        session.negotiate()
        os.set_blocking(fd, False)  # so that one call reads a request or says that there is none
        session.serve()
    finally:
        os.close(fd)
        requests.close()
