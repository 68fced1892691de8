"""The presets of the studies: their arms are those of `nanokimi compare`, with settings of a search of these arms."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nanokimi.compare.searched import search_records
from nanokimi.config import RunConfig
from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config
from nanokimi.config.fixed import fixed_settings
from nanokimi.config.parsing import settings
from nanokimi.config.rules import resolve
from nanokimi.report.search_note import search_note
from nanokimi.runtime.files import write_json
from nanokimi.study.jobs import as_job_config, job_key
from nanokimi.study.ladder import NAMES, plan_ladder
from nanokimi.study.scale import ScaleOptions, scale_arms
from nanokimi.study.search import Asked, Design, search, sobol_points
from nanokimi.study.settle import tuning_job
from nanokimi.study.space import hyperparameters_of, settings_of, values_at
from nanokimi.study.study import StudyArm

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "nanokimi" / "presets"
TEXTS = {
    "ladder-shakespeare": "tinyshakespeare.txt",
    "ladder-tales": "tales-short",
    "scale-tales": "tales-short",
}
ARMS = ("NanoKimi", "NanoGPT with Muon", "NanoGPT")
SHORT = Design(points=16, rounds=1)


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/studies.py, which is no package's."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import studies as module

    monkeypatch.delitem(sys.modules, "studies")
    return module


def preset(name: str, *words: str) -> RunConfig:
    return load_config(name, ["--dataset.path", TEXTS.get(Path(name).stem, "text.txt"), *words])


def untuned(config: RunConfig) -> RunConfig:
    """The configuration whose arms have none of the settings that a search finds."""
    named = {
        name: {"from": spec["from"], "optim": {k: v for k, v in spec["optim"].items() if k == "name"}}
        for name, spec in config.arms.items()
    }
    return replace(config, arms=named)


@pytest.mark.parametrize("name", TEXTS)
def test_a_search_does_not_depend_on_the_settings_that_its_arms_have_now(name: str) -> None:
    """Else an arm that was tuned before would have a better start than the others."""
    tuned, bare = arm_configs(preset(name)), arm_configs(untuned(preset(name)))
    assert tuple(tuned) == tuple(bare) == ARMS
    for arm in ARMS:
        steps = tuned[arm].train.max_steps
        assert steps is not None
        for point in sobol_points(SHORT.trials):
            runs = []
            for config in (tuned[arm], bare[arm]):
                values = values_at(point, hyperparameters_of(config), steps)
                study_arm = StudyArm(arm, config, {"model": config.model})
                runs.append(tuning_job(study_arm, settings_of(values, config, steps), seed=1).config)
            family = tuned[arm].model
            one, other = ({k: v for k, v in settings(run).items() if k.startswith(family)} for run in runs)
            assert one == other and job_key(runs[0], {}) == job_key(runs[1], {})


@pytest.mark.parametrize("name", TEXTS)
def test_the_studies_do_not_read_the_arms_of_the_preset(name: str) -> None:
    """So their recorded commands repeat the same runs whatever settings `compare` trains with."""
    config = resolve(preset(name), vocab_size=1024, device="cpu", dtype="fp32", threads=1)
    without = replace(config, arms={}, compare=replace(config.compare, search=None))
    assert config.arms and config.compare.search

    def keys(config: RunConfig) -> dict[str, str]:
        if name == "scale-tales":
            arms = scale_arms(config, ScaleOptions(sizes=(32, 48, 64, 96)))
        else:
            arms = plan_ladder(config, ["additive", "leave-one-out", "2x2"], NAMES, searched=True)[0]
        return {arm.name: job_key(as_job_config(arm.config, 1), {}) for arm in arms}

    assert keys(config) == keys(without) and len(keys(config)) > 5


def simulated(config: RunConfig, text: str) -> dict[str, Any]:
    """The search.json of a search of the configuration's arms; losses are a formula, and every arm's differs."""
    configs, steps = arm_configs(config), config.train.max_steps
    assert steps is not None

    best = {arm: 0.002 * 4 ** ARMS.index(arm) for arm in configs}

    def score(asked: Sequence[Asked]) -> list[float | None]:
        return [abs(math.log(found["optim.lr"] / best[arm])) for arm, found, _ in asked]

    records = search(configs, score, [2337], steps, SHORT)
    for name, record in records.items():
        record |= {"settings": fixed_settings(configs[name], record["best"]), "family": configs[name].model}
    return {"schema_version": 1, "arms": records, "steps": steps, "data": {"path": text}}


@pytest.mark.parametrize("name", TEXTS)
def test_the_arms_that_a_search_found_are_written_at_the_end_of_the_preset(
    name: str, tmp_path: Path, studies: ModuleType
) -> None:
    """Twice, as when a search is repeated. No more of the preset changes, and nothing differs from the search."""
    copy, record = tmp_path / f"{name}.yaml", tmp_path / "record.json"
    before = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    copy.write_text(before, encoding="utf-8")
    write_json(record, simulated(preset(name), TEXTS[name]))
    for _ in range(2):
        studies.write_arms(
            copy, studies.arms_block(str(record), preset(name), simulated(preset(name), TEXTS[name]))
        )
    after = copy.read_text(encoding="utf-8")
    assert after.partition(studies.BEGIN)[0] == before.partition(studies.BEGIN)[0] != before
    assert after.count("arms:") == after.count("search:") == after.count(studies.BEGIN) == 1
    config = preset(str(copy))
    assert replace(config, arms={}, compare=preset(name).compare) == replace(preset(name), arms={})
    records = search_records(config, arm_configs(config))
    assert {arm: one["changed"] for arm, one in records.items()} == dict.fromkeys(ARMS, [])
    assert len({one["best"]["optim.lr"] for one in records.values()}) == len(ARMS)
    note = search_note([{"name": arm, "search": one} for arm, one in records.items()])
    assert note.startswith("Every arm was tuned with the same search")


def test_every_preset_of_a_study_has_its_own_search_among_the_studies(studies: ModuleType) -> None:
    """The same number of trials and seeds, at the preset's own budget and on its own text."""
    for name, text in TEXTS.items():
        result = studies.RESULTS[f"search-{name}"]
        design = [*studies.SEARCH.split(), "--search-rounds", "1"]
        assert result.command == ["sweep", "--config", name, *design]
        assert result.needs_text == (text == "tinyshakespeare.txt")
