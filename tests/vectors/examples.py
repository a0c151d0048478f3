"""The worked examples of docs/FORMAT.md, filled in from the vectors.

A fence that begins with "```example FOLDER/SCENARIO FIELD ..." holds those fields of that vector, as the
generator made them. So the document cannot drift from the vectors, nor they from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_FENCE = re.compile(r"^```example (?P<name>\S+) (?P<fields>[^\n]+)\n.*?^```$", re.MULTILINE | re.DOTALL)
_LINE = 64


def with_examples(document: str, vectors: Mapping[str, str]) -> str:
    """The document with every example as the vectors have it.

    Raises: KeyError: it names a vector or a field that there is not.
    """

    def filled(fence: re.Match[str]) -> str:
        vector = json.loads(vectors[f"{fence['name']}.json"])
        fields = vector["inputs"] | vector["expect"]
        lines = [line for field in fence["fields"].split() for line in _field_lines(field, fields)]
        return "\n".join([f"```example {fence['name']} {fence['fields']}", *lines, "```"])

    return _FENCE.sub(filled, document)


def example_names(document: str) -> list[str]:
    """The vectors that the document shows, in order."""
    return [fence["name"] for fence in _FENCE.finditer(document)]


def _field_lines(field: str, fields: dict[str, Any]) -> list[str]:
    value: Any = fields
    for part in field.split("."):
        value = value[part]
    if isinstance(value, dict):
        return [line for name in value for line in _field_lines(name, value)]
    text = value if isinstance(value, str) else json.dumps(value)
    lines = (
        text.splitlines() if "\n" in text else [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    )
    label = field.rpartition(".")[2].ljust(13)
    return [f"{label} {lines[0] if lines else ''}".rstrip(), *(" " * 14 + line for line in lines[1:])]
