"""Golden vaults: made once, readable for ever."""
