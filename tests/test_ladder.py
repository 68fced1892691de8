"""The ladder: components as data, tuning with equal trials, and a whole study at toy size from the command line."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.compare.size import parameters
from nanokimi.config import RunConfig
from nanokimi.config.composed import kimi_as_variant
from nanokimi.config.files import load_config
from nanokimi.config.parsing import settings
from nanokimi.config.rules import resolve
from nanokimi.errors import UserError
from nanokimi.measure.cost import model_cost
from nanokimi.measure.stats import search_variance
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.runtime.plugins import forget_plugins
from nanokimi.study import output as study_output
from nanokimi.study.added import plugged_arm
from nanokimi.study.audits import audit_key
from nanokimi.study.jobs import as_job_config, job_key, read_results
from nanokimi.study.ladder import (
    ADAMW_END,
    ARCHITECTURE,
    BY_NAME,
    COMPONENTS,
    DESIGNS,
    END,
    EVERYTHING,
    MUON_START,
    NAMES,
    OPTIMIZER,
    START,
    drop_unsupported,
    family_with,
    nearest_corner,
    plan_ladder,
)
from nanokimi.study.study import StudyArm, report_of, study_title, trials_of
from nanokimi.study.tune import geometric_grid, is_interior, next_value, tune


def preset(name: str) -> RunConfig:
    vocab_size = {"ladder-shakespeare": 65}.get(name, 1024)
    config = load_config(name, ["--data", "text.txt"])
    return resolve(config, vocab_size=vocab_size, device="cpu", dtype="fp32", threads=1)


# ---- components


def test_the_ends_are_the_two_models() -> None:
    config = preset("ladder-shakespeare")
    start, end = family_with(config, frozenset()), family_with(config, EVERYTHING)
    assert start.optim == config.nanogpt.optim and end.optim == config.nanokimi.optim
    widths = {"intermediate_size": 0, "moe_intermediate_size": 0}
    ours, kimi = vars(end.model) | widths, vars(kimi_as_variant(config.nanokimi.model)) | widths
    assert ours == kimi
    assert model_cost(start.model, 64) == model_cost(config.nanogpt.model, 64)


@pytest.mark.parametrize("name", ["tie_word_embeddings", "rescale_prenorm_residual"])
def test_a_component_that_nanokimi_lacks_is_refused(name: str) -> None:
    """An arm was called "+ flat init", and its initialisation was GPT-2's."""
    config = preset("ladder-tales")
    model = replace(config.nanokimi.model, **{name: True})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"nanokimi.model.{name} is true"):
        plan_ladder(replace(config, nanokimi=replace(config.nanokimi, model=model)), ["additive"], NAMES)


def test_each_component_changes_its_own_settings_and_no_other() -> None:
    """Beside its settings only widths, with Muon the rate, and once the initialiser's scale differ from arm to arm."""
    arms, comparisons = plan_ladder(preset("ladder-shakespeare"), ["additive"], NAMES)
    assert [one["name"] for one in comparisons][: len(NAMES)] == [f"+ {name}" for name in NAMES]
    free = {"variant.model.intermediate_size", "variant.model.moe_intermediate_size"}
    for component, before, after in zip(COMPONENTS, arms, arms[1:], strict=False):
        was, now = settings(before.config), settings(after.config)
        changed = {key for key in now if now[key] != was[key]} - free
        own = {f"variant.model.{key}" for key in component.model} | {
            f"variant.optim.{key}" for key in component.optim
        }
        own |= {f"variant.optim.{key}" for key in component.instead}
        own |= {"variant.optim.lr"} if component.name == "Muon" else set()
        if nearest_corner(frozenset(before.components or ())) != nearest_corner(
            frozenset(after.components or ())
        ):
            own |= {"variant.model.initializer_range"}  # no component's: as configured for the nearest corner
        if component.name == "MoE":  # arrives without what the next two components bring
            own |= {"variant.optim.router_bias_update_speed"}
        assert changed and changed <= own, component.name


@pytest.mark.parametrize("name", ["ladder-shakespeare", "ladder-tales"])
def test_every_arm_has_nanogpts_active_parameters(name: str) -> None:
    config = preset(name)
    arms, _ = plan_ladder(config, list(DESIGNS), NAMES)
    context = config.train.context_length
    count = parameters("active_params", context)
    target = model_cost(config.nanogpt.model, context).params_active
    assert {START, END, MUON_START, ADAMW_END} <= {arm.name for arm in arms}
    for arm in arms:
        assert arm.size_gap == pytest.approx(count(arm.config.variant.model) / target - 1)
        assert abs(arm.size_gap) <= 0.01, f"{arm.name}: {arm.size_gap:+.2%}"


def test_leaving_one_out_takes_along_what_stands_on_it() -> None:
    assert drop_unsupported(EVERYTHING - {"MoE"}) == EVERYTHING - {"MoE", "shared expert", "balancing"}
    assert drop_unsupported(EVERYTHING - {"RoPE"}) == EVERYTHING - {"RoPE", "MLA"}
    arms, comparisons = plan_ladder(preset("ladder-tales"), ["leave-one-out"], ["Muon", "WSD"])
    assert [arm.name for arm in arms] == [END, "without Muon and QK-Clip", "without WSD", MUON_START]
    assert comparisons[0]["weights"] == {"without Muon and QK-Clip": 1, END: -1}
    assert {name for component in COMPONENTS for name in component.needs} <= set(BY_NAME)


def test_the_square_credits_nobody_with_the_others_gain() -> None:
    arms, comparisons = plan_ladder(preset("ladder-tales"), ["2x2"], NAMES)
    by_name = {arm.name: arm.config.variant for arm in arms}
    assert by_name[MUON_START].model == by_name[START].model
    assert by_name[ADAMW_END].optim.name == by_name[START].optim.name == "adamw"
    assert by_name[MUON_START].optim == by_name[END].optim
    assert by_name[ADAMW_END].model == by_name[END].model
    assert ARCHITECTURE | OPTIMIZER == EVERYTHING and not ARCHITECTURE & OPTIMIZER
    together = comparisons[-1]["weights"]
    assert together == {END: 1, START: 1, MUON_START: -1, ADAMW_END: -1}


# ---- tuning


class PretendPool:
    """Loss as a function of the rate, without training."""

    def __init__(self, best: dict[str, float]) -> None:
        self.best, self.asked = best, 0

    def run(self, jobs: Sequence[Any]) -> list[dict[str, Any]]:
        self.asked += len(jobs)
        return [{"val_loss": self.loss(name, value)} for name, value, _ in jobs]

    def loss(self, name: str, value: float) -> float | None:
        return None if value > 1 else math.log(value / self.best[name]) ** 2


def pretend_tune(best: dict[str, float], **options: Any) -> dict[str, dict[str, Any]]:
    makers = {name: (lambda value, seed, name=name: (name, value, seed)) for name in best}
    grids = {name: geometric_grid(0.01, 2.0, 3) for name in best}
    return tune(PretendPool(best), makers, grids, [1, 2], factor=2.0, **options)  # type: ignore[arg-type]


def test_grids_grow_until_the_optimum_is_interior_and_all_get_the_same_trials() -> None:
    curves = pretend_tune({"low": 0.0013, "middle": 0.012, "high": 0.04}, max_rounds=9)
    assert all(curve["interior"] for curve in curves.values())
    assert len({curve["trials"] for curve in curves.values()}) == 1
    assert curves["low"]["best"] == 0.00125 and curves["high"]["best"] == pytest.approx(0.04, rel=0.2)
    assert min(value for value, _ in curves["low"]["curve"]) == 0.000625
    assert abs(math.log(curves["middle"]["best"] / 0.012)) < 0.1, "its further trials were spent close by"
    limited = pretend_tune({"low": 1e-5, "middle": 0.012}, max_rounds=2)
    assert not limited["low"]["interior"] and limited["middle"]["interior"]
    assert {curve["trials"] for curve in limited.values()} == {5}


def test_what_is_tried_next() -> None:
    assert next_value({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}, 2.0) == 8.0
    assert next_value({1.0: 1.0, 2.0: 2.0, 4.0: None}, 2.0) == 0.5
    assert next_value({1.0: None, 2.0: None}, 2.0) == 0.5, "where all diverge, go lower"
    assert next_value({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, 2.0) == 2.828
    assert not is_interior({1.0: None, 2.0: 1.0})
    assert geometric_grid(0.01, 2.0, 5) == [0.0025, 0.005, 0.01, 0.02, 0.04]
    with pytest.raises(UserError, match="factor above 1"):
        geometric_grid(0.01, 1.0, 5)


# ---- the whole study


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ladder")
    return write_study_files(folder, steps=6)


COMMON = "--search rates --components RMSNorm,Muon --seeds 3 --points 2 --rounds 0 --workers 2".split()


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        choice = "choice: from=NanoGPT model.experts=expert_choice"
        status = cli.main(study_command(toy, "ladder", *COMMON, "--design", "all", "--arm", choice))
        assert status == 1, "an arm leaks"
    return toy / "out"


def test_every_output_is_there_and_says_what_it_must(finished: Path) -> None:
    report = read_json(finished / "study.json")
    names = {path.name for path in finished.iterdir()}
    assert {"study.html", "study.md", "study.csv", "results.jsonl", "tuned.json", "tuning.png"} <= names
    assert {
        "effects-additive.png",
        "effects-leave-one-out.png",
        "effects-2x2.png",
        "effects-budgets.png",
    } <= names
    texts = [
        study_output.as_text(report),
        *((finished / f"study.{kind}").read_text() for kind in ("html", "md", "csv")),
    ]
    for text in texts:
        plain = text.replace("&#39;", "'")
        for label in (
            "Sizes are matched in active parameters",
            "tuned with 2 trials",
            "3 seeds (7 to 9)",
            "decides",
        ):
            assert label in plain, label
        assert "LEAKING" in plain and "unmatched in" in plain
        assert "NanoGPT with Muon" in plain
    assert "<script" not in (finished / "study.html").read_text()


def test_a_leaking_arm_is_not_trained_and_not_ranked(finished: Path) -> None:
    report = read_json(finished / "study.json")
    (effect,) = [one for one in report["effects"] if one["family"] == "also"]
    assert effect["mean"] is None and effect["words"] == "no verdict: choice LEAKING"
    assert all(line["arm"] != "choice" for line in read_results(finished).values())
    audited = [line for line in read_results(finished).values() if "audit" in line]
    assert audited and all(line["audit"]["causal"] for line in audited)


def test_an_effect_is_the_mean_of_paired_differences(finished: Path) -> None:
    """Recomputed from results.jsonl and the plan, with the interval of the printed table's t (2 degrees: 4.303).

    Both arms' searches are in it, from the losses of their trials.
    """
    lines = {
        line["key"]: line for line in read_json_lines(finished / "results.jsonl") if line["kind"] == "run"
    }
    plan = [line for line in read_json_lines(finished / "results.jsonl") if line["kind"] == "plan"][-1]
    runs = {arm["name"]: arm["runs"]["tokens"] for arm in plan["arms"]}
    report = read_json(finished / "study.json")
    (effect,) = [one for one in report["effects"] if one["name"] == "+ Muon"]
    first, second = (np.array([lines[key]["test_loss"] for key in runs[name]]) for name in effect["weights"])
    assert [lines[key]["seed"] for key in runs["+ Muon"]] == [7, 8, 9]
    differences = first - second
    trials: dict[str, dict[float, list[float]]] = {name: {} for name in effect["weights"]}
    for line in lines.values():
        if line["purpose"] == "tune" and line["arm"] in trials:
            trials[line["arm"]].setdefault(line["lr"], []).append(line["val_loss"])
    searches = [
        search_variance(
            list(trials[name].values()), [lines[key]["val_loss"] for key in runs[name]], patterns=0
        )
        for name in trials
    ]
    assert effect["search_variance"] == pytest.approx(sum(searches)) and all(
        len(t) == 2 for t in trials.values()
    )
    half = 4.302653 * math.sqrt(differences.var(ddof=1) / 3 + sum(searches))
    assert effect["mean"] == pytest.approx(differences.mean())
    assert effect["ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half], rel=1e-5)
    tuning_seeds = {line["seed"] for line in lines.values() if line["purpose"] == "tune"}
    assert len(tuning_seeds) == 2 and not tuning_seeds & {7, 8, 9}
    for arm in plan["arms"]:
        for lr, loss in arm["tuning"]["sensitivity"]["lr"] if arm["tuning"] else []:
            tried = [
                line["val_loss"]
                for line in lines.values()
                if (line["arm"], line["purpose"], line["lr"]) == (arm["name"], "tune", lr)
            ]
            assert len(tried) == 2 and loss == pytest.approx(sum(tried) / 2)
    assert any("on 2 random seeds that are used only for tuning" in label for label in report["labels"])
    with (finished / "study.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["+ Muon"]["mean"]) == effect["mean"] and rows["+ Muon"]["words"] == effect["words"]


def test_each_budget_is_trained_to_its_own_end(finished: Path) -> None:
    report = read_json(finished / "study.json")
    rows = {(row["name"], row["budget"]): row for row in report["arms"] if not row["leaking"]}
    per_flop = [rows[name, "flops"]["flops"] for name in (START, MUON_START, END)]
    assert max(per_flop) / min(per_flop) < 1.35, "six steps are coarse"
    assert rows[END, "flops"]["steps"] < rows[END, "tokens"]["steps"] == 6
    key = [line["steps"] for line in read_results(finished).values() if line["arm"] == END]
    assert rows[END, "flops"]["steps"] in key, "trained anew, not read off a longer run"


def test_repeating_the_command_runs_nothing(
    finished: Path, toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "results.jsonl").read_bytes()
    monkeypatch.setattr("nanokimi.study.pool.Worker", None)  # starting one would fail
    choice = "choice: from=NanoGPT model.experts=expert_choice"
    assert cli.main(study_command(toy, "ladder", *COMMON, "--design", "all", "--arm", choice)) == 1
    assert (finished / "results.jsonl").read_bytes() == before
    said = capsys.readouterr().err
    assert "LEAKING: choice; not ranked" in said and "auditing" not in said


def test_the_report_follows_from_the_results_alone(finished: Path) -> None:
    plan = [line for line in read_json_lines(finished / "results.jsonl") if line["kind"] == "plan"][-1]
    assert json.loads(json.dumps(report_of(plan, read_results(finished)))) == read_json(
        finished / "study.json"
    )


def test_a_recorded_ladder_gives_the_same_report(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/record.py keeps what the tables of docs/results.md need, and nothing of the machine's folders."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import record
    import study_tables

    rows = record.study_rows(finished)
    recorded = finished.parent / "recorded.jsonl"
    recorded.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report, own = study_tables.study_report(recorded), read_json(finished / "study.json")
    assert json.loads(json.dumps(report["effects"])) == own["effects"] and report["arms"] == own["arms"]
    assert not any(row["kind"] == "run" and row["purpose"] == "tune" for row in rows)
    block = study_tables.study_block(recorded)
    assert all(f"| {effect['name']} |" in block for effect in own["effects"])


def test_a_recorded_ladder_goes_on_without_repeating_a_run(
    finished: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/from_record.py makes a folder in which the same command finds every run."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    import from_record
    import record

    recorded, again = tmp_path / "recorded.jsonl", tmp_path / "again"
    recorded.write_text("".join(json.dumps(row) + "\n" for row in record.study_rows(finished)))
    from_record.make_folder(recorded, again)
    monkeypatch.setattr("nanokimi.study.pool.Worker", None)  # starting one would fail
    same = "--components RMSNorm,Muon --seeds 3 --design all".split()
    choice = ["--arm", "choice: from=NanoGPT model.experts=expert_choice"]
    words = study_command(toy, "ladder", *same, *choice)
    words[words.index("--out") + 1] = str(again)
    assert cli.main([*words, "--tuned", str(again / "tuned.json")]) == 1, "an arm leaks"
    assert read_json(again / "study.json")["effects"] == read_json(finished / "study.json")["effects"]
    with pytest.raises(UserError, match="exists: choose another --out"):
        from_record.make_folder(recorded, again)
    (tmp_path / "other.jsonl").write_text('{"kind": "run"}\n')
    with pytest.raises(UserError, match="is not the record of a ladder or scale"):
        from_record.make_folder(tmp_path / "other.jsonl", tmp_path / "third")


def test_holm_counts_the_whole_study(finished: Path) -> None:
    report = read_json(finished / "study.json")
    judged = [one for one in report["effects"] if one["mean"] is not None]
    assert len({one["family"] for one in judged}) > 2 and len({one["budget"] for one in judged}) == 3
    (tests,) = {one["tests"] for one in judged}
    assert 2 < tests < len(judged), "several names of one test are there"
    assert any("over all comparisons of the study" in label for label in report["labels"])


def test_the_trials_of_an_arm_are_found_in_records_old_and_new(finished: Path) -> None:
    """In the tuning's table; where an earlier version kept none, in the runs, or its curve of means."""
    plan = [line for line in read_json_lines(finished / "results.jsonl") if line["kind"] == "plan"][-1]
    arm = next(arm for arm in plan["arms"] if arm["tuning"])
    table = [{"values": {"optim.lr": 1e-3}, "losses": [3.0, None]}, {"values": {}, "losses": [2.0, 2.1]}]
    assert trials_of({**arm, "tuning": {**arm["tuning"], "table": table}}, {}) == [[3.0, None], [2.0, 2.1]]
    old = {"curve": arm["tuning"]["sensitivity"]["lr"]}
    curve = [loss for _, loss in old["curve"]]
    from_runs = trials_of({**arm, "tuning": old}, read_results(finished))
    assert sorted(sum(losses) / len(losses) for losses in from_runs) == pytest.approx(sorted(curve))
    assert all(len(losses) == 2 for losses in from_runs)
    judged = {key: line for key, line in read_results(finished).items() if line["purpose"] == "seed"}
    assert trials_of({**arm, "tuning": old}, judged) == [[loss] for loss in curve]
    assert trials_of({**arm, "tuning": None}, judged) == []


def test_runs_of_several_versions_are_said(finished: Path) -> None:
    lines = read_json_lines(finished / "results.jsonl")
    plan = [line for line in lines if line["kind"] == "plan"][-1]
    results = read_results(finished)
    assert not any("versions" in label for label in report_of(plan, results)["labels"])
    key = plan["arms"][0]["runs"]["tokens"][0]
    mixed = {**results, key: {**results[key], "commit": "0123456789"}}
    (label,) = [one for one in report_of(plan, mixed)["labels"] if "versions" in one]
    assert "0123456" in label


# ---- another ladder in the same folder


NARROW = ["--nanogpt.model.hidden_size", "16", "--nanokimi.model.hidden_size", "16"]


@pytest.fixture(scope="module")
def narrower(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished ladder's folder, in which models of other sizes took over the rates that it found."""
    folder = tmp_path_factory.mktemp("narrower")
    write_study_files(folder, steps=6)
    shutil.copytree(finished, folder / "out")
    more = ["--components", "Muon", "--design", "additive", "--seeds", "1", "--budgets", "tokens,flops"]
    tuned = ["--tuned", str(finished / "tuned.json"), "--workers", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert cli.main(study_command(folder, "ladder", *more, *tuned, *NARROW)) == 0
    return folder / "out"


def test_tuned_rates_are_taken_over_and_said(finished: Path, narrower: Path) -> None:
    report = read_json(narrower / "study.json")
    tuned = read_json(finished / "tuned.json")["arms"]
    assert {row["name"]: row["lr"] for row in report["arms"]} == {
        name: tuned[name]["best"]["optim.lr"] for name in (START, "+ Muon", MUON_START)
    }
    before, after = read_results(finished), read_results(narrower)
    assert before.items() < after.items()
    assert {line["purpose"] for key, line in after.items() if key not in before} == {"seed"}


def test_steps_of_a_budget_are_solved_again_for_other_arms(finished: Path, narrower: Path) -> None:
    """The folder knows the steps of the arms before; these have other sizes, and so other FLOPs."""
    plans = [line for line in read_json_lines(narrower / "results.jsonl") if line["kind"] == "plan"]
    assert plans[0] == read_json_lines(finished / "results.jsonl")[-1]
    assert set(plans[0]["budget_steps"]) == {"flops", "seconds"}
    assert plans[-1]["budget_steps"]["flops"] != plans[0]["budget_steps"]["flops"]


# ---- arms of the user's own


PLUG = """
from torch import nn


class Wide(nn.Module):
    plugs_into = "feed_forward"

    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, WIDTH * config.hidden_size)
        self.down = nn.Linear(WIDTH * config.hidden_size, config.hidden_size)

    def forward(self, x_BTD):
        return self.down(self.up(x_BTD).relu())
"""
MODEL = """
import torch
from torch import nn


class Bigrams(nn.Module):
    def __init__(self, vocab_size, width=8):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        return self.head(self.embed(ids))
"""


def test_classes_of_the_users_own_are_two_more_arms(toy: Path) -> None:
    """One is a part of NanoKimi, the other a whole model."""
    (toy / "mine.py").write_text(PLUG.replace("WIDTH", "2"))
    (toy / "models.py").write_text(MODEL)
    whole = f"Bigrams: from={toy / 'models.py'}:Bigrams model.width=4 optim.lr=1e-2"
    more = ["--components", "Muon", "--design", "leave-one-out", "--no-tune", "--budgets", "tokens"]
    more += ["--seeds", "2", "--workers", "1", "--plugin", f"{toy / 'mine.py'}:Wide", "--arm", whole]
    for family in ("nanogpt", "nanokimi"):  # the first layer is dense, and its width makes the sizes equal
        more += [f"--{family}.model.num_hidden_layers", "2"]
    more += ["--nanokimi.model.first_k_dense_replace", "1"]
    out = toy / "classes"
    try:
        words = study_command(toy, "ladder", *more)
        words[words.index("--out") + 1] = str(out)
        assert cli.main(words) == 0
    finally:
        forget_plugins()
    report = read_json(out / "study.json")
    rows = {row["name"]: row for row in report["arms"]}
    effects = {one["name"]: one for one in report["effects"]}
    for name in ("NanoKimi with mine.py:Wide", "Bigrams"):
        assert len(rows[name]["losses"]) == 2 and rows[name]["leaking"] is None
        assert effects[name]["mean"] is not None
    assert "unmatched in" in (out / "study.md").read_text()
    arms = [line["arm"] for line in read_results(out).values()]
    assert arms.count("NanoKimi with mine.py:Wide") == arms.count("Bigrams") == arms.count(END) == 2


def test_another_content_of_the_users_class_is_another_run(tmp_path: Path) -> None:
    """Its file's content is part of the names of runs and audits."""
    arms, _ = plan_ladder(preset("ladder-shakespeare"), ["leave-one-out"], ["Muon"])
    fingerprint = {"tokens_sha256": "a", "tokenizer_sha256": "b"}
    names = []
    for width in (2, 3, 2):
        (tmp_path / "mine.py").write_text(PLUG.replace("WIDTH", str(width)))
        forget_plugins()
        arm = plugged_arm(arms, f"{tmp_path / 'mine.py'}:Wide")
        job = as_job_config(arm.config, 1)
        names.append((job_key(job, fingerprint), audit_key(job, fingerprint)))
    assert names[0] == names[2]
    assert names[0][0] != names[1][0] and names[0][1] != names[1][1]


# ---- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--design", "sideways"],
            "--design is sideways: expected additive, leave-one-out, 2x2, both or all",
        ),
        (["--components", "RMSNorm,magic"], "--components: there is no 'magic'; there are RMSNorm, RoPE"),
        (["--components", "MLA", "--design", "additive"], "--components: MLA needs RoPE"),
        (["--seeds", "0"], "--seeds is 0: it must be 1 to 1000"),
        (["--tuned", "x.json", "--no-tune"], "--tuned and --no-tune exclude each other"),
        (["--arm", "nonsense"], "--arm 'nonsense': expected \"NAME: from=FAMILY"),
        (
            ["--arm", "x: from=nanokimi model.atention=gqa"],
            "there is no setting 'variant.model.atention'; the nearest is",
        ),
        (["--nanogpt.model.hidden_size", "64"], "differ: the ladder needs them equal"),
        (["--train.max_seconds", "5"], "this needs a budget in steps, epochs or tokens"),
    ],
)
def test_mistakes_are_one_line(
    toy: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        word if word != str(toy / "out") else str(toy / "refused")
        for word in study_command(toy, "ladder", *more)
    ]
    assert cli.main(given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    given = [word if word != str(toy / "out") else str(tmp_path) for word in study_command(toy, "ladder")]
    assert cli.main(given) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]


def test_help_names_the_components() -> None:
    from nanokimi.cli.study_options import STUDY_USAGE

    listed = " ".join(STUDY_USAGE["ladder"].split())
    assert ", ".join(NAMES) in listed


def test_the_headline_says_what_was_not_tuned() -> None:
    config = load_config("smoke")
    arms = [StudyArm("one", config, tuning={"kind": "rates"}), StudyArm("leak", config, leaking="there")]
    assert study_title("Worth", arms, False, 200) == "Worth"
    assert study_title("Worth", arms, True, 200) == study_title("Worth", arms, False, 3) == "QUICK: Worth"
    assert study_title("Worth", [*arms, StudyArm("two", config)], True, 200) == "QUICK, NOT TUNED: Worth"
