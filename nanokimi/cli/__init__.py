"""The command line. Each command imports what it needs when it runs, so that `--help` is instant.

Exit status: 0 done, 1 a leak found or a run that could not go on, 2 bad input (one line says what), 128 + its
number stopped by a signal after saving (such as 130 for Ctrl-C).
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

from nanokimi.cli.options import HELP, USAGE
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.files import give_back_unused_folders
from nanokimi.runtime.interrupts import Interrupted
from nanokimi.runtime.text import one_line


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A story may contain characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(HELP, end="")
            return 0 if arguments else 2
        command = arguments[0]
        if command == "--version":
            from nanokimi import __version__

            print(f"nanokimi {__version__}")
            return 0
        if command not in USAGE:
            from nanokimi.config.parsing import nearest

            raise UserError(f"there is no command '{command}'{nearest(command, list(USAGE))}")
        if any(option in ("-h", "--help", "--help-all") for option in arguments[1:]):
            from nanokimi.cli.help import command_help

            print(command_help(command, arguments[1:]), end="")
            return 0
        require_utf8(arguments[1:])
        from nanokimi.cli import verbs
        from nanokimi.cli.plugins import take_plugins

        try:
            return int(getattr(verbs, f"run_{command}")(take_plugins(command, arguments[1:])))
        finally:
            give_back_unused_folders()
    except UserError as error:
        print(f"nanokimi: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"nanokimi: {stop}", file=sys.stderr)
        return stop.exit_status
    except (TrainingError, MemoryError) as error:
        print(f"nanokimi: {one_line(error) or 'out of memory'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nanokimi: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        sys.stderr.close()
        return 141
    except OSError as error:  # a full disk, a file that vanished
        print(f"nanokimi: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:  # as a device's allocator raises it, outside of a training step
        from nanokimi.runtime.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        print(f"nanokimi: {one_line(error)}", file=sys.stderr)
        return 1


def require_utf8(words: list[str]) -> None:
    """Raise UserError for a word, such as a path, that is not UTF-8: it is written into files that are."""
    for word in words:
        shown = word.encode("utf-8", errors="replace").decode("utf-8")
        if word != shown:
            raise UserError(
                f"'{shown}' is not UTF-8: write it in UTF-8 or, if it names a file, make a link to it"
            )
