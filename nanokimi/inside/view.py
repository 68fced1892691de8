"""What is shown of a model: a look, and what was computed beside it. `with_maps` keeps a page within its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nanokimi.errors import UserError
from nanokimi.inside.attention import AttentionMap, attention_maps, layers_shown
from nanokimi.inside.favourites import Favourites
from nanokimi.inside.look import Look
from nanokimi.inside.subject import Subject


@dataclass(frozen=True)
class View:
    """A look, and what was computed when asked."""

    look: Look
    favourites: Favourites | None = None
    """None: not computed, or there are none."""
    maps: tuple[AttentionMap, ...] = ()
    maps_note: str = ""
    """Which maps are not here, and why."""


@dataclass(frozen=True)
class Wanted:
    """Which maps of attention are asked for; None: all."""

    layer: int | None = None
    head: int | None = None


def with_maps(view: View, subject: Subject, wanted: Wanted, most: int, *, must_show: bool = True) -> View:
    """The view with at most `most` of the wanted maps, spread over the layers, and a note about those left out.

    Raises UserError if a layer or head is asked for that the model does not have, and, if it `must_show` them, if the
    layer asked for has no weights over tokens; otherwise the note says so.
    """
    layers = range(layers_shown(subject, view.look.ids)) if wanted.layer is None else [wanted.layer]
    if not layers:
        return replace(view, maps_note="It calls neither torch's attention nor a softmax over tokens.")
    heads = None if wanted.head is None else [wanted.head]
    of_each = max(-(-most // len(layers)), 1)  # no more are made than can be kept
    found = {layer: attention_maps(subject, view.look.ids, layer, heads, most=of_each) for layer in layers}
    silent = [layer for layer, maps in found.items() if maps is None]
    if silent and wanted.layer is not None and must_show:
        raise UserError(
            f"{view.look.name} does not show the attention of layer {wanted.layer}: choose another --layer"
        )
    by_layer = [maps for maps in found.values() if maps]
    kept = spread(by_layer, most)
    total = sum(maps[0].heads if heads is None else len(maps) for maps in by_layer)
    note = ""
    if len(kept) < total:
        note = f"{len(kept)} of {total} maps are here, so that the page stays small. "
        note += (
            "For others ask for one layer or head."
            if most > 0
            else "Even one is too large: choose a shorter text."
        )
    if silent:
        without = ", ".join(map(str, silent))
        note += f"{' ' if note else ''}The attention of layer {without} does not show weights over tokens."
    return replace(view, maps=tuple(kept), maps_note=note)


def spread(by_layer: Sequence[Sequence[AttentionMap]], most: int) -> list[AttentionMap]:
    """At most `most` maps: the first head of each layer, then the second, ...; in the order of layers and heads."""
    heads = max(map(len, by_layer), default=0)
    turns = [row[head] for head in range(heads) for row in by_layer if head < len(row)]
    return sorted(turns[: max(most, 0)], key=lambda one: (one.layer, one.head))
