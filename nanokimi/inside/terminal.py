"""The inside view as text: a table with a line for each token, shaded by surprise, and what holds for the whole text.

The shade has five levels, and a bar says the same without colours. Rich leaves the colours out where the output is no
terminal, or NO_COLOR is set.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanokimi.inside.attention import AttentionMap
from nanokimi.inside.look import LayerExperts, Look, Token
from nanokimi.inside.pieces import LINE_END, SPACE, TAB
from nanokimi.inside.view import View

SHADES = ("", "black on #fde3cd", "black on #fbc193", "black on #f2944b", "bold black on #e0762a")
BITS_OF_A_SHADE = 2.0
BAR_BITS = 10.0
BAR_WIDTH, LABEL_WIDTH = 8, 18
INSTEAD, MOST_EXPERTS, MOST_LOOKS, MOST_CHIPS = 3, 4, 2, 6
PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""


def print_view(view: View, console: Console) -> None:
    """Print one model's view."""
    write = Writer(console)
    look = view.look
    written = sum(token.written for token in look.tokens)
    mean = "" if look.mean_bits is None else f", {look.mean_bits:.2f} bits per token"
    write.line(f"--- {look.name}: {len(look.tokens)} tokens, {written} written{mean}")
    for line in look.unknown:
        write.line(line)
    console.print(write.table(look, view.maps[0] if view.maps else None))
    for layer in look.experts:
        if layer.load is not None:
            write.line(load_line(layer))
    if look.max_logits is not None:
        tau = "trained without QK-Clip" if look.tau is None else f"QK-Clip's tau is {look.tau:g}"
        tops = ", ".join(f"{value:.1f}" for value in look.max_logits.max(axis=1))
        write.line(f"largest attention logit of each layer: {tops} ({tau})")
    if line := cache_line(look):
        write.line(line)
    write.favourites(view)


class Writer:
    """Lines and tables for one console, without characters that it cannot show."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.unicode = "utf" in console.encoding.lower()

    def line(self, text: str) -> None:
        """One line, broken only by the terminal."""
        self.console.print(Text(self.shown(text)), soft_wrap=True)

    def shown(self, text: str) -> str:
        """A text in the characters of the console."""
        return (
            text if self.unicode else text.translate({ord(SPACE): "_", ord(LINE_END): "\\n", ord(TAB): "\\t"})
        )

    def table(self, look: Look, seen: AttentionMap | None) -> Table:
        """A line for each token."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
        table.add_column("#", justify="right", no_wrap=True)
        table.add_column("token", no_wrap=True, max_width=LABEL_WIDTH, overflow="ellipsis")
        table.add_column("bits", justify="right", no_wrap=True)
        table.add_column("surprise", no_wrap=True, width=BAR_WIDTH)
        table.add_column("likeliest in its place", overflow="fold", ratio=3)
        if look.experts:
            table.add_column("experts, by layer", overflow="fold", ratio=2)
        if seen is not None:
            table.add_column(f"layer {seen.layer}, head {seen.head} looks at", overflow="fold", ratio=2)
        for place, token in enumerate(look.tokens):
            cells = [
                Text(f"{place + 1}{'' if token.written else '.'}"),
                Text(self.shown(token.piece.label), style=shade(token.surprise)),
                Text("" if token.surprise is None else f"{token.surprise:.2f}"),
                Text(self.bar(token.surprise)),
                Text(self.shown(instead(token))),
            ]
            if look.experts:
                cells.append(Text(experts_text(look.experts, place)))
            if seen is not None:
                cells.append(Text(self.shown(looks_text(look, seen, place))))
            table.add_row(*cells)
        table.caption = "a point after the number: a token of the prompt"
        table.caption_justify, table.caption_style = "left", "dim"
        return table

    def bar(self, surprise: float | None) -> str:
        """Surprise as a bar."""
        share = min((surprise or 0.0) / BAR_BITS, 1.0)
        return ("\u2588" if self.unicode else "#") * round(share * BAR_WIDTH)

    def favourites(self, view: View) -> None:
        """What each expert takes more often than others."""
        if view.favourites is None:
            return
        self.line(
            f"favourite tokens over {view.favourites.tokens:,} of {view.favourites.of:,} validation tokens:"
        )
        for layer in view.favourites.layers:
            for expert, row in enumerate(layer.favourites):
                chips = [
                    f"{one.label} x{one.lift:.1f} ({one.taken:g} of {one.seen})" for one in row[:MOST_CHIPS]
                ]
                self.line(f"  layer {layer.layer}, expert {expert}: {'  '.join(chips) or 'none'}")


def shade(surprise: float | None) -> str:
    """The style of a token."""
    level = 0 if surprise is None else int(surprise / BITS_OF_A_SHADE)
    return SHADES[min(level, len(SHADES) - 1)]


def instead(token: Token) -> str:
    """The likeliest tokens in the place of one, with their probabilities."""
    if token.expected is None:
        return "(nothing was read before it)"
    best = token.expected.alternatives[:INSTEAD]
    return "  ".join(f"{one.label} {percent(one.probability)}" for one in best)


def experts_text(layers: Sequence[LayerExperts], place: int) -> str:
    """The experts that took a token, as "1: 3 0  2: 5 1"."""
    said = []
    for layer in layers:
        took = [str(expert) for expert, _ in layer.of(place)]
        more = "..." if len(took) > MOST_EXPERTS else ""
        said.append(f"{layer.layer}: {' '.join(took[:MOST_EXPERTS]) or '?'}{more}")
    return "  ".join(said)


def looks_text(look: Look, seen: AttentionMap, place: int) -> str:
    """The tokens from which a head takes most."""
    row_T = seen.weights_TT[place]
    best = sorted(range(place + 1), key=lambda other: -row_T[other])[:MOST_LOOKS]
    return "  ".join(f"{look.tokens[other].piece.label} {percent(row_T[other])}" for other in best)


def percent(share: float) -> str:
    """A share in whole percent."""
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def load_line(layer: LayerExperts) -> str:
    """The load of a layer's experts."""
    assert layer.load is not None
    shares = " ".join(f"{100 * share:.0f}" for share in layer.load)
    balanced = f"balanced: {100 / layer.experts:.3g}"
    shared = {0: "", 1: "; a shared expert sees every token"}.get(
        layer.shared, f"; {layer.shared} shared experts see every token"
    )
    return f"layer {layer.layer}: load of experts 0 to {layer.experts - 1}: {shares} % ({balanced}{shared})"


def cache_line(look: Look) -> str:
    """What is kept of each token; "" for a model without a cache."""
    cache = look.cache
    if cache is None:
        return ""
    fixed = f", and {cache.bytes_fixed:,} bytes in all" if cache.bytes_fixed else ""
    line = f"it keeps {cache.bytes_per_token:,} bytes of each token{fixed}"
    ordinary = cache.ordinary_bytes_per_token
    if ordinary is None or ordinary == cache.bytes_per_token:
        return line
    return f"{line}; keys and values of every head would take {ordinary:,}"
