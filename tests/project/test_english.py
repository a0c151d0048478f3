"""The English of documents, help, messages, docstrings and comments: what must not come back.

A reader has to take each of these constructions apart. Decision notes are history, and stay as they are.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from cryptfs.cli.main import cli, every_command

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "cryptfs"
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs/recipes").glob("*.md")),
]
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))

# A tool outside of this repository looks for these words.
ALLOWED = ("is not mounted on {} any more",)

FORBIDDEN = {
    "whoever": r"\bwhoever\b",
    "nobody who": r"\bnobody (?:else )?who\b",
    "any more": r"\bany ?more\b",
    "for ever": r"\bfor ever\b",
    "for want of": r"\bfor want of\b",
    "anew": r"\banew\b",
    "without a word": r"\bwithout a word\b",
    "a trailing too": r", too(?=[.,;:)]|$)",
    "is told": r"\b(?:is|are|was|were|be|been|being) told\b",
    "stands there": r"\bstands? there\b|\bwhat stands\b",
    "what a ... may not": r"\bwhat an? \w+ (?:of .* )?(?:may|must|can) not\b",
    "of these it holds": r"\b(?:of|by|to|from) these it\b",
    "no part of": r"\b(?:is|are) no part of\b",
    "of before": r"\bof before\b",
    "opens it no more": r"\bopens? (?:it|VAULT|the vault) no more\b",
    "and who has it": r"\band who (?:has|knows|gets)\b",
    "another file than it makes": r"\banother \w+ than \w+ makes\b",
    "bytes are none": r"(?<!there )\b(?:is|are) (?-i:none)\b",
    "has no say": r"\b(?:has|have) no say\b",
    "is no text": r"(?<!there )\b(?:is|are) no (?:text|vault|directory|manifest|file)\b",
}
# A sentence that begins with a clause in place of a noun; not a question.
CLAUSE = (
    r"(?:^|[.;:] )(?:Who \w+|What(?: \w+){0,3} "
    r"(?:is|are|was|were|has|had|does|do|did|cannot|may|must|only|nobody|others))\b(?![^.]*\?)"
)
PATTERN = re.compile(f"(?i:{'|'.join(FORBIDDEN.values())})|{CLAUSE}")


def found_in(text: str) -> list[str]:
    """The forbidden constructions in a text, each with some words around it."""
    flat = re.sub(r"\s+", " ", text).strip()
    for words in ALLOWED:
        flat = flat.replace(words, "")
    return [flat[max(0, each.start() - 40) : each.end() + 40] for each in PATTERN.finditer(flat)]


def parts(document: str) -> Iterator[str]:
    """Paragraphs, list items and table cells of Markdown, without code."""
    text = re.sub(r"^```.*?^```$", "", document, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "`code`", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.) |\|)", text):
        yield from block.split("|") if block.startswith("|") else [block.lstrip(" -*#0123456789.")]


def literal(node: ast.expr) -> str:
    """The text of a string, with {} for each value that it formats; '' for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            "{}" if isinstance(each, ast.FormattedValue) else literal(each) for each in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def texts_of(source: str) -> Iterator[str]:
    """The strings of a module, its docstrings among them, and its comments."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(source)):  # it comes to a node before its parts
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(each) for each in node.values}
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
            yield from literal(node).split("\n\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("#- ")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents(path: Path) -> None:
    assert [hit for part in parts(path.read_text(encoding="utf-8")) for hit in found_in(part)] == []


@pytest.mark.parametrize("module", MODULES)
def test_messages_docstrings_and_comments(module: str) -> None:
    source = (PACKAGE / module).read_text(encoding="utf-8")
    assert [hit for text in texts_of(source) for hit in found_in(text)] == []


@pytest.mark.parametrize("name", [None, *sorted(every_command())])
def test_help(name: str | None) -> None:
    command = cli if name is None else every_command()[name]
    texts = [command.help, command.epilog, *(getattr(each, "help", None) for each in command.params)]
    assert [hit for text in texts for part in (text or "").split("\n\n") for hit in found_in(part)] == []


@pytest.mark.parametrize(
    "text",
    [
        "whoever read the output went away",
        "Keep it where nobody who can write can reach it.",
        "it cannot be opened any\n    more",
        "the program asks for ever.",
        "it fails for want of memory",
        "every name is sealed anew",
        "the daemon ended without a word",
        "The daemon listens, too.",
        "the kernel is told of it",
        "something else stands there",
        "durability: What a crash of what may not damage",
        "of these it holds that they were",
        "bytes that are no part of it",
        "The attacker has no say over lines.",
        "copies of cryptfs.json of before",
        "They open VAULT no more.",
        "keep them safe, and who has them has the vault",
        "it is another file than cryptfs makes",
        "more than 4096 bytes are none",
        "a manifest is no text",
        "Write it down. What was rolled back, somebody did.",
        "It is gone. Who opens it gets an error.",
        "{} is not mounted on {} any more; it is gone for ever",
    ],
)
def test_each_construction_is_found(text: str) -> None:
    assert len(found_in(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "{} is not mounted on {} any more",
        "What is new?",
        "There is no file here.",
        "None if there is none",
        "the vault can have no more",
        "It is too long, too old.",
    ],
)
def test_plain_sentences_pass(text: str) -> None:
    assert found_in(text) == []


def test_messages_are_found_wherever_they_stand() -> None:
    source = '"""Whoever."""\n\ndef f(x):\n    "For ever."\n    raise E(f"{x} stands" " there")  # anew\n'
    assert list(texts_of(source)) == ["Whoever.", "For ever.", "{} stands there", "anew"]
    assert len([hit for text in texts_of(source) for hit in found_in(text)]) == 4
