"""The verdicts that the first correction of the statistics withdrew, derived again by other code."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from nanokimi.runtime.files import read_json_lines

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def withdrawn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which is no package's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("withdrawn")


@pytest.mark.parametrize("study", ["ladder-shakespeare", "ladder-tales", "scale-tales"])
def test_p_values_are_those_of_scipy_and_statsmodels(study: str, withdrawn: ModuleType) -> None:
    *runs, plan = read_json_lines(ROOT / "docs" / "results" / "old" / f"{study}.jsonl")
    loss = {run["key"]: run["val_loss"] for run in runs}
    keys = {arm["name"]: arm["runs"] for arm in plan["arms"]}
    raw, families = [], [one["family"] for one in plan["comparisons"]]
    for one in plan["comparisons"]:
        parts = [
            weight * np.array([loss[key] for key in keys[name][one["budget"]]])
            for name, weight in one["weights"].items()
        ]
        total = sum(parts)
        raw.append(float(scipy_stats.ttest_1samp(total, 0).pvalue) if np.any(total) else 1.0)
    found = withdrawn.judged(study)
    of_study = multipletests(raw, method="holm")[1]
    assert [one.p_of_study for one in found] == pytest.approx(list(of_study), rel=1e-6)
    for family in set(families):
        numbers = [i for i, name in enumerate(families) if name == family]
        expected = multipletests([raw[i] for i in numbers], method="holm")[1]
        assert [found[i].p_of_table for i in numbers] == pytest.approx(list(expected), rel=1e-6)
    assert all(one.p_of_table <= one.p_of_study <= one.p_with_searches + 1e-12 for one in found)


def test_which_verdicts_fell_and_that_a_quiet_search_takes_none(
    withdrawn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = {
        study: sum(one.withdrawn for one in withdrawn.judged(study))
        for study in ("ladder-shakespeare", "ladder-tales", "scale-tales")
    }
    assert count == {"ladder-shakespeare": 8, "ladder-tales": 8, "scale-tales": 0}
    monkeypatch.setattr(withdrawn, "choice_variance", lambda *_: 0.0)
    found = withdrawn.judged("ladder-tales")
    assert [one.p_with_searches for one in found] == [one.p_of_study for one in found]
    assert sum(one.withdrawn for one in found) == 2, "what Holm over the study takes by itself"
