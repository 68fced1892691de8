"""The benchmark scripts run, so that they cannot rot: each with --smoke, whose numbers mean nothing.

nanoGPT is looked for where the environment variable NANOGPT says (a checkout); without it, what needs it is skipped.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import make_text

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed"
)


def smoke(name: str, *options: str) -> dict[str, Any]:
    """Run a script as a user would; returns its JSON line."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smoke", "--threads", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert record["benchmark"] == name and record["torch"] and "other_cores" in record
    return record


@pytest.fixture
def nanogpt() -> str:
    """A checkout of nanoGPT."""
    path = os.environ.get("NANOGPT", "")
    if not (Path(path) / "train.py").is_file() or not path:
        pytest.skip("no nanoGPT here: git clone https://github.com/karpathy/nanoGPT, and name it in NANOGPT")
    return path


def test_startup(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    record = smoke("startup", "--out", str(out))
    assert not record["torch_imported"]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [record]


@pytest.mark.slow  # processes that all import torch
def test_communication() -> None:
    found = smoke("communication")["sizes"]["2"]
    assert found["ratio"] == 1.0 and found["weights"] > found["gradients"] > 0


@pytest.mark.slow  # processes that all import torch
def test_expert_parallel() -> None:
    found = smoke("expert_parallel")["sizes"]["2"]
    assert found["gathered"]["over_formula"] == found["shared"]["over_formula"] == 1.0
    assert found["shared"]["tokens"] > 0 and found["time_ratio"]["median"] > 0


@pytest.mark.slow
@needs_transformers
def test_train_gpt(nanogpt: str) -> None:
    record = smoke("train_gpt", "--nanogpt", nanogpt, "--transformers")
    arms = record["arms"]
    assert record["over_transformers"]["peer"].startswith("gpt2-") and record["over_transformers"]["min"] > 0
    assert {"ours-fp32", "nanogpt"} <= set(arms) and arms["nanogpt"]["ratio"]["median"] == 1.0
    assert all(arm["step_ms"]["median"] > 0 and arm["roofline_ms"] > 0 for arm in arms.values())


@pytest.mark.slow
@needs_transformers
def test_sample_gpt(nanogpt: str) -> None:
    """Beyond the context transformers cannot go; within it all three write the same."""
    contexts = smoke("sample_gpt", "--nanogpt", nanogpt)["contexts"]
    assert [set(found["arms"]) for found in contexts.values()] == [
        {"ours", "nanogpt"},
        {"ours", "nanogpt", "transformers"},
    ]
    assert contexts["16"]["same_greedy_tokens"] == 16


@pytest.mark.slow
def test_a_notebook_is_timed_by_its_optimizers_steps(tmp_path: Path) -> None:
    """A notebook of the seed's shape: what it prints and the name of its optimizer is all it shares with it."""
    cells = [
        "import torch\nbatch_size, block_size, max_iters, eval_interval = 16, 32, 10000, 100",
        "class TrueMuon(torch.optim.SGD): pass\nassert len(open('input.txt').read()) == 1_000_000",
        "models = {name: (torch.nn.Linear(3, 5), kind) for name, kind in [('NanoGPT', 'a'), ('NanoKimi', 'b')]}",
        "for name, (model, kind) in models.items():\n"
        "    print(f'\\nTraining {name} with few parameters')\n"
        "    optimizer = (TrueMuon if kind == 'b' else torch.optim.AdamW)(model.parameters(), lr=0.1)\n"
        "    for it in range(max_iters):\n"
        "        if it % eval_interval == 0:\n"
        "            print(f'{name} | step {it}: train loss 0')\n"
        "        model(torch.ones(2, 3)).sum().backward()\n"
        "        optimizer.step()",
    ]
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [cell]} for cell in cells]}))
    record = smoke("train_seed", "--notebook", str(notebook))
    assert record["seed_params"] == 20 and {"ours-fp32", "seed"} <= set(record["arms"])
    assert record["params_active"] == pytest.approx(278_097, rel=0.05)  # the real notebook's


@pytest.mark.slow
def test_time_to_loss(nanogpt: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(20_000))
    muon = "nanogpt: {optim: {name: muonclip}}\ntrain: {context_length: 64, batch_size: 12, max_steps: 9}\n"
    (tmp_path / "muon.yaml").write_text(muon)
    record = smoke(
        *("time_to_loss", "--nanogpt", nanogpt, "--data", str(tmp_path / "text.txt"), "--config"),
        *("shakespeare-char", "--muon_config", str(tmp_path / "muon.yaml")),
    )
    found = record["runs"][0]["arms"]
    assert set(found) == {"nanokimi", "nanogpt-muon", "nanogpt"} and record["missed"] == 0
    assert all(2 < arm["val_loss"] < 6 and arm["steps"] == 3 for arm in found.values())


@pytest.mark.slow
@needs_transformers
def test_train_kimi() -> None:
    record = smoke("train_kimi")
    assert {"ours-fp32", "transformers-fp32"} <= set(record["arms"])
    assert record["best"].startswith("ours") and record["peer"].startswith("transformers")
    assert "compiled" not in record["peer"] and set(record["ratio_alike"]) == {"neither", "both"}


@pytest.mark.slow
@needs_transformers
def test_decode() -> None:
    record = smoke("decode")
    assert record["agreement"]["same"] > 0 and record["ratio"]["median"] > 0


@pytest.mark.slow
@needs_transformers
def test_memory() -> None:
    arms = smoke("memory")["arms"]
    assert all(arm["peak_mb"] > arm["idle_mb"] > 0 for arm in arms.values())


@pytest.mark.slow
def test_newton_schulz() -> None:
    record = smoke("newton_schulz")
    assert sum(size["count"] for size in record["sizes"]) == 103
    assert all(0 < part["newton_schulz"] < part["optimizer"] < 1 for part in record["shares"].values())


@pytest.mark.slow
def test_scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    record = smoke("scaling", "--plot", str(tmp_path / "plot.png"), "--out", str(rows))
    assert [row["sweep"] for row in record["rows"]] == ["experts", "context", "width"]
    assert (tmp_path / "plot.png").stat().st_size > 0
    again = [sys.executable, str(BENCHMARKS / "scaling.py"), "--draw", str(rows), "--plot"]
    assert subprocess.run([*again, str(tmp_path / "again.png")]).returncode == 0
    assert (tmp_path / "again.png").stat().st_size > 0
    rows.write_text(rows.read_text() * 2)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert importlib.import_module("scaling").last_rows(rows) == record["rows"]


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/common.py."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("common")


def test_ratios_are_formed_within_a_round(common: Any) -> None:
    seconds = {"ours-fp32": [1.0, 2.0, 4.0], "ours-bf16": [9.0, 1.0, 1.0], "peer": [3.0, 4.0, 20.0]}
    assert common.ratio(seconds, "peer", "ours-fp32") == {"median": 3.0, "min": 2.0, "max": 5.0}
    assert common.fastest(seconds, "ours") == "ours-bf16"


def test_json_has_no_infinity_and_few_digits(common: Any) -> None:
    assert common.rounded({"a": [1.23456789, float("inf")], "b": "x"}) == {"a": [1.2346, None], "b": "x"}


def test_workers_take_turns_and_tell_what_they_found(common: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked for the same steps in every round, and the order alternates."""
    turns = importlib.import_module("turns")
    order: list[tuple[str, int]] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def turn(self, steps: int) -> float:
            order.append((self.name, steps))
            return steps * 2.0

    assert turns.interleave([Fake("a"), Fake("b")], 2, 5) == {"a": [2.0, 2.0], "b": [2.0, 2.0]}
    assert order == [("b", 5), ("a", 5), ("a", 5), ("b", 5), ("b", 5), ("a", 5)]
