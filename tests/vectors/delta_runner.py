"""Does with cryptfs what a vector of a delta asks for."""

from __future__ import annotations

from typing import Any

from cryptfs.core.aead import SUITES
from cryptfs.core.format.delta import DeltaCipher, delta_key
from cryptfs.core.geometry import ChunkGeometry
from cryptfs.errors import CryptfsError

Inputs = dict[str, Any]


class Refused(CryptfsError):
    """A sealed value did not open; core says so with None."""


def open_delta(inputs: Inputs) -> Inputs:
    """Open, and seal again with the same nonce."""
    suite, raw = SUITES[inputs["cipher"]], bytes.fromhex(inputs["raw"])
    cipher = DeltaCipher(suite, ChunkGeometry(inputs["chunk_size"], suite.overhead))
    key = delta_key(bytes.fromhex(inputs["key"]))
    delta = cipher.open(key, inputs["chunk_index"], raw)
    if delta is None:
        raise Refused("the delta does not open, or does not fit into a chunk")
    assert cipher.seal(key, inputs["chunk_index"], delta, raw[: suite.nonce_size]) == raw
    return {
        "length": delta.length,
        "offset": delta.offset,
        "base": delta.base.hex(),
        "data": delta.data.hex(),
        "new_length": delta.new_length,
        "ends": cipher.ends(raw).hex(),
    }
