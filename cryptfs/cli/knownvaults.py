"""The vaults that this user has opened, the last one first: a file in the user's state directory.

As everything there it only helps: without it, `cryptfs open` knows no vaults.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from cryptfs.cli.exit_codes import UsageProblem
from cryptfs.cli.params import PathParameter, shown, vault_names
from cryptfs.storage.userstate import read_fields, write_fields

_FILE = "vaults.json"
_FIELD = "vaults"
_MOST = 100


def known_vaults() -> list[Path]:
    """Absolute paths, the last one that was opened first. A vault may be gone since."""
    found = read_fields(_FILE).get(_FIELD)
    paths = [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
    return [Path(path) for path in dict.fromkeys(paths) if path.startswith("/") and "\0" not in path][:_MOST]


def remember_vault(vault_dir: Path) -> None:
    """Put a vault first."""
    place = Path(os.path.abspath(vault_dir))
    _write([place, *(each for each in known_vaults() if each != place)])


def forget_vault(vault_dir: Path) -> bool:
    """Take a vault from the list; returns whether it was there."""
    place = Path(os.path.abspath(vault_dir))
    known = known_vaults()
    _write([each for each in known if each != place])
    return place in known


def _write(vaults: list[Path]) -> None:
    texts = [str(each) for each in vaults[:_MOST]]
    write_fields(_FILE, {_FIELD: [text for text in texts if text.isprintable()]})


def found_vault(given: Path) -> Path:
    """The vault that a person means: a directory, the `cryptfs.json` in it, or the name of a known vault.

    Raises: UsageProblem: several known vaults have the name.
    """
    if given.name == "cryptfs.json" and given.is_file():
        return given.absolute().parent
    if os.path.lexists(given) or len(given.parts) != 1:
        return given
    named = [each for each in known_vaults() if each.name == str(given)]
    if len(named) > 1:
        lines = "\n".join(f"  {shown(each)}" for each in named)
        raise UsageProblem(f"several known vaults are called {shown(given)}:\n{lines}")
    return named[0] if named else given


class KnownVault(PathParameter):
    """A path, or the name of a vault: one of the config file, or a known one. Completion proposes them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A path with a '/' in it stays none that could be a name: Path("./letters") is Path("letters")."""
        found = super().convert(value, param, ctx)
        return Path.cwd() / found if "/" in str(value) and len(found.parts) == 1 else found

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = dict.fromkeys([*vault_names(ctx), *(each.name for each in known_vaults())])
        plain = [name for name in names if name.startswith(incomplete) and _is_word(name)]
        return [*(CompletionItem(name) for name in plain), CompletionItem(incomplete, type="dir")]


def _is_word(name: str) -> bool:
    """Whether each shell takes a name as it is."""
    return name.replace("-", "a").replace("_", "a").replace(".", "a").isalnum() and name.isascii()
