"""Letters that a terminal or a file lacks are spelled: λ becomes ``lambda``."""

import codecs

SPELLED = "tcl_jax.spelled"
"""What Python knows it by: `errors` of a stream."""
_LETTERS = {
    "λ": "lambda",
    "α": "alpha",
    "θ": "theta",
    "Δ": "delta",
    "µ": "u",
    "×": "x",
    "±": "+-",
    "–": "-",
    "…": "...",
    "·": "*",
    "∞": "inf",
    "≠": "!=",
}


def spelled(text: str, encoding: str) -> str:
    """A text in the letters that an encoding has.

    >>> spelled("λ of 8×8 images, 3 µJ", "ascii")
    'lambda of 8x8 images, 3 uJ'
    >>> spelled("λ of 8×8 images, 3 µJ", "latin-1")
    'lambda of 8×8 images, 3 µJ'
    """
    return text.encode(encoding, SPELLED).decode(encoding, "surrogateescape")


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """One letter that an encoding lacks: for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if "\udc80" <= letter <= "\udcff":  # a byte of a file's name that is no text
        return bytes([ord(letter) - 0xDC00]), error.start + 1
    plain = _LETTERS.get(letter) or letter.encode("ascii", "backslashreplace").decode()
    return plain, error.start + 1


codecs.register_error(SPELLED, _spell)
