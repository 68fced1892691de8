"""Text in: one local UTF-8 file, read exactly, and its split into a training and a validation part.

Nothing is cleaned or normalised: line ends, a byte-order mark and NUL characters are kept, so that the bytes
of the text are the bytes of the file and a score per byte means what it says.
"""

from __future__ import annotations

import difflib
from fractions import Fraction
from pathlib import Path

from nanokimi.errors import UserError


def read_text(path: str | Path) -> str:
    """Return the whole text of the UTF-8 file `path`, unchanged; raise UserError if it is not such a file."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name one text file in it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: {_suggest(path)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): check the path and its permissions") from None
    if not data:
        raise UserError(f"{path} is empty: name a file with text in it")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
        raise UserError(
            f"{path} is not UTF-8: byte {data[error.start]:#04x} at offset {error.start} (line {line}) does "
            f"not fit; convert it, for example with: iconv -f {encoding} -t utf-8"
        ) from None


def split_text(text: str, val_fraction: float) -> tuple[str, str]:
    """Cut `text` into its first part for training and its last `val_fraction`, by characters, for validation.

    The cut is nanoGPT's int(0.9 * n), but of the decimal number that the user wrote: in floating point
    10 * (1 - 0.9) is 0.9999999999999998, and int() of that would lose the training part.
    """
    cut = int(len(text) * (1 - Fraction(str(val_fraction))))
    if not 0 < cut < len(text):
        raise UserError(
            f"the text has {len(text)} characters, too few for a validation part of {val_fraction} "
            "(dataset.val_fraction) beside a training part: use a longer text"
        )
    return text[:cut], text[cut:]


def _suggest(path: Path) -> str:
    """What to do about a missing file."""
    try:
        neighbours = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"there is no folder {path.parent} either, check the path"
    close = difflib.get_close_matches(path.name, neighbours, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "check the path"
