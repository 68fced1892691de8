"""`nanokimi plot` and `nanokimi.plot`: a picture of any runs, comparisons and studies, finished or not.

Runs with the same arm and settings but other random seeds are one arm, drawn with its spread.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from nanokimi.config import FREE_WHEN_RESUMED, RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.parsing import settings
from nanokimi.data.build import METADATA_FILE
from nanokimi.data.metadata import read_metadata
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path
from nanokimi.report.drawn import as_page, as_png, as_svg
from nanokimi.report.kinds import KINDS, OF_A_STUDY, Shown, arms_drawn, axis_of, title_of
from nanokimi.report.pairs import make_strip
from nanokimi.report.picture import key_of_pairs
from nanokimi.report.records import Arm, Record, Run, read_comparison
from nanokimi.runtime.files import read_json, read_json_lines, write_atomic
from nanokimi.runtime.text import listed
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.run_folder import CONFIG_FILE, find_data, runs_in

FORMATS = (".png", ".svg", ".html")
STUDY_FILE, REPORT_FILE, METRICS_FILE = "study.json", "report.json", "metrics.jsonl"
MOST_ARMS = 64
FRAME_HEIGHT = 620
"""Pixels of the page in a notebook."""


@dataclass(frozen=True)
class Opened:
    """A run's folder as a picture needs it."""

    folder: Path
    given: Path
    """What the user named: the folder itself, or the comparison that holds it."""
    config: RunConfig
    run: Run
    text: Record | None
    """Its data.json; None if the data is not there any more."""


@dataclass(frozen=True)
class Picture:
    """What `plot` returns: save it, or leave it to a notebook to show."""

    shown: Shown

    def html(self) -> str:
        """The picture as a page of one file, with a switch of the axis and values under the pointer."""
        return as_page(self.shown)

    def svg(self) -> str:
        """The picture as SVG."""
        return as_svg(self.shown)

    def png(self) -> bytes:
        """The picture as PNG."""
        return as_png(self.shown)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture in the format that the name ends in, and return the path.

        Raises UserError for another ending, and if the file cannot be written.
        """
        target = require_format(Path(path))
        makers: dict[str, Callable[[], str | bytes]]
        makers = {".png": self.png, ".svg": self.svg, ".html": self.html}
        made = makers[target.suffix.lower()]()
        try:
            write_atomic(target, made)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{target} cannot be written ({reason}): choose another --out") from None
        return target

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style stays out of the notebook's."""
        frame = f'width="100%" height="{FRAME_HEIGHT}" style="border:0" title="{escape(self.shown.title)}"'
        return f'<iframe {frame} srcdoc="{escape(self.html())}"></iframe>'

    def _repr_png_(self) -> str:
        """For programs that show no HTML."""
        return base64.b64encode(self.png()).decode("ascii")


def plot(
    *runs: str | os.PathLike[str],
    kind: str | None = None,
    x: str | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Picture:
    """A picture of runs, comparisons (their arms) or one study, which may be in progress.

    Args:
        runs: their folders, or the name of shipped weights ("tales-1m").
        kind: one of `nanokimi plot --help`'s, such as "loss" (the default), "bits", "experts" or "cost".
        x: the axis of what changes through a run: "steps", "tokens", "flops" or "seconds".
        out: also write it to this file, which ends in .png, .svg or .html.

    Raises UserError for folders, kinds and axes that are not there, and for runs without such records.
    """
    if out is not None:
        require_format(Path(out))
    picture = Picture(shown_of([Path(run).expanduser() for run in runs], kind, x))
    if out is not None:
        picture.save(out)
    return picture


def require_format(path: Path) -> Path:
    """The path of a picture. Raises UserError if its name does not say which sort of picture it is."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out is {path}: expected a name that ends in {', '.join(FORMATS)}")
    return path


def shown_of(folders: Sequence[Path], kind: str | None, x: str | None) -> Shown:
    """What a picture of these folders shows."""
    folders = [run_path(folder) for folder in folders]
    if not folders:
        raise UserError("expected the folder of a run, a comparison or a study; see --help")
    if kind is not None and kind not in KINDS:
        raise UserError(f"--kind is {kind}: expected one of {', '.join(KINDS)}")
    studies = [folder for folder in folders if (folder / STUDY_FILE).is_file()]
    if studies:
        return _study(studies[0], folders, kind, x)
    kind = kind or "loss"
    if kind in OF_A_STUDY:
        raise UserError(f"--kind {kind} is of a study, and {folders[0]} is none: name the folder of one")
    x_key = axis_of(x, kind)
    if kind == "differences":
        return _differences(folders, x_key)
    opened = list({one.folder.resolve(): one for folder in folders for one in _opened(folder)}.values())
    opened, waiting = _without_late_seeds(opened)
    arms = arms_drawn(kind, _arms(opened))
    levels, notes = _levels(opened, kind)
    title = f"{title_of(kind)}: {', '.join(arm.name for arm in arms)}"
    return Shown(kind=kind, x_key=x_key, title=title, arms=arms, levels=levels, notes=[*notes, *waiting])


def _study(study: Path, folders: Sequence[Path], kind: str | None, x: str | None) -> Shown:
    if len(folders) > 1:
        raise UserError(f"{study} is a study, which is drawn alone: leave out the other folders")
    report = read_json(study / STUDY_FILE)
    kind = kind or ("scaling" if report.get("curves") else "effects")
    if kind not in OF_A_STUDY:
        raise UserError(f"{study} is a study: --kind is one of {', '.join(OF_A_STUDY)} there, not {kind}")
    return Shown(kind=kind, x_key=axis_of(x, kind), title=report["title"], study=report)


def _differences(folders: Sequence[Path], x_key: str) -> Shown:
    if len(folders) > 1 or not (folders[0] / REPORT_FILE).is_file():
        raise UserError(
            "--kind differences is of one finished comparison, whose report decides them: name its folder alone"
        )
    report, arms = read_comparison(folders[0])
    title = f"{title_of('differences')}: {', '.join(arm.name for arm in arms)}"
    strip, notes = make_strip(report, arms), []
    if strip:
        key = key_of_pairs(strip)
        notes.append(f"{key[0].upper()}{key[1:]}; filled mark: distinguishable.")
        if strip["more"]:
            number = len(strip["rows"]) + len(strip["more"])
            notes.append(f"Of {number} comparisons, those of the arm with the lowest loss.")
    return Shown(kind="differences", x_key=x_key, title=title, arms=arms, strip=strip, notes=notes)


def _opened(folder: Path) -> Iterator[Opened]:
    """The runs in a folder: itself, those of a comparison in the order of its arms, or the seeds of an arm."""
    inside = sorted(path.parent for path in folder.glob(f"seed-*/{CONFIG_FILE}"))
    if (folder / CONFIG_FILE).is_file() or not inside:
        inside = runs_in(folder)
    for run in inside:
        if (run / METRICS_FILE).is_file() or run == folder:
            yield _open(run, folder)


def _open(folder: Path, given: Path) -> Opened:
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{folder} is not a run folder: it has no {CONFIG_FILE}")
    if not (folder / METRICS_FILE).is_file():
        raise UserError(f"{folder} has no {METRICS_FILE}: the run has not begun to train")
    config = load_config(str(folder / CONFIG_FILE))
    result = read_json(folder / RESULT_FILE) if (folder / RESULT_FILE).is_file() else {}
    records = read_json_lines(folder / METRICS_FILE, growing=True)
    path = find_data(folder) / METADATA_FILE
    text = read_metadata(path) if path.is_file() else None
    return Opened(folder, given, config, Run(seed=config.seed, metadata=result, records=records), text)


def _without_late_seeds(opened: Sequence[Opened]) -> tuple[list[Opened], list[str]]:
    """The runs without those in progress whose arm has finished with another seed, and a note about them.

    An arm is drawn at the steps that all of its seeds have, so a seed that has just begun would hide the others.
    """
    done = {_identity(one.config) for one in opened if one.run.metadata}
    late = [one for one in opened if not one.run.metadata and _identity(one.config) in done]
    if not late:
        return list(opened), []
    names = listed(f"{one.config.title}, seed {one.run.seed}" for one in late)
    return [one for one in opened if one not in late], [f"Not finished, and left out: {names}."]


def _identity(config: RunConfig) -> str:
    """What runs of one arm have in common: all that decides their numbers but the seed."""
    own = replace(config, seed=0, arms={}, compare=type(config.compare)())
    families = ["sample.", *(f"{name}." for name in config.families if name != config.model)]
    left_out = ("dataset.path", *FREE_WHEN_RESUMED)
    kept = {
        key: value
        for key, value in settings(own).items()
        if not key.startswith(tuple(families)) and key not in left_out
    }
    return repr((config.title, kept, Path(config.dataset.path).name))


def _arms(opened: Sequence[Opened]) -> list[Arm]:
    """The runs by arm. Arms of the same name are told apart by their folders."""
    groups: dict[tuple[str, str], list[Opened]] = {}
    for one in opened:
        key = (one.config.title, _identity(one.config))
        seeds = [other.run.seed for other in groups.get(key, [])]
        # The same seed twice is no spread.
        again = f"{key[1]} {one.folder}" if one.run.seed in seeds else key[1]
        groups.setdefault((key[0], again), []).append(one)
    if len(groups) > MOST_ARMS:
        raise UserError(f"these folders hold {len(groups)} arms: {MOST_ARMS} at most fit into a picture")
    titles = [title for title, _ in groups]
    arms = []
    for slot, ((title, _), runs) in enumerate(groups.items()):
        name = title if titles.count(title) == 1 else f"{title} ({_told_apart(runs[0], groups)})"
        ordered = tuple(one.run for one in sorted(runs, key=lambda one: one.run.seed))
        arms.append(Arm(name=name, slot=slot, metadata={}, runs=ordered))
    return arms


def _told_apart(one: Opened, groups: dict[tuple[str, str], list[Opened]]) -> str:
    """The name of the folder that the user gave, or its whole path if others have that name."""
    others = [runs[0].given for runs in groups.values() if runs[0].config.title == one.config.title]
    names = [path.resolve().name for path in others]
    if len(set(names)) == len(names):
        return one.given.resolve().name
    return str(one.given) if len(set(others)) == len(others) else str(one.folder)


def _levels(opened: Sequence[Opened], kind: str) -> tuple[list[Record], list[str]]:
    """The entropy floor of the validation text, if all runs share one, and what has to be said below the picture."""
    texts = [one.text for one in opened if one.text is not None]
    part = "test" if kind == "test" else "val"  # other shares of one text may change only one of the two
    keys = ["sha256", f"{part}_text_bytes"]
    if kind != "bits":  # bits per byte do not depend on the tokenizer
        keys += [f"{part}_tokens", "tokenizer", "vocab_size"]
    scored = {tuple(text.get(key) for key in keys) for text in texts}
    notes = []
    if len(scored) > 1 and kind not in ("lr", "cost", "experts", "logits"):
        what = "texts" if kind in ("bits", "test") else "texts, or with different tokenizers"
        notes.append(f"Beware: these runs were scored on different {what}; their losses cannot be compared.")
    if len(scored) != 1 or kind not in ("loss", "bits") or "val_floor_nats" not in texts[0]:
        return [], notes
    text = texts[0]
    nats = text["val_floor_nats"]
    place = nats / text["val_tokens"] if kind == "loss" else nats / math.log(2) / text["val_text_bytes"]
    return [{"key": "floor", "name": f"entropy floor {place:.4f}", "nats": place}], notes
