"""From what a person has (passphrase, file, device, words) to the key of a slot, and to the masterkey."""
