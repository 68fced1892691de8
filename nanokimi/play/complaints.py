"""What the terminal of `nanokimi play` says about calls that cannot be answered: a line a minute, whoever calls."""

from __future__ import annotations

import sys
import time

from nanokimi.runtime.text import one_line

REFUSAL = "This call cannot be answered: it is not one that the page makes."
SECONDS_BETWEEN = 60.0
MOST_CHARACTERS = 160


class Complaints:
    """One line on standard error for what went wrong, then none for a minute; the next says how many were left out."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.left_out = 0

    def say(self, error: BaseException) -> None:
        """What went wrong, without characters that a terminal would obey."""
        now = time.monotonic()
        if self.last is not None and now - self.last < SECONDS_BETWEEN:
            self.left_out += 1
            return
        before = f" ({self.left_out:,} more before it)" if self.left_out else ""
        what = one_line(f"{type(error).__name__}: {error}")[:MOST_CHARACTERS]
        what = what.encode("unicode_escape").decode("ascii")
        print(f"nanokimi: a call was refused{before}: {what}", file=sys.stderr, flush=True)
        self.last, self.left_out = now, 0
