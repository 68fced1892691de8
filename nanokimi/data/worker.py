"""A worker process that prepares data; `tasks` starts it: `python -m nanokimi.data.worker WORK_FOLDER`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from nanokimi.data.tasks import perform
from nanokimi.errors import UserError
from nanokimi.runtime.interrupts import STOPPING


def main() -> None:
    """Read a task from each line of standard input and write its result as a line, until there are no more."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)  # the parent is interrupted as well, and ends this process
    for line in sys.stdin:
        try:
            reply = {"result": perform(Path(sys.argv[1]), json.loads(line))}
        except UserError as error:
            reply = {"error": str(error)}
        except OSError as error:
            reply = {"error": f"{error.filename or sys.argv[1]}: {error.strerror or error}"}
        try:
            print(json.dumps(reply), flush=True)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
