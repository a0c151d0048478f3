"""A vault served to a socket in place of /dev/fuse, by the native engine of whatever cryptfs is on the path.

    PYTHONPATH=TREE:scripts python -m benchlib.handlers_server SOCKET VAULT

It knows little of cryptfs, so that trees of several versions can be measured: it replaces what mounts.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

_PASSPHRASE = b"not a secret"
_KDF_MEMORY = 64 << 20
_ENGINES = ("cryptfs.mount.native.engine", "cryptfs.mount.native")  # the second is where version 0.1 has it


def _engine() -> Any:
    for name in _ENGINES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
    raise ImportError("this cryptfs has no native engine")


def main() -> None:
    """Make the vault, say where cryptfs was found, serve until the other end is closed."""
    import cryptfs
    from cryptfs.mount.options import MountOptions
    from cryptfs.vfs.vault import Vault

    fd, vault_dir = int(sys.argv[1]), Path(sys.argv[2])
    engine = _engine()
    engine.open_mount = lambda *_: fd
    # The engine would look for the next request for a while before it sleeps, which is no work of a handler.
    os.set_blocking = lambda *_: None
    Vault.create(vault_dir, _PASSPHRASE, kdf_memory=_KDF_MEMORY)
    vault = Vault.unlock(vault_dir, _PASSPHRASE)
    try:
        vault.start()
        print(Path(cryptfs.__file__).parent, flush=True)
        engine.run(vault, vault_dir, MountOptions(fast_wake=False, max_threads=1), lambda *_: None)
    finally:
        vault.close()


if __name__ == "__main__":
    main()
