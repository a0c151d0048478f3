"""pandas, zarr and dask on cryptfs:// paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.bag
import fsspec
import pandas
import pytest
import zarr

import cryptfs
from cryptfs.fsspec.filesystem import CryptfsFileSystem
from tests.transfer.conftest import PASSPHRASE


@pytest.fixture(autouse=True)
def closed() -> Any:
    """Programs leave their filesystems to fsspec, which keeps them until the process ends."""
    yield
    close_all()


def close_all() -> None:
    """What they opened."""
    for each in list(CryptfsFileSystem._cache.values()):
        each.close()


def test_pandas(options: dict[str, Any], vault_dir: Path) -> None:
    frame = pandas.DataFrame({"number": range(5000), "text": [f"ä {number}" for number in range(5000)]})
    for name, write, read in (
        ("new dir/frame.csv", frame.to_csv, pandas.read_csv),
        ("frame.csv.gz", frame.to_csv, pandas.read_csv),
        ("frame.pickle", frame.to_pickle, pandas.read_pickle),
    ):
        how = {"index": False} if "csv" in name else {}
        write(f"cryptfs://{name}", storage_options=options, **how)
        pandas.testing.assert_frame_equal(read(f"cryptfs://{name}", storage_options=options), frame)
    named = pandas.read_csv(
        f"cryptfs://new dir/frame.csv::{vault_dir}", storage_options={"passfile": options["passfile"]}
    )
    pandas.testing.assert_frame_equal(named, frame)
    with pytest.raises(FileNotFoundError):
        pandas.read_csv("cryptfs://missing.csv", storage_options=options)
    close_all()
    with cryptfs.Vault.unlock(vault_dir, PASSPHRASE) as vault, vault.open("new dir/frame.csv") as file:
        assert file.readlines()[1] == "0,ä 0\n"


def test_zarr(options: dict[str, Any]) -> None:
    written = zarr.create_array(
        "cryptfs://data/array.zarr",
        shape=(100, 100),
        chunks=(10, 100),
        dtype="int32",
        storage_options=options,
    )
    written[:] = 7
    written[3, 5:9] = range(4)
    read = zarr.open_array("cryptfs://data/array.zarr", mode="r", storage_options=options)
    assert list(read[3, 4:10]) == [7, 0, 1, 2, 3, 7]
    assert int(read[:].sum()) == 7 * 9996 + 6
    group = zarr.open_group("cryptfs://data/group.zarr", mode="w", storage_options=options)
    group.create_array("inner", shape=(3,), dtype="f8")[:] = 1.5
    again = zarr.open_group("cryptfs://data/group.zarr", mode="r", storage_options=options)
    assert sorted(again.array_keys()) == ["inner"]
    fs = fsspec.filesystem("cryptfs", **options)
    assert fs.isdir("data/array.zarr")
    assert [name for name in fs.find("data") if "cryptfs-part" in name] == []


def test_dask(options: dict[str, Any]) -> None:
    lines = dask.bag.from_sequence([f"line {number}" for number in range(100)], npartitions=5)
    with dask.config.set(scheduler="threads", num_workers=4):
        written = lines.to_textfiles("cryptfs://lines/*.txt", storage_options=options)
        assert len(written) == 5
        read = dask.bag.read_text("cryptfs://lines/*.txt", storage_options=options)
        assert sorted(map(str.strip, read.compute())) == sorted(f"line {number}" for number in range(100))


def test_dask_in_other_processes(options: dict[str, Any]) -> None:
    """Each process opens the vault by the options; read-only, they share it."""
    with fsspec.filesystem("cryptfs", **options) as fs:
        fs.pipe({f"{number}.txt": b"a\nb\n" for number in range(3)})
    read = dask.bag.read_text("cryptfs://*.txt", storage_options={**options, "read_only": True})
    with dask.config.set(scheduler="processes", num_workers=2):
        assert read.count().compute() == 6
