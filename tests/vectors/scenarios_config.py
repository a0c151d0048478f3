"""Scenarios of section 9: the vault config and its key slots."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.vectors import reference as ref
from tests.vectors.vector import Scenarios, Vector, bad, good

PASSPHRASE = "correct horse battery staple"
_GIB = 2**30
Config = dict[str, Any]


def make_config(cipher: str, slots: int = 1, features: Sequence[str] = ()) -> Config:
    """A config with `slots` key slots; slot n opens with the passphrase and n spaces behind it."""
    config: Config = {
        "chunk_size": 16384,
        "cipher": cipher,
        "features": list(features),
        "format": "cryptfs",
        "generation": 1,
        "vault_id": ref.fixed("vault_id", 16).hex(),
        "version": 1,
    }
    if "slots" in features:
        config |= {"recovery": [], "version": 2}
    config["slots"] = [
        ref.make_slot(config, n, (PASSPHRASE + " " * n).encode(), f"slot {n}, blåbær") for n in range(slots)
    ]
    config["mac"] = ref.config_mac(config)
    return config


def _inputs(config: Config | str, passphrase: str = PASSPHRASE, max_memory: int = _GIB) -> dict[str, Any]:
    text = config if isinstance(config, str) else json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"text": text, "passphrase": passphrase, "max_memory": max_memory}


def config_scenarios() -> Scenarios:
    """Vault configs, right and wrong."""
    found: Scenarios = {}
    for cipher in ref.CIPHERS:
        found[f"ok-{cipher}"] = good(
            "A vault with one passphrase.",
            "unlock",
            _inputs(make_config(cipher)),
            masterkey=ref.MASTERKEY,
            slot_id=0,
            canonical=ref.canonical({k: v for k, v in make_config(cipher).items() if k != "mac"}).decode(),
        )
    found["machine-state"] = good(
        "A vault with a feature.",
        "unlock",
        _inputs(make_config("aegis-256", features=["machine-state"])),
        masterkey=ref.MASTERKEY,
        slot_id=0,
    )
    for name, features in (
        ("bound-dirs", ["bound-dirs", "machine-state"]),
        ("upgrading", ["bound-dirs", "machine-state", "upgrading"]),
    ):
        found[name] = good(
            "A vault with several features.",
            "unlock",
            _inputs(make_config("aegis-256", features=features)),
            masterkey=ref.MASTERKEY,
            slot_id=0,
        )
    two = make_config("aegis-256", slots=2)
    found["second-slot"] = good(
        "The passphrase of the second of two slots.",
        "unlock",
        _inputs(two, PASSPHRASE + " "),
        masterkey=ref.MASTERKEY,
        slot_id=1,
    )
    found["other-spelling"] = good(
        "No white space, other order, escapes: the mac is over what the JSON says.",
        "unlock",
        _inputs(
            json.dumps(
                dict(reversed(make_config("aegis-256").items())), ensure_ascii=True, separators=(",", ":")
            )
        ),
        masterkey=ref.MASTERKEY,
        slot_id=0,
    )
    return found | _unlocking() | _damaged() | _unsupported() | _beyond_limits()


def _refused(about: str, change: Callable[[Config], object], outcome: str, why: str, **fields: Any) -> Vector:
    """The good config with a change that nobody authenticated."""
    config = make_config("aegis-256")
    change(config)
    return bad(about, "unlock", _inputs(config, **fields), outcome, why)


def _set(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config.update({name: value})


def _set_slot(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config["slots"][0].update({name: value})


def _set_kdf(name: str, value: Any) -> Callable[[Config], object]:
    return lambda config: config["slots"][0]["kdf"].update({name: value})


def _unlocking() -> Scenarios:
    """What is found only after a key was derived: a tenth of a second each, so they are few."""
    right = make_config("aegis-256")
    slot = right["slots"][0]
    wrong, changed = "WrongPassphraseError", "VaultConfigError"

    def flipped(name: str, at: int) -> Callable[[Config], object]:
        return _set_slot(name, ref.flip(bytes.fromhex(slot[name]), at).hex())

    return {
        "wrong-passphrase": _refused(
            "Another passphrase.", _set("mac", right["mac"]), wrong, "wrong", passphrase="x"
        ),
        "commitment-flipped": _refused(
            "The commitment was changed.", flipped("commitment", 0), wrong, "wrong"
        ),
        "damaged-slot": _refused(
            "The wrapped masterkey was changed.", flipped("wrapped", -1), changed, "is right"
        ),
        "cipher-replaced": _refused(
            "The cipher was replaced: the slot is bound to it.",
            _set("cipher", "xchacha20-poly1305"),
            changed,
            "is right",
        ),
        "chunk-size-replaced": _refused(
            "The chunk size was replaced: the slot is bound to it.",
            _set("chunk_size", 4096),
            changed,
            "is right",
        ),
        "mac-flipped": _refused(
            "The mac was changed.",
            _set("mac", ref.flip(bytes.fromhex(right["mac"]), 0).hex()),
            changed,
            "was changed by",
        ),
        "feature-added": _refused(
            "A feature was put in: the slot is bound to it.",
            _set("features", ["machine-state"]),
            changed,
            "is right",
        ),
        "feature-removed": bad(
            "A feature was taken out.",
            "unlock",
            _inputs(make_config("aegis-256", features=["machine-state"]) | {"features": []}),
            changed,
            "is right",
        ),
        "label-replaced": _refused(
            "A label was replaced: only the mac tells.", _set_slot("label", "mine"), changed, "was changed by"
        ),
        "generation-replaced": _refused(
            "An older generation was set: only the mac tells.",
            _set("generation", 0),
            changed,
            "was changed by",
        ),
        "slot-added": _refused(
            "Somebody added a slot of a masterkey that is not the vault's behind the good one.",
            lambda config: config["slots"].append(slot | {"id": 1}),
            changed,
            "was changed by",
        ),
    }


def _damaged() -> Scenarios:
    def damaged(about: str, change: Callable[[Config], object], why: str = "damaged") -> Vector:
        return _refused(about, change, "VaultConfigError", why)

    def text(about: str, raw: str, why: str) -> Vector:
        return bad(about, "unlock", _inputs(raw), "VaultConfigError", why)

    whole = json.dumps(make_config("aegis-256"))
    return {
        "empty": text("An empty file.", "", "damaged"),
        "not-json": text("Not JSON.", "this is not a config", "damaged"),
        "cut": text("The second half is missing.", whole[: len(whole) // 2], "damaged"),
        "array": text("JSON, but no object.", "[]", "not the config"),
        "nested": text("A thousand brackets.", "[" * 1000, "damaged"),
        "other-format": damaged("The config of something else.", _set("format", "other"), "not the config"),
        "unknown-field": damaged("A field that format 1 does not have.", _set("plaintext_names", True)),
        "unknown-field-of-slot": damaged("The same in a slot.", _set_slot("hint", "horse")),
        "unknown-field-of-kdf": damaged("The same in the KDF.", _set_kdf("lanes", 4)),
        "feature-twice": damaged(
            "A feature that is named twice.", _set("features", ["machine-state"] * 2), "twice"
        ),
        "feature-alone": damaged(
            "A feature without the one that it needs.", _set("features", ["bound-dirs"]), "machine-state"
        ),
        "upgrading-alone": damaged(
            "An upgrade that adds nothing.", _set("features", ["machine-state", "upgrading"]), "bound-dirs"
        ),
        "missing-field": damaged("No vault_id.", lambda config: config.pop("vault_id")),
        "missing-mac": damaged("No mac.", lambda config: config.pop("mac")),
        "mistyped-field": damaged("A number as text.", _set("chunk_size", "16384")),
        "boolean-version": damaged("true is not 1.", _set("version", True)),
        "fraction": damaged("1.0 is not 1.", _set("generation", 1.0)),
        "negative": damaged("A negative slot id.", _set_slot("id", -1)),
        "chunk-size-no-power": damaged("12 KiB.", _set("chunk_size", 12288), "chunk_size"),
        "chunk-size-too-small": damaged("2 KiB.", _set("chunk_size", 2048), "chunk_size"),
        "chunk-size-too-large": damaged("2 MiB.", _set("chunk_size", 2097152), "chunk_size"),
        "upper-case-hex": damaged("The vault_id in upper case.", _set("vault_id", "AB" * 16), "vault_id"),
        "short-hex": damaged("A mac of 31 bytes.", _set("mac", "ab" * 31), "mac"),
        "not-hex": damaged("A salt that is no hex.", _set_kdf("salt", "xy" * 16), "salt"),
        "two-slots-one-id": damaged(
            "The same slot twice.", lambda config: config["slots"].append(config["slots"][0]), "one id"
        ),
        "label-with-escape": damaged(
            "A label that would move the cursor.", _set_slot("label", "\x1b[2J"), "label"
        ),
    }


def _unsupported() -> Scenarios:
    def unknown(about: str, change: Callable[[Config], object], why: str) -> Vector:
        return _refused(about, change, "UnsupportedFormatError", why)

    def later(config: Config) -> None:
        config.update({"version": 3, "new_field": {}})
        del config["chunk_size"]

    return {
        "later-version": unknown("Format 3, whose fields are others.", later, "version 3"),
        "unknown-feature": unknown(
            "A feature that is named.", _set("features", ["case-folding"]), "case-folding"
        ),
        "unknown-cipher": unknown("A cipher that is named.", _set("cipher", "aes-256-gcm"), "aes-256-gcm"),
        "unknown-slot-kind": unknown("A slot that is no passphrase.", _set_slot("kind", "tpm2"), "tpm2"),
        "unknown-kdf": unknown("Another KDF.", _set_kdf("name", "scrypt"), "scrypt"),
    }


def _beyond_limits() -> Scenarios:
    """All of these must be refused before any key is derived."""
    slot = make_config("aegis-256")["slots"][0]

    def refused(about: str, change: Callable[[Config], object], why: str, **fields: Any) -> Vector:
        return _refused(about, change, "VaultConfigError", why, **fields)

    return {
        "hostile-memory": refused("1 TiB of memory.", _set_kdf("memory", 2**40), "bytes of memory"),
        "memory-below-floor": refused(
            "1 KiB less than the least.", _set_kdf("memory", (64 << 20) - 1024), "bytes of memory"
        ),
        "memory-no-multiple": refused("Half a KiB.", _set_kdf("memory", (64 << 20) + 512), "bytes of memory"),
        "memory-beyond-machine": refused(
            "More than this machine can give.", _set_kdf("memory", 2 * _GIB), "2048 MiB", max_memory=_GIB
        ),
        "hostile-passes": refused("4 billion passes.", _set_kdf("passes", 2**32 - 1), "passes"),
        "passes-below-floor": refused("2 passes.", _set_kdf("passes", 2), "passes"),
        "no-slot": refused("No slot at all.", _set("slots", []), "0 key slots"),
        "33-slots": refused(
            "One slot too many.", _set("slots", [slot | {"id": n} for n in range(33)]), "33 key"
        ),
        "long-label": refused("A label of 65 bytes.", _set_slot("label", "ø" * 32 + "x"), "label"),
    }
