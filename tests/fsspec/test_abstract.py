"""The tests that fsspec ships for every filesystem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.tests import abstract

from cryptfs.fsspec.filesystem import CryptfsFileSystem
from tests.transfer.conftest import PASSPHRASE


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """What those tests ask for. The vault is one for a class: each test cleans up."""

    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, made_vault: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CryptfsFileSystem]:
        vault_dir = tmp_path_factory.mktemp("abstract")
        for each in made_vault.iterdir():
            (vault_dir / each.name).write_bytes(each.read_bytes())
        with CryptfsFileSystem(vault_dir, passphrase=PASSPHRASE) as made:
            yield made

    @pytest.fixture
    def fs_path(self, fs: CryptfsFileSystem) -> Iterator[str]:
        yield "some place"
        if fs.exists("some place"):
            fs.rm("some place", recursive=True)
        assert fs.ls("") == []

    @pytest.fixture
    def fs_join(self) -> Callable[..., Any]:
        return lambda *parts: "/".join(parts)


class TestCopy(Fixtures, abstract.AbstractCopyTests):  # type: ignore[misc]
    pass


class TestGet(Fixtures, abstract.AbstractGetTests):  # type: ignore[misc]
    pass


class TestOpen(Fixtures, abstract.AbstractOpenTests):  # type: ignore[misc]
    pass


class TestPipe(Fixtures, abstract.AbstractPipeTests):  # type: ignore[misc]
    pass


class TestPut(Fixtures, abstract.AbstractPutTests):  # type: ignore[misc]
    pass
