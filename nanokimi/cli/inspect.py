"""`nanokimi inspect`: what a trained model shows while it reads and writes, in the terminal or as one HTML page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanokimi.cli.options import require_targets, take_options
from nanokimi.cli.sample import SAMPLING_OPTIONS, writer_of
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path

if TYPE_CHECKING:
    from nanokimi.inside.subject import Subject
    from nanokimi.inside.view import View, Wanted

MOST_MODELS = 4
WORDS = ("prompt", "stop", "arm", "checkpoint", "device", "html")
NUMBERS = ("layer", "head", "favourites")


def run_inspect(arguments: list[str]) -> int:
    """`nanokimi inspect`."""
    words: dict[str, Callable[[str], object]] = dict.fromkeys(WORDS, str)
    numbers: dict[str, Callable[[str], object]] = dict.fromkeys(NUMBERS, int)
    options, rest = take_options(arguments, {**SAMPLING_OPTIONS, **words, **numbers})
    require_targets(rest, "run folder")
    if not rest:
        raise UserError("name a run, a comparison or several runs to look into; see --help")
    page = Path(str(options["html"])) if "html" in options else None
    if page is not None:
        require_new_file(page)
    elif "head" in options and "layer" not in options:
        raise UserError("--head needs --layer: name the layer that the head is in")

    from nanokimi.inside.favourites import SAMPLE_TOKENS
    from nanokimi.inside.view import Wanted

    counted = int(str(options.get("favourites", 0 if page is None else SAMPLE_TOKENS)))
    if counted < 0:
        raise UserError(f"--favourites is {counted}: it must be 0 or more")
    length = int(str(options.get("max_new_tokens", 0)))
    if length < 0:  # a run's own settings would ask for at least one
        raise UserError(f"--max_new_tokens is {length}: it must be 0 or more (0: only read the prompt)")
    wanted = Wanted(*(int(str(options[name])) if name in options else None for name in ("layer", "head")))
    arms = [one.strip() for one in str(options.get("arm", "")).split(",") if one.strip()]
    runs = chosen_runs([run_path(one) for one in rest], arms)
    pairs = with_own_names([look_into(run, options, counted) for run in runs], runs)
    if page is None:
        print_views(pairs, wanted)
    else:
        write_page(page, pairs, wanted)
    return 0


def require_new_file(path: Path) -> None:
    """Raises UserError if a page cannot be written there, before a model is loaded."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists, and inspect never overwrites: choose another --html")
    if not path.parent.is_dir():
        raise UserError(
            f"there is no folder {path.parent} for {path.name}: make it, or choose another --html"
        )


def chosen_runs(folders: Sequence[Path], arms: Sequence[str]) -> list[Path]:
    """The run folders that are meant: of a comparison the first seed of each arm, or of the named arms, in their order.

    Raises UserError if there is no such run or arm, or if there are too many.
    """
    from nanokimi.config.arms import slug
    from nanokimi.runtime.text import listed
    from nanokimi.train.run_folder import first_seeds, runs_in

    found = [run for folder in folders for run in first_seeds(folder)]
    if arms:
        every = [(folder, run) for folder in folders for run in runs_in(folder) if run != folder]
        if not every:
            raise UserError(f"--arm {arms[0]}: {folders[0]} is one run and has no arms: leave --arm out")
        names = {run: run.relative_to(folder).as_posix() for folder, run in every}
        first = set(found)
        found = []
        for arm in arms:
            wanted = (arm.rstrip("/"), slug(arm))
            of_arm = [
                run
                for run, name in names.items()
                if name in wanted or (run in first and name.rpartition("/")[0] in wanted)
            ]
            if not of_arm:
                here = listed(dict.fromkeys(name.rpartition("/")[0] or name for name in names.values()))
                raise UserError(f"{folders[0]} has no arm '{arm}': there is {here}")
            found += of_arm
    if len(found) > MOST_MODELS:
        raise UserError(
            f"{len(found)} models are too many to look into at once: choose up to {MOST_MODELS} with --arm A,B"
        )
    return found


def look_into(run_folder: Path, options: dict[str, object], counted: int) -> tuple[View, Subject]:
    """Open a run, let it continue the prompt and look at the whole."""
    from nanokimi.inside.favourites import favourites
    from nanokimi.inside.look import write_and_look
    from nanokimi.inside.subject import subject_of
    from nanokimi.inside.view import View

    only_read = options.get("max_new_tokens") == 0  # a run's own settings write at least one
    asked = {key: value for key, value in options.items() if not (key == "max_new_tokens" and only_read)}
    writer = writer_of(run_folder, asked)
    settings = replace(writer.settings, max_new_tokens=0) if only_read else writer.settings
    subject = subject_of(writer.run)
    found = write_and_look(subject, writer.prompts[0], settings)
    liked = favourites(subject, tokens=counted) if counted and found.experts else None
    return View(found, liked), subject


def with_own_names(
    pairs: Sequence[tuple[View, Subject]], folders: Sequence[Path]
) -> list[tuple[View, Subject]]:
    """The same, with the folder beside a name that several have."""
    from nanokimi.inside.pieces import visible

    names = [view.look.name for view, _ in pairs]
    return [
        (
            replace(
                view, look=replace(view.look, name=f"{view.look.name} ({visible(str(folder), spaces=False)})")
            )
            if names.count(view.look.name) > 1
            else view,
            subject,
        )
        for (view, subject), folder in zip(pairs, folders, strict=True)
    ]


def print_views(pairs: Sequence[tuple[View, Subject]], wanted: Wanted) -> None:
    """A table for each model."""
    from rich.console import Console

    from nanokimi.inside.terminal import PLAIN_WIDTH, print_view
    from nanokimi.inside.view import with_maps

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    for view, subject in pairs:
        if wanted.layer is not None:
            view = with_maps(view, subject, replace(wanted, head=wanted.head or 0), 1)
        with console.capture() as shown:
            print_view(view, console)
        print(shown.get(), end="", flush=True)  # not by rich, which ends the program if the reader has gone


def write_page(path: Path, pairs: Sequence[tuple[View, Subject]], wanted: Wanted) -> None:
    """One page with all models side by side. Raises UserError if it would be too large, or cannot be written."""
    from nanokimi.inside.page import fitted_page
    from nanokimi.report import units
    from nanokimi.runtime.files import cannot_write, write_atomic

    views, content = fitted_page(pairs, wanted)
    require_new_file(path)  # another process may have been faster
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(f"{cannot_write(error, path)}: choose another --html") from None
    for view in views:
        if view.maps_note:
            print(f"nanokimi: note: {view.look.name}: {view.maps_note}", file=sys.stderr)
    print(f"Open: {path} ({units.size(len(content))})")
