"""Pruning: the least used experts go, nothing else changes, and the result is an ordinary run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_KIMI, TINY_VARIANT, write_study_files

from nanokimi.cli import main
from nanokimi.config import ModelConfig, RunConfig, VariantConfig
from nanokimi.config.files import load_config
from nanokimi.errors import UserError
from nanokimi.measure.evaluate import evaluate
from nanokimi.model.build import build_model
from nanokimi.runtime.files import read_json, read_json_lines, write_json
from nanokimi.train.loop import train
from nanokimi.train.prune import expert_usage, prune, pruned_weights
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run, set_up
from nanokimi.train.state import build_state

KINDS: dict[str, ModelConfig] = {
    "nanokimi": TINY_KIMI,
    "topk": replace(TINY_VARIANT, experts="topk", norm_topk_prob=False, n_shared_experts=1),
    "soft": replace(TINY_VARIANT, experts="soft", feed_forward="swiglu"),
    "sigmoid-bias": replace(TINY_VARIANT, experts="sigmoid-bias", feed_forward="relu2"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained NanoKimi of four experts; only to be read."""
    folder = write_study_files(tmp_path_factory.mktemp("finished"), steps=12)
    words = ["--train.threads", "1", "--train.save_every", "6", "--data", str(folder / "text.txt")]
    words += ["--dataset.cache", str(folder / "cache")]
    train_alone(load_config(str(folder / "toy.yaml"), words), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def recovered(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run with two of its experts, after a recovery of six steps, and what prune() returned; only to be read."""
    out = tmp_path_factory.mktemp("recovered") / "pruned"
    return out, prune(finished, out, keep=2, recover_steps=6)


def trained(config: RunConfig, folder: Path) -> None:
    """Train, but neither audit nor measure, which takes longer."""
    folder.mkdir()
    list(train(build_state(*set_up(config, folder), folder)))


@pytest.mark.parametrize("kind", KINDS)
def test_pruned_weights_are_a_router_that_never_chooses_the_dropped_experts(kind: str) -> None:
    """Forbidding an expert by an infinite logit or bias is another way to prune: the outputs are the same."""
    config = replace(KINDS[kind], routed_scaling_factor=1.4)
    model = build_model(config, 0)
    ids = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(0))
    kept_LE = torch.tensor([[0, 2, 3], [1, 2, 3]])[-len(model.routers()) :]
    small = build_model(replace(config, n_routed_experts=3), 1)
    small.load_state_dict(pruned_weights(model, kept_LE))
    for router, kept in zip(model.routers(), kept_LE.tolist(), strict=True):
        (dropped,) = set(range(4)) - set(kept)
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[dropped] = -100.0
        else:
            plain = type(router).shares

            def without(x: torch.Tensor, router=router, dropped=dropped, plain=plain) -> torch.Tensor:  # type: ignore[no-untyped-def]
                shares = plain(router, x).clone()
                shares[:, dropped] = 0
                return shares / shares.sum(dim=1, keepdim=True)

            router.shares = without
    expected, found = model(ids), small(ids)
    torch.testing.assert_close(found.logits_BTW, expected.logits_BTW, rtol=1e-5, atol=1e-6)
    for all_, fewer, kept in zip(expected.routing, found.routing, kept_LE, strict=True):
        torch.testing.assert_close(all_.counts_E[kept], fewer.counts_E)


def test_usage_is_counted_over_the_whole_validation_text(finished: Path) -> None:
    run = open_run(finished)
    usage_LE = expert_usage(run.model, run.data, 16)
    assert usage_LE.shape == (1, 4)
    assert float(usage_LE.sum()) == 2 * len(run.data.val_ids)


def test_prune_reports_its_losses_and_writes_an_ordinary_run(
    finished: Path, recovered: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = recovered
    before, after = open_run(finished), open_run(folder)
    assert found == read_json(folder / "prune.json")
    assert found["val_loss_before"] == read_json(finished / "result.json")["val_loss"]
    usage = found["usage"][0]
    assert sum(usage) == pytest.approx(1.0)
    assert found["kept_experts"] == [sorted(sorted(range(4), key=lambda e: -usage[e])[:2])]
    result = read_json(folder / "result.json")
    assert found["val_loss_recovered"] == result["val_loss"] < found["val_loss_pruned"]
    assert result["steps"] == 12 + 6 and result["audit"]["causal"]
    assert after.config.nanokimi.model.n_routed_experts == 2
    assert after.model.routers()[0].scaling == before.model.routers()[0].scaling
    experts = "model.layers.0.mlp.experts.up_proj"
    assert after.model.state_dict()[experts].shape[0] == before.model.state_dict()[experts].shape[0] // 2
    rates = [r["lr"] for r in read_json_lines(folder / "metrics.jsonl") if r["kind"] == "train"]
    assert len(rates) == 6 and rates[0] <= 1e-3 and rates == sorted(rates, reverse=True)
    scored = evaluate(after.model, after.data, 16)
    assert scored.loss == pytest.approx(result["val_loss"], abs=1e-6)
    assert main(["sample", str(folder), "--max_new_tokens", "5"]) == 0


def test_the_device_that_is_named_is_that_of_the_recovery_too(finished: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(finished, tmp_path / "run"))
    path = source / "config.yaml"
    path.write_text(path.read_text().replace("device: cpu", "device: cuda"))
    prune(source, tmp_path / "pruned", keep=2, recover_steps=2, device="cpu")
    assert open_run(tmp_path / "pruned").config.train.device == "cpu"


def test_without_recovery_nothing_is_trained(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(finished), "--keep", "3", "--out", str(tmp_path / "pruned")]) == 0
    found, result = (read_json(tmp_path / "pruned" / name) for name in ("prune.json", "result.json"))
    assert found["val_loss_recovered"] is None
    assert result["val_loss"] == pytest.approx(found["val_loss_pruned"], abs=1e-9)
    out = capsys.readouterr().out
    assert f"{found['val_loss_before']:.4f}" in out and f"{found['val_loss_pruned']:.4f}" in out
    assert "recovered" not in out
    kept, whole = open_run(tmp_path / "pruned").model.state_dict(), open_run(finished).model.state_dict()
    for name, value in whole.items():
        if value.shape == kept[name].shape:
            assert torch.equal(kept[name], value), name


def test_an_interrupted_recovery_goes_on(recovered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(recovered[0], tmp_path / "part")
    record = read_json(tmp_path / "part" / "prune.json")
    write_json(tmp_path / "part" / "prune.json", record | {"val_loss_recovered": None})
    for path in (tmp_path / "part" / "checkpoints").glob("step-*"):
        if path.name != "step-00000012":
            path.rename(path.with_name("gone-" + path.name))
    assert main(["train", "--resume", "--out", str(tmp_path / "part")]) == 0
    whole, part = (
        (folder / "model.safetensors").read_bytes() for folder in (recovered[0], tmp_path / "part")
    )
    assert whole == part
    assert read_json(tmp_path / "part" / "prune.json") == record, (
        "the loss after the recovery was never filled in"
    )


@pytest.mark.parametrize("keep", [0, 1, 4, 9])
def test_a_number_that_leaves_too_few_or_drops_none_is_refused(
    keep: int, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="2 to 3 can stay"):
        prune(finished, tmp_path / "pruned", keep=keep)
    assert not (tmp_path / "pruned").exists()


def test_models_whose_experts_cannot_be_told_apart_are_refused(
    tiny_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tiny_config(max_steps=1)
    trained(replace(config, model="nanogpt"), tmp_path / "gpt")
    small = dict(hidden_size=32, num_hidden_layers=1, moe_intermediate_size=16, n_routed_experts=4)
    arm = replace(config.variant, model=VariantConfig(experts="expert_choice", **small))  # type: ignore[arg-type]
    trained(replace(config, model="variant", variant=arm), tmp_path / "choice")
    for name, part in (("gpt", "no experts"), ("choice", "cannot be pruned")):
        with pytest.raises(UserError, match=part):
            prune(tmp_path / name, tmp_path / "pruned", keep=2)


def test_what_is_missing_is_said_in_one_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, part in (
        (["prune", str(finished)], "--keep"),
        (["prune", str(finished), "--keep", "2", "--recover", "-1"], "--recover"),
        (["prune", str(finished / "data"), "--keep", "2"], "not a run folder"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert part in err and err.count("\n") == 1
    unfinished = Path(shutil.copytree(finished, tmp_path / "run"))
    (unfinished / "result.json").unlink()
    assert main(["prune", str(unfinished), "--keep", "2"]) == 2
