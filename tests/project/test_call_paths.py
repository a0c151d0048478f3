"""docs/ARCHITECTURE.md draws the way of a name, of a read and of a write as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.project.call_paths import Call, drawn_trees, real_trees, unlike

TEXT = (Path(__file__).parents[2] / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    return real_trees(tmp_path_factory.mktemp("calls"))


@pytest.mark.parametrize("title", ["stat", "directory", "read", "new chunks", "overwrite"])
def test_it_is_drawn_as_it_is(real: dict[str, Call], title: str) -> None:
    assert unlike(drawn_trees(TEXT)[title], real[title]) == []


def test_the_counts_are_right(real: dict[str, Call]) -> None:
    said = re.search(r"A read passes through (\d+) functions, a write of new chunks through (\d+), an\s+"
                     r"overwrite through (\d+)", TEXT)  # fmt: skip
    assert said is not None
    counted = [len(real[title].names()) for title in ("read", "new chunks", "overwrite")]
    assert [int(each) for each in said.groups()] == counted


def test_a_wrong_picture_is_noticed() -> None:
    real = Call("a", [Call("b", [Call("c")]), Call("d")])
    assert unlike(Call("a", [Call("b"), Call("d")]), real) == []
    assert unlike(Call("a", [Call("d"), Call("b")]), real) == ["/a/b"]
    assert unlike(Call("a", [Call("c")]), real) == ["/a/c"]
    assert unlike(Call("b"), real) == ["/b"]
