"""Holds what a command prints with --json to the published schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = Path(__file__).parents[1] / "share" / "cryptfs" / "json-schema.json"


def published() -> dict[str, Any]:
    """As it is in the wheel."""
    found: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return found


@functools.cache
def _strict() -> dict[str, Any]:
    """As published, but a field that is not in it is an error: each one has to be documented."""
    return {**published(), "$defs": {name: _closed(shape) for name, shape in published()["$defs"].items()}}


def _closed(shape: Any) -> Any:
    if isinstance(shape, list):
        return [_closed(each) for each in shape]
    if not isinstance(shape, dict):
        return shape
    closed = {key: _closed(value) for key, value in shape.items()}
    if closed.get("type") == "object" and "properties" in closed and "additionalProperties" not in closed:
        closed["additionalProperties"] = False
    return closed


def check_answer(command: str, text: str) -> dict[str, Any]:
    """The one document that a command printed, if it has all fields of the schema and no others.

    Raises: jsonschema.ValidationError; ValueError: it is no JSON.
    """
    document: dict[str, Any] = json.loads(text)
    schema = {**_strict(), "$ref": f"#/$defs/{command}"}
    jsonschema.Draft202012Validator(schema).validate(document)
    return document
