"""Which cipher a new vault gets here, and whether this machine has the cipher of a vault."""

from __future__ import annotations

from pathlib import Path

from cryptfs.core.aead import AEGIS_256, XCHACHA20_POLY1305
from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import UnsupportedFormatError


def has_aes_instructions() -> bool:
    """Whether the processor runs AEGIS at full speed; True if the system does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return "aes" in text.split()


def default_cipher() -> str:
    """AEGIS-256 if the processor has AES instructions and libsodium has AEGIS, else XChaCha20-Poly1305."""
    return (AEGIS_256 if has_aes_instructions() and AEGIS_256.is_offered else XCHACHA20_POLY1305).name


def require_cipher(config: VaultConfig) -> None:
    """Check that the libsodium of this machine can seal and open the vault's files.

    Raises: UnsupportedFormatError.
    """
    if not config.suite.is_offered:
        raise UnsupportedFormatError(
            f"the libsodium of this machine lacks {config.cipher}, the cipher of the vault. "
            "Install PyNaCl 1.6 or newer: pip install --upgrade pynacl"
        )
