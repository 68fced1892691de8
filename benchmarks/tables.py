"""Make every table and number of README.md and docs/ that comes from recorded runs, from the lines in docs/results.

    python benchmarks/tables.py            # write them into the documents
    python benchmarks/tables.py --check    # change nothing; exit status 1 if a document differs (a test calls it)

A document marks a table by two comments, `<!-- table NAME: made by benchmarks/tables.py -->` and `<!-- end NAME -->`;
everything between them is generated. A number within a sentence is written between `<!--=NAME-->` and `<!--=-->`;
`prose_numbers.NUMBERS` computes it, and a test allows no other measured number in README. The lines come
from `benchmarks/record.py` (comparisons, studies), `benchmarks/receipts.py` and the benchmarks' own `--out` (speed).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bilingual import bilingual_table
from kimi_tables import KIMI_TABLES
from longer_search_table import longer_search_table
from narrower import changed_verdicts_table
from one_rate_table import one_rate_arms_table, one_rate_verdicts_table
from prose_numbers import with_numbers
from receipts import receipts_table
from recorded import (
    OLD_SEED_2,
    PRESETS,
    RESULTS,
    ROOT,
    Row,
    judged,
    old_shakespeare,
    old_tales,
    read_comparison,
)
from short_search_table import short_search_arms_table, short_search_verdicts_table
from speed_table import speed_table
from spread_table import spread_table
from study_tables import false_winners_table, old_and_new, pairing_table, study_block
from warmup_table import warmup_arms_table, warmup_verdicts_table
from withdrawn import old_ratios_table, withdrawn_table

from nanokimi.compare.earlier_searches import patterns_of
from nanokimi.compare.verdict import verdict
from nanokimi.measure.stats import paired_t, search_variance
from nanokimi.report.units import seconds as in_time
from nanokimi.runtime.files import read_json, read_json_lines, write_atomic

COLUMNS = (
    ("test_loss", "test loss (nats per token)", "{:.4f}", 1.0),
    ("floor_gap", "above the attainable entropy floor", "{:.4f}", 1.0),
    ("test_bits_per_byte", "bits per byte", "{:.4f}", 1.0),
    ("params_active", "active parameters", "{:,.0f}", 1.0),
    ("params_total", "total parameters", "{:,.0f}", 1.0),
    ("flops", "training FLOPs (10^12)", "{:.1f}", 1e-12),
    ("train_seconds", "training seconds", "{:.0f}", 1.0),
    ("peak_memory_bytes", "peak memory (MB)", "{:.0f}", 1e-6),
    ("decode_ms_per_token", "decode ms per token (first seed)", "{:.2f}", 1.0),
)


# ---- comparisons


def comparison_table(name: str) -> str:
    """A column for each arm, mean and standard deviation over seeds, with the verdict below."""
    head, runs, arms, pairs = judged(name)
    lines = ["| | " + " | ".join(arm["name"] for arm in arms) + " |", "|---|" + "---|" * len(arms)]
    for key, title, form, unit in COLUMNS:
        cells = [cell([run[key] for run in runs if run["arm"] == arm["name"]], form, unit) for arm in arms]
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    sentence = verdict(arms, pairs, head["data"]["baselines"], None)["sentence"]
    return "\n".join([*lines, "", made_by(head, runs), "", f"Verdict: {sentence}"])


def cell(values: list[float | None], form: str, unit: float) -> str:
    """Mean and deviation over the seeds that have the value; nothing where none has."""
    known = [value * unit for value in values if value is not None]
    if not known:
        return ""
    deviation = stdev(known) if len(known) > 1 else 0.0
    return form.format(fmean(known)) + (f" +- {form.format(deviation)}" if deviation else "")


def made_by(head: Row, runs: list[Row]) -> str:
    """The command, the machine, the seeds, the budget."""
    seeds = sorted({run["seed"] for run in runs})
    base = ", ".join(
        f"{'entropy floor' if name == 'floor' else name} {score['test_loss']:.4f}"
        for name, score in head["data"]["baselines"].items()
        if score["test_loss"] is not None
    )
    return (
        f"`{head['command']}`, commit {head['commit'][:7]}, {head['time'][:10]}, {head['cores']} cores of an "
        f"{head['processor']}, {runs[0]['dtype']}, {runs[0]['threads']} threads; seeds {seeds[0]} to {seeds[-1]}, "
        f"{runs[0]['steps']:,} steps, {runs[0]['tokens']:,} tokens. Mean and standard deviation over seeds. "
        f"Baselines: {base} nats per token."
    )


def pair_table(name: str) -> str:
    """Every pair of arms: the interval over seeds, and the deciding one, which includes the searches' noise.

    Where no arm's search is recorded there is no such noise to include, and the interval over seeds decides.
    """
    head, runs, arms, pairs = judged(name)
    losses = {arm["name"]: [run["test_loss"] for run in runs if run["arm"] == arm["name"]] for arm in arms}
    titles = ["first minus second (nats per token)", "difference"]
    titles += (
        ["95% interval over seeds", "with the searches' noise (decides)"]
        if head["search"]
        else ["95% interval over seeds (decides: no search is recorded)"]
    )
    titles += ["Holm p", "verdict"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for pair in pairs:
        alone = paired_t(losses[pair["first"]], losses[pair["second"]])
        low, high = pair["ci95"]
        words = "not distinguishable" if low <= 0 <= high or pair["holm_p"] >= 0.05 else side(pair["mean"])
        cells = [f"{pair['first']} minus {pair['second']}", f"{pair['mean']:+.4f}"]
        cells += [f"{alone.low:+.4f} to {alone.high:+.4f}"] if head["search"] else []
        cells += [f"{low:+.4f} to {high:+.4f}", p_text(pair["holm_p"]), words]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_table(name: str) -> str:
    """What the same comparison says with fewer of its seeds."""
    most = len({run["seed"] for run in read_comparison(name)[1]})
    found = {seeds: judged(name, seeds)[3] for seeds in range(2, most + 1)}
    titles = [f"{pair['first']} minus {pair['second']}" for pair in found[most]]
    lines = ["| first seeds | " + " | ".join(titles) + " |", "|---|" + "---|" * len(titles)]
    for seeds, pairs in found.items():
        intervals = [pair["ci95"] for pair in pairs]
        cells = [
            f"{low:+.3f} to {high:+.3f}, p {p_text(pair['holm_p'])}"
            for (low, high), pair in zip(intervals, pairs, strict=True)
        ]
        lines.append(f"| {seeds} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def side(mean: float) -> str:
    """Which of the two is lower."""
    return "first lower" if mean < 0 else "second lower"


def p_text(p: float) -> str:
    """A p-value to three digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def search_table(name: str) -> str:
    """What each arm's search tried, found and cost."""
    head, runs = read_comparison(name)
    lines = [
        "| | trials, runs | processor time | best validation loss | best settings | at an edge of the space "
        "| noise that the search adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, search in head["search"].items():
        losses = [run["val_loss"] for run in runs if run["arm"] == arm]
        tried = [trial["losses"] for trial in search["table"]]
        noise = search_variance(tried, losses, patterns=patterns_of(search)) ** 0.5
        found = ", ".join(f"`{key}` {value_text(value)}" for key, value in search["best"].items())
        edges = (
            ", ".join(hyperparameter for hyperparameter, inside in search["interior"].items() if not inside)
            or "none"
        )
        lines.append(
            f"| {arm} | {search['trials']}, {search['runs']} | {in_time(search['cpu_seconds'])} | {search['loss']:.4f} "
            f"| {found} | {edges} | {noise:.4f} |"
        )
    designs = list(dict.fromkeys(search["design"] for search in head["search"].values()))
    return "\n".join([*lines, "", *designs])


def sensitivity_table(name: str) -> str:
    """For each hyperparameter and arm the losses around the last pattern's centre, the best value in bold."""
    arms = read_json(PRESETS / "searches" / f"{name}.json")["arms"]
    hyperparameters = list(
        dict.fromkeys(hyperparameter for record in arms.values() for hyperparameter in record["space"])
    )
    lines = ["| | " + " | ".join(arms) + " |", "|---|" + "---|" * len(arms)]
    for hyperparameter in hyperparameters:
        cells = []
        for record in arms.values():
            best = record["best_values"].get(hyperparameter)
            points = [
                f"{f'**{value_text(value)}**' if value == best else value_text(value)}: "
                + ("diverged" if loss is None else f"{loss:.4f}")
                for value, loss in record["sensitivity"].get(hyperparameter, [])
            ]
            cells.append(", ".join(points) or "not a setting of its optimizer")
        lines.append(f"| `{hyperparameter}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """A setting as a document shows it."""
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def tales_table(name: str) -> str:
    """What the story world's parser and its recall questions found for each arm (first seed only)."""
    _, runs = read_comparison(name)
    asked = [run for run in runs if run.get("tales")]

    def row(title: str, find: Callable[[Row], Row]) -> str:
        parts = [find(run["tales"]) for run in asked]
        cells = [
            f"{one['share']:.0%} ({one['low']:.0%} to {one['high']:.0%}) of {one['total']}" for one in parts
        ]
        return f"| {title} | " + " | ".join(cells) + " |"

    lines = ["| | " + " | ".join(run["arm"] for run in asked) + " |", "|---|" + "---|" * len(asked)]
    for key in ("grammatical", "consistent", "complete", "perfect"):
        lines.append(row(f"stories {key}", lambda tales, key=key: tales["judged"][key]))  # type: ignore[misc]
    for distance in asked[0]["tales"]["recall"]:
        lines.append(row(f"recall after {distance} words", lambda tales, d=distance: tales["recall"][d]))  # type: ignore[misc]
    return "\n".join(lines)


def corrected(name: str, old: dict[str, list[float]], now: str, then: str) -> str:
    """A comparison beside what we had claimed of its predecessor: losses by arm, and each pair that both have."""
    _, _, arms, pairs = judged(name)
    lines = [f"| nats per token | {now} | {then} |", "|---|---|---|"]
    for arm in arms:
        was = old.get(arm["name"])
        claim = f"{fmean(was):.3f} +- {stdev(was):.3f}" if was else "not run"
        lines.append(f"| {arm['name']} | {arm['test_loss']:.3f} +- {arm['deviation']:.3f} | {claim} |")
    for pair in pairs:
        if pair["first"] not in old or pair["second"] not in old or "NanoKimi" not in pair["first"]:
            continue
        before, (low, high) = paired_t(old[pair["first"]], old[pair["second"]]), pair["ci95"]
        sure = "" if pair["holm_p"] < 0.05 else ": not distinguishable"
        lines.append(
            f"| {pair['first']} minus {pair['second']} | {pair['mean']:+.3f} ({low:+.3f} to {high:+.3f}){sure} "
            f"| {before.mean:+.3f} ({before.low:+.3f} to {before.high:+.3f}) |"
        )
    return "\n".join(lines)


def null_table() -> str:
    """How often one model against itself had a winner (benchmarks/null.py), on two presets."""
    lines = [
        "| | comparisons | seeds in each | winners named | the two means differ by |",
        "|---|---|---|---|---|",
    ]
    made = []
    for name in ("null", "null-tales"):
        head, *rows = read_json_lines(RESULTS / f"{name}.jsonl")
        for row in rows:
            if row["kind"] == "summary":
                apart = f"{row['smallest']:.5f} to {row['largest']:.5f}"
                lines.append(
                    f"| {row['what']} | {row['tries']} | {row['seeds']} | {row['winners']} | {apart} |"
                )
        made.append(
            f"`{head['command']}`, commit {head['commit'][:7]}, {head['time'][:10]}, {head['cores']} cores of an "
            f"{head['processor']}."
        )
    return "\n\n".join(["\n".join(lines), *made])


# ---- the documents

DOCUMENTS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"tales": lambda: comparison_table("tales-short")},
    "docs/corrections.md": {
        "changed-verdicts": changed_verdicts_table,
        "one-rate-arms": one_rate_arms_table,
        "one-rate-verdicts": one_rate_verdicts_table,
        "short-search-arms": short_search_arms_table,
        "short-search-verdicts": short_search_verdicts_table,
        "warmup-arms": warmup_arms_table,
        "warmup-verdicts": warmup_verdicts_table,
        "tales-corrected": lambda: corrected(
            "tales-short", old_tales(), "short tales, same search for every arm", "tales, as claimed before"
        ),
        "shakespeare-char-corrected": lambda: corrected(
            "shakespeare-char",
            old_shakespeare(),
            "test part, same search for every arm",
            "validation text, as claimed before",
        ),
        "ladder-shakespeare-corrected": lambda: old_and_new(
            RESULTS / "old" / "ladder-shakespeare.jsonl", RESULTS / "ladder-shakespeare.jsonl"
        ),
        "ladder-tales-corrected": lambda: old_and_new(
            RESULTS / "old" / "ladder-tales.jsonl", RESULTS / "ladder-tales.jsonl"
        ),
        "ladder-shakespeare-withdrawn": lambda: withdrawn_table("ladder-shakespeare"),
        "ladder-tales-withdrawn": lambda: withdrawn_table("ladder-tales"),
        "scale-tales-withdrawn": old_ratios_table,
        "seed-2-corrected": lambda: corrected(
            "seed-2", OLD_SEED_2, "test part, again", "validation text, as claimed before"
        ),
        "scale-tales-corrected": lambda: old_and_new(
            RESULTS / "old" / "scale-tales.jsonl", RESULTS / "scale-tales.jsonl"
        ),
    },
    "docs/data.md": {"bilingual": bilingual_table},
    "docs/experiments.md": {
        "pairing": lambda: pairing_table(
            {
                "ablation study, tinyshakespeare": RESULTS / "ladder-shakespeare.jsonl",
                "ablation study, short stories": RESULTS / "ladder-tales.jsonl",
                "four sizes, short stories": RESULTS / "scale-tales.jsonl",
            }
        ),
        "null": null_table,
        "false-winners": false_winners_table,
    },
    "docs/interop.md": {"receipts": receipts_table},
    "docs/kimi-k2.md": KIMI_TABLES,
    "docs/performance.md": {"speed": speed_table},
    "docs/results.md": {
        "tales-pairs": lambda: pair_table("tales-short"),
        "tales-seeds": lambda: seeds_table("tales-short"),
        "tales-search": lambda: search_table("tales-short"),
        "tales-longer-search": longer_search_table,
        "tales-sensitivity": lambda: sensitivity_table("tales"),
        "ladder-shakespeare": lambda: study_block(RESULTS / "ladder-shakespeare.jsonl"),
        "ladder-tales": lambda: study_block(RESULTS / "ladder-tales.jsonl"),
        "scale-tales": lambda: study_block(RESULTS / "scale-tales.jsonl"),
        "seed-2": lambda: comparison_table("seed-2"),
        "seed-2-pairs": lambda: pair_table("seed-2"),
        "shakespeare-char": lambda: comparison_table("shakespeare-char"),
        "shakespeare-char-pairs": lambda: pair_table("shakespeare-char"),
        "shakespeare-char-search": lambda: search_table("shakespeare-char"),
        "shakespeare-char-sensitivity": lambda: sensitivity_table("shakespeare-char"),
        "tales-stories": lambda: tales_table("tales-short"),
        "other-presets": spread_table,
    },
}


def filled(path: Path, tables: dict[str, Callable[[], str]]) -> str:
    """The document with its tables regenerated. Raises ValueError if a mark is missing or unknown."""
    text = path.read_text(encoding="utf-8")
    marked = re.findall(r"<!-- table (\S+): made by benchmarks/tables\.py -->", text)
    if sorted(marked) != sorted(tables):
        raise ValueError(f"{path.name} marks the tables {sorted(marked)}, expected {sorted(tables)}")
    for name, make in tables.items():
        begin, end = f"<!-- table {name}: made by benchmarks/tables.py -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        after = rest.split(end, 1)[1]
        text = f"{before}{begin}\n{make()}\n{end}{after}"
    return with_numbers(text)


def main() -> int:
    """Write or check the documents, and name those that differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing, and say what differs")
    check = parser.parse_args().check
    differ = []
    for name, tables in DOCUMENTS.items():
        path = ROOT / name
        text = filled(path, tables)
        if text != path.read_text(encoding="utf-8"):
            differ.append(name)
            if not check:
                write_atomic(path, text)
    for name in differ:
        print(f"{name}: {'differs from its recorded runs' if check else 'written'}", file=sys.stderr)
    return int(check and bool(differ))


if __name__ == "__main__":
    raise SystemExit(main())
