"""One model against itself is a draw: the null experiment of benchmarks/null.py, run for real at tiny size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_ARMS, make_text

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "null.py"
SETTINGS = f"""\
train: {{context_length: 16, batch_size: 8, max_steps: 40, eval_every: 40, device: cpu, threads: 1}}
{TINY_ARMS}
arms:
  NanoGPT: {{from: nanogpt}}
"""


def run_null(folder: Path, tries: int) -> list[dict[str, Any]]:
    """The lines of a null experiment on a small text."""
    (folder / "text.txt").write_text(make_text(), encoding="utf-8")
    (folder / "tiny.yaml").write_text(SETTINGS, encoding="utf-8")
    options = [
        "--config",
        str(folder / "tiny.yaml"),
        "--data",
        str(folder / "text.txt"),
        "--tries",
        str(tries),
    ]
    command = [sys.executable, str(SCRIPT), *options, "--out", str(folder / "null")]
    subprocess.run(command, check=True)
    lines = (folder / "null" / "null.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_copy_has_all_settings_of_nanogpt(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy without one of them would be another arm, and its null would say nothing."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    null = importlib.import_module("null")
    assert "optim.adamw_lr=0.0" in null.copy_words("tales", [])
    monkeypatch.setattr(null, "OF_THE_OPTIMIZER", [n for n in null.OF_THE_OPTIMIZER if n != "adamw_lr"])
    with pytest.raises(SystemExit, match="does not have NanoGPT's nanogpt.optim.adamw_lr"):
        null.copy_words("tales", [])


@pytest.mark.slow
def test_identical_arms_are_a_draw_in_22_of_24_tries(tmp_path: Path) -> None:
    """Slow: 24 comparisons of six runs each. At a false winner in 5% of the tries, more than two have a chance of 12%;
    the runs are deterministic, so this either holds or does not."""
    head, copy, itself, *tries = run_null(tmp_path, 24)
    assert head["kind"] == "null" and len(tries) == 24
    assert copy["winners"] <= 2 and itself["winners"] <= 2
    assert itself["smallest"] > 0, "without any difference the null is too easy"


@pytest.mark.slow
def test_the_experiment_runs_and_can_be_repeated(tmp_path: Path) -> None:
    """Slow: two comparisons. A second call finds them finished and changes nothing but the head."""
    first = run_null(tmp_path, 2)
    assert [row["kind"] for row in first] == ["null", "summary", "summary", "try", "try"]
    assert first[1:] == run_null(tmp_path, 2)[1:]
