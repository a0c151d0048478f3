"""A vault with every kind of key at once, made by commands of a person, and the keys in files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cryptfs.cli import main as main_module
from cryptfs.unlock.carriers import ctap
from cryptfs.vfs.vault import read_config
from tests.age_keys import SPECIFICATION, identity_file
from tests.e2e.with_tokens import read_tokens, save_tokens
from tests.softtoken import Behaviour, SoftToken

FIRST, SECOND, BESIDE = "Qx7 the first of two passphrases", "Qx7 a second passphrase", "Qx7 beside a file"
PIN = "73916402"
CHEAP = ("--kdf-memory", "64m")
KEYS = "keys.json"


@dataclass
class AllKeys:
    """Keys in files of `base`, and the vault that they open.

    ways: for each key the options that offer it, and it alone.   slots: ids of its slots.
    recovery: ids of words and shares.   plugged: for each token the file that with_tokens.py takes.
    first: the first passphrase.
    """

    base: Path
    first: str = FIRST
    ways: dict[str, list[str]] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, str] = field(default_factory=dict)
    plugged: dict[str, Path] = field(default_factory=dict)

    @property
    def vault(self) -> Path:
        """The vault's directory."""
        return self.base / "vault"

    def file(self, name: str, content: str | bytes) -> str:
        """A file that only its owner can read; returns its path."""
        place = self.base / name
        place.touch(mode=0o600)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(place)

    def run(self, *words: object, tokens: Sequence[SoftToken] = (), code: int = 0) -> None:
        """A command in this process, with these tokens plugged in."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ctap, "list_devices", lambda: list(tokens))
            assert main_module.main([str(word) for word in words]) == code

    def make(self, *options: object) -> None:
        """The vault, and all keys. options: of init."""
        first = ["--passfile", self.file("first", self.first)]
        self.run("init", self.vault, *first, *CHEAP, "-q", *options)
        self.ways["a passphrase"], self.slots["a passphrase"] = first, 0
        second, beside = self.file("second", SECOND), self.file("beside", BESIDE)
        photo = self.file("photo", hashlib.shake_128(b"a photo").digest(9999))
        key, identity = (
            str(self.base / "key"),
            self.file("identity", identity_file(SPECIFICATION["identity"])),
        )
        self._add("another passphrase", ["passphrase"], ["--passfile", second], "--new-passfile", second)
        self._add("a key file", ["keyfile", key], ["--keyfile", key], "--generate")
        both = ["--keyfile", photo, "--passfile", beside]
        new = ("--with-passphrase", "--new-passfile", beside)
        self._add("a passphrase and a file", ["keyfile", photo], both, *new)
        self._add("an age identity", ["recipient", SPECIFICATION["recipient"]], ["--identity", identity])
        for name, token in (
            ("a token", SoftToken("Blue")),
            ("another token", SoftToken("Red", Behaviour(pin=PIN.encode()))),
        ):
            self._add(name, ["fido2"], ["--fido2"], tokens=[token])
            self.plugged[name] = save_tokens(self.base / f"{name}.json", [token])
        words, shares = self.base / "words", self.base / "shares"
        self.run("recovery", "words", self.vault, *first, "--output", words)
        self._note_recovery("recovery words")
        self.ways["recovery words"] = ["--words-file", str(words)]
        made = ("--needed", "2", "--of", "3", "--output", shares)
        self.run("recovery", "shares", self.vault, *first, *made)
        self._note_recovery("two of three shares")
        two = sorted(shares.iterdir())[1:]
        self.ways["two of three shares"] = [each for place in two for each in ("--share-file", str(place))]

    def _add(
        self,
        name: str,
        key: list[str],
        way: list[str],
        *more: str,
        tokens: Sequence[SoftToken] = (),
    ) -> None:
        kind, *what = key
        cost = CHEAP if "--new-passfile" in more else ()
        opens = self.ways["a passphrase"]
        self.run("key", "add", kind, self.vault, *what, *more, *opens, *cost, tokens=tokens)
        self.ways[name], self.slots[name] = way, read_config(self.vault).slots[-1].id

    def _note_recovery(self, name: str) -> None:
        known = set(self.recovery.values())
        (self.recovery[name],) = set(read_config(self.vault).recovery) - known

    def save(self) -> None:
        """Write down what is needed to use the keys wherever the directory is copied to."""
        ways = {
            name: [word.replace(str(self.base), "{}", 1) for word in way] for name, way in self.ways.items()
        }
        plugged = {name: place.name for name, place in self.plugged.items()}
        kept = {"ways": ways, "slots": self.slots, "recovery": self.recovery, "plugged": plugged}
        (self.base / KEYS).write_text(json.dumps(kept, indent=1) + "\n")

    @classmethod
    def load(cls, base: Path) -> AllKeys:
        """What `save` wrote."""
        kept = json.loads((base / KEYS).read_text())
        ways = {name: [word.format(base) for word in way] for name, way in kept["ways"].items()}
        plugged = {name: base / file for name, file in kept["plugged"].items()}
        return cls(base, "", ways, kept["slots"], kept["recovery"], plugged)

    def tokens(self, name: str) -> list[SoftToken]:
        """The tokens that are plugged in when somebody offers this key."""
        return read_tokens(self.plugged[name]) if name in self.plugged else []

    def remove(self, name: str, by: str) -> None:
        """Take one key out of the vault, by the command; another one opens it."""
        if name in self.slots:
            self.run("key", "remove", self.vault, self.slots[name], *self.ways[by])
        else:
            self.run("recovery", "remove", self.vault, self.recovery[name], *self.ways[by])

    def listed(self) -> list[int]:
        """Ids in the config on the disk."""
        return [slot["id"] for slot in json.loads((self.vault / "cryptfs.json").read_text())["slots"]]
