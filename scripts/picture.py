"""Make a vault, mount it, put a few files in, and draw both sides as an SVG: scripts/picture.py FILE

Nothing in the picture is made up: names, sizes and bytes are those of the vault and of the mount.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.terminal_theme import TerminalTheme
from rich.text import Text
from rich.tree import Tree

import cryptfs

PASSPHRASE = b"only for a picture"
LETTER = b"Dear Ada,\nthe money is under the third flower pot.\n"
BYTES_SHOWN = 48
WIDTH = 148
LONGEST_NAME = 50
PAPER = TerminalTheme(
    (250, 250, 248),
    (40, 40, 44),
    [
        *((40, 40, 44), (170, 40, 40), (40, 110, 60), (140, 100, 10)),
        *((40, 80, 160), (120, 60, 140), (20, 110, 120), (90, 90, 96)),
    ],
)
# As rich's own, without its window frame and without fonts from elsewhere: an image must load nothing.
SVG = """<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
<rect fill="#fafaf8" width="100%" height="100%" rx="6" />
<g clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def fill(mountpoint: Path) -> None:
    """The sample tree."""
    (mountpoint / "letters").mkdir()
    (mountpoint / "letters" / "to Ada.txt").write_bytes(LETTER)
    (mountpoint / "letters" / "Zürich, 3rd of May.odt").write_bytes(os.urandom(41_000))
    (mountpoint / "photos").mkdir()
    (mountpoint / "photos" / "lake.jpg").write_bytes(os.urandom(2_400_000))
    (mountpoint / "best.jpg").symlink_to("photos/lake.jpg")
    (mountpoint / "empty").touch()


def listing(directory: Path, tree: Tree) -> Tree:
    """Everything below a directory, with sizes."""
    for path in sorted(directory.iterdir(), key=lambda path: path.name):
        shown = path.name if len(path.name) <= LONGEST_NAME else path.name[: LONGEST_NAME - 1] + "…"
        name = Text(shown, overflow="ellipsis", no_wrap=True)
        if path.is_symlink():
            tree.add(name.append(" ").append(f"-> {path.readlink()}", style="cyan"))
        elif path.is_dir():
            name.stylize("bold blue")
            listing(path, tree.add(name))
        else:
            tree.add(name.append("  ").append(f"{path.stat().st_size:,}", style="green"))
    return tree


def side(title: str, root: Path, letter: Path, shown: str) -> Padding:
    """One half of the picture: the tree, and the beginning of one file."""
    text = Text(shown, style="magenta")
    head = Text.assemble("\n", ("the letter, from its beginning:", "bold"), "\n")
    head.append(f"{letter.relative_to(root)}\n", style="dim")
    head.no_wrap, head.overflow = True, "ellipsis"
    tree = listing(root, Tree(Text(f"{root.name}/", style="bold blue"), guide_style="dim"))
    return Padding(Group(Text(title, style="bold"), "", tree, head, text), (1, 2))


def hexdump(raw: bytes) -> str:
    """16 bytes a line, and their letters."""
    lines = []
    for start in range(0, len(raw), 16):
        piece = raw[start : start + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{piece.hex(' ')}  {letters}")
    return "\n".join(lines)


def draw(target: Path) -> None:
    """Make everything, draw it, take it away."""
    with tempfile.TemporaryDirectory(prefix="cryptfs-picture-") as home:
        vault, mountpoint = Path(home, "vault"), Path(home, "mountpoint")
        mountpoint.mkdir()
        cryptfs.Vault.create(vault, PASSPHRASE, kdf_memory=64 * 1024 * 1024)
        with cryptfs.mount_vault(vault, mountpoint, PASSPHRASE):
            fill(mountpoint)
            letter = mountpoint / "letters" / "to Ada.txt"
            sealed = next(path for path in vault.rglob("*") if path.lstat().st_ino == letter.stat().st_ino)
            table = Table.grid(expand=True, padding=(0, 1))
            table.add_column(ratio=1)
            table.add_column(ratio=1)
            table.add_row(
                side(
                    "the vault: what is on the disk",
                    vault,
                    sealed,
                    hexdump(sealed.read_bytes()[:BYTES_SHOWN]),
                ),
                side("the mountpoint: what programs see", mountpoint, letter, letter.read_text()),
            )
            console = Console(record=True, width=WIDTH, file=io.StringIO())
            console.print(table)
    svg = console.export_svg(theme=PAPER, code_format=SVG, unique_id="picture")
    target.write_text(svg.replace(" \n", "\n"), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
