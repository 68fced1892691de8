"""Where the arms of a study get their settings: their own search, an end's, a file; and that it is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.parsing import settings, with_changes
from nanokimi.config.rules import resolve, validate
from nanokimi.errors import UserError
from nanokimi.report.study_search import figures, searched_arms
from nanokimi.runtime.files import read_json, read_json_lines
from nanokimi.study.added import added_arm
from nanokimi.study.jobs import Job, read_results
from nanokimi.study.ladder import (
    ADAMW_END,
    DESIGNS,
    END,
    MUON_START,
    NAMES,
    START,
    inheritance_tests,
    lineage,
    plan_ladder,
)
from nanokimi.study.output import as_text, search_rows
from nanokimi.study.pool import Pool
from nanokimi.study.scale import ScaleOptions, family_parents, scale_arms
from nanokimi.study.search import Asked, Design, search
from nanokimi.study.settle import TuningOptions, from_file, inherit, tune_inheriting_arms
from nanokimi.study.space import settings_of
from nanokimi.study.study import Study, StudyArm, run_seeds
from nanokimi.study.tune import rounded
from nanokimi.study.tuning_record import RATES, read_tuned, write_tuned
from nanokimi.study.tuning_words import tuning_label

STEPS = 500


@pytest.fixture(scope="module")
def config() -> RunConfig:
    read = load_config("ladder-tales", ["--data", "text.txt"])
    return resolve(read, vocab_size=1024, device="cpu", dtype="fp32", threads=1)


@pytest.fixture(scope="module")
def arms(config: RunConfig) -> list[StudyArm]:
    return plan_ladder(config, list(DESIGNS), NAMES, searched=True)[0]


def pretend_records(arms: list[StudyArm]) -> dict[str, dict[str, Any]]:
    """A search whose losses prefer a rate of 0.01, a decay over half the run and a second beta of 0.98."""

    def score(asked: list[Asked]) -> list[float]:
        return [
            abs(s["optim.lr"] - 0.01)
            + abs(s["optim.decay_fraction"] - 0.5)
            + (s["optim.schedule"] == "cosine")
            + abs(s["optim.betas"][1] - 0.98)
            for _, s, _ in asked
        ]

    return search({arm.name: arm.config for arm in arms}, score, [1, 2], STEPS, Design(points=8))  # type: ignore[arg-type]


def test_a_seed_that_a_file_was_tuned_by_does_not_judge_its_arms(arms: list[StudyArm]) -> None:
    """`--tuned` of a study with another --seed; the label says that its seeds are used only for tuning."""
    start = next(arm for arm in arms if arm.name == START)
    tuned = start.tuned(pretend_records([start])[START])
    with pytest.raises(UserError, match="'NanoGPT' were chosen by the loss with seed 2, which cannot judge"):
        run_seeds(cast(Pool, None), [start, tuned], [2, 3])


def test_settings_that_were_found_on_another_text_or_in_longer_runs_are_said(
    arms: list[StudyArm], tmp_path: Path
) -> None:
    """`--tuned` took those of another preset, and the label said that they were chosen on this validation part."""
    start = next(arm for arm in arms if arm.name == START)
    record = pretend_records([start])[START]
    for text, steps, words in (
        ("text.txt", STEPS, ""),
        (None, STEPS, ""),
        ("tales", STEPS, "on tales"),
        ("tales", 2 * STEPS, f"in runs of {2 * STEPS} steps on tales"),
    ):
        write_tuned(tmp_path, [1, 2], steps, {START: record}, text)
        study = cast(Study, SimpleNamespace(steps=STEPS, text="text.txt"))
        (found,) = from_file(study, [start], tmp_path / "tuned.json")
        label = tuning_label([as_planned(start, found.tuning)])
        assert ("NOT TUNED HERE" in label) == bool(words)
        assert not words or f"NOT TUNED HERE: these settings were found {words}." in label


def test_searches_that_are_not_the_same_are_not_called_so(arms: list[StudyArm]) -> None:
    """The records of a file that was put together from two: it said "with the same search, with 8 or 26 trials"."""
    by_name = {arm.name: arm for arm in arms}
    records = pretend_records([by_name[START], by_name[END]])
    records[START]["trials"] -= 3
    label = tuning_label([as_planned(by_name[name], record) for name, record in records.items()])
    assert "with the same search" not in label
    assert "NOT WITH THE SAME SEARCH: the arms differ in trials." in label


def test_every_size_warms_up_over_the_same_share_of_its_own_run(config: RunConfig, tmp_path: Path) -> None:
    """All sizes of a `scale` warmed up for as many steps as the searched one, though their runs differ in length."""
    sized = scale_arms(config, ScaleOptions(sizes=(32, 64, 96, 128), families=(END,)))
    searched = sized[1]
    record = pretend_records([searched])[searched.name]
    record["best_values"]["warmup"] = 0.1
    jobs: list[Job] = []

    def run(some: Sequence[Job]) -> list[dict[str, Any]]:
        jobs.extend(some)
        return [{"val_loss": 1.0} for _ in some]

    steps = searched.config.train.max_steps
    assert steps
    study = SimpleNamespace(steps=steps, text="text.txt", tuning_seeds=lambda count: [9])
    others = [arm for arm in sized if arm is not searched]
    found = tune_inheriting_arms(
        cast(Study, study),
        cast(Pool, SimpleNamespace(run=run)),
        others,
        dict.fromkeys((arm.name for arm in others), searched.name),
        {searched.name: record},
        TuningOptions(rounds=0),
    )
    write_tuned(tmp_path, [9], steps, {**found, searched.name: record})
    settled = from_file(cast(Study, study), sized, tmp_path / "tuned.json")
    assert len({arm.config.train.max_steps for arm in settled}) == 4
    for arm in [*(job.config for job in jobs), *(arm.config for arm in settled)]:
        assert arm.train.max_steps
        assert abs(arm.variant.optim.warmup_steps - 0.1 * arm.train.max_steps) <= 0.5


# ---- who inherits from whom


def test_every_component_inherits_from_the_nearest_end_with_its_optimizer(
    config: RunConfig, arms: list[StudyArm]
) -> None:
    found = {name: parent.name for name, parent in lineage(config, arms).items()}
    assert {START, MUON_START, ADAMW_END, END}.isdisjoint(found), "the corners are searched themselves"
    assert found["+ RMSNorm"] == found["+ untied head"] == START
    assert found["+ MoE"] == found["+ balancing"] == ADAMW_END
    assert found["+ Muon"] == found["without MLA"] == found["without WSD"] == END
    assert found["without Muon and QK-Clip"] == ADAMW_END
    assert set(found) == {arm.name for arm in arms} - {START, MUON_START, ADAMW_END, END}


def test_an_end_that_is_no_arm_is_searched_all_the_same(config: RunConfig) -> None:
    some, _ = plan_ladder(config, ["leave-one-out"], ["RMSNorm", "Muon"], searched=True)
    assert ADAMW_END not in [arm.name for arm in some]
    parent = lineage(config, some)["without Muon and QK-Clip"]
    assert parent.name == ADAMW_END and parent.config.family.optim.name == "adamw"


def test_an_optimizer_that_no_end_has_is_searched_itself(config: RunConfig, arms: list[StudyArm]) -> None:
    lion = added_arm(arms, "lion: from=NanoGPT optim.name=lion")
    wide = added_arm(arms, "wide: from=NanoGPT model.intermediate_size=512")
    wider = added_arm([*arms, wide], "wider: from=wide model.norm=rmsnorm")
    found = lineage(config, [*arms, lion, wide, wider])
    assert "lion" not in found
    assert found["wide"].name == found["wider"].name == START


def test_in_a_full_search_wsd_is_no_component(config: RunConfig, arms: list[StudyArm]) -> None:
    names = [arm.name for arm in arms]
    assert "+ WSD" not in names and "+ QK-Clip" not in names, "adding QK-Clip leads to NanoKimi"
    _, comparisons = plan_ladder(config, ["additive"], NAMES, searched=True)
    last = [one for one in comparisons if one["family"] == "additive"][-1]
    assert last["name"] == "+ QK-Clip" and last["weights"] == {END: 1, "+ Muon": -1}
    (without,) = [arm for arm in arms if arm.name == "without WSD"]
    assert without.config.variant.optim.schedule == "cosine"


def test_each_end_also_takes_the_settings_of_the_other(config: RunConfig, arms: list[StudyArm]) -> None:
    more, comparisons = inheritance_tests(arms)
    found = {arm.name: parent.name for arm, parent in zip(more, lineage_of(config, arms, more), strict=True)}
    assert found == {
        f"{START}, settings of {ADAMW_END}": ADAMW_END,
        f"{ADAMW_END}, settings of {START}": START,
        f"{MUON_START}, settings of {END}": END,
        f"{END}, settings of {MUON_START}": MUON_START,
    }
    assert {one["family"] for one in comparisons} == {"inheritance"}
    assert comparisons[0]["weights"] == {f"{START}, settings of {ADAMW_END}": 1, START: -1}
    assert more[0].config == next(arm.config for arm in arms if arm.name == START)


def lineage_of(config: RunConfig, arms: list[StudyArm], more: list[StudyArm]) -> list[StudyArm]:
    parents = lineage(config, [*arms, *more])
    return [parents[arm.name] for arm in more]


def test_families_of_a_scale_inherit_from_the_configured_width(config: RunConfig) -> None:
    sized = scale_arms(config, ScaleOptions(sizes=(32, 64, 96, 128)))
    found = {name: parent.name for name, parent in family_parents(sized, 64).items()}
    assert len(found) == 6 and f"{END}, 64 wide" not in found
    assert found[f"{END}, 96 wide"] == f"{END}, 64 wide" and found[f"{START}, 32 wide"] == f"{START}, 64 wide"


# ---- what is inherited


def test_everything_but_the_rate_is_inherited_and_what_an_arm_is_about_is_kept(
    config: RunConfig, arms: list[StudyArm]
) -> None:
    by_name = {arm.name: arm for arm in arms}
    record = pretend_records([by_name[END]])[END]
    found = inherit(record, by_name["without RMSNorm"])
    assert found == {k: v for k, v in record["best_values"].items() if k != "lr"}
    assert set(record["best_values"]) - set(inherit(record, by_name["without WSD"])) == {"lr", "decay"}
    slow = added_arm(
        arms, "slow: from=nanokimi optim.schedule=cosine optim.decay_fraction=0.4 model.initializer_range=0.1"
    )
    assert set(record["best_values"]) - set(inherit(record, slow)) == {"lr", "decay", "init_scale"}
    after = added_arm([*arms, slow], "after: from=slow model.norm=layernorm")
    assert set(inherit(record, after)) == set(inherit(record, slow))
    of_lion = inherit(record, added_arm(arms, "lion: from=nanogpt optim.name=lion"))
    assert "adamw_ratio" not in of_lion and "beta2" in of_lion


def test_what_was_found_with_one_rate_for_all_weights_has_one_rate_again(
    config: RunConfig, arms: list[StudyArm], tmp_path: Path
) -> None:
    """AdamW alone had one in earlier versions, whatever the configuration says of embeddings and head now."""
    two = with_changes(config, {"nanogpt.optim.adamw_lr": 0.5})
    (start,) = [arm for arm in plan_ladder(two, ["additive"], NAMES, searched=True)[0] if arm.name == START]
    assert start.config.variant.optim.adamw_lr == 0.5
    record = pretend_records([start])[START]
    one = {name: value for name, value in record["best_values"].items() if name != "adamw_ratio"}
    write_tuned(tmp_path, [1, 2], STEPS, {START: {**record, "best_values": one}})
    study = cast(Study, SimpleNamespace(steps=STEPS, text="text.txt"))
    (found,) = from_file(study, [start], tmp_path / "tuned.json")
    assert found.config.variant.optim.adamw_lr is None
    write_tuned(tmp_path, [1, 2], STEPS, {START: record})
    (found,) = from_file(study, [start], tmp_path / "tuned.json")
    ratio = record["best_values"]["adamw_ratio"]
    assert found.config.variant.optim.adamw_lr == rounded(ratio * record["best_values"]["lr"])


def test_a_second_rate_that_an_arm_sets_itself_is_not_taken_for_one_of_earlier_versions(
    arms: list[StudyArm], tmp_path: Path
) -> None:
    """Nor is the configuration's, where only the rate was tuned: neither record has a ratio of the two rates."""
    own = added_arm(arms, "own: from=nanogpt optim.adamw_lr=0.25")
    record = pretend_records([own])["own"]
    one = {name: value for name, value in record["best_values"].items() if name != "adamw_ratio"}
    study = cast(Study, SimpleNamespace(steps=STEPS, text="text.txt"))
    for kind, arm in ((record["kind"], own), (RATES, replace(own, changes={}))):
        write_tuned(tmp_path, [1, 2], STEPS, {"own": {**record, "kind": kind, "best_values": one}})
        (found,) = from_file(study, [arm], tmp_path / "tuned.json")
        assert found.config.family.optim.adamw_lr == 0.25


def test_what_is_inherited_fits_another_width_and_length(config: RunConfig, arms: list[StudyArm]) -> None:
    by_name = {arm.name: arm for arm in arms}
    record = pretend_records([by_name[END]])[END]
    sized = {arm.name: arm for arm in scale_arms(config, ScaleOptions(sizes=(32, 64, 96, 128)))}
    wide = sized[f"{END}, 96 wide"]
    found = settings_of({"lr": 0.01, **inherit(record, wide)}, wide.config, 2 * STEPS)
    here = settings_of(record["best_values"], by_name[END].config, STEPS)
    ratio = found["model.initializer_range"] / here["model.initializer_range"]
    assert ratio == pytest.approx((64 / 96) ** 0.5, rel=1e-3)
    assert found["optim.warmup_steps"] == pytest.approx(2 * here["optim.warmup_steps"], abs=1)
    assert found["optim.adamw_lr"] == pytest.approx(0.01 * record["best_values"]["adamw_ratio"], rel=1e-3)
    arm = wide.tuned({**record, "best": found})
    validate(arm.config)
    assert settings(arm.config)["variant.optim.betas"] == found["optim.betas"]


# ---- words and pictures


def as_planned(arm: StudyArm, record: dict[str, Any] | None) -> dict[str, Any]:
    return {"name": arm.name, "leaking": None, "tuning": record, "budget": "tokens"}


def test_what_was_searched_is_said(arms: list[StudyArm]) -> None:
    by_name = {arm.name: arm for arm in arms}
    records = pretend_records([by_name[START], by_name[END]])
    records[END]["interior"]["lr"] = False
    planned = [as_planned(by_name[name], records[name]) for name in records]
    label = tuning_label(planned)
    assert f"with {Design(points=8).trials} trials on 2 random seeds that are used only for tuning" in label
    assert "At the edge of what was tried" in label and f"{END} (lr" in label
    assert f"{START} (lr" not in label and label.startswith("Every arm is tuned with the same search (lr, ")
    assert tuning_label([planned[0], as_planned(by_name["+ RoPE"], None)]).endswith("not tuned.")
    rows = search_rows({"arms": planned})
    assert [row[5] for row in rows if row[:2] == [END, "lr"]] == ["AT THE EDGE"]
    assert {row[1] for row in rows if row[0] == START} == set(records[START]["space"])
    shown = searched_arms({"arms": planned})
    assert [arm["name"] for arm in shown] == [START, END]
    pictures = figures(shown)
    assert len(pictures) == 8 and all(picture.startswith("<svg") for picture in pictures)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("best_values"),
        lambda record: record["best_values"].update(lr="fast"),
        lambda record: record["best_values"].pop("lr"),
        lambda record: record["best_values"].update(magic=1.0),
        lambda record: record["interior"].update(lr=1),
        lambda record: record["table"].append({"values": {}, "losses": ["low"]}),
        lambda record: record["sensitivity"].update(lr=[[0.1]]),
    ],
)
def test_a_damaged_record_is_refused(arms: list[StudyArm], tmp_path: Path, damage: Any) -> None:
    record = pretend_records([arms[0]])[arms[0].name]
    path = tmp_path / "search.json"
    path.write_text(json.dumps({"arms": {START: record}}))
    assert read_tuned(path) == {START: json.loads(json.dumps(record))}
    damage(record)
    path.write_text(json.dumps({"arms": {START: record}}))
    with pytest.raises(Exception, match="is damaged") as error:
        read_tuned(path)
    assert START in str(error.value) and "\n" not in str(error.value)


def test_files_with_curves_of_rates_are_still_read(tmp_path: Path) -> None:
    curve = {"hyperparameter": "optim.lr", "best": 0.01, "loss": 1.0, "trials": 2, "interior": False}
    curve |= {"curve": [[0.01, 1.0], [0.02, None]]}
    (tmp_path / "tuned.json").write_text(json.dumps({"schema_version": 1, "arms": {START: curve}}))
    record = read_tuned(tmp_path / "tuned.json")[START]
    assert record["best"] == {"optim.lr": 0.01} and record["interior"] == {"lr": False}
    assert record["table"] == [
        {"values": {"lr": 0.01}, "losses": [1.0]},
        {"values": {"lr": 0.02}, "losses": [None]},
    ]


# ---- the whole ladder, searched


WORDS = (
    "--components",
    "WSD",
    "--seeds",
    "1",
    "--tuning-seeds",
    "1",
    "--budgets",
    "tokens",
    "--workers",
    "1",
)
FEW = ("--trials", "2", "--search-rounds", "0", "--points", "2", "--rounds", "0")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study_files(tmp_path_factory.mktemp("searched"), steps=2)


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert cli.main(study_command(toy, "ladder", *WORDS, *FEW)) == 0
    return toy / "out"


def test_a_ladder_searches_its_ends_and_the_rest_inherit(finished: Path) -> None:
    report = read_json(finished / "study.json")
    records = {arm["name"]: arm["tuning"] for arm in report["arms"]}
    kinds = {name: record["kind"] for name, record in records.items()}
    corners = {START, MUON_START, ADAMW_END, END}
    assert {name for name, kind in kinds.items() if kind == "search"} == corners
    assert {kind for name, kind in kinds.items() if name not in corners} == {"inherited"}
    assert {records[name]["trials"] for name in corners} == {2}
    assert {records[name]["settings"]["variant.optim.name"] for name in corners} == {"adamw", "muonclip"}
    assert records[END]["settings"]["variant.model.attention"] == "mla"
    plan = [line for line in read_json_lines(finished / "results.jsonl") if line["kind"] == "plan"][-1]
    runs = read_results(finished)
    for arm in plan["arms"]:
        record, parent = arm["tuning"], records.get(arm["tuning"].get("inherited_from"))
        assert arm["lr"] == record["best"]["optim.lr"] == record["best_values"]["lr"]
        assert runs[arm["runs"]["tokens"][0]]["lr"] == arm["lr"], "what was found is what was run"
        if parent and arm["name"] != "without WSD":
            shared = set(record["best_values"]) & set(parent["best_values"]) - {"lr"}
            assert (
                all(
                    record["best_values"][hyperparameter] == parent["best_values"][hyperparameter]
                    for hyperparameter in shared
                )
                and shared
            )
    assert records["without WSD"]["best"].get("optim.schedule") is None, "its cosine is what it is about"


def test_a_corner_that_is_no_arm_leaves_its_search_with_those_that_inherit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its noise is part of the intervals, also if the file that it was found in is taken over."""
    toy = write_study_files(tmp_path, steps=2)
    monkeypatch.setenv("NANOKIMI_CACHE", str(tmp_path / "cache"))
    words = ["--design", "leave-one-out", "--components", "Muon", *WORDS[2:]]
    without = "without Muon and QK-Clip"
    for more in (FEW, ("--tuned", str(toy / "tuned.json"))):
        assert cli.main(study_command(toy, "ladder", *words, *more)) == 0
        rows = {arm["name"]: arm for arm in read_json(toy / "out" / "study.json")["arms"]}
        assert ADAMW_END not in rows and list(rows[without]["earlier_variances"]) == [
            f"{ADAMW_END} of tuned.json"
        ]
        if more == FEW:
            shutil.copy(toy / "out" / "tuned.json", toy)


def test_the_reports_show_the_search_and_test_the_inheritance(finished: Path) -> None:
    report = read_json(finished / "study.json")
    tested = [one["name"] for one in report["effects"] if one["family"] == "inheritance"]
    assert tested[0] == f"{START}, settings of {ADAMW_END}" and len(tested) == 4
    for text in (as_text(report), *((finished / f"study.{kind}").read_text() for kind in ("md", "html"))):
        assert "What was searched" in text and "settings of" in text and "init_scale" in text
        assert "interior" in text or "AT THE EDGE" in text
    assert any("The tuning took" in label for label in report["labels"])


def test_a_searched_file_is_taken_over_whole(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of all kinds, and the inheritance tests with them: in the folder of the search, every run is known."""
    toy = write_study_files(tmp_path, steps=2)
    shutil.copytree(finished, toy / "out")
    (toy / "out" / "tuned.json").unlink()
    monkeypatch.setattr("nanokimi.study.pool.Worker", None)  # starting one would fail
    command = study_command(toy, "ladder", *WORDS, "--design", "2x2")
    assert cli.main([*command, "--tuned", str(finished / "tuned.json")]) == 0
    before, after = (read_json(folder / "study.json") for folder in (finished, toy / "out"))
    losses = {arm["name"]: arm["val_loss"] for arm in before["arms"]}
    assert len(after["arms"]) == 8, "four corners, each also with the settings of another"
    assert {arm["name"]: arm["val_loss"] for arm in after["arms"]}.items() <= losses.items()
    assert read_results(toy / "out") == read_results(finished)
