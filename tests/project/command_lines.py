"""Which command lines the tests have, read from their source: for each command the options that it gets.

A command line is a call, a list, a tuple or a text that begins with the name of a command:
`run("ls", "--json")`, `[*PROGRAM, "mount", vault]`, `("key", "test", "V")`, `"info --json"`; and
`place.mount("--idle", "1s")` is one of mount. A name in it stands for all options that the module gives this
name: in an assignment, a loop, or by parametrize. What is computed counts for nothing, so an option is missed
rather than made up.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import click

_UNKNOWN = "\0"
_BEFORE = frozenset({_UNKNOWN, "-m", "cryptfs", "--debug"})
"""What may stand before a command."""

_IN_PROCESS = frozenset(
    {"tests.commands.runner", "tests.commands.Run", "cryptfs.cli.main", "cryptfs.cli.main.main"}
)


def spellings(command: click.Command) -> dict[str, str]:
    """Each way to write an option of a command, and its long name; --no-... is an option of its own."""
    found: dict[str, str] = {}
    for each in command.params:
        if isinstance(each, click.Option):
            for names in (each.opts, each.secondary_opts):
                found |= {name: max(names, key=len) for name in names}
    return found


def command_lines(source: str, commands: Mapping[str, click.Command]) -> Iterator[tuple[str, list[str]]]:
    """The command lines in the source of a module: the name of the command, and all that follows."""
    tree = ast.parse(source)
    hints = {id(each) for node in ast.walk(tree) if isinstance(node, ast.Compare) for each in ast.walk(node)}
    functions = [node for node in _outermost(tree) if isinstance(node, ast.FunctionDef)]
    inside = {id(each) for function in functions for each in ast.walk(function)}
    rest = [node for node in ast.walk(tree) if id(node) not in inside]
    everywhere = _Names(rest)
    yield from _lines_of(rest, everywhere, hints, commands)
    for function in functions:
        nodes = list(ast.walk(function))
        yield from _lines_of(nodes, _Names(nodes, everywhere), hints, commands)


def _outermost(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, without those inside of functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _outermost(child)


def _lines_of(
    nodes: Iterable[ast.AST], names: _Names, hints: Container[int], commands: Mapping[str, click.Command]
) -> Iterator[tuple[str, list[str]]]:
    """The command lines among these nodes. hints: texts that a test compares with something."""
    for node in nodes:
        if isinstance(node, ast.Call):
            words = list(_words(node.args, names))
            called = _called(node.func)
            if called in commands:
                yield called, words
        elif isinstance(node, ast.List | ast.Tuple | ast.Set):
            words = list(_words(node.elts, names))
        elif isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in hints:
            words = list(_words([node], names))
            if len(words) < 2:
                continue
        else:
            continue
        yield from _split(words, commands)


def _split(words: Sequence[str], commands: Mapping[str, click.Command]) -> Iterator[tuple[str, list[str]]]:
    if words[:1] == ["cryptfs"]:
        return  # it is of a message
    start = next((at for at, word in enumerate(words) if word not in _BEFORE), len(words))
    for length in (3, 2, 1):
        name = " ".join(words[start : start + length])
        if name in commands:
            yield name, list(words[start + length :])
            return


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


class _Names:
    """What names stand for, as far as that is written in these nodes: the options among it.

    Args: above: of the module, for a function.
    """

    def __init__(self, nodes: Iterable[ast.AST], above: _Names | None = None) -> None:
        self._values: dict[str, list[ast.expr]] = {}
        self._above = above
        for node in nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    self._bind(target, node.value)
            elif isinstance(node, ast.For):
                self._bind_each(node.target, node.iter)
            elif isinstance(node, ast.Call) and _called(node.func) == "parametrize":
                self._bind_parameters(*node.args[:2])

    def options(self, name: str) -> Iterator[str]:
        """All words of those values of a name that begin with an option."""
        if name not in self._values and self._above is not None:
            yield from self._above.options(name)
        for value in self._values.get(name, []):
            words = list(_words([value], None))
            if words and words[0].startswith("-"):
                yield from words

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self._values.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for each, part in zip(target.elts, value.elts, strict=False):
                self._bind(each, part)

    def _bind_each(self, target: ast.expr, values: ast.expr) -> None:
        for value in values.elts if isinstance(values, ast.Tuple | ast.List) else []:
            self._bind(target, value)

    def _bind_parameters(self, names: ast.expr, values: ast.expr) -> None:
        texts = [each for each in ast.walk(names) if isinstance(each, ast.Constant)]
        targets: list[ast.expr] = [ast.Name(str(each.value)) for each in texts]
        self._bind_each(targets[0] if len(targets) == 1 else ast.Tuple(targets), values)


def _words(nodes: Sequence[ast.expr], names: _Names | None) -> Iterator[str]:
    """The words that are written there, in their order; _UNKNOWN for all else."""
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)):
                yield from text.split() or [_UNKNOWN]
            case ast.JoinedStr():
                yield from _text(node).split()
            case ast.Name(id=name) if names is not None:
                yield _UNKNOWN
                yield from names.options(name)
            case ast.Starred(value=inner):
                yield from _words([inner], names)
            case ast.List(elts=inner) | ast.Tuple(elts=inner):
                yield from _words(inner, names)
            case ast.BinOp(left=left, right=right):
                yield from _words([left, right], names)
            case ast.IfExp(body=body, orelse=other):
                yield from _words([body, other], names)
            case ast.Call(func=ast.Attribute(value=text, attr="split" | "format")):
                yield from _words([text], names)
            case _:
                yield _UNKNOWN


def options_in(words: Sequence[str], known: Mapping[str, str]) -> Iterator[str]:
    """The long names of the options among the words of a command line; '-lR' is two."""
    for word in words:
        name = word.partition("=")[0]
        if name in known:
            yield known[name]
        elif len(name) > 2 and name[0] == "-" and name[1] != "-" and all(f"-{x}" in known for x in name[1:]):
            yield from (known[f"-{letter}"] for letter in name[1:])


def runs_in_process(source: str) -> bool:
    """Whether a module runs commands in its own process, which is not quite what a person runs."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return bool(found & _IN_PROCESS)


def tried(sources: Sequence[Path], commands: Mapping[str, click.Command]) -> dict[str, set[str]]:
    """For each command the options that it gets in these modules; "" is the command itself."""
    known = {name: spellings(command) for name, command in commands.items()}
    found: dict[str, set[str]] = {name: set() for name in commands}
    for place in sources:
        for name, words in command_lines(place.read_text("utf-8"), commands):
            found[name] |= {"", *options_in(words, known[name])}
    return found


def texts_of(source: str) -> set[str]:
    """All strings in a module, and their words."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value, *node.value.split()}
    return found


def mount_texts(source: str) -> set[str]:
    """The names of options in the texts behind each "-o" of a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        nodes: Sequence[ast.expr] = ()
        if isinstance(node, ast.Call):
            nodes = node.args
        elif isinstance(node, ast.List | ast.Tuple):
            nodes = node.elts
        for before, text in itertools.pairwise(nodes):
            if isinstance(before, ast.Constant) and before.value == "-o":
                found |= {item.partition("=")[0] for item in _text(text).split(",")}
    return {name for name in found if name and _UNKNOWN not in name}


def _text(node: ast.expr) -> str:
    """A text as it is written; _UNKNOWN stands for values in it, or for all of it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    return _UNKNOWN
