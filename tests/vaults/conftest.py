"""The vaults are data: pytest need not look for tests in them."""

collect_ignore_glob = ["v1-*"]
