"""Scenarios of section 9: key slots for hybrid public keys of age, as a reader meets them.

HPKE draws its own randomness, so what it made is a constant: another implementation than that of cryptfs
made it once (tests/age_keys.json).
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_config import Config, make_config
from tests.vectors.vector import Scenarios, Vector, bad, good

_KEYS = json.loads((Path(__file__).parents[1] / "age_keys.json").read_text("utf-8"))
_MADE = _KEYS["slot"]
_SLOT_KEY = bytes.fromhex(_MADE["slot_key"])
_FEATURES = ("bound-dirs", "machine-state", "slots")
_OTHER = _KEYS["npm"][1]
_UNUSABLE = "cannot be used"


def _params() -> dict[str, Any]:
    return {name: _MADE[name] for name in ("ciphertext", "enc", "recipient")}


def _config(params: dict[str, Any] | None = None, slot_id: int = 1, vault_id: str = "") -> Config:
    """Authentic, with one slot; its masterkey is wrapped for whatever its params are."""
    config = make_config("aegis-256", features=_FEATURES)
    config |= {"vault_id": vault_id or config["vault_id"]}
    del config["mac"]
    slot = ref.seal_slot(
        config, slot_id, "hpke", "server", _params() if params is None else params, _SLOT_KEY
    )
    config["slots"] = [slot]
    return config | {"mac": ref.config_mac(config)}


def _inputs(config: Config, identity: str = _MADE["identity"], **more: Any) -> dict[str, Any]:
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"text": text, "max_memory": 2**30, "identity_file": f"# a comment\n{identity}\n"} | more


def _refused(about: str, why: str, change: Callable[[dict[str, Any]], object]) -> Vector:
    """Params with a change, and all else made to fit them: so it is not wrapped or the mac that tells."""
    params = _params()
    change(params)
    outcome = "WrongPassphraseError" if why == "opens no key slot" else "VaultConfigError"
    return bad(about, "unlock", _inputs(_config(params)), outcome, why)


def _edit(name: str, edit: Callable[[bytes], bytes]) -> Callable[[dict[str, Any]], object]:
    data = base64.urlsafe_b64decode(_MADE[name] + "=" * (-len(_MADE[name]) % 4))
    return lambda params: params.update({name: ref.base64url(edit(data))})


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda params: params.update({name: value})


def hybrid_scenarios() -> Scenarios:
    """Slots of kind `hpke`, right and wrong."""
    info = b"cryptfs slot" + bytes.fromhex(_MADE["vault_id"]) + struct.pack("<I", _MADE["slot_id"])
    right = _config()
    assert right["vault_id"] == _MADE["vault_id"]
    canonical = ref.canonical({name: value for name, value in right.items() if name != "mac"}).decode()
    replaced = _config()
    replaced["slots"][0]["params"]["recipient"] = _OTHER["recipient"]
    replaced["mac"] = ref.config_mac({name: value for name, value in replaced.items() if name != "mac"})
    shown = _params() | {"info": info.hex(), "slot_key": _SLOT_KEY.hex()}
    wrong, shut = "WrongPassphraseError", "opens no key slot"
    recipient = _MADE["recipient"]
    return {
        "hpke": good(
            "A slot for a hybrid public key, and its identity.",
            "unlock",
            _inputs(right, hpke=shown),
            masterkey=ref.MASTERKEY,
            slot_id=1,
            canonical=canonical,
        ),
        "hpke-another-identity": bad(
            "Another identity.", "unlock", _inputs(right, _OTHER["identity"]), wrong, shut
        ),
        "hpke-id-replaced": bad(
            "The slot key under another slot id; the masterkey is wrapped for it.",
            "unlock",
            _inputs(_config(slot_id=2)),
            wrong,
            shut,
        ),
        "hpke-vault-id-replaced": bad(
            "The slot key in another vault; the masterkey is wrapped for it.",
            "unlock",
            _inputs(_config(vault_id="00" * 16)),
            wrong,
            shut,
        ),
        "hpke-recipient-replaced": bad(
            "The recipient was replaced by another.",
            "unlock",
            _inputs(replaced),
            "VaultConfigError",
            "is right",
        ),
        "hpke-enc-ml-kem": _refused(
            "The part of ML-KEM in enc has a flipped bit.", shut, _edit("enc", lambda enc: ref.flip(enc, 0))
        ),
        "hpke-enc-x25519": _refused(
            "The part of X25519 in enc has a flipped bit.", shut, _edit("enc", lambda enc: ref.flip(enc, -2))
        ),
        "hpke-enc-low-order": _refused(
            "The part of X25519 in enc is the point 0.",
            shut,
            _edit("enc", lambda enc: enc[:1088] + bytes(32)),
        ),
        "hpke-ciphertext-flipped": _refused(
            "The ciphertext has a flipped bit.", shut, _edit("ciphertext", lambda sealed: ref.flip(sealed, 3))
        ),
        "hpke-enc-short": _refused("An enc of 1119 bytes.", _UNUSABLE, _edit("enc", lambda enc: enc[:-1])),
        "hpke-enc-empty": _refused("An empty enc.", _UNUSABLE, _set("enc", "")),
        "hpke-enc-padded": _refused("base64 with `=`.", _UNUSABLE, _set("enc", _MADE["enc"] + "==")),
        "hpke-ciphertext-long": _refused(
            "A ciphertext of 49 bytes.", _UNUSABLE, _edit("ciphertext", lambda sealed: sealed + b"\0")
        ),
        "hpke-recipient-letter": _refused(
            "A recipient with another letter in it.",
            _UNUSABLE,
            _set("recipient", recipient[:40] + ("q" if recipient[40] != "q" else "p") + recipient[41:]),
        ),
        "hpke-recipient-capitals": _refused(
            "A recipient in capitals.", _UNUSABLE, _set("recipient", recipient.upper())
        ),
        "hpke-recipient-number": _refused(
            "A number as recipient.", "cannot derive its key", _set("recipient", 1)
        ),
        "hpke-field-missing": _refused("No enc.", "cannot derive its key", lambda params: params.pop("enc")),
        "hpke-field-more": _refused("A field too many.", "cannot derive its key", _set("kem", 0x647A)),
    }
