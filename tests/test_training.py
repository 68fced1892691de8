"""The training loop: repeatable, honest about its budget, and the same whether or not it was interrupted."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanokimi.config import ModelName, RunConfig
from nanokimi.data.store import PreparedData, open_prepared
from nanokimi.errors import TrainingError, UserError
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.model.build import build_model
from nanokimi.optim.schedule import lr_scale
from nanokimi.runtime.device import cpu_has_fast_bf16
from nanokimi.runtime.files import find_damage, read_json_lines
from nanokimi.train import evaluation, loop
from nanokimi.train import step as one_step
from nanokimi.train.checkpoint import load_newest_checkpoint, load_weights, save_checkpoint, save_weights
from nanokimi.train.loop import train
from nanokimi.train.run_folder import set_up
from nanokimi.train.state import Record, TrainState, build_state, total_steps
from nanokimi.train.step import train_step

Build = Callable[..., RunConfig]
MODELS: tuple[ModelName, ...] = ("nanokimi", "nanogpt")
CLOCKS = {"step_ms", "memory_bytes", "train_seconds"}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., TrainState]:
    """A fresh state in a folder of its own."""
    numbers: Iterator[int] = iter(range(1000))

    def build(config: RunConfig, folder: Path | None = None) -> TrainState:
        folder = folder or tmp_path / f"run-{next(numbers)}"
        if folder.exists():
            from nanokimi.config.files import load_config

            return build_state(
                load_config(str(folder / "config.yaml")), open_prepared(folder / "data"), folder
            )
        folder.mkdir()
        return build_state(*set_up(config, folder), folder)

    return build


Start = Callable[..., TrainState]


def arm(config: RunConfig, name: ModelName) -> RunConfig:
    return replace(config, model=name)


def with_model(config: RunConfig, **changes: object) -> RunConfig:
    """The config with changed fields of the model that it trains."""
    part = replace(config.family, model=replace(config.family.model, **changes))  # type: ignore[type-var, arg-type]
    return replace(config, **{config.model: part})  # type: ignore[arg-type]


def with_optim(config: RunConfig, **changes: object) -> RunConfig:
    part = replace(config.family, optim=replace(config.family.optim, **changes))  # type: ignore[arg-type]
    return replace(config, **{config.model: part})  # type: ignore[arg-type]


def run(state: TrainState) -> list[Record]:
    return list(train(state))


def losses(records: list[Record], kind: str = "train") -> list[float]:
    key = {"train": "loss", "eval": "val_loss"}[kind]
    return [record[key] for record in records if record["kind"] == kind]


def timeless(records: list[Record]) -> list[Record]:
    """Records without what depends on the machine's mood."""
    return [{key: value for key, value in record.items() if key not in CLOCKS} for record in records]


def same_weights(one: TrainState, other: TrainState) -> bool:
    pairs = zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def optimizer_content(state: TrainState) -> dict[str, Any]:
    content = state.optimizer.state_dict()
    return {f"{i}.{name}": x for i, values in content["state"].items() for name, x in values.items()}


def same_optimizer(one: TrainState, other: TrainState) -> bool:
    a, b = optimizer_content(one), optimizer_content(other)
    assert a and a.keys() == b.keys()
    return all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


# ---- determinism


@pytest.mark.parametrize("name", MODELS)
def test_the_same_config_twice_gives_identical_records_and_weights(
    name: ModelName, tiny_config: Build, start: Start
) -> None:
    config = arm(tiny_config(), name)
    first, second = start(config), start(config)
    records = run(first)
    torch.manual_seed(999)  # whatever happened before in this process must not matter
    assert timeless(run(second)) == timeless(records)
    assert timeless(read_json_lines(first.folder / "metrics.jsonl")) == timeless(records)
    assert same_weights(first, second) and same_optimizer(first, second)
    assert losses(records)[-1] < losses(records)[0] - 0.3, "it learns"


def test_another_seed_gives_another_run(tiny_config: Build, start: Start) -> None:
    config = tiny_config(max_steps=2)
    assert losses(run(start(config))) != losses(run(start(replace(config, seed=8))))


@pytest.mark.parametrize("name", MODELS)
def test_how_often_we_evaluate_does_not_change_training(
    name: ModelName, tiny_config: Build, start: Start
) -> None:
    config = arm(tiny_config(max_steps=6), name)
    if name == "nanogpt":
        config = with_model(config, dropout=0.2)
    looks = ("eval_every", "sample_every", "telemetry_every", "save_every")
    often, rarely = (
        replace(config, train=replace(config.train, **dict.fromkeys(looks, every)))  # type: ignore[arg-type]
        for every in (1, 100)
    )
    one, other = start(often), start(rarely)
    assert losses(run(one)) == losses(run(other))
    assert same_weights(one, other)


def test_records_say_where_the_run_stood(tiny_config: Build, start: Start) -> None:
    state = start(tiny_config(max_steps=6, eval_every=3, telemetry_every=2))
    records = run(state)
    assert [r["step"] for r in records if r["kind"] == "eval"] == [0, 3, 6]
    assert [r["step"] for r in records if r["kind"] == "sample"] == [0, 3, 6]
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert all(r["tokens"] == r["step"] * 8 * 16 for r in records)
    assert [r["train_seconds"] for r in records] == sorted(r["train_seconds"] for r in records)
    flops = state.flops_per_token * 6 * 8 * 16 + 6 * state.flops_per_step
    assert records[-1]["flops"] == pytest.approx(flops)
    routers = [r for r in records if r["kind"] == "router"]
    assert [r["step"] for r in routers] == [2, 4, 6], "what happened between two looks"
    assert sum(routers[0]["load"][0]) == pytest.approx(1, abs=1e-4)


def test_clocks_stop_while_a_run_is_evaluated(
    tiny_config: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """train_seconds is the sum of the steps, however slow evaluation, sampling and saving are."""
    clock, step_seconds = [0.0], 0.01
    monkeypatch.setattr(one_step, "fenced_seconds", lambda _: clock[0])
    forward = one_step.forward_backward
    monkeypatch.setattr(
        one_step, "forward_backward", lambda *given: (advance(step_seconds), forward(*given))[1]
    )

    def advance(seconds: float) -> None:
        clock[0] += seconds

    for module, slow in (
        (evaluation, "evaluate_now"),
        (evaluation, "sample_records"),
        (loop, "save_checkpoint"),
    ):
        original = getattr(module, slow)
        monkeypatch.setattr(module, slow, lambda *given, f=original: (advance(100.0), f(*given))[1])
    state = start(arm(tiny_config(max_steps=3, eval_every=1, save_every=1), "nanogpt"))
    records = run(state)
    summed = sum(r["step_ms"] for r in records if r["kind"] == "train") / 1e3
    assert state.train_seconds == pytest.approx(summed)
    assert records[-1]["train_seconds"] == state.train_seconds == pytest.approx(3 * step_seconds)
    assert clock[0] > 300 * step_seconds


def test_both_arms_see_the_same_batches_in_the_same_order(
    tiny_config: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[np.ndarray]] = {}
    original = one_step.forward_backward
    for name in MODELS:
        seen = drawn.setdefault(name, [])

        def watched(state: Any, into: list[np.ndarray] = seen) -> Any:
            into.extend(part.numpy().copy() for part in one_step.training_batch(state))
            return original(state)

        monkeypatch.setattr(one_step, "forward_backward", watched)
        run(start(arm(tiny_config(max_steps=4), name)))
    assert len(drawn["nanokimi"]) == len(drawn["nanogpt"]) == 8
    for kimi, gpt in zip(drawn["nanokimi"], drawn["nanogpt"], strict=True):
        assert np.array_equal(kimi, gpt)
    assert not np.array_equal(drawn["nanokimi"][0], drawn["nanokimi"][2]), "batches differ from step to step"


# ---- one step


@pytest.mark.parametrize("name", MODELS)
def test_accumulated_micro_batches_equal_one_batch(name: ModelName, tiny_config: Build, start: Start) -> None:
    config = arm(tiny_config(max_steps=6), name)
    if name == "nanokimi":
        # Newton-Schulz in fp32: in bf16 it turns a last digit of a gradient into a bf16 digit of the update
        config = with_optim(with_model(config, aux_loss_alpha=0.0), ns_dtype="fp32")
    whole = start(config)
    parts = start(replace(config, train=replace(config.train, micro_batch_size=2)))
    whole_records, parts_records = run(whole), run(parts)
    assert losses(parts_records) == pytest.approx(losses(whole_records), abs=1e-5)
    loads = [[r["load"] for r in rs if r["kind"] == "router"] for rs in (whole_records, parts_records)]
    assert loads[0] == loads[1] and bool(loads[0]) == (name == "nanokimi")
    norms = [[r["grad_norm"] for r in rs if r["kind"] == "train"] for rs in (whole_records, parts_records)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)


def test_the_auxiliary_loss_is_trained_on_but_not_reported_as_loss(tiny_config: Build, start: Start) -> None:
    plain, balanced = (start(with_model(tiny_config(), aux_loss_alpha=a)) for a in (0.0, 0.5))
    first, second = train_step(plain), train_step(balanced)
    assert first["loss"] == second["loss"], "the same weights and batch: the same likelihood"
    assert "aux_loss" not in first
    # 0.5 for each of the (one) mixture layers when even: f is 1 for all, P sums to 1 (eq. 17-20)
    assert second["aux_loss"] == pytest.approx(0.5, rel=0.1)
    assert train_step(plain)["loss"] != train_step(balanced)["loss"], "it changed the update"


@pytest.mark.parametrize("name", MODELS)
def test_activation_checkpointing_gives_the_same_losses(
    name: ModelName, tiny_config: Build, start: Start
) -> None:
    config = arm(tiny_config(max_steps=5, eval_every=5), name)
    if name == "nanogpt":
        config = with_model(config, dropout=0.2)
    plain = start(config)
    recomputed = start(replace(config, train=replace(config.train, activation_checkpointing=True)))
    assert recomputed.model.activation_checkpointing
    plain_records, records = run(plain), run(recomputed)
    assert losses(records) == pytest.approx(losses(plain_records), abs=1e-6)
    counts = [[r["load"] for r in rs if r["kind"] == "router"] for rs in (plain_records, records)]
    assert counts[0] == counts[1], "recomputation must not count tokens twice"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_runs_and_learns(
    dtype: str, name: ModelName, tiny_config: Build, start: Start
) -> None:
    if dtype == "bf16" and not cpu_has_fast_bf16():
        pytest.skip(
            "this CPU has no bf16 instructions (AVX512-BF16 or AMX), and nanokimi refuses to emulate them"
        )
    config = arm(tiny_config(dtype=dtype), name)
    half, full = start(config), start(arm(tiny_config(dtype="fp32"), name))
    assert half.scaler.is_enabled() is (dtype == "fp16")
    half_losses, full_losses = losses(run(half)), losses(run(full))
    assert half_losses != full_losses, "it really was computed in another precision"
    assert half_losses == pytest.approx(full_losses, abs=0.1)
    assert half_losses[-1] < half_losses[0] - 0.3
    assert all(p.dtype == torch.float32 for p in half.model.parameters()), "weights stay fp32"


def test_fp16_skips_the_update_when_a_gradient_overflows(tiny_config: Build, start: Start) -> None:
    state = start(arm(tiny_config(dtype="fp16"), "nanogpt"))
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    record = train_step(state)
    assert record["grad_norm"] is None and math.isfinite(record["loss"])
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert state.scaler.get_scale() < 2.0**40, "the next step tries a smaller scale"


def test_gradient_clipping_limits_what_the_optimizer_sees(
    tiny_config: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def norm_at_update(state: TrainState) -> float:
        original = state.optimizer.step

        def step(*arguments: Any, **options: Any) -> Any:
            grads = [p.grad for p in state.model.parameters() if p.grad is not None]
            seen.append(float(torch.stack([g.norm() for g in grads]).norm()))
            return original(*arguments, **options)

        monkeypatch.setattr(state.optimizer, "step", step)
        return float(train_step(state)["grad_norm"])

    config = arm(tiny_config(), "nanogpt")
    free = norm_at_update(start(with_optim(config, grad_clip=None)))
    assert seen[-1] == pytest.approx(free, rel=1e-5) and free > 0.1
    reported = norm_at_update(start(with_optim(config, grad_clip=0.1)))
    assert reported == pytest.approx(free, rel=1e-5), "the norm before clipping is what is reported"
    assert seen[-1] == pytest.approx(0.1, rel=1e-3)
    loose = norm_at_update(start(with_optim(config, grad_clip=free * 2)))
    assert seen[-1] == pytest.approx(loose, rel=1e-5)


def test_every_group_follows_the_schedule_from_its_own_peak(tiny_config: Build, start: Start) -> None:
    state = start(with_optim(tiny_config(), adamw_lr=1e-3))
    peaks = {group["peak_lr"] for group in state.optimizer.param_groups}
    assert peaks == {1e-2, 1e-3}
    for step in range(12):
        train_step(state)
        scale = lr_scale(step, 12, state.config.family.optim)
        for group in state.optimizer.param_groups:
            assert group["lr"] == pytest.approx(group["peak_lr"] * scale)


# ---- budgets


def budget(config: RunConfig, **named: object) -> RunConfig:
    return replace(config, train=replace(config.train, max_steps=None, **named))  # type: ignore[arg-type]


def test_budgets_give_the_right_number_of_steps(tiny_config: Build, start: Start) -> None:
    config = arm(tiny_config(eval_every=100), "nanogpt")
    probe = start(config)
    tokens = 8 * 16
    epoch = len(probe.data.train_ids) / tokens
    step_flops = probe.flops_per_token * tokens + probe.flops_per_step
    for named, steps in (
        ({"max_tokens": 3.0 * tokens}, 3),
        ({"max_tokens": 3.0 * tokens + 1}, 4),
        ({"max_tokens": 1.0}, 1),
        ({"max_epochs": 0.1}, math.ceil(0.1 * epoch)),
        ({"max_flops": 2.5 * step_flops}, 3),
    ):
        state = start(budget(config, **named))
        assert total_steps(state) == steps, named
        records = run(state)
        assert state.step == len(losses(records)) == steps, named
        assert records[-1]["step"] == steps
    muon = start(budget(tiny_config(), max_flops=1e9))
    assert muon.flops_per_step > 0, "the optimizer's products are part of the budget"


def test_a_budget_in_seconds_ends_near_the_time_with_the_rate_decayed(
    tiny_config: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which steps take from 5 to 15 ms, the first 50, whatever else the machine does."""
    chance, clock = random.Random(0), [0.0]
    forward = one_step.forward_backward

    def takes_a_while(state: TrainState) -> Any:
        clock[0] += chance.uniform(0.005, 0.015) if state.step else 0.05
        return forward(state)

    monkeypatch.setattr(one_step, "fenced_seconds", lambda _: clock[0])
    monkeypatch.setattr(one_step, "forward_backward", takes_a_while)
    config = budget(tiny_config(eval_every=10_000, sample_every=10_000, save_every=10_000), max_seconds=1.0)
    state = start(
        with_optim(arm(config, "nanogpt"), lr=1e-2, schedule="wsd", decay_fraction=0.5, min_lr_ratio=0.0)
    )
    records = [record for record in run(state) if record["kind"] == "train"]
    longest = max(record["step_ms"] for record in records) / 1e3
    assert 0.9 <= state.train_seconds <= 1.0 + 3 * longest
    assert len(records) > 80
    rates = [record["lr"] for record in records]
    assert max(rates) == pytest.approx(1e-2, rel=1e-6), "the peak was reached"
    assert rates[-1] < 0.1 * max(rates), "the schedule ran to its end"


# ---- failure


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny_config: Build, start: Start) -> None:
    for name in MODELS:
        state = start(arm(tiny_config(), name))
        train_step(state)
        with torch.no_grad():
            next(state.model.parameters())[3] = math.nan
        weights = {key: value.clone() for key, value in state.model.state_dict().items()}
        kept = {
            key: value.clone() for key, value in optimizer_content(state).items() if torch.is_tensor(value)
        }
        with pytest.raises(TrainingError, match="loss at step 2 is nan") as caught:
            train_step(state)
        assert "\n" not in str(caught.value)
        assert state.step == 1
        assert all(
            torch.equal(value, weights[key]) or value.isnan().any()
            for key, value in state.model.state_dict().items()
        )
        assert all(torch.equal(optimizer_content(state)[key], value) for key, value in kept.items())


def test_a_gradient_that_is_not_finite_stops_before_the_update(tiny_config: Build, start: Start) -> None:
    state = start(arm(tiny_config(), "nanogpt"))
    parameter = next(state.model.parameters())
    parameter.register_hook(lambda gradient: gradient * math.inf)
    before = parameter.detach().clone()
    with pytest.raises(TrainingError, match="gradient at step 1 is not finite"):
        train_step(state)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("eval_every", [1, 100])
def test_a_huge_learning_rate_ends_in_a_training_error(
    eval_every: int, name: ModelName, tiny_config: Build, start: Start
) -> None:
    """Wherever the broken weights are seen first, in training or in an evaluation or a sample."""
    config = with_optim(arm(tiny_config(eval_every=eval_every), name), lr=1e30, warmup_steps=0)
    state = start(config)
    with pytest.raises(TrainingError) as caught:
        run(state)
    assert "\n" not in str(caught.value) and "learning rate" in str(caught.value)
    for record in read_json_lines(state.folder / "metrics.jsonl"):
        assert all(math.isfinite(x) for x in record.values() if isinstance(x, float))


# ---- checkpoints


def resume_at(
    config: RunConfig, stops: list[int], start: Start, ask: Callable[[TrainState], None]
) -> tuple[TrainState, list[Record]]:
    """Train with an interruption after each of `stops`; each part with a state built anew from the folder."""
    state = start(config)
    for stop in stops:
        for record in train(state):
            if record["kind"] == "train" and record["step"] == stop:
                ask(state)
        assert state.step == stop, "a run that is asked to stop saves after its last whole step"
        state = start(config, state.folder)
        assert load_newest_checkpoint(state)
        assert state.step == stop
    run(state)
    return state, read_json_lines(state.folder / "metrics.jsonl")


def stop_politely(state: TrainState) -> None:
    state.stop_requested = True


@pytest.mark.parametrize("name", MODELS)
def test_an_interrupted_run_ends_bit_for_bit_as_one_that_was_not(
    name: ModelName, tiny_config: Build, start: Start
) -> None:
    """6 is a step of evaluation and saving, too: nothing may be written twice, no telemetry lost."""
    config = arm(tiny_config(micro_batch_size=2, sample_every=4, telemetry_every=3), name)
    if name == "nanogpt":
        config = with_model(config, dropout=0.2)
    whole = start(config)
    expected = run(whole)
    resumed, records = resume_at(config, [1, 4, 5, 6, 7, 11], start, stop_politely)
    assert same_weights(whole, resumed) and same_optimizer(whole, resumed)
    assert (whole.best_val_loss, whole.tokens) == (resumed.best_val_loss, resumed.tokens)
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in expected]
    assert timeless(records) == timeless(expected)


def test_a_run_that_was_killed_continues_from_its_newest_checkpoint(tiny_config: Build, start: Start) -> None:
    """Nobody asked it to stop: what was written after the checkpoint is written again, once."""
    config = tiny_config(save_every=2, keep_checkpoints=1)
    whole = start(config)
    expected = run(whole)
    state = start(config)
    for dies_at in (3, 6, 8):
        for record in train(state):
            if record["kind"] == "train" and record["step"] == dies_at:
                break
        resumed = start(config, state.folder)
        assert load_newest_checkpoint(resumed)
        assert resumed.step == (dies_at - 1) // 2 * 2
        state = resumed
    run(resumed)
    assert same_weights(whole, resumed) and same_optimizer(whole, resumed)
    records = read_json_lines(state.folder / "metrics.jsonl")
    assert [(r["kind"], r["step"]) for r in records] == [(r["kind"], r["step"]) for r in expected]
    assert timeless(records) == timeless(expected)


def test_a_run_killed_before_its_first_checkpoint_starts_afresh(tiny_config: Build, start: Start) -> None:
    config = arm(tiny_config(), "nanogpt")
    expected = run(start(config))
    state = start(config)
    for record in train(state):
        if record["step"] == 2:
            break
    resumed = start(config, state.folder)
    assert not load_newest_checkpoint(resumed)
    run(resumed)
    assert timeless(read_json_lines(state.folder / "metrics.jsonl")) == timeless(expected)


def test_fp16_resumes_with_its_loss_scale(tiny_config: Build, start: Start) -> None:
    config = arm(tiny_config(dtype="fp16"), "nanogpt")
    whole, state = start(config), start(config)
    for started in (whole, state):
        started.scaler.load_state_dict(started.scaler.state_dict() | {"scale": 64.0})
    run(whole)
    for record in train(state):
        if record["step"] == 5:
            stop_politely(state)
    resumed = start(config, state.folder)
    load_newest_checkpoint(resumed)
    assert resumed.scaler.get_scale() == 64.0
    run(resumed)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("best", [0.125, math.inf])
def test_the_best_loss_so_far_survives_an_interruption(best: float, tiny_config: Build, start: Start) -> None:
    """It may lie far back: the evaluations after the resumption need not reach it again."""
    state = start(arm(tiny_config(), "nanogpt"))
    train_step(state)
    state.best_val_loss = best
    save_checkpoint(state)
    resumed = start(state.config, state.folder)
    load_newest_checkpoint(resumed)
    assert resumed.best_val_loss == best


def test_a_finished_run_has_nothing_half_written_and_resuming_it_changes_nothing(
    tiny_config: Build, start: Start
) -> None:
    config = arm(tiny_config(), "nanogpt")
    state = start(config)
    expected = run(state)
    names = [path.name for path in state.folder.rglob("*")]
    assert "model.safetensors" in names
    assert not [name for name in names if "tmp" in name or "partial" in name or name.startswith(".")]
    again = start(config, state.folder)
    assert load_newest_checkpoint(again)
    run(again)
    assert same_weights(state, again)
    assert timeless(read_json_lines(state.folder / "metrics.jsonl")) == timeless(expected)


def test_only_the_newest_checkpoints_are_kept(tiny_config: Build, start: Start) -> None:
    for keep in (1, 3):
        state = start(arm(tiny_config(save_every=2, eval_every=12, keep_checkpoints=keep), "nanogpt"))
        run(state)
        found = sorted(path.name for path in (state.folder / "checkpoints").iterdir())
        assert found == [f"step-{step:08d}" for step in range(2, 13, 2)][-keep:]


def test_a_copy_beside_the_checkpoints_does_not_push_them_out(tiny_config: Build, start: Start) -> None:
    """It sorted after them, so it was the newest one that was kept, and the real one was removed or set aside."""
    state = start(arm(tiny_config(save_every=2, eval_every=12, keep_checkpoints=1), "nanogpt"))
    copy = state.folder / "checkpoints" / "step-copy"
    copy.mkdir(parents=True)
    run(state)
    assert sorted(path.name for path in copy.parent.iterdir()) == ["step-00000012", "step-copy"]
    resumed = start(state.config, state.folder)
    assert load_newest_checkpoint(resumed) and resumed.step == 12 and copy.is_dir()


def test_a_checkpoint_that_was_cut_short_is_not_used(
    tiny_config: Build, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second checkpoint is written: the first is still the newest."""
    from nanokimi.train import checkpoint

    state = start(arm(tiny_config(), "nanogpt"))
    for _ in range(3):
        train_step(state)
    save_checkpoint(state)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_json", full)
    train_step(state)
    with pytest.raises(OSError):
        save_checkpoint(state)
    resumed = start(state.config, state.folder)
    assert load_newest_checkpoint(resumed) and resumed.step == 3


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "noise": b"\xff" * len(data)}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "noise"])
@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    file: str, how: str, tiny_config: Build, start: Start
) -> None:
    state = start(arm(tiny_config(), "nanogpt"))
    train_step(state)
    save_checkpoint(state)
    weights = {key: value.clone() for key, value in state.model.state_dict().items()}
    train_step(state)
    folder = save_checkpoint(state)
    damage(folder / file, how)
    said: list[str] = []
    resumed = start(state.config, state.folder)
    assert load_newest_checkpoint(resumed, log=said.append) and resumed.step == 1
    assert all(torch.equal(value, weights[key]) for key, value in resumed.model.state_dict().items())
    (line,) = said
    assert "step-00000002 is damaged" in line and file in line and "\n" not in line
    assert (folder.parent / "damaged-step-00000002").is_dir(), "it may still be of use to somebody"
    train_step(resumed)
    assert save_checkpoint(resumed) == folder and find_damage(folder) is None, "its name is free again"


@pytest.mark.parametrize("name", MODELS)
def test_final_weights_give_the_same_logits_when_loaded(
    name: ModelName, tiny_config: Build, start: Start
) -> None:
    state = start(arm(tiny_config(max_steps=3, eval_every=3), name))
    run(state)
    fresh = build_model(state.config.family.model, seed=12345)
    load_weights(fresh, state.folder / "model.safetensors")
    accelerate_(fresh)
    ids_BT = torch.arange(16)[None] % 20
    with torch.no_grad():
        expected_BTW = state.model.eval()(ids_BT).logits_BTW
        assert torch.equal(fresh.eval()(ids_BT).logits_BTW, expected_BTW)
    if name == "nanogpt":
        assert fresh.lm_head.weight is fresh.transformer.wte.weight, "the head stays tied"


def test_weights_of_another_model_are_refused_and_change_nothing(
    tiny_config: Build, start: Start, tmp_path: Path
) -> None:
    kimi = start(arm(tiny_config(), "nanokimi")).model
    others = {
        "other kind": start(arm(tiny_config(), "nanogpt")).model,
        "other width": start(with_model(tiny_config(), hidden_size=48)).model,
        "other depth": start(with_model(tiny_config(), num_hidden_layers=3)).model,
        "other experts": start(with_model(tiny_config(), n_routed_experts=5)).model,
    }
    before = {name: value.clone() for name, value in kimi.state_dict().items()}
    for what, other in others.items():
        path = tmp_path / f"{what}.safetensors"
        save_weights(other, path)
        with pytest.raises(UserError, match="does not fit") as caught:
            load_weights(kimi, path)
        assert "\n" not in str(caught.value), what
        assert all(torch.equal(value, before[name]) for name, value in kimi.state_dict().items())
    with pytest.raises(UserError, match="missing.safetensors"):
        load_weights(kimi, tmp_path / "missing.safetensors")


def test_prepared_data_is_what_set_up_returned(tiny_config: Build, start: Start) -> None:
    """A resumed run trains on the folder's own tokens, even if the text was changed or removed since."""
    config = tiny_config()
    state = start(config)
    Path(str(config.dataset.path)).unlink()
    again: PreparedData = start(config, state.folder).data
    assert np.array_equal(again.train_ids, state.data.train_ids)
    assert np.array_equal(again.val_ids, state.data.val_ids)
