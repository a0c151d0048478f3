"""The disk below the vault, as cryptfs.storage uses it."""
