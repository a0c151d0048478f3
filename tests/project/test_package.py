"""What `import cryptfs` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import cryptfs
from cryptfs import errors

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_it_loads_neither_libsodium_nor_fuse() -> None:
    heavy = ("nacl", "mfusepy", "msgspec", "rich", "click", "ctypes")
    assert run(f"import sys, cryptfs; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_the_command_line_loads_the_command_that_is_typed() -> None:
    started = "import sys; from cryptfs.cli.main import cli, main; "
    own = "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('rich', 'rich_click', 'nacl')"
    others = " or name in ('cryptfs.cli.mount', 'cryptfs.cli.path', 'cryptfs.cli.completion')))"
    typed = started + "main(['path', '--no-such-option']); " + own + others
    assert run(typed) == "cryptfs.cli.path"
    assert "rich_click" in run(started + "main(['path', '--help']); " + own + others)


def test_unlocking_needs_no_fuse() -> None:
    assert run("import sys, cryptfs; cryptfs.Vault; print('mfusepy' in sys.modules)") == "False"


@pytest.mark.parametrize("name", cryptfs.__all__)
def test_every_export_resolves(name: str) -> None:
    assert getattr(cryptfs, name) is not None
    assert name in dir(cryptfs)


def test_every_error_is_exported() -> None:
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.CryptfsError)
    }
    assert found <= set(cryptfs.__all__)


def test_the_exports_do_not_hide_a_subpackage() -> None:
    """`cryptfs.mount` is the layer, whatever was used before it."""
    code = "import cryptfs; cryptfs.mount_vault; import cryptfs.mount.errno_map as m; print(cryptfs.mount)"
    assert run(code).startswith("<module 'cryptfs.mount'")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(cryptfs, "nonsense")  # noqa: B009 - mypy knows that there is none
