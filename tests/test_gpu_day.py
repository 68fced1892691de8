"""The scripts of a GPU day (benchmarks/gpu): lines whole at any time, time limits, bars, and a plan that fits."""

from __future__ import annotations

import importlib
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import PATIENCE

from nanokimi.config.arms import arm_configs
from nanokimi.config.files import load_config

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules by name. `rows` extends the path of what it starts."""
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    loaded: dict[str, ModuleType] = {}
    yield lambda name: loaded.setdefault(name, importlib.import_module(name))
    for name in ("rows", "correctness", "speed", "arm", "sizes", "science", "day"):
        sys.modules.pop(name, None)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_on_disk_at_once_and_names_the_machine(scripts: Any, tmp_path: Path) -> None:
    rows = scripts("rows").Rows("speed", tmp_path, minutes=1.0)
    rows.write("one", "measured", {"a": 1.23456789, "b": float("inf")})
    (line,) = lines_of(tmp_path / "speed.jsonl")
    assert line["value"] == {"a": 1.2346, "b": None} and (line["script"], line["name"]) == ("speed", "one")
    assert {"status", "why", "seconds", "pretend", "machine", "gpu", "torch", "python", "commit"} <= set(line)
    assert line["gpu"] is None and line["pretend"] is False
    assert rows.finish() == 0
    rows.write("two", "failed", why="x")
    assert rows.finish() == 1 and len(lines_of(tmp_path / "speed.jsonl")) == 2


def test_the_time_limit_interrupts_what_runs(scripts: Any, tmp_path: Path) -> None:
    module = scripts("rows")
    rows, handler = module.Rows("speed", tmp_path, minutes=0.0005), signal.getsignal(signal.SIGALRM)
    begin = time.monotonic()
    with pytest.raises(module.TimeUp, match="the time limit"), module.stopped_in_time(rows):
        time.sleep(PATIENCE)
    assert time.monotonic() - begin < PATIENCE and signal.getsignal(signal.SIGALRM) == handler
    later = module.Rows("speed", tmp_path, minutes=1.0)
    with pytest.raises(module.TimeUp, match="a signal"), module.stopped_in_time(later):
        signal.raise_signal(signal.SIGTERM)


def test_an_arm_that_takes_too_long_is_ended_and_named(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines before it stay; it and what follows are left out, as are the bars that need them."""
    speed = scripts("speed")
    seen: list[float] = []

    def arm(name: str, chosen: Any, seconds_left: float, file: Path) -> None:
        seen.append(seconds_left)
        if name == "nanokimi-plain":
            speed.run([sys.executable, "-c", f"import time; time.sleep({PATIENCE})"], None, 0.2)
        file.write_text('{"tokens_per_second": 100.0, "utilisation": 0.5}')

    monkeypatch.setattr(speed, "run_arm", arm)
    monkeypatch.setattr(speed, "LEAST_SECONDS", 0.0)
    wanted = ["nanogpt-plain", "nanokimi-plain", "transformers-gpt2-plain", "nanogpt-peer-plain"]
    options = ["--out", str(tmp_path), "--nanogpt", str(tmp_path / "none"), "--arms", *wanted]
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])
    begin = time.monotonic()
    assert speed.main() == 0 and time.monotonic() - begin < PATIENCE
    found = {line["name"]: line for line in lines_of(tmp_path / "speed.jsonl")}
    statuses = {name: line["status"] for name, line in found.items()}
    assert (statuses["rates"], statuses["nanogpt-plain"]) == ("measured", "measured")
    assert (statuses["nanokimi-plain"], statuses["transformers-gpt2-plain"]) == ("left out", "left out")
    assert statuses["nanogpt-peer-plain"] == "skipped" and "no checkout" in found["nanogpt-peer-plain"]["why"]
    assert statuses["bar: nanokimi utilisation"] == "left out" and len(seen) == 3


@pytest.mark.parametrize("end", ["hangs", "fails"])
def test_a_speed_that_was_found_stays_whatever_follows(
    end: str, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compilation that hung took the time of all arms, and a profiler that failed took the tokens per second."""
    speed = scripts("speed")

    def run(words: list[str], folder: Path | None, seconds_left: float) -> str:
        name, file = words[2], Path(words[-1])
        if name != "nanogpt-plain":
            file.write_text('{"tokens_per_second": 100.0, "utilisation": 0.5}')
        if name != "nanokimi-plain":
            assert seconds_left == 5.0
            raise speed.TimeUp("the time limit") if end == "hangs" else RuntimeError("no counters")
        return ""

    monkeypatch.setattr(speed, "run", run)
    wanted = ["nanogpt-plain", "nanogpt-compiled", "nanokimi-plain"]
    options = ["--out", str(tmp_path), "--limit", "5", "--arms", *wanted]
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])
    assert speed.main() == (end == "fails")
    found = {line["name"]: line for line in lines_of(tmp_path / "speed.jsonl")}
    why = "ended after 5 s, an arm's limit" if end == "hangs" else "RuntimeError: no counters"
    assert [found[name]["why"] for name in wanted] == [why, why, None]
    first = "left out" if end == "hangs" else "failed"
    assert [found[name]["status"] for name in wanted] == [first, "measured", "measured"]
    assert found["bar: nanokimi over nanogpt, time per token"]["value"]["value"] == 1.0


def test_details_that_fail_cost_no_others(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = scripts("arm")

    def fails(*_: Any) -> None:
        raise RuntimeError("no counters here")

    timing = SimpleNamespace(median_ms=2.0)
    monkeypatch.setattr(arm, "time_parts", fails)
    monkeypatch.setattr(arm, "profile", fails)
    monkeypatch.setattr(arm, "generation_latency", lambda *_: (timing, timing))
    monkeypatch.setattr(arm, "evaluation_speed", lambda _: 5.0)
    state = SimpleNamespace(model=None, config=SimpleNamespace(train=SimpleNamespace(context_length=8)))
    why = "RuntimeError: no counters here"
    assert arm.details(state, 1.0) == {
        "prefill_ms": 2.0, "decode_ms_per_token": 2.0, "evaluated_tokens_per_second": 5.0,
        "failed": {"parts_ms": why, "profile": why},
    }  # fmt: skip


def test_without_transformers_its_arms_are_skipped(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    speed = scripts("speed")
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    assert speed.why_not("transformers-gpt2-plain", FOLDER) == "transformers is not installed"
    assert speed.why_not("nanokimi-plain", FOLDER) is None


def test_a_failing_arm_is_a_line_and_no_end(scripts: Any) -> None:
    speed = scripts("speed")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        speed.run([sys.executable, "-c", "1 / 0"], None, 60.0)


def test_bars_take_the_faster_form(scripts: Any) -> None:
    told: dict[str, Any] = {}
    found = {
        "nanogpt-plain": {"tokens_per_second": 100.0, "utilisation": 0.3},
        "nanogpt-compiled": {"tokens_per_second": 240.0, "utilisation": 0.6},
        "nanokimi-plain": {"tokens_per_second": 150.0, "utilisation": 0.39},
        "nanogpt-bench-compiled": {"tokens_per_second": 200.0},
        "nanogpt-peer-plain": {"tokens_per_second": 300.0, "utilisation": 0.9},
    }
    scripts("speed").bars(
        found, lambda name, status, value=None, why=None: told.update({name: (status, value)})
    )
    assert told["bar: nanogpt over nanoGPT"] == ("met", {"value": 1.2, "bar": 1.2}), "its own bench.py counts"
    assert told["bar: nanokimi utilisation"] == ("missed", {"value": 0.39, "bar": 0.4})
    assert told["bar: nanokimi over nanogpt, time per token"] == ("missed", {"value": 1.6, "bar": 1.5})


def test_as_many_steps_as_fit(scripts: Any) -> None:
    science = scripts("science")
    arm = SimpleNamespace(
        step_seconds=0.05, validations=2, seconds={"validations": 4.0, "test": 2.0, "audit": 2.0}
    )
    fixed = 2 * science.START_SECONDS + 2 * 2 * (3 * 2 + 2 + 2)  # two arms, two seeds
    seconds = (fixed + 300 * 2 * 2 * 0.05 + 0.01) / science.USED
    assert science.steps_that_fit({"a": arm, "b": arm}, 2, seconds) == 300
    assert science.steps_that_fit({"a": arm}, 1, 1e6) == science.MOST_STEPS
    assert science.steps_that_fit({"a": arm}, 1, 1.0) == science.FEWEST_STEPS


@pytest.mark.parametrize("tiny", [False, True])
def test_the_comparison_has_three_arms(tiny: bool, scripts: Any) -> None:
    words = scripts("science").settings(SimpleNamespace(tiny=tiny))
    config = load_config(words[1], ["--train.device", "cpu"])
    arms = arm_configs(config)
    assert list(arms) == ["NanoKimi", "NanoGPT with Muon", "NanoGPT"]
    assert [arm.family.optim.name for arm in arms.values()] == ["muonclip", "muon", "adamw"]


def test_each_test_of_the_gpu_becomes_a_line(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passed with what it recorded, failed with its error, skipped with its reason; what did not run is left out."""
    module = scripts("correctness")
    lines = module.Lines(scripts("rows").Rows("correctness", tmp_path, minutes=1.0))
    for name, outcome, properties, text in (
        ("test_a", "passed", [("error", 0.5)], None),
        ("test_b[x]", "failed", [], "long\nE assert 1 == 2"),
        ("test_c", "skipped", [], ("file", 3, "Skipped: no bf16")),
    ):
        whens = ("setup",) if outcome == "skipped" else ("setup", "call", "teardown")
        for when in whens:
            lines.pytest_runtest_logreport(
                SimpleNamespace(
                    nodeid=f"tests/test_gpu.py::{name}", when=when, duration=1.0, user_properties=properties,
                    outcome=outcome if when in ("call", whens[-1]) else "passed", longrepr=text, longreprtext=text,
                )
            )  # fmt: skip
    found = {line["name"]: line for line in lines_of(tmp_path / "correctness.jsonl")}
    assert found["a"]["value"] == {"error": 0.5} and found["a"]["status"] == "passed"
    assert found["b[x]"]["why"] == "E assert 1 == 2" and found["c"]["why"] == "no bf16"
    assert len(found) == 3


def test_a_test_that_is_interrupted_ends_the_script_and_is_left_out(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pytest took the time limit for the failure of a test and went on without a limit."""
    module = scripts("correctness")
    (tmp_path / "tests").mkdir()
    head = "import signal, pytest\npytestmark = pytest.mark.gpu\n"
    tests = ("quick(): pass", "slow(): signal.raise_signal(signal.SIGTERM)", "never(): pass")
    (tmp_path / "tests/test_gpu.py").write_text(head + "\n".join(f"def test_{each}" for each in tests))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["correctness.py", "--out", str(tmp_path)])
    monkeypatch.delitem(sys.modules, "test_gpu", raising=False)  # the suite has collected the real one
    assert module.main() == 0
    found = {line["name"]: (line["status"], line["why"]) for line in lines_of(tmp_path / "correctness.jsonl")}
    left_out = ("left out", "a signal")
    assert found == {"quick": ("passed", None), "slow": left_out, "never": left_out}


def test_without_a_device_nothing_is_written(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["day.py", "--out", str(tmp_path / "out")])
    assert scripts("day").main() == 2 and not (tmp_path / "out").exists()
