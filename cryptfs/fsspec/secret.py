"""What opens a vault, from storage options and from the environment. Nobody is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptfs.cli.exit_codes import CommandError, UsageProblem
from cryptfs.cli.offers import offer_source
from cryptfs.cli.prompt import read_passphrase
from cryptfs.core.slots.config import VaultConfig
from cryptfs.errors import VaultError
from cryptfs.unlock.offer import Offer

PASSPHRASES = ("passphrase", "passfile", "passcommand")
OPTIONS = (*PASSPHRASES, "keyfile", "identity", "slot", "expect_identity")
"""The storage options that open a vault. All but the first are the options of the command line."""


def require_sound(options: Mapping[str, Any]) -> None:
    """Look at options by their names in OPTIONS; None is not given.

    Raises: ValueError, TypeError: they contradict each other, or have no sense.
    """
    given = [name for name in PASSPHRASES if options.get(name) is not None]
    if len(given) > 1:
        raise ValueError(f"choose one of {' and '.join(given)}")
    passphrase = options.get("passphrase")
    if passphrase is not None and not isinstance(passphrase, str | bytes):
        raise TypeError(f"a passphrase is text or bytes, not {type(passphrase).__name__}")
    if passphrase in ("", b""):
        raise ValueError("the passphrase is empty; an empty passphrase protects nothing")
    if str(options.get("passfile")) == "-":
        raise ValueError("passfile '-' would be stdin, which belongs to the program")
    slot = options.get("slot")
    if slot is not None and (isinstance(slot, bool) or not isinstance(slot, int)):
        raise TypeError(f"slot is the number of a key slot, not {slot!r}")


def offer_of(options: Mapping[str, Any], config: VaultConfig) -> Offer | None:
    """What the options offer to a vault, and the environment where they are silent; to be wiped.

    Args:   options: as `require_sound` takes them.   config: of the vault.
    Returns: None if nothing is offered.
    Raises: VaultError: a file or program does not give what it should.   ValueError.
    """
    passphrase = options.get("passphrase")
    given = {name: value for name, value in options.items() if value is not None and name != "passphrase"}
    for name in ("passfile", "keyfile", "identity"):
        if name in given:
            given[name] = Path(given[name]).expanduser()
    try:
        source = offer_source({**given, "no_pin": True})
        offer = source.without_passphrase(config)
        if passphrase is not None:
            raw = passphrase.encode() if isinstance(passphrase, str) else bytes(bytearray(passphrase))
            offer = dataclasses.replace(offer, passphrase=raw)
        elif not source.passphrase.is_empty:
            offer = dataclasses.replace(offer, passphrase=read_passphrase(source.passphrase))
    except UsageProblem as error:
        raise ValueError(
            str(error).removeprefix("--").replace("expect-identity", "expect_identity")
        ) from None
    except CommandError as error:
        raise VaultError(str(error).replace("--passcommand", "passcommand")) from None
    if "expect_identity" not in given:
        offer = dataclasses.replace(offer, pin=None)  # as in the rest of the Python API
    return offer if offer.takes_slot else None
