"""A sheet to draw diagrams on, saved as SVG: boxes, arrows and text in a few roles, light or dark as the screen is.

A role is told by its outline (thin, thick, dashed) and by words, never by its colour alone, so that a diagram can be
read in grey and by colour-blind people. The sheet has a background of its own, so that it suits any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

STYLE = """
text { font-family: -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif; font-size: 16px; fill: #1b1f24 }
.small { font-size: 14px }
.title { font-weight: 600 }
.code { font-family: ui-monospace, "Liberation Mono", Consolas, monospace; font-size: 14px }
.muted { fill: #505965 }
.sheet { fill: #ffffff; stroke: #d0d5db }
.plain { fill: #f1f3f5; stroke: #6b7480; stroke-width: 1.2 }
.kept { fill: #cfe4f6; stroke: #005a92; stroke-width: 3 }
.turned { fill: #fbe3d0; stroke: #a84408; stroke-width: 2; stroke-dasharray: 6 3 }
.idle { fill: none; stroke: #98a1ab; stroke-width: 1.2; stroke-dasharray: 2 4 }
.line { fill: none; stroke: #505965; stroke-width: 1.6 }
.faint { fill: none; stroke: #c3c9d0; stroke-width: 1.2 }
.limit { fill: none; stroke: #a84408; stroke-width: 2; stroke-dasharray: 7 4 }
.first { fill: none; stroke: #005a92; stroke-width: 3 }
.second { fill: none; stroke: #a84408; stroke-width: 2.4; stroke-dasharray: 7 4 }
.head { fill: #505965 }
@media (prefers-color-scheme: dark) {
text { fill: #e8edf2 }
.muted { fill: #aab4bf }
.sheet { fill: #161b22; stroke: #3a424c }
.plain { fill: #242b34; stroke: #8b95a1 }
.kept { fill: #0d3b5e; stroke: #6fbdf2 }
.turned { fill: #56290c; stroke: #f2a468 }
.idle { stroke: #6b7480 }
.line { stroke: #aab4bf }
.faint { stroke: #4a535e }
.limit { stroke: #f2a468 }
.first { stroke: #6fbdf2 }
.second { stroke: #f2a468 }
.head { fill: #aab4bf }
}
"""


class Sheet:
    """A drawing of `width` by `height`; `title` is what a screen reader says."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, role: str = "", anchor: str = "middle") -> None:
        """One line of text; `role` is classes such as "small muted"."""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{role}">{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str | Sequence[str] = (),
        role: str = "plain",
        text: str = "",
        radius: float = 5,
    ) -> None:
        """A rectangle with centred lines of text."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" class="{role}"/>'
        )
        lines = [words] if isinstance(words, str) else list(words)
        for place, line in enumerate(lines):
            offset = (place - (len(lines) - 1) / 2) * 19
            self.text(x + width / 2, y + height / 2 + 5.5 + offset, line, text)

    def path(self, points: Sequence[tuple[float, float]], role: str = "line", arrow: bool = False) -> None:
        """A line through the points, with an arrow's head at its end."""
        along = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = ' marker-end="url(#head)"' if arrow else ""
        self.parts.append(f'<polyline points="{along}" class="{role}"{end}/>')

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line that ends in an arrow's head."""
        self.path(points, arrow=True)

    def dot(self, x: float, y: float, radius: float, words: str = "", role: str = "plain") -> None:
        """A circle with a word in it."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{role}"/>')
        if words:
            self.text(x, y + 6, words)

    def svg(self) -> str:
        """The whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-label="{escape(self.title)}">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M 0 0 L 10 5 L 0 10 z" class="head"/></marker></defs>'
        )
        sheet = f'<rect x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8" class="sheet"/>'
        lines = [
            head,
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            marker,
            sheet,
            *self.parts,
        ]
        return "\n".join([*lines, "</svg>"]) + "\n"
