"""A vault that changes behind a running mount."""
