"""The models of the page: opened runs with a name, what they cost, and what a prompt may begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanokimi.data.store import PreparedData, text_opening
from nanokimi.errors import UserError
from nanokimi.generation.engine import Engine
from nanokimi.measure.cost import Cost, model_cost
from nanokimi.pretrained import run_path
from nanokimi.runtime.text import visible
from nanokimi.serve.worker import Served
from nanokimi.train.run_folder import Run, first_seeds, open_run

MAX_PRESETS, PRESET_CHARACTERS = 4, 60
OPENINGS_TRIED = 40


@dataclass(frozen=True)
class Player:
    """A model that writes."""

    name: str
    slot: int
    """Its place on the page, which decides its colour."""
    run: Run
    served: Served
    cost: Cost

    @property
    def context_length(self) -> int:
        """Tokens that it reads at once."""
        return self.served.engine.limit


def open_players(
    words: Sequence[str], device: str | None = None, checkpoint: str = "final"
) -> dict[str, Player]:
    """The models of runs, comparisons and shipped weights, by name: of a comparison, each arm's first seed, in order.

    Two models of one name get their folders' names, too. Raises UserError as `open_run` does, and for a run named
    twice.
    """
    runs: list[Run] = []
    for word in words:
        runs += [open_run(path, device, checkpoint) for path in first_seeds(run_path(word))]
    places = [run.folder.resolve() for run in runs]
    for place, run in zip(places, runs, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{run.folder} is named twice: name each run once")
    titles = [run.config.title for run in runs]
    found: dict[str, Player] = {}
    for slot, run in enumerate(runs):
        run.model.eval()
        name = visible(run.config.title)
        if titles.count(run.config.title) > 1:
            name = f"{name} ({visible(short_place(run.folder))})"
        if name in found:
            name = f"{name[:-1]}, {slot + 1})"
        train = run.config.train
        served = Served(name, Engine(run.model, context_length=train.context_length), run.data.tokenizer, 0)
        cost = model_cost(run.config.family.model, train.context_length)
        found[name] = Player(name, slot, run, served, cost)
    return found


def short_place(folder: Path) -> str:
    """The last words of a run's path that tell it from others."""
    parts = [part for part in folder.resolve().parts if not part.startswith("seed-")]
    return "/".join(parts[-2:])


def presets(data: PreparedData) -> list[str]:
    """Beginnings of validation documents, or of lines spread over the validation text, for the page's buttons."""
    starts = [int(start) for start in data.val_doc_offsets[:-1]] if len(data.val_doc_offsets) > 2 else []
    if not starts:
        starts = [place * len(data.val_ids) // OPENINGS_TRIED for place in range(OPENINGS_TRIED)]
    step = max(len(starts) // OPENINGS_TRIED, 1)
    openings = [" ".join(text_opening(data, start).split()) for start in starts[::step][:OPENINGS_TRIED]]
    short = [opening for opening in openings if 0 < len(opening) <= PRESET_CHARACTERS]
    return list(dict.fromkeys(short))[:MAX_PRESETS]
