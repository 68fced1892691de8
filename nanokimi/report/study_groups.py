"""The groups of comparisons that a study makes, in the order in which every output shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Group:
    """How the comparisons of one family are introduced."""

    title: str
    about: str = ""
    """What is compared, and how to read the sign of a difference."""
    more: str = ""
    """Sentences that only the page has room for."""

    @property
    def heading(self) -> str:
        """Title and explanation in one line, for a table of text."""
        return f"{self.title}: {self.about}" if self.about else self.title

    @property
    def lead(self) -> str:
        """The paragraph under the title on the page."""
        about = f"{self.about[0].upper()}{self.about[1:]}." if self.about else ""
        return f"{about} {self.more}".strip()


GROUPS = {
    "additive": Group("Additive", "each component added to all before it (negative: it helps)"),
    "end to end": Group("All components together"),
    "leave-one-out": Group("Leave-one-out", "NanoKimi without one component (positive: the component helps)"),
    "2x2": Group(
        "Architecture times optimizer",
        more="Both architectures with both optimizers, so that neither is credited with the other's gain.",
    ),
    "beside": Group("Always compared"),
    "also": Group("Added on the command line"),
    "inheritance": Group(
        "Inheritance",
        "a corner with the settings found for the other (positive: its own search is better)",
        "All arms but the corners inherit the settings found for a corner, and only their learning rate is tuned. "
        "Here a corner itself inherits, from the other corner with its optimizer, and is compared with its own search.",
    ),
    "budgets": Group(
        "Per token, per FLOP, per second",
        "the verdict under several budgets, each from runs whose schedule decays to the end of that budget",
        "At equal FLOPs or seconds, the more expensive models stop at what the cheapest one spends. A model may win "
        "under one budget and lose under another.",
    ),
    "families": Group("At each size", more="Equal active parameters and tokens at each size."),
}
"""By the `family` of a comparison in study.json."""


def grouped(effects: Sequence[dict[str, Any]]) -> list[tuple[str, Group, list[dict[str, Any]]]]:
    """Comparisons by family. Families that GROUPS does not have, as in old records, come last under their own names."""
    families = dict.fromkeys([*GROUPS, *(one["family"] for one in effects)])
    found = [(family, [one for one in effects if one["family"] == family]) for family in families]
    return [(family, GROUPS.get(family, Group(family)), rows) for family, rows in found if rows]


def names_by_match(effects: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """What the arms of comparisons are matched in, in words, with the names of the comparisons that it is true of."""
    found: dict[str, list[str]] = {}
    for effect in effects:
        if effect["match"]:
            found.setdefault(effect["match"], []).append(effect["name"])
    return found
