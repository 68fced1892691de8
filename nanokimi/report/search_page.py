"""`write_search_page`: search.html from the search.json of `nanokimi sweep --search`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nanokimi.report import plots, units
from nanokimi.report.page import render
from nanokimi.report.search_place import beside_sentence
from nanokimi.report.study_search import figures, hyperparameter_rows
from nanokimi.runtime.files import read_json, write_atomic

SEARCH_FILE, SEARCH_PAGE = "search.json", "search.html"


def write_search_page(folder: Path) -> None:
    """Write search.html, from search.json alone."""
    content = read_json(folder / SEARCH_FILE)
    arms = [
        {"name": name, "tuning": record, "rows": hyperparameter_rows(record), "lines": preset_lines(record)}
        for name, record in content["arms"].items()
    ]
    context = {
        "title": f"The best settings found for each arm: {content['data']['path']}",
        "content": content,
        "sentences": [sentence(arm["name"], arm["tuning"]) for arm in arms],
        "searched": arms,
        "search_svgs": figures(arms),
        "open": True,
        "arms": [],
        "units": units,
        "colours": plots.PAPER.arms,
    }
    write_atomic(folder / SEARCH_PAGE, render(context, "search_page.html"))


def sentence(name: str, record: dict[str, Any]) -> str:
    """What was found for one arm."""
    loss = (
        "every trial diverged" if record["loss"] is None else f"{units.fixed(record['loss'])} nats per token"
    )
    edges = [key for key, inside in record["interior"].items() if not inside]
    where = f"AT THE EDGE in {', '.join(edges)}" if edges else "every optimum lies inside what was tried"
    found = f"{name}: {loss}, in {record['trials']} trials and {record['runs']} runs; {where}."
    if beside := beside_sentence([(name, record)]):
        found = f"{found} {beside}"
    return f"{found} {rate_found(record)}." if record.get("inherited_file") else found


def rate_found(record: dict[str, Any]) -> str:
    """The best rate of an arm that inherits its settings from a search, beside the rate that this search found."""
    best, there = record["best_values"]["lr"], record["inherited_rate"]
    held = "the inherited one" if best == there else f"{best / there:.3g} times the inherited one"
    return f"Settings of {record['inherited_file']}, best rate {units.rate(best)}: {held}"


def preset_lines(record: dict[str, Any]) -> str:
    """The best settings as lines of a preset."""
    groups: dict[str, list[str]] = {}
    for key, value in record["best"].items():
        group, _, setting = key.partition(".")
        groups.setdefault(group, []).append(f"{setting}: {yaml_value(value)}")
    body = [f"  {group}: {{{', '.join(settings)}}}" for group, settings in sorted(groups.items())]
    return "\n".join([f"{record.get('family', 'arm')}:", *body])


def yaml_value(value: Any) -> str:
    """A value as a preset has it. YAML would read 1e-05 as a word, so it becomes 1.0e-05."""
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_value, value))}]"
    if isinstance(value, float):
        mantissa, e, exponent = f"{value:g}".partition("e")
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}" if e else f"{value:g}"
    return str(value)
