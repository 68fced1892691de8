"""The Watch tab's HTML: curves of all arms, and a panel for each run."""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.play.curves import Line, charts, sample, smoothed
from nanokimi.play.markup import empty, message, shown, swatch
from nanokimi.play.watch import Progress, in_words, shared_floor
from nanokimi.report import units

MOST_PANELS = 8
STORY_CHARACTERS = 600


def progress_page(runs: Sequence[Progress]) -> str:
    """All that is known of the runs of one folder."""
    if not runs:
        return empty("Nothing yet", "The run has written no record so far.")
    of, names = len(runs), dict.fromkeys(run.name for run in runs)
    runs = with_panels(runs)
    here = {run.name for run in runs}
    slots = {name: slot for slot, name in enumerate(names) if name in here}
    lines = [Line(run.name, slots[run.name], smoothed(run.losses), thin=True) for run in runs]
    lines += [Line(run.name, slots[run.name], run.val_losses) for run in runs]
    curve = charts(lines, "Loss by step", shared_floor(runs))
    figure = (
        f'<figure class="nk-figure"><figcaption>Loss in nats per token. {key(slots)} '
        f"Bold: validation, thin: training.</figcaption>{curve}</figure>"
        if curve
        else ""
    )
    panels = "".join(panel(run, slots[run.name]) for run in runs)
    left_out = (
        "" if of == len(runs) else f"{len(runs)} of {of} runs are shown, those that have not finished first."
    )
    return f'{message(left_out, "note")}{figure}<div class="nk-panes">{panels}</div>'


def with_panels(runs: Sequence[Progress]) -> list[Progress]:
    """Those that are shown, in their order: of more than there is room for, first those that have not finished."""
    kept = sorted(range(len(runs)), key=lambda place: runs[place].finished)[:MOST_PANELS]
    return [runs[place] for place in sorted(kept)]


def key(slots: dict[str, int]) -> str:
    """The names beside their lines."""
    return "".join(f"<span>{sample(slot)}{shown(name)}</span>" for name, slot in slots.items())


def panel(run: Progress, slot: int) -> str:
    """One run."""
    share = min(run.step / run.total_steps, 1.0) if run.total_steps else 0.0
    of = f" of {run.total_steps:,.0f}" if run.total_steps else ""
    story = ""
    if run.sample is not None:
        step, prompt, text = run.sample
        text = text.removeprefix(prompt)
        rest = shown(text[:STORY_CHARACTERS]) + ("..." if len(text) > STORY_CHARACTERS else "")
        told = f'<div class="nk-story"><b>{shown(prompt)}</b>{rest}</div>'
        story = f'<p class="nk-small">Story after {step:,} steps</p>{told}'
    event = f'<p class="nk-small">{shown(run.event)}</p>' if run.event else ""
    colour = f"width:{100 * share:.1f}%;background:var(--nk-arm-{slot % 8})"
    numbers = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts(run))
    return (
        f'<section class="nk-pane" aria-label="{shown(run.name)}"><header><h3>{swatch(slot)}{shown(run.name)}</h3>'
        f'<span class="nk-size">seed {run.seed}</span><span class="nk-state">{shown(run.state)}</span></header>'
        f'<p class="nk-small">step {run.step:,}{of}</p>'
        f'<span class="nk-bar tall"><i style="{colour}"></i></span>'
        f'<dl class="nk-numbers four">{numbers}'
        f"</dl>{event}{story}</section>"
    )


def facts(run: Progress) -> list[tuple[str, str]]:
    """The numbers of a run, as they are now."""
    recent = smoothed(run.losses)
    speed, left = run.tokens_per_second, run.seconds_left
    time = ("training time left", "-" if left is None else in_words(left))
    if run.finished:
        time = ("training time", in_words(run.train_seconds) if run.train_seconds else "-")
    return [
        ("training loss", f"{recent[-1][1]:.4f}" if recent else "-"),
        ("validation loss", f"{run.val_losses[-1][1]:.4f}" if run.val_losses else "-"),
        ("tokens per second", "-" if speed is None else f"{speed:,.0f}"),
        ("memory", units.size(run.memory_bytes) if run.memory_bytes else "-"),
        time,
    ]
