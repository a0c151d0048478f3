"""The files of a vault, to the byte: headers, small values, journals, manifests."""
