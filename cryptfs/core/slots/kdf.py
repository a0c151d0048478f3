"""What a try of a passphrase costs: Argon2id in the params of a key slot.

Source: docs/FORMAT.md, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptfs.core.keys import ARGON2_SALT_SIZE, passphrase_key
from cryptfs.core.slots.checks import from_hex
from cryptfs.errors import VaultConfigError

KDF = "argon2id"
MIN_KDF_MEMORY = 64 * 1024 * 1024
MIN_KDF_PASSES = 3
MAX_KDF_MEMORY = 4 * 1024**3
MAX_KDF_PASSES = 64
DEFAULT_KDF_MEMORY = 256 * 1024 * 1024
DEFAULT_KDF_PASSES = 3
_FIELDS = {"kdf", "memory", "passes", "salt"}


@dataclass(frozen=True, slots=True)
class PassphraseCost:
    """Argon2id with one lane. memory: bytes, a multiple of 1024.   passes: iterations.   salt: 16 bytes."""

    memory: int
    passes: int
    salt: bytes

    @classmethod
    def from_params(cls, params: Mapping[str, int | str], name: str) -> PassphraseCost:
        """The cost in the params of a slot; nothing has been derived yet.

        Args:   name: of the slot, for messages.
        Raises: VaultConfigError: another function, a field too many or too few, or beyond a limit.
        """
        kdf, memory, passes, salt = (params.get(field) for field in ("kdf", "memory", "passes", "salt"))
        if (
            kdf != KDF
            or set(params) != _FIELDS
            or not (isinstance(memory, int) and isinstance(passes, int) and isinstance(salt, str))
        ):
            raise VaultConfigError(f"{name} is of a newer cryptfs: this version cannot derive its key")
        check_costs(memory, passes, name)
        return cls(memory, passes, from_hex(salt, ARGON2_SALT_SIZE, f"{name}, salt"))

    def params(self) -> dict[str, int | str]:
        """As they are in a slot."""
        return {"kdf": KDF, "memory": self.memory, "passes": self.passes, "salt": self.salt.hex()}

    def derive(self, passphrase: bytes) -> bytes:
        """32 bytes from a passphrase."""
        return passphrase_key(passphrase, self.salt, self.memory, self.passes)


def check_costs(memory: int, passes: int, name: str) -> None:
    """Raises: VaultConfigError: memory (bytes) or passes are beyond the limits of the format."""
    if not MIN_KDF_MEMORY <= memory <= MAX_KDF_MEMORY or memory % 1024:
        raise VaultConfigError(
            f"{name} asks for {memory} bytes of memory; allowed are {MIN_KDF_MEMORY} to {MAX_KDF_MEMORY}"
        )
    if not MIN_KDF_PASSES <= passes <= MAX_KDF_PASSES:
        raise VaultConfigError(
            f"{name} asks for {passes} passes; allowed are {MIN_KDF_PASSES} to {MAX_KDF_PASSES}"
        )
