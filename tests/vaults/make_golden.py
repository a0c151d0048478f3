"""Make the golden vaults of this format version: `python -m tests.vaults.make_golden TARGET`.

Each release that changes what a vault looks like adds its own and keeps all earlier ones: they must be
readable for ever. The passphrase of all of them is in PASSPHRASE; the key derivation has the least cost
that the format allows. xattrs are missing because git keeps none; of modes it keeps the x bit alone.

Those of v1 were made by this script when version 0.1 was current: config version 1, no features, one
passphrase. Those of v2 have config version 2, all features, and a key of every kind: the commands of
tests/all_keys.py added them, and the keys are in files beside the vault. Their tokens are software.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from cryptfs.core.aead import SUITES
from cryptfs.storage.vaultdir import LOCK_NAME
from cryptfs.vfs.tree.directory import Directory
from cryptfs.vfs.tree.tree import VaultTree
from cryptfs.vfs.vault import Vault
from tests.all_keys import AllKeys

PASSPHRASE = b"golden vault, \xc3\xa4 not secret"
VERSION = "v2"
CHUNK_SIZES = {"aegis-256": 16 * 1024, "xchacha20-poly1305": 4 * 1024}
MANIFEST = "manifest.json"
OF_A_HOST = "cryptfs.host."


def content(size: int) -> bytes:
    """What a file of this size holds: any reader of the manifest can make it again."""
    return hashlib.shake_128(size.to_bytes(8, "little")).digest(size)


def fill(tree: VaultTree, chunk_size: int) -> None:
    """One of everything that git can keep."""
    root = tree.root
    for size in (0, 1, chunk_size - 1, chunk_size, chunk_size + 1, 2 * chunk_size + 100):
        put(tree, root, b"%d bytes" % size, content(size))
    for size in (1, 15, 16, 17, 160, 161, 255):
        put(tree, root, b"n" * size, b"name of %d bytes" % size)
    put(tree, root, b"not utf-8: \xff\xfe\n", b"any byte but two")
    put(tree, root, "größer 文件".encode(), b"utf-8")
    put(tree, root, b"cryptfs.dir", b"plaintext may be called like an internal file")
    emptied(tree, root, b"truncated to nothing", again=False)
    emptied(tree, root, b"truncated and written again", again=True)
    sparse = tree.create(root, b"sparse", os.O_RDWR, 0o644)
    sparse.write(0, b"start")
    sparse.truncate(30 * chunk_size + 3)
    sparse.write(20 * chunk_size, b"middle")
    tree.release(sparse)
    tree.make_directory(root, b"empty directory", 0o755)
    tree.make_directory(root, b"d" * 200, 0o755)
    inner = tree.directory(root, b"d" * 200)
    put(tree, inner, b"inside", b"of a directory with a long name")
    put(tree, inner, b"i" * 255, b"long inside long")
    tree.make_directory(inner, b"deeper", 0o755)
    put(tree, tree.directory(inner, b"deeper"), b"leaf", b"leaf")
    tree.make_symlink(root, b"link", b"../anywhere/\xff")
    tree.make_symlink(root, b"L" * 255, b"t" * 100)
    tree.make_symlink(root, b"moved link before", b"target")
    tree.rename(root, b"moved link before", inner, b"moved link")
    tree.make_symlink(root, b"unbound link", b"had two names")
    tree.link(root, b"unbound link", root, b"second name")
    tree.unlink(root, b"second name")
    put(tree, root, b"script", b"#!/bin/sh\n", mode=0o755)


def put(tree: VaultTree, directory: Directory, name: bytes, data: bytes, mode: int = 0o644) -> None:
    file = tree.create(directory, name, os.O_RDWR, mode)
    file.write(0, data)
    tree.release(file)


def emptied(tree: VaultTree, directory: Directory, name: bytes, *, again: bool) -> None:
    """A file of a later epoch."""
    file = tree.create(directory, name, os.O_RDWR, 0o644)
    file.write(0, b"gone")
    file.truncate(0)
    if again:
        file.write(0, b"epoch 1")
    tree.release(file)


def describe(tree: VaultTree, directory: Directory, path: str = "") -> dict[str, Any]:
    """The whole of a tree, by path: names as latin-1, so that JSON holds any byte."""
    found: dict[str, Any] = {}
    for entry in sorted(tree.list(directory)):
        place = f"{path}/{entry.name.decode('latin-1')}"
        attributes = tree.stat(directory, entry.name)
        if stat.S_ISDIR(entry.kind):
            found[place] = {"kind": "directory"}
            found |= describe(tree, tree.directory(directory, entry.name), place)
        elif stat.S_ISLNK(entry.kind):
            target = tree.symlinks.read(directory, entry.name)
            found[place] = {"kind": "symlink", "size": attributes.size, "target": target.decode("latin-1")}
        else:
            file = tree.open(directory, entry.name, os.O_RDONLY)
            data = file.read(0, attributes.size + 1)
            tree.release(file)
            found[place] = {
                "kind": "file",
                "size": attributes.size,
                "executable": bool(attributes.st.st_mode & stat.S_IXUSR),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
    return found


def state_of_machine(vault_dir: Path) -> list[str]:
    """Names of what belongs to the machine that has opened a vault, and not to the vault."""
    names = os.listdir(vault_dir)
    return sorted(name for name in names if name == LOCK_NAME or name.startswith(OF_A_HOST))


def make(target: Path) -> None:
    """Vaults and manifests below target."""
    for cipher in SUITES:
        place = target / f"{VERSION}-{cipher}"
        place.mkdir(parents=True)
        chunk_size = CHUNK_SIZES[cipher]
        keys = AllKeys(place, PASSPHRASE.decode())
        keys.make("--cipher", cipher, "--chunk-size", str(chunk_size), "--label", "golden")
        keys.save()
        vault_dir = keys.vault
        with Vault.unlock(vault_dir, PASSPHRASE) as vault:
            fill(vault.tree, chunk_size)
        with Vault.unlock(vault_dir, PASSPHRASE) as vault:
            manifest = describe(vault.tree, vault.tree.root)
        for name in state_of_machine(vault_dir):
            (vault_dir / name).unlink()
        text = json.dumps(manifest, indent=1, sort_keys=True)
        (place / MANIFEST).write_text(f"{text}\n", encoding="ascii")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.vaults.make_golden TARGET")
    with tempfile.TemporaryDirectory() as state:
        os.environ["XDG_STATE_HOME"] = state
        make(Path(sys.argv[1]))
