"""The config of a vault and its key slots: the way from a secret to the masterkey."""
