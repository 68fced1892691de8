"""The search: the same points and as many trials for every arm, whatever scores them; it finds what can be found."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import study_command, write_study_files

from nanokimi import cli
from nanokimi.config import RunConfig
from nanokimi.config.files import load_config
from nanokimi.config.parsing import with_changes
from nanokimi.config.rules import resolve, validate
from nanokimi.report.search_page import preset_lines
from nanokimi.report.search_place import beside_sentence, lower_beside, place_of
from nanokimi.runtime.files import read_json
from nanokimi.study.jobs import read_results
from nanokimi.study.search import Asked, Design, search, sobol_points
from nanokimi.study.space import (
    BY_NAME,
    HYPERPARAMETERS,
    hyperparameters_of,
    left_out,
    settings_of,
    values_at,
)

STEPS = 500
SEEDS = [11, 12]


def arm(family: str, **optim: Any) -> RunConfig:
    """A family of the ladder's preset, with some settings of its optimizer replaced."""
    config = load_config("ladder-tales", ["--data", "text.txt"])
    config = resolve(config, vocab_size=1024, device="cpu", dtype="fp32", threads=1)
    changes = {f"{family}.optim.{key}": value for key, value in optim.items()}
    return replace(with_changes(config, changes), model=family)  # type: ignore[arg-type]


ARMS = {"kimi": arm("nanokimi"), "gpt": arm("nanogpt"), "lion": arm("nanogpt", name="lion")}


def values_of(settings: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """The hyperparameters' values that settings stand for, read off independently of how they were written."""
    found = {
        "lr": settings["optim.lr"],
        "init_scale": settings["model.initializer_range"] * math.sqrt(config.family.model.hidden_size),
        "warmup": settings["optim.warmup_steps"] / STEPS,
        "weight_decay": settings["optim.weight_decay"],
        "decay": "cosine" if settings["optim.schedule"] == "cosine" else settings["optim.decay_fraction"],
        "beta2": 1 - settings["optim.betas"][1],
        "momentum": 1 - settings.get("optim.momentum", settings["optim.betas"][0]),
    }
    if "optim.adamw_lr" in settings:
        found["adamw_ratio"] = settings["optim.adamw_lr"] / settings["optim.lr"]
    return found


def bowl(centre: dict[str, float], noise: float = 0.0) -> Callable[[Sequence[Asked]], list[float]]:
    """A loss that is quadratic in the hyperparameters' coordinates, around `centre` (0.5 where that says nothing)."""

    def score(asked: Sequence[Asked]) -> list[float]:
        losses = []
        for name, settings, seed in asked:
            values = values_of(settings, ARMS[name])
            units = {
                hyperparameter: BY_NAME[hyperparameter].unit(value)
                for hyperparameter, value in values.items()
            }
            loss = 2 + sum(
                (unit - centre.get(hyperparameter, 0.5)) ** 2 for hyperparameter, unit in units.items()
            )
            drawn = np.random.default_rng(abs(hash((str(settings), seed))) % 2**32).normal()
            losses.append(loss + noise * drawn)
        return losses

    return score


# ---- the space


def test_every_arm_has_the_same_space_less_what_its_optimizer_lacks() -> None:
    assert [hyperparameter.name for hyperparameter in hyperparameters_of(ARMS["kimi"])] == [
        hyperparameter.name for hyperparameter in HYPERPARAMETERS
    ]
    assert not left_out(ARMS["gpt"]), "AdamW alone has a rate of embeddings and head, too"
    assert left_out(arm("nanogpt", name="lion")) == {"adamw_ratio": "lion has a single rate"}
    foreign = arm("nanogpt", name="torch:NAdam")
    assert set(left_out(foreign)) == {"adamw_ratio", "beta2", "momentum"}


@pytest.mark.parametrize("name", list(ARMS))
def test_any_point_of_the_space_is_a_valid_configuration(name: str) -> None:
    """And its settings lie within the ranges that the table names."""
    config = ARMS[name]
    corners = [tuple([0.0] * len(HYPERPARAMETERS)), tuple([1.0] * len(HYPERPARAMETERS))]
    for point in (*corners, *sobol_points(32)):
        values = values_at(point, hyperparameters_of(config), STEPS)
        settings = settings_of(values, config, STEPS)
        validate(with_changes(config, {f"{config.model}.{key}": value for key, value in settings.items()}))
        read = values_of(settings, config)
        for hyperparameter in hyperparameters_of(config):
            value = read[hyperparameter.name]
            if value != "cosine":
                slack = 0.5 / STEPS if hyperparameter.name == "warmup" else 1e-3 * value
                assert hyperparameter.low - slack <= value <= hyperparameter.high + slack, hyperparameter.name
                assert value == pytest.approx(values[hyperparameter.name], rel=2e-3), hyperparameter.name
    ends = [
        settings_of(values_at(point, hyperparameters_of(config), STEPS), config, STEPS) for point in corners
    ]
    assert ends[0]["optim.schedule"] == "wsd" and ends[1]["optim.schedule"] == "cosine"
    assert (ends[0]["optim.lr"], ends[1]["optim.lr"]) == (5e-4, 6.4e-2)


def test_first_beta_or_momentum_whichever_the_optimizer_has() -> None:
    values = {"lr": 0.01, "momentum": 0.1, "beta2": 0.02}
    muon, adamw = (settings_of(values, ARMS[name], STEPS) for name in ("kimi", "gpt"))
    assert muon["optim.momentum"] == 0.9 and muon["optim.betas"][1] == 0.98
    assert muon["optim.betas"][0] == ARMS["kimi"].family.optim.betas[0], "its AdamW part keeps the first beta"
    assert adamw["optim.betas"] == [0.9, 0.98] and "optim.momentum" not in adamw


# ---- the design


def test_all_arms_get_as_many_trials_and_the_same_first_points() -> None:
    asked: list[Asked] = []
    score = bowl({"lr": 0.3})

    def recorded(some: Sequence[Asked]) -> list[float]:
        asked.extend(some)
        return score(some)

    design = Design(points=16, rounds=2)
    records = search(ARMS, recorded, SEEDS, STEPS, design)
    assert {record["trials"] for record in records.values()} == {design.trials}
    assert {record["runs"] for record in records.values()} == {design.runs(2)}
    assert {len(record["table"]) for record in records.values()} == {design.trials}
    for name, record in records.items():
        mine = [(json.dumps(settings), seed) for arm_name, settings, seed in asked if arm_name == name]
        assert len(mine) == len(set(mine)) == design.runs(2), "nothing is run twice"
        for i, row in enumerate(record["table"][:16]):
            assert row["values"] == values_at(sobol_points(16)[i], hyperparameters_of(ARMS[name]), STEPS)
        counts = [len(row["losses"]) for row in record["table"]]
        assert counts[:16].count(2) == 4 and set(counts[16:]) == {2}
        assert record["seeds"] == SEEDS


def test_the_optimum_of_a_bowl_is_found() -> None:
    centre = {"lr": 0.62, "init_scale": 0.35, "momentum": 0.7, "weight_decay": 0.4}
    records = search(ARMS, bowl(centre), SEEDS, STEPS, Design())
    for name, record in records.items():
        assert record["loss"] < 2.05, name
        unit = BY_NAME["lr"].unit(record["best_values"]["lr"])
        assert unit == pytest.approx(0.62, abs=0.13), name
        assert all(record["interior"].values()), name
        beaten = [row for row in record["table"] if len(row["losses"]) == 2]
        means = [sum(row["losses"]) / 2 for row in beaten]
        assert record["loss"] == pytest.approx(min(means)), "the best of what all seeds have judged"
    random = [sum((np.array(point) - 0.5) ** 2) for point in sobol_points(75)]
    assert records["kimi"]["loss"] - 2 < min(random) / 2, "as many points without the pattern do worse"


@pytest.mark.parametrize(("noise", "bound"), [(0.0, 0.035), (0.03, 0.06)])
def test_hyperparameters_that_interact_and_seeds_that_scatter(noise: float, bound: float) -> None:
    """How far above the lowest loss the search ends, in the median of 12 bowls that lie askew (docs/experiments.md)."""
    generator, above = np.random.default_rng(0), []
    for _ in range(12):
        centre = generator.uniform(0.25, 0.75, len(HYPERPARAMETERS))
        widths = np.sqrt([4, 1, 2, 0.6, 0.3, 0.6, 0.4, 0.8])
        askew = np.diag(widths) + generator.normal(
            0, 0.1 * widths.mean(), (len(HYPERPARAMETERS), len(HYPERPARAMETERS))
        )

        def loss(settings: dict[str, Any], askew: Any = askew, centre: Any = centre) -> float:
            values = values_of(settings, ARMS["kimi"])
            units = np.array(
                [hyperparameter.unit(values[hyperparameter.name]) for hyperparameter in HYPERPARAMETERS]
            )
            return float(((askew @ (units - centre)) ** 2).sum())

        def score(asked: Sequence[Asked], loss: Callable[[dict[str, Any]], float] = loss) -> list[float]:
            return [loss(settings) + noise * generator.normal() for _, settings, _ in asked]

        record = search({"kimi": ARMS["kimi"]}, score, SEEDS, STEPS, Design())["kimi"]
        above.append(loss(record["best"]))
    assert np.median(above) < bound


def test_more_rounds_come_closer() -> None:
    centre = {hyperparameter.name: 0.3 + 0.05 * i for i, hyperparameter in enumerate(HYPERPARAMETERS)}

    def losses(rounds: int) -> float:
        return float(search(ARMS, bowl(centre), SEEDS, STEPS, Design(rounds=rounds))["kimi"]["loss"])

    assert losses(0) > losses(1) > losses(3)


def test_steps_to_a_lower_loss_that_nobody_made_together_are_named() -> None:
    """The best trial moves the rate. What warm-up would gain besides is said; momentum's curve is lowest at its centre,
    and a step that diverged is none."""
    search = {
        "centre": {"lr": 0.02, "warmup": 0.1, "momentum": 0.1, "decay": 0.3},
        "best_values": {"lr": 0.01, "warmup": 0.1, "momentum": 0.1, "decay": 0.3},
        "interior": {"lr": True, "warmup": True, "momentum": False, "decay": True},
        "sensitivity": {
            "lr": [[0.01, 1.2], [0.02, 1.5], [0.04, 1.7]],
            "warmup": [[0.05, 1.4], [0.1, 1.5], [0.2, 1.3]],
            "momentum": [[0.05, 1.6], [0.1, 1.5]],
            "decay": [[0.1, None], [0.3, 1.5]],
        },
    }
    assert lower_beside(search) == {"warmup": pytest.approx(0.2)}
    assert [place_of(search, name) for name in search["centre"]] == [
        *("interior", "interior, lower beside it", "AT THE EDGE", "interior"),
    ]
    assert "GPT (1 hyperparameter, by up to 0.2000)" in beside_sentence([("GPT", search)])
    grid = {
        "interior": {"lr": True},
        "best_values": {"lr": 1.0},
        "sensitivity": {"lr": [[1.0, 2.0], [2.0, 3.0]]},
    }
    assert beside_sentence([("GPT", grid)]) == "" and place_of(grid, "lr") == "interior"


def test_what_lies_outside_is_said_to_lie_at_the_edge() -> None:
    records = search(ARMS, bowl({"lr": 1.6, "weight_decay": -0.5, "decay": 0.95}), SEEDS, STEPS, Design())
    for record in records.values():
        edge = {name for name, interior in record["interior"].items() if not interior}
        assert edge == {"lr", "weight_decay"}, "a cosine is the last choice, and no edge"
        assert record["best_values"]["lr"] == BY_NAME["lr"].high
        assert record["best_values"]["decay"] == "cosine"


def test_noise_does_not_decide_how_much_is_tried() -> None:
    trials = set()
    for noise in (0.0, 0.05, 5.0):
        trials |= {
            record["trials"] for record in search(ARMS, bowl({}, noise), SEEDS, STEPS, Design()).values()
        }
    assert trials == {Design().trials}


def test_what_diverges_is_never_the_best() -> None:
    score = bowl({"lr": 0.6})

    def fragile(asked: Sequence[Asked]) -> list[float | None]:
        """Diverges above a rate, and with the second seed already at lower ones."""
        limits = {SEEDS[0]: 0.02, SEEDS[1]: 0.008}
        return [
            None if settings["optim.lr"] > limits[seed] else loss
            for (_, settings, seed), loss in zip(asked, score(asked), strict=True)
        ]

    for record in search(ARMS, fragile, SEEDS, STEPS, Design()).values():
        assert record["best_values"]["lr"] <= 0.008 and record["loss"] is not None
        assert any(None in row["losses"] for row in record["table"])
    hopeless = search(ARMS, lambda asked: [None] * len(asked), SEEDS, STEPS, Design(points=4, rounds=1))
    assert {record["loss"] for record in hopeless.values()} == {None}


def test_curves_vary_one_hyperparameter_and_pass_through_the_best() -> None:
    """Read off the table: nothing else differs, and where a side won, it is on its own curve."""
    record = search(ARMS, bowl({}, 0.01), SEEDS, STEPS, Design())["kimi"]
    rows = {json.dumps(row["values"], sort_keys=True): row["losses"] for row in record["table"]}
    for hyperparameter, curve in record["sensitivity"].items():
        assert len(curve) >= 3, hyperparameter
        for value, loss in curve:
            losses = rows[json.dumps({**record["centre"], hyperparameter: value}, sort_keys=True)]
            assert loss == pytest.approx(sum(losses) / 2)
    differing = [k for k, value in record["centre"].items() if value != record["best_values"][k]]
    assert len(differing) <= 1
    for hyperparameter in differing:
        assert record["best_values"][hyperparameter] in [
            value for value, _ in record["sensitivity"][hyperparameter]
        ]


def test_a_hyperparameter_that_changes_nothing_stays_where_it_was() -> None:
    """Ties do not push it towards an end of the space."""

    def score(asked: Sequence[Asked]) -> list[float]:
        return [(BY_NAME["lr"].unit(settings["optim.lr"]) - 0.4) ** 2 for _, settings, _ in asked]

    record = search({"gpt": ARMS["gpt"]}, score, SEEDS, STEPS, Design())["gpt"]
    first = min(
        record["table"][: Design().points],
        key=lambda row: abs(BY_NAME["lr"].unit(row["values"]["lr"]) - 0.4),
    )
    assert {**record["best_values"], "lr": 0} == {**first["values"], "lr": 0}


def test_few_whole_steps_of_warm_up_still_leave_equal_trials() -> None:
    """Of 6 steps warm-up is 1 or 2: no step aside from there is new, and yet every trial is another one."""
    design = Design(points=4, rounds=2)
    asked: list[str] = []

    def score(some: Sequence[Asked]) -> list[float]:
        asked.extend(json.dumps([name, settings]) for name, settings, _ in some)
        return [settings["optim.lr"] for _, settings, _ in some]

    records = search(ARMS, score, [1], 6, design)
    assert {record["trials"] for record in records.values()} == {design.trials}
    assert len(set(asked)) == len(asked) == design.trials * len(ARMS)


# ---- the whole command, at toy size

FEW = ("--trials", "2", "--search-rounds", "1", "--seeds", "1")


def test_a_search_is_resumed_and_does_not_depend_on_the_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = write_study_files(tmp_path, steps=2)
    words = ("--search", *FEW, "--model", "nanogpt")
    assert cli.main(study_command(toy, "sweep", *words, "--workers", "2")) == 0
    shown = capsys.readouterr().out
    content = read_json(toy / "out" / "search.json")
    record = content["arms"]["NanoGPT"]
    lines = list(read_results(toy / "out").values())
    assert record["trials"] == record["runs"] == 2 + 16 == len(lines)
    assert {line["purpose"] for line in lines} == {"tune"} and {line["seed"] for line in lines} == {1007}
    assert record["cpu_seconds"] == pytest.approx(sum(line["cpu_seconds"] for line in lines), abs=0.1)
    assert record["settings"]["model"] == "nanogpt" and record["settings"]["train.dtype"] != "auto"
    assert (
        record["settings"]["nanogpt.model.hidden_size"]
        == load_config(str(toy / "toy.yaml")).nanogpt.model.hidden_size
    )
    assert not record["settings"].keys() & {f"nanogpt.{key}" for key in record["best"]}
    assert "Cost: 18 runs of 2 steps" in shown and "weight_decay" in shown
    pasted = tmp_path / "pasted.yaml"
    pasted.write_text(preset_lines(record) + "\n")
    assert set(yaml.safe_load(pasted.read_text())) == {"nanogpt"}
    config = load_config(f"{toy / 'toy.yaml'},{pasted}", ["--data", str(toy / "text.txt")])
    assert config.nanogpt.optim.lr == record["best"]["optim.lr"]
    assert config.nanogpt.model.initializer_range == record["best"]["model.initializer_range"]
    results = toy / "out" / "results.jsonl"
    kept = results.read_bytes().splitlines(keepends=True)[:15]
    results.write_bytes(b"".join(kept))  # as if it had been interrupted
    assert cli.main(study_command(toy, "sweep", *words, "--workers", "1")) == 0
    again = read_json(toy / "out" / "search.json")["arms"]["NanoGPT"]
    assert {**again, "cpu_seconds": 0} == {**record, "cpu_seconds": 0}
    assert results.read_bytes().splitlines(keepends=True)[:15] == kept, "what was there is not run again"
    monkeypatch.setattr("nanokimi.study.pool.Worker", None)  # starting one would fail
    assert cli.main(study_command(toy, "sweep", *words)) == 0
    page = toy / "out" / "search.html"
    first = page.read_text()
    assert "weight_decay" in first and preset_lines(record).split("\n")[0] in first
    page.unlink()
    assert cli.main(["report", str(toy / "out")]) == 0 and page.read_text() == first


@pytest.mark.parametrize(
    ("verb", "more", "message"),
    [
        ("sweep", ("--search", "--vary", "optim.lr"), "--vary and --search exclude each other"),
        ("sweep", ("--trials", "8"), "--trials is only for --search: give both, or neither"),
        ("sweep", ("--search", "--trials", "12"), "--trials is 12: it must be a power of two, such as 32"),
        ("ladder", ("--search", "all"), "--search is all: expected full, rates or none"),
        (
            "ladder",
            ("--search", "rates", "--trials", "8"),
            "--trials is only for --search full: leave it out",
        ),
        ("ladder", ("--search", "full", "--no-tune"), "--search and --no-tune exclude each other"),
        ("scale", ("--search-rounds", "21"), "--search-rounds is 21: it must be 0 to 20"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, verb: str, more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = write_study_files(tmp_path, steps=2)
    assert cli.main(study_command(toy, verb, *more)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
