"""A process that prepares data: `python -m nanokimi.data.worker WORK_FOLDER`; started by `tasks`, not by people."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from nanokimi.data.tasks import perform
from nanokimi.errors import UserError


def main() -> None:
    """Answer each line of standard input, a task, with a line, its result, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent was interrupted as well, and ends us
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
