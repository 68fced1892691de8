"""A comparison's arms are shown in the configuration's order, whatever reads its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_run

from nanokimi.cli.inspect import chosen_runs
from nanokimi.cli.serve import served_models
from nanokimi.compare.plot import shown_of
from nanokimi.config import RunConfig
from nanokimi.config.files import save_config
from nanokimi.play.models import open_players
from nanokimi.play.watch import Watcher
from nanokimi.train.run_folder import first_seeds, runs_in

ARMS = ("Zebra", "NanoKimi", "Apple")
FOLDERS = [f"{arm.lower()}/seed-{seed}" for arm in ARMS for seed in (9, 10)]
MIXED = [*FOLDERS[::-1], "a-stranger/seed-1"]


def write_comparison(folder: Path, config: RunConfig) -> None:
    """The configuration of a comparison and the (empty) folders of its runs, made in another order."""
    for name in MIXED:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.yaml").touch()
    save_config(replace(config, arms={arm: {"from": "nanogpt"} for arm in ARMS}), folder / "config.yaml")


def test_runs_are_in_the_order_of_the_arms_and_seeds(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    write_comparison(tmp_path, tiny_config())
    assert [path.relative_to(tmp_path).as_posix() for path in runs_in(tmp_path)] == [
        *FOLDERS,
        "a-stranger/seed-1",
    ]
    assert [path.parent.name for path in first_seeds(tmp_path)] == [
        "zebra",
        "nanokimi",
        "apple",
        "a-stranger",
    ]
    assert [path.parent.name for path in chosen_runs([tmp_path], [])] == [
        "zebra",
        "nanokimi",
        "apple",
        "a-stranger",
    ]
    assert [path.parent.name for path in chosen_runs([tmp_path], ["apple", "zebra"])] == ["apple", "zebra"]


def test_a_copy_beside_the_seeds_does_not_take_their_place(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """One named `seed-x` ended in a traceback, and one with another name was taken for the first seed."""
    write_comparison(tmp_path, tiny_config())
    for name in ("seed-x", "copy"):
        (tmp_path / "apple" / name).mkdir()
        (tmp_path / "apple" / name / "config.yaml").touch()
    assert [path.name for path in first_seeds(tmp_path)] == ["seed-9", "seed-9", "seed-9", "seed-1"]


def test_a_comparison_whose_configuration_cannot_be_read_still_has_its_runs(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    write_comparison(tmp_path, tiny_config())
    for broken in ("{", "- a list\n", "arms: 3\n"):
        (tmp_path / "config.yaml").write_text(broken)
        found = [path.relative_to(tmp_path).as_posix() for path in runs_in(tmp_path)]
        assert sorted(found) == sorted(MIXED) and found.index("apple/seed-9") + 1 == found.index(
            "apple/seed-10"
        )


def test_every_reader_of_a_comparison_keeps_the_order(
    tmp_path: Path, tiny_config: Callable[..., RunConfig]
) -> None:
    """The page of `play` (Write, Look inside and Watch), `plot`, and the models that `serve` names."""
    for arm in ARMS[::-1]:
        run = write_run(
            tmp_path / f"both/{arm.lower()}/seed-1", replace(tiny_config(), model="nanogpt", name=arm)
        )
        record = {"kind": "train", "step": 1, "loss": 1.0, "tokens": 1, "flops": 1.0, "train_seconds": 1.0}
        evaluated = {**record, "kind": "eval", "val_loss": 1.0, "val_bits_per_byte": 1.0}
        lines = [json.dumps({**record, "step_ms": 1.0, "memory_bytes": 1}), json.dumps(evaluated)]
        (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "both"
    save_config(
        replace(tiny_config(), arms={arm: {"from": "nanogpt"} for arm in ARMS}), folder / "config.yaml"
    )
    assert list(open_players([str(folder)])) == list(ARMS)
    assert [one.name for one in Watcher().look(folder)] == list(ARMS)
    assert [arm.name for arm in shown_of([folder], None, None).arms] == list(ARMS)
    pytest.importorskip("fastapi")
    assert list(served_models(folder, None, "final")) == [arm.lower() for arm in ARMS]
