"""Fuzzing of keys: files that a person gives, and key slots that stand in a config."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cryptfs.core.slots.agekeys import (
    IDENTITY_SIZE,
    MAX_IDENTITIES,
    RECIPIENT_SIZE,
    identities_of,
    recipient_bytes,
    recipient_of,
)
from cryptfs.core.slots.checks import CONFIG_NAME
from cryptfs.core.slots.slot import KeySlot, Params, check_slot
from cryptfs.errors import VaultConfigError
from cryptfs.unlock.hybrid import HPKE, HybridKind
from cryptfs.unlock.keyfile import generate_key_file, secret_of
from cryptfs.unlock.kinds import KINDS
from cryptfs.unlock.offer import Offer
from tests.age_keys import NPM, SLOT, identity_file
from tests.fuzz.targets import Target

_MAX_MEMORY = 1 << 30
_IDENTITIES = [identities_of(identity_file(keys["identity"]))[0] for keys in NPM]


def identity_file_target() -> Target:
    """Any identity file: ValueError, or identities that age-encryption made; another has no checksum."""

    def run(data: bytes) -> None:
        try:
            found = identities_of(data)
        except ValueError as error:
            assert str(error).isprintable()
            return
        assert 1 <= len(found) <= MAX_IDENTITIES
        assert all(len(identity) == IDENTITY_SIZE and identity in _IDENTITIES for identity in found)

    files = [identity_file(keys["identity"]) for keys in NPM]
    return Target("identity-file", run, [*files, b"".join(files), files[0].replace(b"\n", b"\r\n")])


def recipient_target() -> Target:
    """Any text for a recipient: ValueError, or one that age-encryption made."""
    known = [keys["recipient"] for keys in NPM]

    def run(data: bytes) -> None:
        try:
            recipient = recipient_of(data.decode("utf-8", "replace"))
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 200
            return
        assert recipient in known and len(recipient_bytes(recipient)) == RECIPIENT_SIZE

    return Target("recipient", run, [*(each.encode() for each in known), f"# ana\n{known[0]}\n".encode()])


def public_key_slot_target() -> Target:
    """Any params of a slot: VaultConfigError, no key, or the right one; HPKE lets no other through."""
    params = {name: SLOT[name] for name in ("ciphertext", "enc", "recipient")}
    empty = KeySlot(bytes(32).hex(), SLOT["slot_id"], HPKE, "", {}, bytes(72).hex())
    kind, vault_id = HybridKind(), bytes.fromhex(SLOT["vault_id"])
    offer = Offer(identities=tuple(_IDENTITIES))

    def run(data: bytes) -> None:
        try:
            found = msgspec.json.decode(data, type=dict[str, int | str])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        slot = msgspec.structs.replace(empty, params=found)
        try:
            check_slot(slot)
            kind.check(slot, 0)
        except VaultConfigError as error:
            assert str(error).isprintable() and CONFIG_NAME in str(error)
            return
        for _, slot_key in kind.slot_keys([slot], offer, vault_id):
            assert slot_key.hex() == SLOT["slot_key"]
            assert all(found[field] == params[field] for field in ("enc", "ciphertext"))

    samples = [
        params,
        {**params, "enc": params["enc"][:-1] + "A"},
        {**params, "recipient": NPM[1]["recipient"]},
    ]
    return Target("public-key-slot", run, [msgspec.json.encode(sample) for sample in samples])


def slot_params_target() -> Target:
    """The params of a slot of any kind: VaultConfigError, or a cost that a machine can afford.

    The first byte chooses the kind.
    """
    empty = KeySlot(bytes(32).hex(), 3, "", "", {}, bytes(72).hex())
    cost: Params = {"kdf": "argon2id", "memory": 64 << 20, "passes": 3, "salt": bytes(16).hex()}
    good: dict[str, Params] = {
        "passphrase": cost,
        "key-file": {"salt": bytes(16).hex()},
        "passphrase-key-file": cost,
        "fido2": {"credential": bytes(64).hex(), "salt": bytes(32).hex(), "uv": 1},
        "hpke": {name: SLOT[name] for name in ("ciphertext", "enc", "recipient")},
    }

    def run(data: bytes) -> None:
        kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
        try:
            found = msgspec.json.decode(data[1:], type=dict[str, int | str])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        slot = msgspec.structs.replace(empty, kind=kind.name, params=found)
        try:
            check_slot(slot)
            kind.check(slot, _MAX_MEMORY)
        except VaultConfigError as error:
            assert str(error).isprintable() and CONFIG_NAME in str(error)
            assert found != good[kind.name]
            return
        assert set(found) == set(good[kind.name])
        assert found.get("memory", 0) in range(_MAX_MEMORY + 1) and found.get("passes", 0) in range(65)

    numbers = {kind.name: bytes((number,)) for number, kind in enumerate(KINDS)}
    return Target("slot-params", run, [numbers[name] + msgspec.json.encode(good[name]) for name in numbers])


def key_file_target() -> Target:
    """Any key file: the secret that cryptfs made, or none."""
    secrets = [bytes(range(32)), bytes(32)]
    files = [generate_key_file(bytes(bytearray(secret))) for secret in secrets]

    def run(data: bytes) -> None:
        found = secret_of(data)
        assert found is None or found in secrets

    return Target("key-file", run, files)


KEY_TARGETS: dict[str, Callable[[], Target]] = {
    "identity-file": identity_file_target,
    "recipient": recipient_target,
    "public-key-slot": public_key_slot_target,
    "slot-params": slot_params_target,
    "key-file": key_file_target,
}
