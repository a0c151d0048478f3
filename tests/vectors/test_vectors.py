"""Every known-answer vector against cryptfs, and the vectors against their generator."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from cryptfs import errors
from cryptfs.core.geometry import ChunkGeometry
from tests.unit.test_geometry import SIZE_TABLE
from tests.vectors import examples, generate
from tests.vectors import reference as ref
from tests.vectors.delta_runner import Refused
from tests.vectors.vector_runner import OPERATIONS

PATHS = sorted(generate.VECTORS_DIR.glob("*/*.json"))
NAMES = [path.relative_to(generate.VECTORS_DIR).as_posix() for path in PATHS]
ALLOWED_IN_GENERATOR = {
    *("__future__", "base64", "collections.abc", "dataclasses", "functools", "hashlib", "hmac", "json"),
    *("nacl.bindings", "nacl.pwhash", "pathlib", "re", "struct", "typing"),
}


def error_class(name: str) -> type[Exception]:
    """The class that a vector expects."""
    found: type[Exception] = Refused if name == "refused" else getattr(errors, name)
    return found


@pytest.mark.parametrize("path", PATHS, ids=NAMES)
def test_vector(path: Path) -> None:
    vector: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    operation, expect = OPERATIONS[vector["operation"]], dict(vector["expect"])
    outcome = expect.pop("outcome")
    if outcome == "ok":
        expect.pop("canonical", None)  # for FORMAT.md; test_config.py compares it
        assert operation(vector["inputs"]) == expect
        return
    with pytest.raises(error_class(outcome)) as caught:
        operation(vector["inputs"])
    assert type(caught.value) is error_class(outcome)
    assert expect["why"] in str(caught.value)
    if "chunk_index" in expect:
        assert getattr(caught.value, "chunk_index", None) == expect["chunk_index"]


def test_every_folder_holds_good_and_bad_vectors() -> None:
    outcomes: dict[str, set[bool]] = {}
    for path in PATHS:
        is_good = json.loads(path.read_text(encoding="utf-8"))["expect"]["outcome"] == "ok"
        outcomes.setdefault(path.parent.name, set()).add(is_good)
    for derived in ("keys", "hosts"):
        assert outcomes.pop(derived) == {True}  # a derivation cannot fail
    assert len(outcomes) == 15
    assert all(kinds == {True, False} for kinds in outcomes.values()), outcomes


def test_generator_makes_the_committed_files() -> None:
    made = generate.all_vectors()
    assert sorted(made) == NAMES
    different = [name for name in NAMES if (generate.VECTORS_DIR / name).read_text("utf-8") != made[name]]
    assert different == []


def test_generator_is_independent() -> None:
    readers = {
        "delta_runner.py",
        "vector_runner.py",
        "recovery_runner.py",
        "slots_runner.py",
        *(path.name for path in generate.VECTORS_DIR.glob("test_*.py")),
    }
    for path in generate.VECTORS_DIR.glob("*.py"):
        if path.name in readers:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                modules = {node.module or ""}
            elif isinstance(node, ast.Import):
                modules = {alias.name for alias in node.names}
            else:
                continue
            foreign = {name for name in modules if not name.startswith("tests.vectors")}
            assert foreign <= ALLOWED_IN_GENERATOR, path.name


def test_examples_of_the_document_are_those_of_the_vectors() -> None:
    document = generate.DOCUMENT.read_text(encoding="utf-8")
    assert examples.with_examples(document, generate.all_vectors()) == document
    assert {name.split("/")[0] for name in examples.example_names(document)} == {
        path.parent.name for path in PATHS
    }


def test_a_drifted_example_is_noticed() -> None:
    vectors = {"x/y.json": json.dumps({"inputs": {"raw": "00ff"}, "expect": {"outcome": "ok"}})}
    right = "text\n```example x/y raw\nraw           00ff\n```\nmore\n"
    assert examples.with_examples(right, vectors) == right
    assert examples.with_examples(right.replace("ff", "fe"), vectors) == right
    with pytest.raises(KeyError):
        examples.with_examples(right.replace("x/y", "x/z"), vectors)


def test_flip_changes_one_bit() -> None:
    assert ref.flip(b"\x10\x20\x30", -1) == b"\x10\x20\x31"


def test_size_table_of_the_document() -> None:
    document = generate.DOCUMENT.read_text(encoding="utf-8")
    for plain_size, aegis_size, xchacha_size in SIZE_TABLE:
        assert ChunkGeometry(16384, 64).cipher_size(plain_size) == aegis_size
        assert ChunkGeometry(16384, 40).cipher_size(plain_size) == xchacha_size
        named = "2^40" if plain_size == 2**40 else str(plain_size)
        assert f"| {named} | {aegis_size} | {xchacha_size} |" in document
