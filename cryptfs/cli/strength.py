"""How easy a new passphrase is to guess: advice, and never a refusal."""

from __future__ import annotations

SHORT = 8  # bytes, where a passphrase is not text
_MOST = 72  # characters: zxcvbn looks at no more
_ENOUGH = 10.0  # decimal digits of the number of guesses


def weakness(passphrase: bytes) -> str:
    """Why a new passphrase is weak, as the end of a sentence and more sentences; '' if it is not.

    zxcvbn guesses as people do who know word lists, names, dates and keyboards. Its copies of the passphrase
    stay in this process until it ends: no command goes on for long after it has read a new one.
    """
    try:
        text = passphrase.decode()
    except UnicodeDecodeError:
        return "" if len(passphrase) >= SHORT else f"has fewer than {SHORT} bytes."
    from zxcvbn import zxcvbn

    found = zxcvbn(text[:_MOST], max_length=_MOST)
    if float(found["guesses_log10"]) >= _ENOUGH:
        return ""
    feedback = found["feedback"]
    advice = [feedback["warning"], *feedback["suggestions"]]
    sentences = [f"{each.rstrip('.')}." for each in advice if each]
    guesses = _rounded(float(found["guesses_log10"]))
    said = f"takes somebody with a copy of the vault {guesses} tries to guess."
    return " ".join([said, *sentences]).replace("password", "passphrase")


def _rounded(digits: float) -> str:
    """'about 1,000' from the logarithm of a number."""
    if digits < 1:
        return "a few"
    return f"about {10 ** int(digits):,}"
