"""A vault as a filesystem of fsspec: for pandas, zarr, dask and others."""
