"""The exception tree is the one that the docstring draws, and messages say where."""

from __future__ import annotations

import inspect

from cryptfs import errors
from cryptfs.errors import ChunkError, CryptfsError, IntegrityError


def drawn_tree(docstring: str) -> dict[str, str]:
    """Parent by class, from the drawing: deeper indentation means below; several names may share a line."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in docstring.splitlines():
        names = [word for word in line.split() if word.rstrip("_").endswith("Error")]
        indent = len(line) - len(line.lstrip())
        if indent < 4 or not names or not line.split()[0].rstrip("_").endswith("Error"):
            continue
        while above and above[-1][0] >= indent:
            above.pop()
        for name in names:
            parents[name] = above[-1][1] if above else "Exception"
        above.append((indent, names[-1]))
    return parents


def real_tree() -> dict[str, str]:
    """Parent by class, from the module."""
    classes = inspect.getmembers(errors, inspect.isclass)
    return {
        name: found.__bases__[0].__name__
        for name, found in classes
        if issubclass(found, Exception) and found.__module__ == errors.__name__
    }


def test_docstring_draws_the_tree() -> None:
    assert drawn_tree(errors.__doc__ or "") == real_tree()


def test_the_tree_is_whole() -> None:
    tree = real_tree()
    assert len(tree) == 22
    assert [name for name, parent in tree.items() if parent == "Exception"] == ["CryptfsError"]
    assert all(issubclass(getattr(errors, name), CryptfsError) for name in tree)


def test_a_wrong_drawing_is_noticed() -> None:
    drawing = "x\n\n    AError   the root\n      BError  is below\n        CError  DError\n      EError\n"
    assert drawn_tree(drawing) == {
        "AError": "Exception",
        "BError": "AError",
        "CError": "BError",
        "DError": "BError",
        "EError": "AError",
    }


def test_integrity_errors_say_where() -> None:
    error = ChunkError("does not authenticate", cipher_path="AbC/dEf", chunk_index=0)
    assert str(error) == "AbC/dEf, chunk 0: does not authenticate"
    assert (error.reason, error.cipher_path, error.chunk_index) == ("does not authenticate", "AbC/dEf", 0)
    nowhere = IntegrityError("is damaged")
    assert str(nowhere) == "?: is damaged"
    nowhere.cipher_path = "AbC"
    assert str(nowhere) == "AbC: is damaged"


def test_every_class_says_what_it_means() -> None:
    undocumented = [name for name in real_tree() if not getattr(errors, name).__doc__]
    assert undocumented == []
