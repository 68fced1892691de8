"""What the verbs that run many trainings are told: every word is typed, and a file of theirs is looked over."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.cli.study_options import STUDY_USAGE
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.parsing import is_whole, settings, with_parsed
from nanokimi.config.rules import resolve
from nanokimi.errors import UserError
from nanokimi.report.study_groups import grouped
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.study import sweep
from nanokimi.study.added import added_arm
from nanokimi.study.labels import earlier_looks, labels
from nanokimi.study.ladder import END, NAMES, START, check_corners, plan_ladder
from nanokimi.study.ladder_run import LadderOptions
from nanokimi.study.study import StudyArm
from nanokimi.study.sweep import SweepOptions
from nanokimi.study.tune import curve_record
from nanokimi.study.tuning_record import read_tuned

NO_TUNING = ("--components", "Muon", "--design", "additive", "--seeds", "1", "--budgets", "tokens")
SIZES = ("--sizes", "16,32,48,64")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_study_files(tmp_path, steps=2)


def refused(toy: Path, capsys: pytest.CaptureFixture[str], verb: str, *more: str) -> str:
    """The one line that a command is refused with, before anything is trained."""
    assert cli.main(study_command(toy, verb, *more)) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("auditing ") for line in progress) and error.startswith("nanokimi: ")
    assert not (toy / "out" / "results.jsonl").exists()
    return error


@pytest.fixture(scope="module")
def config() -> RunConfig:
    read = load_config("ladder-tales", ["--data", "text.txt"])
    return resolve(read, vocab_size=1024, device="cpu", dtype="fp32", threads=1)


@pytest.fixture(scope="module")
def arms(config: RunConfig) -> list[StudyArm]:
    return plan_ladder(config, ["2x2"], NAMES)[0]


# ---- words


def test_words_become_what_the_command_line_reads(config: RunConfig) -> None:
    words = {
        "variant.optim.lr": "2e-3",
        "variant.optim.betas": "[0.8,0.9]",
        "variant.optim.grad_clip": "null",
        "variant.model.hidden_size": "96",
        "train.max_epochs": "2",
    }
    changed = with_parsed(config, words)
    assert changed.variant.optim.lr == 2e-3 and changed.variant.optim.betas == (0.8, 0.9)
    assert changed.variant.optim.grad_clip is None and changed.variant.model.hidden_size == 96
    assert changed.train.max_epochs == 2 and changed.train.max_steps is None
    before, after = settings(config), settings(changed)
    assert {key for key in before if before[key] != after[key]} == {*words, "train.max_steps"}
    assert with_parsed(config, {}) == config
    assert is_whole("train.batch_size") and is_whole("train.max_steps")
    assert not any(map(is_whole, ("variant.optim.lr", "variant.optim.nesterov", "variant.optim.options")))


def test_an_arm_of_the_users_own_is_what_its_words_say(arms: list[StudyArm]) -> None:
    arm = added_arm(arms, "slow: from=NanoGPT-with-Muon optim.lr=2e-3 optim.betas=[0.8,0.9]")
    optim = arm.config.variant.optim
    assert (arm.name, optim.lr, optim.betas) == ("slow", 2e-3, (0.8, 0.9))
    assert arm.changes["variant.optim.betas"] == [0.8, 0.9] and json.dumps(arm.changes)
    assert arm.about == "NanoGPT with Muon with optim.lr=2e-3 optim.betas=[0.8,0.9]"
    gqa = added_arm(arms, "gqa: from=NanoGPT model.attention=gqa model.num_key_value_heads=2")
    assert gqa.config.variant.model.num_key_value_heads == 2 and abs(gqa.size_gap or 0) < 0.02
    wide = added_arm(arms, "wide: from=NanoGPT model.intermediate_size=512")
    assert wide.config.variant.model.intermediate_size == 512


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: from=NanoGPT model.positions=none", "variant.model.positions is none: expected one of learned, rope"),
        ("x: from=nanokimi model.norm=rms", "variant.model.norm is rms: expected one of layernorm, rmsnorm"),
        ("x: from=nanokimi optim.schedule=linear", "variant.optim.schedule is linear: expected one of wsd"),
        ("x: from=nanokimi optim.lr=fast", "optim.lr=fast': variant.optim.lr is fast: expected a number"),
        ("x: from=nanokimi optim.lr=-1", "variant.optim.lr is -1.0: it must be above 0"),
        ("x: from=nanokimi optim.lr=", "optim.lr needs a value"),
        ("x: from=nanokimi optim.betas=[0.9", "variant.optim.betas is [0.9: expected a list like"),
        ("x: from=nanokimi model=foo", "variant.model is a group of settings: name one of them"),
        ("x: from=nanokimi model.norm", "model.norm needs a value, as in model.norm=VALUE"),
        ("x: from=NanoGPT model.num_attention_heads=0", "variant.model.num_attention_heads is 0: it must be above 0"),
        ("x: from=NanoGPT model.intermediate_size=0", "variant.model.intermediate_size is 0: it must be above 0"),
        (": from=NanoKimi model.norm=rmsnorm", "expected \"NAME: from=FAMILY"),
        ("NanoGPT: from=NanoKimi model.norm=rmsnorm", "there is already an arm 'NanoGPT'"),
    ],
)  # fmt: skip
def test_an_arm_that_cannot_be_is_refused(arms: list[StudyArm], text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        added_arm(arms, text)
    assert message in str(error.value) and "\n" not in str(error.value) and "--arm" in str(error.value)


def test_the_ladder_refuses_such_an_arm_before_it_trains(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(toy, capsys, "ladder", *NO_TUNING, "--arm", "nopos: from=NanoGPT model.positions=none")
    assert "variant.model.positions is none: expected one of learned, rope" in error


# ---- sweep


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--vary", "optim.schedule", "--grid", "wsd,linear"), "schedule is linear: expected one of wsd, cosine"),
        (("--vary", "optim.lr", "--grid", "[0.9"), "nanogpt.optim.lr is [0.9: expected a number"),
        (("--vary", "train.batch_size", "--grid", "4,8.5"), "train.batch_size is 8.5: expected a whole number"),
        (("--vary", "optim"), "--vary: nanogpt.optim is a group of settings: name one of them"),
        (("--vary", "optim.options", "--grid", "{}"), "nanogpt.optim.options holds no single value"),
        (("--vary", "optim.betas"), "nanogpt.optim.betas holds no single value"),
        (("--grid", ","), "--grid is ',': expected values with commas"),
        (("--factor", "0"), "--factor is 0: it must be above 1"),
        (("--factor", "1", "--grid", "0.1,0.2"), "--factor is 1: it must be above 1"),
        (("--factor", "-2"), "--factor is -2: it must be above 1"),
        (("--factor", "nan"), "--factor is nan: it must be above 1"),
        (("--around", "0"), "--around is 0: it must be above 0"),
        (("--vary", "train.batch_size", "--factor", "1.01"), "takes whole numbers, and around 8.0 there is only 8"),
    ],
)  # fmt: skip
def test_a_sweep_of_what_cannot_be_is_refused(
    toy: Path, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(toy, capsys, "sweep", "--model", "nanogpt", *more)
    assert not (toy / "out").exists()


def test_a_part_that_is_null_cannot_be_varied(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "nanokimi", "--vary", "model.rope_scaling.factor")
    assert "nanokimi.model.rope_scaling.factor holds no single value" in refused(toy, capsys, "sweep", *words)


@pytest.mark.parametrize("verb", ["ladder", "scale"])
def test_a_factor_that_widens_no_grid_is_refused_everywhere(
    toy: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--factor is 0.5: it must be above 1" in refused(toy, capsys, verb, "--factor", "0.5")


@pytest.mark.parametrize(
    "words",
    [
        ("--vary", "optim.schedule", "--grid", "wsd,cosine"),
        ("--grid", "0,0.1"),
        ("--vary", "train.batch_size"),
    ],
)
def test_optuna_draws_only_from_numbers_above_0(
    toy: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(toy, capsys, "sweep", "--model", "nanogpt", "--optuna", "3", *words)
    assert "--optuna draws from the numbers above 0" in error


class Asked:
    """In the place of the pool: what is tried, and a loss for each value."""

    def __init__(self, losses: dict[float, float]) -> None:
        self.losses, self.values = losses, []

    def __call__(self, arm: StudyArm, hyperparameter: str) -> Any:
        return lambda value, seed: value

    def run(self, values: Sequence[Any]) -> list[dict[str, Any]]:
        self.values += values
        return [{"val_loss": self.losses.get(value, 1.0)} for value in values]


def test_whole_numbers_are_swept_in_whole_numbers(config: RunConfig) -> None:
    options = sweep.SweepOptions(hyperparameter="train.batch_size", around=3, factor=1.5)
    assert sweep.grid_of(config, options) == [1, 2, 3, 4, 7]
    rates = sweep.SweepOptions(grid=("1e-3", "2"))
    assert [(type(value), value) for value in sweep.grid_of(config, rates)] == [(float, 1e-3), (float, 2.0)]


def test_the_place_of_a_best_value_is_judged_by_order(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 0 among the values only means that no further one is tried."""
    for best, interior in ((0.0, False), (0.1, True), (0.2, False)):
        asked = Asked({best: 0.5})
        monkeypatch.setattr(sweep, "setting_maker", asked)
        monkeypatch.setattr("nanokimi.study.pool.Pool.run", lambda _, jobs, asked=asked: asked.run(jobs))
        words = ("--model", "nanogpt", "--vary", "optim.weight_decay", "--grid", "0.2,0,0.1")
        assert cli.main(study_command(toy, "sweep", *words)) == 0
        found = read_json(toy / "out" / "sweep.json")["arms"]["NanoGPT"]
        assert found["best"] == best and found["interior"] == interior
        assert [value for value, _ in found["curve"]] == [0.0, 0.1, 0.2] and len(asked.values) == 3
        assert ("AT THE EDGE" in capsys.readouterr().out) == (not interior)
    assert (
        not curve_record({4: 1.0, 8: 2.0})["interior"] and curve_record({2: 3.0, 4: 1.0, 8: 2.0})["interior"]
    )
    assert not (toy / "out" / "tuned.json").exists(), "ladder and scale have other arms"


def test_the_leak_is_that_of_the_leaking_arm(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--arm", "Variant: from=variant", "--arms", "NanoGPT,Variant")
    error = refused(toy, capsys, "sweep", *words, "--variant.model.experts", "expert_choice")
    assert "Variant is LEAKING: " in error and "None" not in error


# ---- tuned.json


CURVE = {
    "hyperparameter": "optim.lr",
    "best": 0.01,
    "loss": 1.0,
    "trials": 1,
    "interior": True,
    "curve": [[0.01, 1.0]],
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is not a tuned.json: name that of an earlier ladder or scale"),
        ({"arms": [CURVE]}, "is not a tuned.json"),
        ({"arms": {START: 0.01}}, f"is damaged: its entry for '{START}' is not a tuning record"),
        ({"arms": {START: {k: v for k, v in CURVE.items() if k != "best"}}}, "is damaged"),
        ({"arms": {START: {**CURVE, "best": "0.01"}}}, "is damaged"),
        ({"arms": {START: {**CURVE, "curve": [[0.01]]}}}, "is damaged"),
        (
            {"arms": {START: {**CURVE, "knob": "model.num_experts_per_tok", "best": 2}}},
            "holds values of model.num_experts_per_tok, not of optim.lr",
        ),
    ],
)
def test_a_file_of_tuned_rates_is_looked_over(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "tuned.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_tuned(tmp_path / "tuned.json")
    assert f"{tmp_path / 'tuned.json'} " in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    ("verb", "content", "message"),
    [
        ("ladder", {"arms": {START: {**CURVE, "knob": "model.num_experts_per_tok", "best": 2}}}, "not of optim.lr"),
        ("ladder", {"arms": {START: CURVE, END: CURVE}}, "has no value for the arm '+ Muon'"),
        ("scale", [], "is not a tuned.json"),
    ],
)  # fmt: skip
def test_a_study_does_not_train_with_another_ones_rates(
    toy: Path, verb: str, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "tuned.json").write_text(json.dumps(content))
    more = NO_TUNING if verb == "ladder" else SIZES
    assert message in refused(toy, capsys, verb, *more, "--tuned", str(toy / "tuned.json"))


def test_help_says_where_tuned_rates_come_from() -> None:
    assert "tuned.json" not in STUDY_USAGE["sweep"]
    for verb in ("ladder", "scale"):
        assert "tuned.json of an earlier ladder or scale" in STUDY_USAGE[verb]


# ---- the corners


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("soap", "precondition_every", "2"),
        ("soap", "shampoo_beta", "0.9"),
        ("shampoo", "handover_steps", "9"),
        ("torch:NAdam", "options", "{momentum_decay: 0.1}"),
        ("muonclip", "router", "adamw"),
        ("muonclip", "split_heads", "true"),
    ],
)
def test_what_no_component_carries_is_refused(config: RunConfig, name: str, key: str, value: str) -> None:
    changed = with_parsed(config, {"nanokimi.optim.name": name, f"nanokimi.optim.{key}": value})
    with pytest.raises(
        UserError, match=rf"nanokimi\.optim\.{key} .* differ: no component of the ladder changes it"
    ):
        check_corners(changed)
    check_corners(with_parsed(config, {"nanokimi.optim.name": name}))
    check_corners(with_parsed(changed, {f"nanogpt.optim.{key}": value}))


@pytest.mark.parametrize(("verb", "more"), [("ladder", NO_TUNING), ("scale", SIZES)])
def test_no_study_trains_another_optimizer_than_it_says(
    toy: Path, verb: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--nanokimi.optim.name", "soap", "--nanokimi.optim.precondition_every", "2")
    error = refused(toy, capsys, verb, *more, *words)
    assert "nanokimi.optim.precondition_every 2 and nanogpt.optim.precondition_every 10 differ" in error


@pytest.mark.parametrize(("verb", "options"), [("ladder", LadderOptions()), ("sweep", SweepOptions())])
def test_the_help_states_the_defaults(verb: str, options: object) -> None:
    stated = re.findall(r"--([\w-]+) [NX] [^\n]*\(default: (\d+)\)", STUDY_USAGE[verb])
    assert len(stated) >= 4
    for name, default in stated:
        assert getattr(options, name.replace("-", "_")) == int(default), name


def test_comparisons_of_a_group_with_another_name_are_shown() -> None:
    """As in records of earlier versions, whose groups were renamed: a table once left them out without a word."""
    effects = [{"family": family, "name": family} for family in ("per reading", "2x2", "per reading")]
    found = grouped(effects)
    assert [(family, len(rows)) for family, _, rows in found] == [("2x2", 1), ("per reading", 2)]
    assert found[1][1].heading == "per reading"


def test_seeds_that_were_added_to_a_study_and_comparisons_left_out_are_said() -> None:
    """Repeated with more seeds in the same folder until there is a verdict, it said nothing of that."""
    lines = read_json_lines(Path(__file__).parents[1] / "docs" / "results" / "scale-tales.jsonl")
    plan = [line for line in lines if line["kind"] == "plan"][-1]
    assert earlier_looks([], plan) == earlier_looks([plan], plan) == {}
    assert not any("BEWARE" in label for label in labels(plan))
    more = {**plan, "seeds": [*plan["seeds"], 99], "comparisons": plan["comparisons"][1:]}
    found = earlier_looks([plan], more)
    name, seeds = plan["comparisons"][0]["name"], len(plan["seeds"])
    assert found == {"earlier_seeds": [seeds], "left_out": [name]}
    assert earlier_looks([plan, {**more, **found}], more) == found, "a repeated command writes no other plan"
    (said,) = [label for label in labels({**more, **found}) if "BEWARE" in label]
    assert f"the number of seeds was raised from {seeds} to {seeds + 1} and {name} was left out" in said
    other = {**plan, "arms": [{**arm, "runs": {"tokens": ["another"]}} for arm in plan["arms"]]}
    assert earlier_looks([other], more) == {}, "a study of other runs in the same folder is no look at these"
