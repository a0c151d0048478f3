"""Where the secrets of each kind of key must not be: memory, arguments, environment and log of a mount."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.core.keys import Subkeys
from cryptfs.core.slots.agekeys import identities_of
from cryptfs.unlock.carriers.shares import combine
from cryptfs.unlock.carriers.words import secret_of_words
from cryptfs.unlock.keyfile import secret_of
from cryptfs.unlock.kinds import KINDS
from cryptfs.unlock.unlocking import open_vault
from cryptfs.vfs.vault import read_config
from tests.all_keys import BESIDE, FIRST, PIN, SECOND, AllKeys
from tests.e2e.mounting import detach
from tests.e2e.test_secrets import writable_memory
from tests.support import child_environment

pytestmark = [
    pytest.mark.serial,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="looking into other processes needs root"),
]

WAYS = (
    *("a passphrase", "a key file", "a passphrase and a file", "an age identity", "a token"),
    *("recovery words", "two of three shares"),
)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> AllKeys:
    made = AllKeys(tmp_path_factory.mktemp("keys"))
    made.make()
    (made.base / "mountpoint").mkdir()
    return made


@pytest.fixture
def mountpoint(keys: AllKeys) -> Iterator[Path]:
    yield keys.base / "mountpoint"
    detach(keys.base / "mountpoint")


def secrets_of(keys: AllKeys) -> dict[str, bytes]:
    """Pieces of all that a person has, and of what is between that and the masterkey, by a name."""
    base = keys.base
    key_file, identity = (base / "key").read_bytes(), (base / "identity").read_bytes()
    words = (base / "words").read_bytes()
    shares = [place.read_bytes() for place in sorted((base / "shares").iterdir())]
    raw_identity = identities_of(identity)[0]
    expanded = hashlib.shake_256(raw_identity).digest(96)
    secret = secret_of(key_file)
    assert secret is not None
    found = {
        "first passphrase": FIRST.encode(),
        "second passphrase": SECOND.encode(),
        "passphrase beside a file": BESIDE.encode(),
        "text of the key file": key_file[14:78],
        "key file": secret,
        "photo": (base / "photo").read_bytes()[400:464],
        "text of the identity": identity.partition(b"AGE-SECRET-KEY-PQ-1")[2][:40],
        "identity": raw_identity,
        "seed of ML-KEM": expanded[:64],
        "key of X25519": expanded[64:],
        "words": b" ".join(words.split()[3:7]),
        "secret of the words": secret_of_words(words),
        "secret of the shares": combine(shares[1:]),
    }
    for number, share in enumerate(shares, 1):
        found[f"share {number}"] = b" ".join(share.split()[5:9])
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_daemon_keeps_nothing_that_opened_the_vault(keys: AllKeys, mountpoint: Path, way: str) -> None:
    """But its subkeys, which show that the search finds what there is. Soft tokens keep their own secrets."""
    program = [sys.executable, "-m", "cryptfs"]
    if way in keys.plugged:
        program = [sys.executable, "-m", "tests.e2e.with_tokens", str(keys.plugged[way])]
    log = keys.base / f"log of {way}"
    words = [
        "mount",
        str(keys.vault),
        str(mountpoint),
        "--log-file",
        str(log),
        "-o",
        "debug",
        *keys.ways[way],
    ]
    done = subprocess.run(
        [*program, *words],
        env=child_environment(),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (mountpoint / "file").write_bytes(b"content")
    info = [sys.executable, "-m", "cryptfs", "info", "--json", str(keys.vault)]
    told = subprocess.run(info, env=child_environment(), capture_output=True, check=True)
    pid = int(json.loads(told.stdout)["held_by"]["pid"])
    secrets = secrets_of(keys)
    masterkey = open_vault(read_config(keys.vault), FIRST.encode(), 1 << 40).masterkey
    memory = writable_memory(pid)
    assert Subkeys.from_masterkey(masterkey).content_key in memory
    assert masterkey not in memory
    assert [name for name, piece in secrets.items() if piece in memory] == []
    said = done.stdout + done.stderr + log.read_bytes()
    for file in ("cmdline", "environ"):
        said += Path(f"/proc/{pid}/{file}").read_bytes()
    assert [name for name, piece in (secrets | {"PIN": PIN.encode()}).items() if piece in said] == []


def test_every_kind_is_here(keys: AllKeys) -> None:
    """One way for each; sources of a passphrase are in test_secrets.py."""
    kinds = {slot.id: slot.kind for slot in read_config(keys.vault).slots}
    assert {kinds[keys.slots[way]] for way in WAYS if way in keys.slots} == {kind.name for kind in KINDS}
