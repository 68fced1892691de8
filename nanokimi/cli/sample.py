"""`nanokimi sample`: texts of trained models, streamed; `--interactive` continues one prompt after another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanokimi.cli.options import one_run, take_options
from nanokimi.errors import TrainingError, UserError
from nanokimi.runtime.text import visible, visible_line

if TYPE_CHECKING:
    from nanokimi.generation.engine import Engine, Writing
    from nanokimi.generation.text import TextSettings
    from nanokimi.train.run_folder import Run

SAMPLING_OPTIONS: dict[str, Callable[[str], object]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "seed": int,
}
"""But for the seed, settings of the run's `sample` group."""
PROMPT = "> "


@dataclass(frozen=True)
class Writer:
    """A trained model that writes."""

    run: Run
    engine: Engine
    settings: TextSettings
    prompts: tuple[str, ...]


def run_sample(arguments: list[str]) -> int:
    """`nanokimi sample`."""
    named: dict[str, Callable[[str], object]] = {"prompt": str, "checkpoint": str, "device": str, "stop": str}
    flags: dict[str, Callable[[str], object]] = {"num_samples": int, "interactive": bool, "stats": bool}
    options, rest = take_options(arguments, {**SAMPLING_OPTIONS, **named, **flags})
    folder = one_run(rest)
    interactive, stats = "interactive" in options, "stats" in options
    if interactive and "prompt" in options:
        raise UserError("--interactive reads the prompts from standard input: leave out --prompt")

    from nanokimi.train.run_folder import first_seeds

    writers = [writer_of(one, options) for one in first_seeds(folder)]
    if interactive:
        return talk(writers, stats)
    for writer in writers:
        for prompt in writer.prompts:
            write_texts(writer, prompt, stats)
    return 0


def writer_of(folder: Path, options: dict[str, object]) -> Writer:
    """Open a run and take the options over its own settings. Raises UserError for values that cannot be."""
    from nanokimi.config.rules import validate
    from nanokimi.data.store import val_openings
    from nanokimi.generation.engine import Engine
    from nanokimi.generation.story import text_settings
    from nanokimi.train.run_folder import open_run

    device = str(options["device"]) if "device" in options else None
    run = open_run(folder, device, str(options.get("checkpoint", "final")))
    values: dict[str, Any] = {k: v for k, v in options.items() if k in SAMPLING_OPTIONS and k != "seed"}
    if "prompt" in options:
        values["prompts"] = (str(options["prompt"]),)
    sample = replace(run.config.sample, **values)
    seed = int(str(options.get("seed", run.config.seed)))
    config = validate(replace(run.config, sample=sample, seed=seed))
    settings = replace(
        text_settings(config),
        num_samples=int(str(options.get("num_samples", 1))),
        stop=(str(options["stop"]),) if "stop" in options else (),
    )
    engine = Engine(run.model, context_length=config.train.context_length)
    return Writer(run, engine, settings, config.sample.prompts or val_openings(run.data))


def write_texts(writer: Writer, prompt: str, stats: bool) -> None:
    """Print what the model writes after a prompt, each text under its own line. Raises UserError for the prompt."""
    from nanokimi.generation.text import in_order, requests_of, stream_pieces

    tokenizer, settings = writer.run.data.tokenizer, writer.settings
    requests = requests_of(tokenizer, [prompt], settings)  # refuses the prompt before anything is printed
    writings = [writer.engine.start(request) for request in requests]
    note_cut(writings[0], writer.engine)
    title = visible_line(writer.run.config.title)
    # Prompts and vocabularies of a run that comes from anyone could be commands to the terminal.
    shown = visible if sys.stdout.isatty() else str
    with closing(stream_pieces(writer.engine, tokenizer, writings, settings.stop)) as pieces:
        begun = -1
        for piece in in_order(pieces, len(writings)):
            if piece.row != begun:
                begun = piece.row
                number = f", sample {begun + 1}, seed {requests[begun].seed}" if len(writings) > 1 else ""
                print(f"--- {title}{number}\n{shown(prompt)}", end="", flush=True)
            print(shown(piece.text), end="", flush=True)
            if piece.finish_reason is not None:
                print()
    if stats:
        print_stats(writings)


def note_cut(writing: Writing, engine: Engine) -> None:
    """Say on standard error that the model reads only the end of a prompt."""
    tokens = len(writing.request.prompt_ids)
    if tokens > engine.limit:
        print(
            f"nanokimi: note: the prompt has {tokens} tokens, and the model reads the last {engine.limit}",
            file=sys.stderr,
        )


def print_stats(writings: list[Writing]) -> None:
    """Tokens and cache bytes of each text, on standard error."""
    for writing in writings:
        print(
            f"nanokimi: {len(writing.request.prompt_ids)} tokens read, {len(writing.written)} written, "
            f"ended by {writing.finish_reason}, cache {writing.cache_bytes:,} bytes",
            file=sys.stderr,
        )


def talk(writers: list[Writer], stats: bool) -> int:
    """Continue each line of standard input. Ctrl-C stops a text, the end of the input (Ctrl-D) the program.

    The seed counts up by one with each line, so that a repeated line is continued otherwise.
    """
    if sys.stdin.isatty():
        print("Each line is continued. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
    for number, line in enumerate(prompt_lines()):
        for writer in writers:
            again = replace(writer.settings, seed=writer.settings.seed + number)
            try:
                write_texts(replace(writer, settings=again), line, stats)
            except (UserError, TrainingError) as error:
                print(f"nanokimi: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print("\nnanokimi: stopped", file=sys.stderr)
                break
    return 0


def prompt_lines() -> Iterator[str]:
    """The lines of standard input that are not empty, without their ends; a terminal is asked for each."""
    if not sys.stdin.isatty():
        for data in sys.stdin.buffer:
            line = data.rstrip(b"\r\n")
            try:
                if line:
                    yield line.decode("utf-8")
            except UnicodeDecodeError:
                print("nanokimi: a line that is not UTF-8 is left out", file=sys.stderr)
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # input() then lets the line be edited

    while True:
        try:
            if line_text := input(PROMPT):
                yield line_text
        except KeyboardInterrupt:
            print("\nCtrl-D ends", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return
