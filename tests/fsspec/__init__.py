"""Tests of `cryptfs.fsspec`: by itself, by fsspec's own tests, and under pandas, zarr and dask."""
