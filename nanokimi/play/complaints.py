"""What the terminal of `nanokimi play` says about calls that fail: a line or a traceback a minute, whoever calls."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

from nanokimi.runtime.text import one_line

REFUSAL = "This call cannot be answered: it is not one that the page makes."
FAULT = "Something went wrong in nanokimi itself: its terminal says what."
SECONDS_BETWEEN = 60.0
MOST_CHARACTERS, MOST_FRAMES, MOST_LINES = 160, 20, 60
HERE = Path(__file__).parent
PACKAGE, PASSED_BY_ALL = HERE.parent, (HERE / "calls.py", HERE / "guard.py")


class Complaints:
    """Standard error gets what went wrong, then nothing of the kind for a minute; the next says how many were left out.

    Values that no page of ours sends fail in Gradio, before our code is called: a line. What fails in our code is a
    fault of ours, and whoever started the page gets its traceback, as of any other command.
    """

    def __init__(self) -> None:
        self.refusals, self.faults = Pace(), Pace()

    def say(self, error: BaseException) -> str:
        """What went wrong, without characters that a terminal would obey; returns what its client is told."""
        if is_ours(error):
            self.fault(error)
            return FAULT
        if (before := self.refusals.passes()) is not None:
            what = without_controls(one_line(f"{type(error).__name__}: {error}")[:MOST_CHARACTERS])
            print(f"nanokimi: a call was refused{before}: {what}", file=sys.stderr, flush=True)
        return REFUSAL

    def fault(self, error: BaseException) -> None:
        """The traceback of a fault of ours, its innermost part."""
        if (before := self.faults.passes()) is None:
            return
        lines = "".join(traceback.format_exception(error, limit=-MOST_FRAMES)).splitlines()[-MOST_LINES:]
        said = "\n".join(without_controls(line)[: 2 * MOST_CHARACTERS] for line in lines)
        print(f"nanokimi: a fault of this program{before}:\n{said}", file=sys.stderr, flush=True)


class Pace:
    """Lets one through, then none for a minute."""

    def __init__(self) -> None:
        self.last: float | None = None
        self.left_out = 0

    def passes(self) -> str | None:
        """What to say of those that were left out before this one; None if this one is left out, too."""
        now = time.monotonic()
        if self.last is not None and now - self.last < SECONDS_BETWEEN:
            self.left_out += 1
            return None
        before = f" ({self.left_out:,} more before it)" if self.left_out else ""
        self.last, self.left_out = now, 0
        return before


def is_ours(error: BaseException) -> bool:
    """Whether it was raised in a function of this package, or in one that such a function had called."""
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(file.is_relative_to(PACKAGE) and file not in PASSED_BY_ALL for file in files)


def without_controls(line: str) -> str:
    """A line in ASCII, in which a terminal finds nothing to obey."""
    return line.encode("unicode_escape").decode("ascii")
