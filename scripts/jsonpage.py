"""Write docs/JSON.md from share/cryptfs/json-schema.json: scripts/jsonpage.py > docs/JSON.md

A test compares the page with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).resolve().parent.parent / "share" / "cryptfs" / "json-schema.json"

HEAD = """\
# JSON

`scripts/jsonpage.py` makes this page from [the schema](../share/cryptfs/json-schema.json), which an
installation has in `share/cryptfs`. A test checks that the schema has every field that the commands print.

Each answer has the field `schema`, which is 1. This number changes if we remove a field or change its
meaning. We may add new fields at any time, so ignore fields that you do not know. Names and paths are
escaped as [the manual](MANUAL.md#json) describes. A field in *italics* may be missing. An answer is one
document on stdout; messages go to stderr. If an error leaves no answer, stdout is empty. The exit code says
whether all is well.

"""

TABLE = "| field | type | meaning |\n|---|---|---|\n"


class Page:
    """The tables of all answers."""

    def __init__(self, definitions: dict[str, Any]) -> None:
        self._definitions = definitions

    def _resolved(self, shape: dict[str, Any]) -> dict[str, Any]:
        """The definition that it refers to; itself if it does not."""
        if "$ref" not in shape:
            return shape
        found: dict[str, Any] = self._definitions[shape["$ref"].removeprefix("#/$defs/")]
        return found

    def _type(self, shape: dict[str, Any]) -> str:
        if "const" in shape:
            return f"`{json.dumps(shape['const'])}`"
        if "enum" in shape:
            return ", ".join(f"`{json.dumps(each)}`" for each in shape["enum"])
        if "anyOf" in shape:
            return " or ".join(self._type(self._resolved(each)) for each in shape["anyOf"])
        found = shape.get("type", "anything")
        return " or ".join(found) if isinstance(found, list) else str(found)

    def rows(self, shape: dict[str, Any], above: str = "") -> Iterator[str]:
        """A line for each field of an object, and for those in its fields."""
        shape = self._resolved(shape)
        for name, each in shape.get("properties", {}).items():
            field = self._resolved(each)
            path = f"{above}{name}"
            told = f"`{path}`" if name in shape.get("required", ()) else f"*`{path}`*"
            yield f"| {told} | {self._type(field)} | {field.get('description', '')} |"
            yield from self.rows(field, f"{path}.")
            for other in field.get("anyOf", ()):
                yield from self.rows(other, f"{path}.")
            if "items" in field:
                items = self._resolved(field["items"])
                if "properties" in items:
                    yield from self.rows(items, f"{path}[].")

    def text(self) -> str:
        """All commands."""
        said = HEAD
        for name, shape in self._definitions.items():
            if "schema" in shape.get("properties", {}):
                said += (
                    f"\n## {name}\n\n{shape['description']}\n\n| field | type | meaning |\n|---|---|---|\n"
                )
                said += "\n".join(self.rows(shape)) + "\n"
        return said


def main() -> None:
    sys.stdout.write(Page(json.loads(SCHEMA.read_text(encoding="utf-8"))["$defs"]).text())


if __name__ == "__main__":
    main()
