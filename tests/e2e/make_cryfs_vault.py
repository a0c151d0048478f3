"""Make cryfs-vault.tar.gz, a vault of CryFS that opens quickly: python -m tests.e2e.make_cryfs_vault

CryFS derives its key with scrypt at a cost of 14 seconds here, and has no option for another one. So the
config is sealed again with a key of a lower cost. CryFS 0.11.3 made the vault.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nacl import bindings

from tests.e2e.recipes import OLD_FILES, PASSPHRASE, put_old_files

TARGET = Path(__file__).with_name("cryfs-vault.tar.gz")
COST = struct.pack("<QII", 1 << 10, 4, 8)  # N, r, p of scrypt; CryFS takes 1 << 20 for N
INNER = b"cryfs.config.inner;0\0xchacha20-poly1305\0"
OUTER_IV, INNER_IV, SALT = 16, 24, 32


def derived_keys(cost: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The keys of the outer and of the inner layer of the config."""
    n, r, p = struct.unpack("<QII", cost)
    key = hashlib.scrypt(PASSPHRASE.encode(), salt=salt, n=n, r=r, p=p, maxmem=2**31 - 1, dklen=64)
    return key[:32], key[32:]


def with_lower_cost(config: bytes) -> bytes:
    """The config with both layers sealed again: the same content, another cost and salt."""
    head, _, rest = config.partition(b"\0")
    size = struct.unpack("<Q", rest[:8])[0]
    cost, salt, sealed = rest[8 : 8 + size - SALT], rest[8 + size - SALT : 8 + size], rest[8 + size :]
    outer, inner = derived_keys(cost, salt)
    layer = AESGCM(outer).decrypt(sealed[:OUTER_IV], sealed[OUTER_IV:], None)
    used = 4 + struct.unpack("<I", layer[:4])[0]
    assert layer[4:].startswith(INNER)
    body = layer[4 + len(INNER) : used]
    plain = bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(body[INNER_IV:], b"", body[:INNER_IV], inner)
    salt = os.urandom(SALT)
    outer, inner = derived_keys(COST, salt)
    iv = os.urandom(INNER_IV)
    body = iv + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, b"", iv, inner)
    layer = layer[:4] + INNER + body + layer[used:]
    iv = os.urandom(OUTER_IV)
    return head + b"\0" + rest[:8] + COST + salt + iv + AESGCM(outer).encrypt(iv, layer, None)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        vault, plain = Path(scratch, "cryfs-vault"), Path(scratch, "plain")
        vault.mkdir()
        plain.mkdir()
        subprocess.run(
            ["cryfs", "--blocksize", "1024", vault, plain],
            input=f"{PASSPHRASE}\n",
            env=os.environ | {"CRYFS_FRONTEND": "noninteractive", "HOME": scratch},
            text=True,
            check=True,
        )
        put_old_files(plain)
        subprocess.run(["cryfs-unmount", plain], check=True)
        config = vault / "cryfs.config"
        config.write_bytes(with_lower_cost(config.read_bytes()))
        with tarfile.open(TARGET, "w:gz") as tar:
            tar.add(vault, vault.name)
    print(f"{TARGET.name}: {TARGET.stat().st_size} bytes, {len(OLD_FILES)} files")


if __name__ == "__main__":
    main()
