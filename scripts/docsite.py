"""A hook of MkDocs: pages of the site that are no files in docs/, and links to what is outside of it.

The pages of the commands come from the commands themselves, as the man pages do.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cryptfs.cli.main import cli, every_command
from manpage import arguments

ROOT = Path(__file__).resolve().parent.parent
AT_TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
}
"""Documents beside docs/, and the pages that they become."""

COMMANDS = "COMMANDS"
"""The place in the navigation that the pages of the commands take."""

_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


# ---- pages of the commands


def page_of(name: str) -> str:
    """Where the page of a command is, below the page of all commands."""
    return f"cryptfs-{name.replace(' ', '-')}.md"


def plain_arguments(command: click.Command) -> str:
    """The arguments of a command as its man page has them, without the marks of roff."""
    return re.sub(r"\\f[A-Z]", "", arguments(command)).replace("\\-", "-")


def value_of(parameter: click.Option) -> str:
    """What an option takes, in words; '' for a switch."""
    if parameter.is_flag or parameter.count:
        return ""
    if isinstance(parameter.type, click.Choice):
        return "|".join(str(choice) for choice in parameter.type.choices)
    return parameter.metavar or parameter.type.name.upper()


def escaped(text: str) -> str:
    """Text of a help page as Markdown that reads the same; what is in backticks stays."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if at % 2 else re.sub(r"([\\*_<>|\[\]])", r"\\\1", piece) for at, piece in enumerate(pieces)
    )


def option_lines(parameter: click.Option) -> str:
    """One option, as an item of a list."""
    value = value_of(parameter)
    names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    text = " ".join((parameter.help or "").split())
    if parameter.show_default and parameter.default is not None:
        text += f"  [default: {parameter.default}]"
    return f"- `{names}{' ' + value if value else ''}`  \n  {escaped(text)}\n"


def help_text(command: click.Command) -> Iterator[str]:
    """The paragraphs of a command's help; those that click leaves as they are become code."""
    for part in (command.help or "").split("\n\n"):
        if "\b" in part:
            yield "```text\n" + textwrap.dedent(part.replace("\b\n", "")).strip("\n") + "\n```\n"
        else:
            yield escaped(" ".join(part.split())) + "\n"


def command_page(name: str, command: click.Command) -> str:
    """The page of one command, or of a group of commands."""
    parts = [
        f"# cryptfs {name}\n",
        f"```text\ncryptfs {name} [options]{plain_arguments(command)}\n```\n",
        *help_text(command),
    ]
    if isinstance(command, click.Group):
        parts += ["## Commands\n", command_list(f"{name} ", command)]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    if options:
        parts += ["## Options\n", "".join(map(option_lines, options))]
    return "\n".join(parts)


def summary(command: click.Command) -> str:
    """The first sentence of a command's help."""
    first = " ".join((command.help or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", first)[0]


def command_list(above: str, group: click.Group) -> str:
    """The commands of a group, each with its first sentence and a link to its page."""
    return "".join(
        f"- [`cryptfs {above}{name}`]({page_of(above + name)})  \n  {escaped(summary(command))}\n"
        for name, command in sorted(group.commands.items())
    )


def command_pages() -> dict[str, str]:
    """The page of all commands, and one of each: the path on the site, and the text."""
    overview = [
        "# Commands\n",
        escaped(" ".join((cli.help or "").split())) + "\n",
        "These pages are made from the help of the program: `cryptfs COMMAND --help` says the same.\n",
        command_list("", cli),
    ]
    pages = {f"commands/{page_of(name)}": command_page(name, each) for name, each in every_command().items()}
    return {"commands/index.md": "\n".join(overview), **dict(sorted(pages.items()))}


# ---- other pages


def decisions(directory: Path) -> str:
    """A page that lists the decision notes, by number."""
    lines = ["# Decisions\n", "The reasons for some decisions, in the words of their time.\n"]
    for path in sorted(directory.glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def place_of(target: str, source: str) -> str | None:
    """Where a link of a document leads on the site; None: to a file of the repository that is no page.

    Args:    target: as it is in the document.   source: the document, from the root of the repository.
    """
    if "://" in target or target.startswith("mailto:"):
        return target
    path = (ROOT / source).parent.joinpath(target).resolve().relative_to(ROOT)
    here = Path(AT_TOP.get(source, source.removeprefix("docs/"))).parent
    if str(path) in AT_TOP:
        there = Path(AT_TOP[str(path)])
    elif path.parts[0] == "docs":
        there = Path(*path.parts[1:])
        if (ROOT / path).is_dir():
            there /= "index.md"
    else:
        return None
    return "../" * len(here.parts) + str(there)


def with_site_links(text: str, source: str) -> str:
    """A document whose links lead to pages of the site; a link to another file is left as its text."""

    def of_part(part: str) -> str:
        for whole in re.findall(r"\[[^\]\n]*\]\([^)\s]+\)", part):
            match = _LINK.search(whole)
            if match is not None and place_of(match[1], source) is None:
                part = part.replace(whole, whole[1:].partition("](")[0])
        return _LINK.sub(lambda match: f"{place_of(match[1], source)}{match[2] or ''}", part)

    pieces, last = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [of_part(text[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*pieces, of_part(text[last:])])


# ---- what MkDocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the commands into the navigation."""
    top = [path for path in command_pages() if not path.endswith("index.md")]
    pages: list[Any] = ["commands/index.md", *top]
    config.nav = [
        {"Commands": pages} if entry == {"Commands": COMMANDS} else entry for entry in config.nav or []
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files in docs/."""
    made = command_pages()
    made["decisions/index.md"] = decisions(ROOT / "docs" / "decisions")
    for document, page in AT_TOP.items():
        made[page] = with_site_links((ROOT / document).read_text(encoding="utf-8"), document)
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a document in docs/ lead to pages."""
    if page.file.generated_by is not None:
        return markdown
    return with_site_links(markdown, f"docs/{page.file.src_uri}")
