"""The command line with FIDO2 tokens that are software: `python -m tests.e2e.with_tokens PLUGGED ARGUMENTS`.

Nothing but the list of devices is replaced; PLUGGED is a file with the tokens that are plugged in. So the
protocol, the question for the PIN, the daemon and its mount are those of a real token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptfs.cli.main import main
from cryptfs.unlock.carriers import ctap
from tests.softtoken import Behaviour, Credential, SoftToken


def save_tokens(place: Path, tokens: Sequence[SoftToken]) -> Path:
    """Write tokens down, with all that they have made."""
    found = []
    for token in tokens:
        made = {
            credential_id.hex(): [each.rp_id_hash.hex(), each.without_uv.hex(), each.with_uv.hex()]
            for credential_id, each in token.credentials.items()
        }
        pin = token.behaviour.pin
        about = {"name": token.product_name, "pin": pin and pin.decode(), "touch": token.behaviour.touch}
        found.append({**about, "credentials": made})
    place.write_text(json.dumps(found, indent=1) + "\n")
    return place


def read_tokens(place: Path) -> list[SoftToken]:
    """The same tokens."""
    found = []
    for each in json.loads(place.read_text()):
        pin = each["pin"]
        ways = Behaviour(pin=None if pin is None else pin.encode(), touch=each.get("touch", "yes"))
        token = SoftToken(each["name"], ways)
        for credential_id, keys in each["credentials"].items():
            token.credentials[bytes.fromhex(credential_id)] = Credential(*map(bytes.fromhex, keys))
        found.append(token)
    return found


if __name__ == "__main__":
    plugged = read_tokens(Path(sys.argv[1]))
    ctap.list_devices = lambda: list(plugged)
    sys.exit(main(sys.argv[2:]))
