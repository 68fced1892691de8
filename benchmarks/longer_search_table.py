"""How far the default comparison's search had come: its best validation losses after each pattern, and after two more.

docs/results/search-tales-longer.jsonl has every trial of `nanokimi sweep --config tales --search --trials 16 --seeds 1
--search-rounds 5`, whose first 66 trials of each arm were taken from the preset's search and not run again.
"""

from __future__ import annotations

from recorded import RESULTS, Row

from nanokimi.runtime.files import read_json_lines

POINTS, OF_PATTERN, PATTERNS, SHIPPED = 16, (16, 17, 17, 17, 17), 5, 3
"""Trials of the points and of each pattern (two steps of eight hyperparameters; from the second on a joint one before
them), and how many patterns made the settings that the preset has."""


def longer_search() -> dict[str, Row]:
    """Each arm's record."""
    rows = read_json_lines(RESULTS / "search-tales-longer.jsonl")
    return {row["arm"]: row for row in rows if row["kind"] == "arm"}


def best_after(row: Row, patterns: int) -> float:
    """The lowest validation loss of the points and of so many patterns."""
    count = POINTS + sum(OF_PATTERN[:patterns])
    return min(float(trial["losses"][0]) for trial in row["table"][:count] if trial["losses"][0] is not None)


def longer_search_table() -> str:
    """The best validation loss of each arm after each pattern."""
    counts = [POINTS + sum(OF_PATTERN[:patterns]) for patterns in range(PATTERNS + 1)]
    lines = [
        f"| best validation loss | {' | '.join(f'{count} trials' for count in counts)} |",
        "|" + "---|" * (len(counts) + 1),
    ]
    for arm, row in longer_search().items():
        cells = [f"{best_after(row, patterns):.4f}" for patterns in range(PATTERNS + 1)]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gained_by_two_more(arm: str) -> str:
    """By how much the two patterns after those of the preset lower an arm's best validation loss."""
    row = longer_search()[arm]
    return f"{best_after(row, SHIPPED) - best_after(row, PATTERNS):.3f}"
