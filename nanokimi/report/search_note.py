"""A sentence on whether all arms had the same chance: one search for every arm, and the settings that it found.

A comparison is unfair if one arm was tuned less than another, and a winner over any number of seeds does not show it.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.report.records import Record
from nanokimi.runtime.text import listed

NOTHING_SEARCHED = "NOT TUNED: the settings are as configured, no arm's were searched for."
OTHER_VALUES = "with other values of"
SPLIT = ("dataset.split", "dataset.val_fraction", "dataset.test_fraction")
CHOSEN_ON_TEST = " So the settings may have been chosen on text that is now in the test part."
CONDITIONS = ("train.", "dataset.")
"""How the names of settings begin that all arms share, such as the text and the number of steps."""


def search_note(arms: Sequence[Record]) -> str:
    """The sentence on the arms of a report, which begins with NOT if a difference may be due to tuning.

    Empty for a single arm.
    """
    if len(arms) < 2:
        return ""
    searches = [arm["search"] for arm in arms if arm.get("search")]
    if not searches:
        return NOTHING_SEARCHED
    if len(searches) < len(arms):
        missing = listed([arm["name"] for arm in arms if not arm.get("search")])
        said = f"NOT THE SAME SEARCH: no search was made for {missing}."
        return said + _elsewhere(searches, "The other searches were made")
    first = searches[0]
    differ = [
        name
        for key, name in (("design", "design"), ("trials", "trials"), ("seeds", "tuning seeds"))
        if any(search.get(key) != first.get(key) for search in searches)
    ]
    inherited = first.get("inherited_file")
    if not inherited and not all(_same_ranges(search, first) for search in searches):
        differ.append("ranges")
    if differ:
        said = f"NOT THE SAME SEARCH: the arms differ in {listed(differ)}."
        return said + _elsewhere(searches, "The searches were made")
    changed = [
        f"{arm['name']} ({', '.join(names)})" for arm in arms if (names := _own_changes(arm["search"]))
    ]
    if changed:
        said = f"NOT AS SEARCHED: settings are not those of the search for {listed(changed)}."
        return said + _elsewhere(searches, "The search was made")
    if inherited:
        return _inherited_note(arms, first)
    hyperparameters = {tuple(sorted(search["space"])) for search in searches}
    less = "" if len(hyperparameters) == 1 else ", except for hyperparameters that an arm does not have"
    said = f"Every arm was tuned with the same search: design, trials, tuning seeds and ranges{less}."
    return said + _elsewhere(searches)


def is_caution(note: str) -> bool:
    """Whether the sentence says that the arms may have had unlike chances, or that their search was made elsewhere."""
    return note.startswith("NOT") or OTHER_VALUES in note


def _inherited_note(arms: Sequence[Record], first: Record) -> str:
    """Of arms whose settings a search of another configuration found: what was tested of them."""
    edge = [arm["name"] for arm in arms if not all(arm["search"]["interior"].values())]
    place = f"AT THE EDGE of those tried for {listed(edge)}" if edge else "inside those tried for every arm"
    return (
        f"NOT SEARCHED AT THIS SIZE: every arm inherits the settings of {first['inherited_file']}. Of them only the "
        f"learning rate was tuned here, with {first['trials']} rates for each arm; the best one lies {place}."
    ) + _elsewhere([arm["search"] for arm in arms], "The rates were tried")


def _elsewhere(searches: Sequence[Record], what: str = "It was made") -> str:
    """A sentence on the conditions that are others than in the search, for all arms alike; empty if none are."""
    names = {name for one in searches for name in one.get("changed") or [] if name.startswith(CONDITIONS)}
    if not names:
        return ""
    said = f" {what} {OTHER_VALUES} {listed(sorted(names))}."
    return said + CHOSEN_ON_TEST * bool(names & set(SPLIT))


def _own_changes(search: Record) -> list[str]:
    """The settings of one arm that are not those of its search."""
    return [name for name in search.get("changed") or [] if not name.startswith(CONDITIONS)]


def _same_ranges(search: Record, other: Record) -> bool:
    """Whether the hyperparameters that both have were searched over the same range."""
    keys = ("low", "high", "scale", "choices")
    return all(
        [search["space"][hyperparameter].get(key) for key in keys]
        == [other["space"][hyperparameter].get(key) for key in keys]
        for hyperparameter in search["space"].keys() & other["space"].keys()
    )
