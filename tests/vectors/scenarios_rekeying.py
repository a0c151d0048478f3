"""Scenarios of section 14.7: configs of vaults whose masterkey is being changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_config import PASSPHRASE, Config, make_config
from tests.vectors.vector import Scenarios, Vector, bad, good

_FEATURES = ("bound-dirs", "machine-state", "rekeying", "slots")
_GIB = 2**30
_OLD = ref.fixed("the old masterkey", 32)
_HOST = "xU-R1QEy5znrM10c"


def _config(features: tuple[str, ...] = _FEATURES, **fields: Any) -> Config:
    """An authentic config under the new masterkey."""
    config = make_config("aegis-256", features=features)
    vault_id = bytes.fromhex(config["vault_id"])
    rekey = {"host": _HOST, "old": ref.seal_old_masterkey(_OLD, ref.MASTERKEY, vault_id).hex()}
    return _authentic(config | {"rekey": rekey} | fields)


def _authentic(config: Config) -> Config:
    changed = {name: value for name, value in config.items() if name != "mac"}
    return changed | {"mac": ref.config_mac(changed)}


def _inputs(config: Config) -> dict[str, Any]:
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"text": text, "passphrase": PASSPHRASE, "max_memory": _GIB}


def _refused(
    about: str, change: Callable[[Config], object], why: str, outcome: str = "VaultConfigError"
) -> Vector:
    """The good config with a change, and a mac that fits to it."""
    config = _config()
    change(config)
    return bad(about, "rekeying", _inputs(_authentic(config)), outcome, why)


def _set(**fields: Any) -> Callable[[Config], object]:
    return lambda config: config["rekey"].update(fields)


def rekeying_scenarios() -> Scenarios:
    """The old masterkey under the new one, right and wrong."""
    vault_id = bytes.fromhex(_config()["vault_id"])
    elsewhere = ref.seal_old_masterkey(_OLD, ref.MASTERKEY, bytes(16)).hex()
    reverse = ref.seal_old_masterkey(ref.MASTERKEY, _OLD, vault_id).hex()
    old = _config()["rekey"]["old"]
    salt = ref.fixed("salt of slot 0", 16)
    params = {"kdf": "argon2id", "memory": 64 << 20, "passes": 3, "salt": salt.hex()}
    derived = ref.slot_key(PASSPHRASE.encode(), salt, 64 << 20, 3)
    old_slot = ref.seal_slot(_config(), 0, "passphrase", "", params, derived, _OLD)
    return {
        "rekeying-ok": good(
            "The masterkey is being changed.",
            "rekeying",
            _inputs(_config()),
            masterkey=ref.MASTERKEY,
            old_masterkey=_OLD,
            host=_HOST,
        ),
        "rekeying-unlocked": bad(
            "No reader opens such a vault.", "unlock", _inputs(_config()), "VaultError", "cryptfs rekey"
        ),
        "rekeying-of-another-vault": _refused(
            "The old masterkey was sealed for another vault.", _set(old=elsewhere), "by the new one"
        ),
        "rekeying-under-the-old": _refused(
            "The new masterkey under the old one: never.", _set(old=reverse), "by the new one"
        ),
        "rekeying-old-short": _refused("A sealed value of 71 bytes.", _set(old=old[2:]), "rekey, old"),
        "rekeying-host-short": _refused("A host id of 15 letters.", _set(host=_HOST[1:]), "impossible host"),
        "rekeying-no-host": _refused("No host.", lambda config: config["rekey"].pop("host"), "damaged"),
        "rekeying-more-fields": _refused("A field too many.", _set(path="x"), "damaged"),
        "rekeying-null": _refused(
            "null is not an object.", lambda config: config.update(rekey=None), "damaged"
        ),
        "rekeying-without-feature": bad(
            "The field without the feature.",
            "rekeying",
            _inputs(_config(("bound-dirs", "machine-state", "slots"))),
            "VaultConfigError",
            "without its field",
        ),
        "rekeying-without-field": _refused(
            "The feature without the field.", lambda config: config.pop("rekey"), "without its field"
        ),
        "rekeying-version-1": bad(
            "In a config of version 1.",
            "rekeying",
            _inputs(make_config("aegis-256", features=("bound-dirs", "machine-state", "rekeying"))),
            "VaultConfigError",
            "without slots",
        ),
        "rekeying-old-slot": _refused(
            "A slot with the old masterkey in the new config: the mac is under the new one.",
            lambda config: config.update(slots=[old_slot]),
            "was changed by",
        ),
        "rekeying-host-replaced": bad(
            "Another host: only the mac tells.",
            "rekeying",
            _inputs(_config() | {"rekey": {"host": "A" * 16, "old": old}}),
            "VaultConfigError",
            "was changed by",
        ),
    }
