"""The command line. Each command imports what it needs when it runs, so that `--help` is instant.

Exit status: 0 done, 1 a leak found or a run that could not go on, 2 bad input (one line says what), 128 + its
number stopped by a signal after saving (such as 130 for Ctrl-C).
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

from nanokimi.cli.options import HELP, USAGE
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.files import give_back_unused_folders
from nanokimi.runtime.interrupts import Interrupted
from nanokimi.runtime.parallel import current, end_in_group, join, leave, speaks
from nanokimi.runtime.text import one_line, visible

SHARED_COMMANDS = ("train", "compare")
"""Commands that torchrun may start in several processes."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A story may contain characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    status = outcome(arguments)
    end_in_group(status)
    return status


def outcome(arguments: list[str]) -> int:
    """Run one command, print why it fails if it does, and return the exit status."""
    try:
        status = run_in_group(arguments)
        sys.stdout.flush()  # a reader that has gone is noticed here, and not at the interpreter's end
        return status
    except UserError as error:
        return say(f"nanokimi: {error}", 2)
    except Interrupted as stop:
        return say(f"nanokimi: {stop}", stop.exit_status)
    except (TrainingError, MemoryError) as error:
        return say(f"nanokimi: {one_line(error) or 'out of memory'}", 1)
    except KeyboardInterrupt:
        return say("nanokimi: interrupted", 130)
    except BrokenPipeError:  # the reader of the output has gone, as with `| head`
        # What is left in the buffer goes nowhere, or Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a file that vanished
        return say(f"nanokimi: {error}", 1)
    except RuntimeError as error:  # as a device's allocator raises it, outside of a training step
        from nanokimi.runtime.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        return say(f"nanokimi: {one_line(error)}", 1)


def say(line: str, status: int) -> int:
    """Print why the command ends, unless another process of the group has, and return the exit status."""
    if speaks():
        print(visible(line), file=sys.stderr, flush=True)
    return status


def run_in_group(arguments: list[str]) -> int:
    """`run`, in the main process of the group if torchrun started one; the others do what that one tells them."""
    world = join()
    if world.alone:
        return run(arguments)
    from nanokimi.train.follow import follow, release

    status = 0
    if world.is_main:
        status = run(arguments)
        release()
    else:
        follow()
    leave()
    return status


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status. Raises what `main` catches."""
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
    if not current().alone and command not in SHARED_COMMANDS:
        raise UserError(
            f"{command} runs in one process: start it without torchrun, which is for {' and '.join(SHARED_COMMANDS)}"
        )
    require_utf8(arguments[1:])
    from nanokimi.cli import verbs
    from nanokimi.cli.plugins import take_plugins

    try:
        return int(getattr(verbs, f"run_{command}")(take_plugins(command, arguments[1:])))
    finally:
        give_back_unused_folders()


def require_utf8(words: list[str]) -> None:
    """Raise UserError for a word, such as a path, that is not UTF-8: it is written into files that are."""
    for word in words:
        shown = word.encode("utf-8", errors="replace").decode("utf-8")
        if word != shown:
            raise UserError(
                f"'{shown}' is not UTF-8: write it in UTF-8 or, if it names a file, make a link to it"
            )
