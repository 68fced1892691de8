"""The kinds of picture that `nanokimi plot` draws: for each kind its panels, from the records of arms or of a study."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from nanokimi.errors import UserError
from nanokimi.report import study_plots, telemetry, units
from nanokimi.report.picture import draw_pairs
from nanokimi.report.plots import (
    BITS,
    HATCHES,
    LOSS,
    MARKERS,
    RATE,
    TRAINING,
    Curve,
    Paint,
    draw_range,
    dress,
)
from nanokimi.report.reading import how_to_read
from nanokimi.report.records import X_AXES, Arm, Record
from nanokimi.report.study_groups import grouped
from nanokimi.report.switched import drawing_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_WORDS = {"steps": "step", "tokens": "tokens", "flops": "flops", "seconds": "train_seconds"}
"""The words of --x, with the field of a record that each means."""
CURVES: dict[str, Curve] = {"loss": LOSS, "bits": BITS, "train": TRAINING, "lr": RATE}
"""Kinds that are one curve for each arm, with a switch of the axis on a page."""
KINDS = {
    "loss": "validation loss, with the entropy floor if the text has one",
    "bits": "validation loss in bits per byte, which can be compared across tokenizers",
    "train": "training loss, smoothed",
    "lr": "learning rate",
    "test": "test loss in bits per byte, of each text if there are several",
    "differences": "differences of test loss, with intervals, of one comparison",
    "experts": "share of the tokens that each expert gets, layer by layer",
    "logits": "largest attention logit of each layer, against QK-Clip's tau",
    "cost": "costs: time, memory and compute",
    "effects": "of a study: what each change is worth, with intervals",
    "scaling": "of a study over sizes: loss against compute",
    "tuning": "of a study: loss against the learning rate",
}
OF_A_STUDY = ("effects", "scaling", "tuning")
WITH_AXIS = (*CURVES, "experts", "logits", "scaling")
"""Kinds that --x applies to."""
PANEL_OF = {"experts": "router", "logits": "attention"}
"""Kinds with panels for each arm, and the records that these are made of."""
LARGE, PANEL = (6.4, 4.1), (5.2, 3.4)
COSTS = (
    ("train_seconds", "Training time (s)", 1.0),
    ("ms_per_step", "Time per step (ms, median)", 1.0),
    ("peak_memory_bytes", "Peak memory (MB)", 1e-6),
    ("flops_per_token", "Training FLOPs per token (millions)", 1e-6),
    ("cache_bytes_per_token", "Cache per token of context (bytes)", 1.0),
    ("decode_ms_per_token", "Writing a token (ms)", 1.0),
)
"""Fields of result.json with the label of their axis and what turns the number into its unit."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a picture shows."""

    kind: str
    x_key: str
    title: str
    arms: Sequence[Arm] = ()
    levels: Sequence[Record] = ()
    """Lines across a loss, such as the entropy floor; `nats` is their place on the axis."""
    study: Record = field(default_factory=dict)
    strip: Record | None = None
    """The differences of a comparison's arms, as `make_strip` has them."""
    notes: Sequence[str] = ()
    """What has to be said below the picture."""

    @property
    def reading(self) -> str:
        """What its lines, bands and marks mean; "" if that needs no words."""
        return how_to_read(self.kind, self.arms)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: `draw(axes, paint, *arguments)`."""

    title: str
    draw: Callable[..., None]
    arguments: tuple[Any, ...]
    inches: tuple[float, float] = PANEL


def title_of(kind: str) -> str:
    """What a kind draws, as the beginning of a title."""
    words = re.split("[,:]", KINDS[kind])[0]
    return words[0].upper() + words[1:]


def arms_drawn(kind: str, arms: Sequence[Arm]) -> list[Arm]:
    """The arms of which a kind draws something: a model without experts has no part in their picture."""
    record = PANEL_OF.get(kind)
    return [arm for arm in arms if record is None or arm.kind(record)]


def panels_of(shown: Shown) -> list[Panel]:
    """The panels of a picture. Raises UserError if the runs have no records of its kind."""
    found = MAKERS[shown.kind](shown) if shown.kind in MAKERS else _curve(shown)
    if not found:
        raise UserError(f"--kind {shown.kind}: {_missing(shown.kind)}")
    return found


def _missing(kind: str) -> str:
    if kind in OF_A_STUDY:
        return "the study has no such numbers"
    if kind == "differences":
        return "the comparison has no two arms that passed their audits"
    if kind in ("test", "cost"):
        return "none of these runs has finished, and these numbers are measured at the end"
    models = {"experts": "a router", "logits": "attention logits"}
    return f"no run has records of {models.get(kind, 'this yet')}"


def _curve(shown: Shown) -> list[Panel]:
    curve = CURVES[shown.kind]
    if not any(r.get(curve.key) is not None for arm in shown.arms for r in arm.kind(curve.record)):
        return []
    draw, after = drawing_of(curve, shown.levels)
    return [Panel(title="", draw=draw, arguments=(shown.arms, shown.x_key, *after), inches=LARGE)]


def _experts(shown: Shown) -> list[Panel]:
    return [
        Panel(
            title=f"{arm.label}, layer {layer}",
            draw=telemetry.draw_experts,
            arguments=(arm, number, shown.x_key),
            inches=(4.2, 2.7),
        )
        for arm in shown.arms
        if arm.kind("router")
        for number, layer in enumerate(arm.kind("router")[0]["layers"])
    ]


def _logits(shown: Shown) -> list[Panel]:
    return [
        Panel(title=arm.label, draw=telemetry.draw_logits, arguments=(arm, shown.x_key))
        for arm in shown.arms
        if arm.kind("attention")
    ]


def _costs(shown: Shown) -> list[Panel]:
    known = {key for arm in shown.arms for run in arm.runs for key, value in run.metadata.items() if value}
    height = 0.9 + 0.34 * len(shown.arms)
    return [
        Panel(title="", draw=draw_cost, arguments=(shown.arms, *cost), inches=(4.6, height))
        for cost in COSTS
        if cost[0] in known
    ]


def _test(shown: Shown) -> list[Panel]:
    texts = test_scores(shown.arms)
    if not any(values for text in texts.values() for values in text.values()):
        return []
    height = 1.0 + sum(0.25 + 0.24 * len(shown.arms) for _ in texts)
    return [Panel(title="", draw=draw_test, arguments=(shown.arms, texts), inches=(LARGE[0], height))]


def _differences(shown: Shown) -> list[Panel]:
    if shown.strip is None:
        return []
    rows = shown.strip["rows"]
    return [Panel(title="", draw=draw_pairs, arguments=(rows,), inches=(LARGE[0], 0.9 + 0.4 * len(rows)))]


def _effects(shown: Shown) -> list[Panel]:
    return [
        Panel(
            title=group.title,
            draw=study_plots.draw_effects,
            arguments=(rows,),
            inches=(5.8, study_plots.effects_height(len(rows)) + 0.3),
        )
        for _, group, rows in grouped(shown.study.get("effects") or [])
    ]


def _scaling(shown: Shown) -> list[Panel]:
    curves = shown.study.get("curves") or []
    arguments = (curves, shown.x_key, shown.study["data"]["floor"])
    return [Panel(title="", draw=study_plots.draw_curves, arguments=arguments)] if curves else []


def _tuning(shown: Shown) -> list[Panel]:
    tuned = study_plots.tuned_arms(shown.study)
    return [Panel(title="", draw=study_plots.draw_tuning, arguments=(tuned,))] if tuned else []


MAKERS: dict[str, Callable[[Shown], list[Panel]]] = {
    "test": _test,
    "differences": _differences,
    "experts": _experts,
    "logits": _logits,
    "cost": _costs,
    "effects": _effects,
    "scaling": _scaling,
    "tuning": _tuning,
}


def draw_cost(axes: Axes, paint: Paint, arms: Sequence[Arm], key: str, label: str, unit: float) -> None:
    """Draw a bar for each arm, the mean over its seeds, and a line from the lowest to the highest seed."""
    from matplotlib.ticker import MaxNLocator

    dress(axes, paint, label, "")
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more labels of five digits would run together
    axes.grid(True, axis="x", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="y")
    highest = 0.0
    for place, arm in enumerate(arms):
        values = [run.metadata[key] * unit for run in arm.runs if run.metadata.get(key) is not None]
        if not values:
            _number(axes, paint, "not measured", (0.0, place))
            continue
        style: dict[str, Any] = dict(
            color=paint.arms[arm.style.colour], hatch=HATCHES[arm.style.dash], edgecolor=paint.paper
        )
        axes.barh(place, fmean(values), height=0.62, linewidth=0, **style)
        draw_range(axes, paint, values, place)
        highest = max(highest, *values)
        _number(axes, paint, units.plain(fmean(values)), (max(values), place))
    _names(axes, paint, [arm.label for arm in arms])
    axes.set_xlim(0, 1.22 * highest or 1)


def test_scores(arms: Sequence[Arm]) -> dict[str, dict[str, list[float]]]:
    """For all texts and for each one the bits per byte of every arm's seeds, by the arm's label."""
    names = dict.fromkeys(
        name for arm in arms for run in arm.runs for name in run.metadata.get("test_sources") or ()
    )
    whole = "all texts" if names else "test text"
    texts: dict[str, dict[str, list[float]]] = {whole: {}, **{name: {} for name in names}}
    for arm in arms:
        for text, scores in texts.items():
            found = [
                run.metadata.get("test_bits_per_byte")
                if text == whole
                else (run.metadata.get("test_sources") or {}).get(text, {}).get("bits_per_byte")
                for run in arm.runs
            ]
            scores[arm.label] = [value for value in found if value is not None]
    return texts


def draw_test(
    axes: Axes, paint: Paint, arms: Sequence[Arm], texts: dict[str, dict[str, list[float]]]
) -> None:
    """Draw each arm's bits per byte, text by text: the mean over a line from the lowest to the highest seed."""
    dress(axes, paint, "Test loss (bits per byte)", "")
    axes.grid(True, axis="x", color=paint.grid, linewidth=0.8)
    axes.grid(False, axis="y")
    place, middles = 0.0, []
    for scores in texts.values():
        middles.append(place + (len(arms) - 1) / 2)
        for arm in arms:
            values = scores[arm.label]
            if values:
                draw_range(axes, paint, values, place)
                axes.plot(
                    [fmean(values)],
                    [place],
                    color=paint.arms[arm.style.colour],
                    marker=MARKERS[arm.style.mark],
                    markersize=7,
                )
                _number(axes, paint, units.fixed(fmean(values)), (max(values), place))
            place += 1
        place += 1
    _names(axes, paint, list(texts), middles)
    axes.set_ylim(place - 1.4, -0.6)
    axes.margins(x=0.16)


def _number(axes: Axes, paint: Paint, text: str, place: tuple[float, float]) -> None:
    """Write a number beside the end of a bar or line."""
    axes.annotate(
        text, place, xytext=(8, 0), textcoords="offset points", va="center", color=paint.ink, fontsize=8
    )


def _names(axes: Axes, paint: Paint, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    import textwrap

    axes.set_yticks(places or list(range(len(names))), [textwrap.fill(name, 26) for name in names])
    axes.tick_params(axis="y", labelcolor=paint.ink, length=0)
    axes.set_ylim(len(names) - 0.4, -0.6)


def axis_of(word: str | None, kind: str) -> str:
    """The field of a record that --x means. Raises UserError for one that the kind does not have."""
    usual = "flops" if kind == "scaling" else "step"
    if word is None:
        return usual
    if kind not in WITH_AXIS:
        raise UserError(f"--x {word} has no effect with --kind {kind}, which has no such axis: leave it out")
    allowed = ("flops", "seconds") if kind == "scaling" else tuple(X_WORDS)
    if word not in allowed:
        raise UserError(f"--x is {word}: expected one of {', '.join(allowed)}")
    assert set(X_WORDS.values()) == set(X_AXES)
    return X_WORDS[word]
