"""The carriers of a key outside of a vault: words on paper, shares, a FIDO2 token."""
