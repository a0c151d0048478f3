"""The site of the documents, built with warnings as errors; and the contract of docs/SYNC.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cryptfs.cli.main import every_command
from tests.project.test_threat_model import functions, rows_without_a_test

ROOT = Path(__file__).parents[2]
SYNC = (ROOT / "docs" / "SYNC.md").read_text(encoding="utf-8")
# What a browser fetches without a click.
_FETCHED = re.compile(
    r"<(?:script|img|iframe|link|source)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
)


def test_every_test_that_the_contract_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+::\w+)`", SYNC))
    assert len(named) > 20
    assert named - functions() == set()


def test_every_promise_names_its_test() -> None:
    assert rows_without_a_test(SYNC) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from this tree."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", target],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Documentation built" in done.stderr  # with --quiet nothing counts warnings
    return target


def test_every_document_is_a_page(site: Path) -> None:
    documents = {
        path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")
    }
    pages = {path.relative_to(site) for path in site.rglob("*.html")}
    missing = {path for path in documents if path not in pages and path.name != "README.html"}
    assert missing == set()
    assert {Path("index.html"), Path("recipes/index.html"), Path("SECURITY.html")} <= pages


def test_every_command_has_a_page_with_its_options(site: Path) -> None:
    for name, command in every_command().items():
        text = (site / "commands" / f"cryptfs-{name.replace(' ', '-')}.html").read_text(encoding="utf-8")
        for parameter in command.params:
            for spelling in parameter.opts if parameter.param_type_name == "option" else ():
                assert spelling in text, (name, spelling)


def test_a_reader_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    assert {found for page in pages for found in _FETCHED.findall(page.read_text(encoding="utf-8"))} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\([\"']?(?:https?:)?//", styles)


def test_a_page_that_fetches_is_found() -> None:
    assert _FETCHED.findall('<link rel="stylesheet" href="https://fonts.example/x">') == [
        "https://fonts.example/x"
    ]
    assert _FETCHED.findall('<a href="https://example.org/">') == []
