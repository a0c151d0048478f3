"""Scenarios of section 9: configs of version 2, whose key slots are of many kinds."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.scenarios_config import PASSPHRASE, Config, make_config
from tests.vectors.vector import Scenarios, Vector, bad, good

_GIB = 2**30
_FEATURES = ("bound-dirs", "machine-state", "slots")
_SECRET = ref.fixed("the secret in the key file", 32)
_CREDENTIAL = ref.fixed("credential id of the token", 64)
_CRED_RANDOM = ref.fixed("CredRandom of the token", 32)
_CRED_RANDOM_UV = ref.fixed("CredRandom of the token, its user verified", 32)
_TOKEN_SALT = ref.fixed("salt of the token", 32)
_PHOTO = b"any file of 32 bytes to 1 MiB will do beside a passphrase" * 3


def _config(cipher: str = "aegis-256", slots: list[dict[str, Any]] | None = None) -> Config:
    """An authentic config; slot 0 opens with the passphrase, and others follow."""
    config = make_config(cipher, features=_FEATURES)
    return _sealed(config, [*config["slots"], *(slots or [])])


def _sealed(config: Config, slots: list[dict[str, Any]]) -> Config:
    changed = {name: value for name, value in config.items() if name != "mac"} | {"slots": slots}
    return changed | {"mac": ref.config_mac(changed)}


def _slot(number: int, kind: str, params: dict[str, Any], key: bytes, cipher: str = "aegis-256") -> Config:
    return ref.seal_slot(make_config(cipher, features=_FEATURES), number, kind, kind, params, key)


def _key_file_slot(number: int) -> Config:
    salt = ref.fixed("salt of the key file", 16)
    return _slot(number, "key-file", {"salt": salt.hex()}, ref.keyed(_SECRET, "keyfile", salt))


def _both_slot(number: int) -> Config:
    salt = ref.fixed("salt of both", 16)
    params = {"kdf": "argon2id", "memory": 64 << 20, "passes": 3, "salt": salt.hex()}
    derived = ref.slot_key(PASSPHRASE.encode(), salt, 64 << 20, 3)
    digest = hashlib.blake2b(_PHOTO, digest_size=32).digest()
    return _slot(number, "passphrase-key-file", params, ref.keyed(derived, "keyfile", digest))


def _token_slot(number: int, *, uv: bool = False) -> Config:
    params = {"credential": _CREDENTIAL.hex(), "salt": _TOKEN_SALT.hex(), "uv": int(uv)}
    return _slot(number, "fido2", params, ref.keyed(_hmac_secret(uv=uv), "fido2"))


def _hmac_secret(*, uv: bool) -> bytes:
    """The output of a token's hmac-secret, of CTAP."""
    return hmac.digest(_CRED_RANDOM_UV if uv else _CRED_RANDOM, _TOKEN_SALT, "sha256")


def _token(*, uv: bool = False, **more: str) -> dict[str, str]:
    """A token that is plugged in, and what it answers to the slot that was made with it."""
    return {
        "credential": _CREDENTIAL.hex(),
        "cred_random": _CRED_RANDOM.hex(),
        "cred_random_uv": _CRED_RANDOM_UV.hex(),
        "hmac_secret": _hmac_secret(uv=uv).hex(),
    } | more


def _inputs(config: Config | str, passphrase: str | None = PASSPHRASE, **more: Any) -> dict[str, Any]:
    text = config if isinstance(config, str) else json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    offered = {} if passphrase is None else {"passphrase": passphrase}
    return {"text": text, "max_memory": _GIB} | offered | more


def _opens(about: str, config: Config, slot_id: int, **inputs: Any) -> Vector:
    canonical = ref.canonical({name: value for name, value in config.items() if name != "mac"}).decode()
    return good(
        about,
        "unlock",
        _inputs(config, **inputs),
        masterkey=ref.MASTERKEY,
        slot_id=slot_id,
        canonical=canonical,
    )


def slots_scenarios() -> Scenarios:
    """Configs of version 2, right and wrong."""
    unknown = _slot(1, "tpm2", {"pcrs": "7+11", "bank": 256}, bytes(32))
    odd_kdf = _slot(1, "passphrase", {"kdf": "scrypt", "salt": "00"}, bytes(32))
    key_file = ref.key_file(_SECRET).hex()
    found = {
        f"ok-{cipher}": _opens("A vault of version 2 with one passphrase.", _config(cipher), 0)
        for cipher in ref.CIPHERS
    }
    found |= {
        "key-file": _opens(
            "A key file that cryptfs made.",
            _config(slots=[_key_file_slot(1)]),
            1,
            passphrase=None,
            key_file=key_file,
        ),
        "passphrase-key-file": _opens(
            "A passphrase and any file.",
            _sealed(_config(), [_both_slot(9)]),
            9,
            passphrase=PASSPHRASE,
            key_file=_PHOTO.hex(),
        ),
        "fido2": _opens(
            "A FIDO2 token that does not verify its user.",
            _config(slots=[_token_slot(1)]),
            1,
            passphrase=None,
            token=_token(),
        ),
        "fido2-uv": _opens(
            "A FIDO2 token that verifies its user.",
            _config(slots=[_token_slot(1, uv=True)]),
            1,
            passphrase=None,
            token=_token(uv=True),
        ),
        "unknown-kind": _opens("A slot of an unknown kind, and of another KDF.", _config(slots=[unknown]), 0),
        "unknown-kdf": _opens("A passphrase slot with another KDF.", _config(slots=[odd_kdf]), 0),
    }
    return found | _refusals() | _token_refusals()


def _refused(
    about: str,
    change: Callable[[Config], object],
    why: str,
    outcome: str = "VaultConfigError",
    **inputs: Any,
) -> Vector:
    """The good config with a change, and a mac that fits to it: so it is not the mac that tells."""
    config = _config()
    change(config)
    config["mac"] = ref.config_mac(config)
    return bad(about, "unlock", _inputs(config, **inputs), outcome, why)


def _set(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config.update({name: value})


def _set_slot(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config["slots"][0].update({name: value})


def _set_param(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config["slots"][0]["params"].update({name: value})


def _refusals() -> Scenarios:
    slot = _config()["slots"][0]
    slots = [slot | {"id": number} for number in range(33)]
    params = {f"p{number}": number for number in range(33)}
    wrong, odd = "WrongPassphraseError", "impossible params"
    other_salt = ref.fixed("another salt", 16).hex()
    damaged_file = ref.key_file(_SECRET).replace(b":", b":0", 1)
    return {
        "id-replaced": _refused("The slot's id was replaced.", _set_slot("id", 4), "is right"),
        "vault-id-replaced": _refused("The slot of another vault.", _set("vault_id", "00" * 16), "is right"),
        "cipher-replaced": _refused("Another cipher.", _set("cipher", "xchacha20-poly1305"), "is right"),
        "chunk-size-replaced": _refused("Another chunk size.", _set("chunk_size", 4096), "is right"),
        "salt-replaced": _refused("Another salt.", _set_param("salt", other_salt), "wrong", wrong),
        "kind-replaced": _refused(
            "Of another kind, which takes the same params.",
            _set_slot("kind", "passphrase-key-file"),
            "open no key slot",
            wrong,
            key_file=_PHOTO.hex(),
        ),
        "label-replaced": bad(
            "A label was replaced: only the mac tells.",
            "unlock",
            _inputs(_config() | {"slots": [slot | {"label": "mine"}]}),
            "VaultConfigError",
            "was changed by",
        ),
        "feature-removed": bad(
            "A feature was taken out: only the mac tells.",
            "unlock",
            _inputs(_config() | {"features": ["machine-state", "slots"]}),
            "VaultConfigError",
            "was changed by",
        ),
        "recovery-replaced": bad(
            "The record of recovery was taken out, or another put in: only the mac tells.",
            "unlock",
            _inputs(_config() | {"recovery": ["00" * 16]}),
            "VaultConfigError",
            "was changed by",
        ),
        "key-file-damaged": bad(
            "A key file with a wrong digit is none that cryptfs made.",
            "unlock",
            _inputs(_config(slots=[_key_file_slot(1)]), None, key_file=damaged_file.hex()),
            "NoKeyError",
            "nothing was offered",
        ),
        "another-key-file": bad(
            "Another key file.",
            "unlock",
            _inputs(_config(slots=[_key_file_slot(1)]), None, key_file=ref.key_file(bytes(32)).hex()),
            wrong,
            "opens no key slot",
        ),
        "another-file": bad(
            "The passphrase, and another file.",
            "unlock",
            _inputs(_sealed(_config(), [_both_slot(1)]), PASSPHRASE, key_file=(_PHOTO + b"!").hex()),
            wrong,
            "open no key slot",
        ),
        "passphrase-alone": bad(
            "The passphrase without the file.",
            "unlock",
            _inputs(_sealed(_config(), [_both_slot(1)])),
            "NoKeyError",
            "nothing was offered",
        ),
        "version-1-with-slots": _refused("The feature in version 1.", _set("version", 1), "damaged"),
        "version-2-without-slots": _refused(
            "Version 2 without the feature.", _set("features", ["machine-state"]), "without version 2"
        ),
        "slot-of-version-1": _refused(
            "A slot as version 1 has them.",
            _set("slots", make_config("aegis-256")["slots"]),
            "damaged",
        ),
        "nested-params": _refused("An object in params.", _set_param("salt", {"hex": "00"}), "damaged"),
        "param-true": _refused("A truth value in params.", _set_param("passes", True), "damaged"),
        "param-negative": _refused(
            "A negative number in params.", _set_param("passes", -1), "impossible params"
        ),
        "param-with-quote": _refused(
            "A character that JSON escapes.", _set_param("hint", 'a"b'), "impossible params"
        ),
        "param-with-umlaut": _refused(
            "A character beyond ASCII.", _set_param("hint", "ü"), "impossible params"
        ),
        "param-name": _refused("A name in capitals.", _set_param("Hint", 1), odd),
        "33-params": _refused(
            "One param too many.",
            _set_slot("params", params),
            "impossible",
        ),
        "large-params": _refused("8193 bytes of params.", _set_slot("params", {"x": "y" * 8185}), "8192"),
        "kind-in-capitals": _refused("A kind in capitals.", _set_slot("kind", "TPM2"), "impossible kind"),
        "33-slots": _refused("One slot too many.", _set("slots", slots), "33 key"),
        "two-recovery-ids": _refused("One recovery_id twice.", _set("recovery", ["00" * 16] * 2), "twice"),
        "recovery-id-short": _refused("An id of 15 bytes.", _set("recovery", ["00" * 15]), "recovery"),
        "memory-beyond-machine": _refused(
            "More memory than this machine can give.", _set_param("memory", 2 * _GIB), "2048 MiB"
        ),
    }


def _token_refusals() -> Scenarios:
    slot, other = _token_slot(1), ref.fixed("another token", 64).hex()
    secret = "its secret does not open key slot 1"

    def refused(
        about: str,
        why: str,
        outcome: str = "TokenError",
        *,
        token: dict[str, str] | None = None,
        **params: Any,
    ) -> Vector:
        config = _config(slots=[slot | {"params": slot["params"] | params}])
        return bad(about, "unlock", _inputs(config, None, token=token or _token()), outcome, why)

    invalid = "VaultConfigError"
    return {
        "fido2-another-token": refused(
            "A token that made another credential.",
            "does not belong to this vault",
            "AbsentTokenError",
            token=_token(credential=other),
        ),
        "fido2-another-secret": refused(
            "Another key in the token.", secret, token=_token(cred_random="00" * 32)
        ),
        "fido2-uv-replaced": refused("The token is to verify its user: another secret.", secret, uv=1),
        "fido2-salt-replaced": refused("Another salt.", secret, salt="00" * 32),
        "fido2-uv-2": refused("A uv of 2.", "cannot derive its key", invalid, uv=2),
        "fido2-salt-short": refused("A salt of 31 bytes.", "salt is not 32 bytes", invalid, salt="00" * 31),
        "fido2-credential-empty": refused("No credential.", "0 bytes", invalid, credential=""),
        "fido2-credential-long": refused("1025 bytes.", "1025 bytes", invalid, credential="00" * 1025),
        "fido2-rp": refused("A field too many.", "cannot derive its key", invalid, rp="cryptfs"),
    }
