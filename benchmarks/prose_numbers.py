"""The numbers in the documents' sentences, each computed from recorded runs or from the code (see `tables.py`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from statistics import fmean
from typing import Any

from kimi_tables import KIMI_NUMBERS
from longer_search_table import gained_by_two_more
from one_rate_table import by_hand, gain, lead_before, lead_over_by_hand
from recorded import RESULTS, ROOT, Row, judged, old_tales, read_comparison
from speed_table import rows_of
from study_tables import study_report
from withdrawn import old_lead_over_muon, old_recall

from nanokimi.measure.stats import paired_t
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.study.search_noise import noise_of_searches

ROPE = "+ RoPE"
"""The arm of an ablation study that is NanoGPT with RMSNorm and RoPE, trained with AdamW."""


def mean_of(name: str, arm: str, key: str) -> float:
    """The mean over the seeds of an arm in docs/results/NAME.jsonl."""
    return fmean(run[key] for run in read_comparison(name)[1] if run["arm"] == arm)


def old_lead() -> float:
    """The lead that we had claimed: NanoGPT with AdamW minus NanoKimi."""
    losses = old_tales()
    return fmean(losses["NanoGPT"]) - fmean(losses["NanoKimi"])


def times(key: str) -> str:
    """The ratio of NanoKimi to NanoGPT with Muon in the default comparison."""
    ratio = mean_of("tales-short", "NanoKimi", key) / mean_of("tales-short", "NanoGPT with Muon", key)
    return f"{ratio:.1f}"


def lead(over: str) -> str:
    """By how much NanoKimi is lower than another arm of the default comparison."""
    other = mean_of("tales-short", over, "test_loss")
    return f"{other - mean_of('tales-short', 'NanoKimi', 'test_loss'):.2f}"


def gap(over: str, of: str = "NanoKimi", name: str = "tales-short") -> str:
    """By how much an arm of a comparison is lower than another one, with the interval that decides."""
    for pair in judged(name)[3]:
        if {pair["first"], pair["second"]} == {over, of}:
            sign = -1 if pair["first"] == of else 1
            low, high = sorted(sign * bound for bound in pair["ci95"])
            return f"{sign * pair['mean']:.3f} nats (95% interval {low:.3f} to {high:.3f})"
    raise ValueError(f"the comparison does not hold both {of} and {over}")


def ladder_lead(over: str, study: str = "ladder-shakespeare", of: str = "NanoKimi") -> str:
    """By how much a corner of an ablation study is below another one, at equal tokens."""
    effects = study_report(RESULTS / f"{study}.jsonl")["effects"]
    (effect,) = [one for one in effects if one["name"] == f"{of} against {over}, per token"]
    return f"{-effect['mean']:.3f}"


def shipped(key: str, arm: str = "NanoKimi") -> float:
    """A number of one of the models that ship, as docs/pretrained.md has it."""
    models = read_json(ROOT / "nanokimi" / "pretrained" / "tales-1m" / "shipped.json")["models"]
    return float(next(model[key] for model in models if model["name"] == arm))


def shipped_right(arm: str = "NanoKimi") -> str:
    """How many long stories one of the models that ship tells right."""
    models = read_json(ROOT / "nanokimi" / "pretrained" / "tales-1m" / "shipped.json")["models"]
    (told,) = [model["texts"]["tales"]["judged"]["perfect"] for model in models if model["name"] == arm]
    return f"{sum(told['right'])} of {told['total']}"


def shipped_lead() -> str:
    """By how much the NanoGPT with Muon that ships is below the NanoKimi that ships."""
    return f"{shipped('test_loss') - shipped('test_loss', 'NanoGPT with Muon'):.3f}"


def shipped_ratio() -> str:
    """How many times NanoKimi's active parameters the NanoGPT that ships has."""
    ratio = shipped("active_parameters", "NanoGPT with Muon") / shipped("active_parameters")
    return f"{ratio:.1f}"


def false_winners(key: str = "winners") -> str:
    """The largest share of comparisons of equal arms, searched apart, in which one is named a winner."""
    rows = read_json_lines(RESULTS / "false-winners.jsonl")[1:]
    return f"{max(row[key] / row['tries'] for row in rows if row['kind'] == 'bowl'):.1%}"


def false_winners_inherited() -> str:
    """The largest share for a single recorded arm that inherits its settings and has only its rate tuned."""
    rows = read_json_lines(RESULTS / "false-winners.jsonl")[1:]
    # Only whole searches have a height.
    grids = [row for row in rows if row["kind"] == "table" and row["height"] is None]
    return f"{max(row['winners'] / row['tries'] for row in grids):.1%}"


def false_winners_far_out(trials: int = 66) -> str:
    """How often equal arms, searched as the corners of an ablation study, have a p that survives Holm's correction."""
    rows = [
        row
        for row in read_json_lines(RESULTS / "false-winners.jsonl")
        if row["kind"] == "bowl" and (row["trials"], row["seeds"]) == (trials, 5)
    ]
    found, tries = (sum(row[key] for row in rows) for key in ("among_39", "tries"))
    return f"{found} of {tries:,} tries"


def study_arms(study: str) -> dict[str, Row]:
    """The arms of an ablation study at equal tokens, by name."""
    rows = study_report(RESULTS / f"{study}.jsonl")["arms"]
    return {row["name"]: row for row in rows if row["budget"] == "tokens"}


def arm_lead(study: str, arm: str, over: str) -> str:
    """By how much an arm of an ablation study is below another one, at equal tokens."""
    arms = study_arms(study)
    return f"{arms[over]['test_loss'] - arms[arm]['test_loss']:.3f}"


def arm_gap(study: str, arm: str, over: str) -> str:
    """The same for two arms that the study does not compare, with the interval that would decide."""
    arms = study_arms(study)
    weights = {over: 1.0, arm: -1.0}
    noise = noise_of_searches(weights, {name: arms[name] for name in weights})
    found = paired_t(arms[over]["losses"], arms[arm]["losses"], extra_variance=noise)
    return f"{found.mean:.3f} nats (95% interval {found.low:.3f} to {found.high:.3f})"


def fast_row() -> Row:
    """The last run of `benchmarks/time_to_loss.py` with the preset `shakespeare-fast`."""
    return rows_of("time_to_loss", config="shakespeare-fast")[-1]


def fast_tokens() -> str:
    """The share of the recipe's tokens after which NanoKimi of `shakespeare-fast` reaches its loss."""
    return f"1/{fast_row()['ratios']['tokens']['median']:.0f}"


def fast_seeds() -> str:
    """On how many seeds it does."""
    row = fast_row()
    return f"{len(row['runs']) - row['missed']} of {len(row['runs'])}"


def p_of_lead(of: str, name: str = "tales-short") -> str:
    """The corrected p-value of an arm's lead over NanoGPT with AdamW in the default comparison."""
    (pair,) = [pair for pair in judged(name)[3] if {pair["first"], pair["second"]} == {of, "NanoGPT"}]
    return f"{pair['holm_p']:.3f}"


def old_statistics(kind: str, **about: Any) -> list[Row]:
    """Lines of benchmarks/old_statistics.py."""
    rows = read_json_lines(RESULTS / "old-statistics.jsonl")
    return [row for row in rows if row["kind"] == kind and all(row[key] == about[key] for key in about)]


def old_pairing(study: str) -> str:
    """How runs of two arms with one seed correlate in a withdrawn study."""
    (row,) = old_statistics("correlation", study=study)
    return f"{row['correlation']:.2f}"


def old_winners(kind: str, *by: str) -> str:
    """How often the first studies' intervals tell equal arms apart: the least and the largest mean by these keys."""
    shares: dict[Any, list[float]] = {}
    for row in old_statistics(kind):
        shares.setdefault(tuple(row[key] for key in by), []).append(row["winners"] / row["tries"])
    means = sorted(map(fmean, shares.values()))
    return f"{100 * means[0]:.1f} to {means[-1]:.1%}"


def old_pooled(correlation: float) -> str:
    """How often the first intervals of recall contain the truth, over the true shares."""
    found = sorted(row["pooled"] for row in old_statistics("recall", correlation=correlation))
    return f"{100 * found[0]:.0f} to {found[-1]:.0%}"


def old_scatter() -> str:
    """The variance of the recorded shares of right answers from seed to seed, over that of independent answers."""
    (row,) = old_statistics("answers")
    return f"{row['scatter']:.2f} (95% interval {row['low']:.2f} to {row['high']:.2f})"


NUMBERS: dict[str, Callable[[], str]] = {
    "active": lambda: f"{mean_of('tales-short', 'NanoKimi', 'params_active') / 1e6:.2f}M",
    "steps": lambda: f"{mean_of('tales-short', 'NanoKimi', 'steps'):.0f}",
    "lead": lambda: lead("NanoGPT"),
    "gap-adamw": lambda: gap("NanoGPT"),
    "gap-muon": lambda: gap("NanoGPT with Muon"),
    "gap-optimizer": lambda: gap("NanoGPT", "NanoGPT with Muon"),
    "new-gap-adamw": lambda: gap("NanoGPT", name="tales-new-seeds"),
    "new-gap-muon": lambda: gap("NanoGPT with Muon", name="tales-new-seeds"),
    "new-lead-p": lambda: p_of_lead("NanoKimi", "tales-new-seeds"),
    "gap-recipe": lambda: gap("NanoGPT with Muon", name="shakespeare-char"),
    "gap-recipe-adamw": lambda: gap("NanoGPT", name="shakespeare-char"),
    "recipe-parameters": lambda: f"{mean_of('shakespeare-char', 'NanoKimi', 'params_active') / 1e6:.2f}M",
    "recipe-steps": lambda: f"{mean_of('shakespeare-char', 'NanoKimi', 'steps'):,.0f}",
    "time": lambda: times("train_seconds"),
    "parameters": lambda: times("params_total"),
    "old-lead": lambda: f"{old_lead():.2f}",
    "ladder-lead": lambda: ladder_lead("NanoGPT"),
    "ladder-lead-muon": lambda: ladder_lead("NanoGPT with Muon"),
    "ladder-tales-lead": lambda: ladder_lead("NanoGPT", "ladder-tales"),
    "ladder-tales-muon": lambda: ladder_lead("NanoGPT", "ladder-tales", of="NanoGPT with Muon"),
    "ladder-tales-rope": lambda: arm_lead("ladder-tales", ROPE, "NanoGPT"),
    "ladder-tales-over-rope": lambda: arm_gap("ladder-tales", "NanoKimi", ROPE),
    "fast-tokens": fast_tokens,
    "fast-seeds": fast_seeds,
    "false-winners": false_winners,
    "false-winners-before": lambda: false_winners("without_share"),
    "false-winners-inherited": false_winners_inherited,
    "old-pairing-shakespeare": lambda: old_pairing("ablation study, tinyshakespeare"),
    "old-pairing-tales": lambda: old_pairing("ablation study, tales"),
    "old-pairing-scale": lambda: old_pairing("four sizes, tales"),
    "old-winners": lambda: old_winners("quadratic", "height"),
    "old-winners-tables": lambda: old_winners("table", "study"),
    "old-winners-arms": lambda: old_winners("table", "study", "arm"),
    "old-pooled-apart": lambda: old_pooled(0.0),
    "old-pooled-half": lambda: old_pooled(0.5),
    "old-pooled-alike": lambda: old_pooled(1.0),
    "old-scatter": old_scatter,
    "old-lead-over-muon": old_lead_over_muon,
    "old-recall": lambda: old_recall("NanoKimi"),
    "old-recall-gpt": lambda: old_recall("NanoGPT"),
    "false-winners-far-out": false_winners_far_out,
    "false-winners-far-out-short": lambda: false_winners_far_out(32),
    "lead-p": lambda: p_of_lead("NanoKimi"),
    "optimizer-p": lambda: p_of_lead("NanoGPT with Muon"),
    "one-rate-gain": gain,
    "one-rate-lead": lead_before,
    "by-hand": lambda: f"{by_hand():.3f}",
    "by-hand-lead": lead_over_by_hand,
    "longer-search": lambda: gained_by_two_more("NanoGPT"),
    "longer-search-kimi": lambda: gained_by_two_more("NanoKimi"),
    "shipped-lead": shipped_lead,
    "shipped-ratio": shipped_ratio,
    "shipped-right": shipped_right,
    "shipped-right-muon": lambda: shipped_right("NanoGPT with Muon"),
    "shipped-steps": lambda: f"{shipped('steps'):,.0f}",
    "leaky": lambda: str(len(audited("LEAKY"))),
    "clean": lambda: str(len(audited("CLEAN"))),
    **KIMI_NUMBERS,
}


def audited(kind: str) -> dict[str, Any]:
    """The models that the audit is tested on."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        import audit_models
    finally:
        sys.path.pop(0)
    found: dict[str, Any] = getattr(audit_models, kind)
    return found


def with_numbers(text: str) -> str:
    """The text with each marked number computed. Raises ValueError for a name that NUMBERS does not have."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in NUMBERS:
            raise ValueError(f"nothing is known of the number {match[1]}; there are {', '.join(NUMBERS)}")
        return f"<!--={match[1]}-->{NUMBERS[match[1]]()}<!--=-->"

    return re.sub(r"<!--=([\w-]+)-->[^<]*<!--=-->", number, text)
