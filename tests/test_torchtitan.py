"""The hand-over to torchtitan: what it builds from the flavor file and loads from the folder is the model.

Where torchtitan is not installed, the slow tests are skipped, and a program that stands in for it answers instead.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI, TINY_VARIANT, make_text
from test_interop import one_line
from test_kimi import random_config, randomised

from nanokimi import cli
from nanokimi.config import KimiConfig, OptimConfig, RunConfig, YarnConfig
from nanokimi.config.files import load_config
from nanokimi.data.documents import END_OF_TEXT
from nanokimi.data.tokenizers.own import ByteTokenizer
from nanokimi.errors import TrainingError, UserError
from nanokimi.interop import torchtitan_verify
from nanokimi.interop.hf_write import write_hf_folder
from nanokimi.interop.torchtitan_flavor import (
    FLAVOR_FILE,
    flavor_file,
    require_torchtitan_can,
    training_settings,
)
from nanokimi.interop.torchtitan_verify import has_torchtitan
from nanokimi.model.build import build_model
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import open_run

YARN = YarnConfig(
    factor=4.0, original_max_position_embeddings=16, beta_fast=32.0, mscale=0.7, mscale_all_dim=0.7
)


def tiny_run(folder: Path, tokenizer: str, model: str = "nanokimi") -> Path:
    """A run of four steps with windows of 72 tokens, so that 64 can follow a prompt."""
    text = folder / "text.txt"
    text.write_text(make_text() + " \u201cyes\u201d, caf\u00e9; 3.14\n" * 20, encoding="utf-8")
    words = "--train.context_length 72 --train.max_steps 4 --train.batch_size 4 --train.eval_batch_size 4 --seed 7"
    words += f" --train.dtype fp32 --train.threads 1 --dataset.tokenizer {tokenizer}"
    words += " --dataset.vocab_size 320" if tokenizer in ("bpe", "unigram") else ""
    words += " --nanokimi.model.hidden_size 32 --nanokimi.model.num_hidden_layers 2"
    config: RunConfig = load_config("smoke", [*words.split(), f"--dataset.path={text}"])
    train_alone(replace(config, model=model), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOKIMI_CACHE", str(tmp_path_factory.mktemp("cache")))
        return tiny_run(tmp_path_factory.mktemp("trained"), "char")


def settings(source: str) -> dict[str, Any]:
    """The constants of a flavor file that are written as plain values."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Attribute):
            name, value = ast.unparse(node.targets[0]), node.value
            if name.isupper() or name.startswith("("):
                found[name.strip("()")] = ast.literal_eval(value)
    return found


def test_the_flavor_file_holds_the_models_settings_in_torchtitans_words() -> None:
    config = replace(TINY_KIMI, q_lora_rank=24, rope_scaling=YARN, rms_norm_eps=1e-5, latent_norm_eps=1e-6)
    found = settings(flavor_file(build_model(config, 0), RunConfig()))
    assert found["LAYERS"] == {
        **{
            "n_layers": 2,
            "n_dense_layers": 1,
            "dim": 32,
            "n_heads": 2,
            "q_lora_rank": 24,
            "kv_lora_rank": 16,
        },
        **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "mscale": 0.7},
        **{"dense_hidden_dim": 48, "moe_hidden_dim": 16, "num_experts": 4, "num_shared_experts": 1},
        **{
            "router_top_k": 2,
            "router_score_func": "sigmoid",
            "router_route_scale": 1.4,
            "router_route_norm": True,
        },
    }
    assert found["ROPE"] == {
        **{"dim": 8, "max_seq_len": 32, "theta": 50000.0, "scaling": "yarn", "rope_factor": 4.0},
        **{"beta_fast": 32.0, "beta_slow": 1.0, "original_seq_len": 16},
    }
    assert (found["VOCAB_SIZE"], found["NORM_EPS, LATENT_NORM_EPS"]) == (61, (1e-5, 1e-6))
    plain = settings(flavor_file(build_model(TINY_KIMI, 0), RunConfig()))
    assert "scaling" not in plain["ROPE"] and plain["LAYERS"]["q_lora_rank"] == 0


def test_training_goes_on_with_the_runs_settings() -> None:
    optim = OptimConfig(name="muon", lr=2e-3, adamw_lr=1e-3, router_bias_update_speed=0.0, grad_clip=None)
    found = training_settings(RunConfig(), optim)
    assert found["lr"] == 1e-3 and 0 < found["load_balance_coeff"] < 1e-9
    alone = OptimConfig(name="adamw", lr=2e-3, adamw_lr=1e-3)
    assert training_settings(RunConfig(), alone)["lr"] == 2e-3, "the rate of the hidden matrices"
    run = RunConfig()
    run = replace(run, nanokimi=replace(run.nanokimi, optim=optim))
    assert '"max_norm": float("inf")' in flavor_file(build_model(TINY_KIMI, 0), run)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"rope_scaling": replace(YARN, mscale=1.0)},
            "one temperature of YaRN, .* mscale 1 and mscale_all_dim 0.7",
        ),
        ({"hidden_size": 20, "moe_intermediate_size": 12}, "hidden_size 20 and moe_intermediate_size 12"),
        ({"v_head_dim": 12, "qk_nope_head_dim": 4}, r"qk_rope_head_dim 12 and v_head_dim 12"),
        ({"num_hidden_layers": 0, "first_k_dense_replace": 0}, "num_hidden_layers 0"),
        ({"latent_norm_eps": 1e-5}, "latent norms have epsilon 1e-05"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "at least 2 routed experts"),
    ],
)
def test_what_torchtitan_does_not_have_is_refused_by_name(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_torchtitan_can(build_model(replace(TINY_KIMI, **changed), 0))


def test_what_torchtitan_has_is_not_refused() -> None:
    dense = replace(TINY_KIMI, hidden_size=20, moe_intermediate_size=12, first_k_dense_replace=2)
    untouched = replace(YARN, factor=1.0, mscale=1.0)
    for config in (dense, replace(TINY_KIMI, rope_scaling=untouched), replace(TINY_KIMI, n_shared_experts=0)):
        assert require_torchtitan_can(build_model(config, 0)) == config
    for other, said in (
        (TINY_GPT, "has no GPT-2"),
        (TINY_VARIANT, "of the family variant has no stock class"),
    ):
        with pytest.raises(UserError, match=said):
            require_torchtitan_can(build_model(other, 0))


@pytest.fixture
def without_torchtitan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanokimi.interop.export.has_torchtitan", lambda: False)


@pytest.mark.usefixtures("without_torchtitan")
def test_a_folder_says_that_torchtitan_has_not_verified_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained), "--format", "torchtitan", "--out", str(tmp_path / "new" / "out")]
    assert cli.main(words) == 0
    printed, folder = capsys.readouterr().out, tmp_path / "new" / "out"
    assert "Reloaded with transformers" in printed and "Not verified in torchtitan" in printed
    assert f"PYTHONPATH={folder} torchrun --nproc_per_node=8 -m torchtitan.train" in printed
    assert {FLAVOR_FILE, "config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in folder.iterdir()
    }
    card = (folder / "README.md").read_text()
    assert "Not verified in torchtitan" in card and "--module nanokimi_torchtitan --config nanokimi" in card
    assert "never overwrites" in one_line(words, capsys)


def test_what_cannot_be_handed_over_is_one_line(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(trained), "--format", "torchtitan", "--out", str(tmp_path / "new" / "out")]
    assert "--type is for --format gguf" in one_line([*words, "--type", "F16"], capsys)
    assert "expected hf, gguf or torchtitan" in one_line([*words[:3], "titan", *words[4:]], capsys)
    assert "needs --out DIR" in one_line(words[:4], capsys)
    other = replace(open_run(trained), model=build_model(replace(TINY_KIMI, v_head_dim=8), 0))
    monkeypatch.setattr("nanokimi.interop.export.open_run", lambda *_: other)
    assert "v_head_dim 8" in one_line(words, capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def answer(trained: Path) -> dict[str, np.ndarray]:
    """What torchtitan would answer for the run, if it rounded experts by 0.01."""
    run, asked = open_run(trained), {}

    def right(request: dict[str, Any]) -> Any:
        asked.update(request)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch, suppress(InterruptedError):
        patch.setattr(torchtitan_verify, "ask_torchtitan", right)
        torchtitan_verify.verify_in_torchtitan(Path("."), run.model, run.data, 72)
    with torch.inference_mode():
        logits = run.model(torch.tensor(asked["windows"])).logits_BTW.numpy()
        texts = torch.tensor(asked["prompts"])
        for _ in range(asked["count"]):
            texts = torch.cat((texts, run.model(texts).logits_BTW[:, -1:].argmax(-1)), dim=1)
    lines = [run.data.tokenizer.encode(line) for line in asked["lines"]]
    return {
        **{"logits": logits, "rounded_logits": logits + 0.01, "written": texts[:, -asked["count"] :].numpy()},
        **{"ids": np.concatenate(lines), "lengths": np.array([len(ids) for ids in lines])},
        **{"end": np.array([], dtype=np.int64), "special": np.array([END_OF_TEXT])},
    }


WRONG: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "logits": (lambda logits: np.roll(logits, 1, axis=1), "torchtitan gives logits that differ by"),
    "written": (
        lambda ids: np.where(ids == ids[3, -1], ids + 1, ids),
        "torchtitan writes another text after",
    ),
    "ids": (lambda ids: np.where(np.arange(len(ids)) == 2, ids + 1, ids), "tokenizer gives other ids"),
    "end": (lambda _: np.array([5]), "another id for end-of-text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_torchtitans_answer_is_compared(
    wrong: str, answer: dict[str, np.ndarray], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (change, said) = open_run(trained), WRONG[wrong]
    monkeypatch.setattr(torchtitan_verify, "titan_version", lambda: "0")
    monkeypatch.setattr(torchtitan_verify, "ask_torchtitan", lambda _: answer)
    receipt = torchtitan_verify.verify_in_torchtitan(Path("."), run.model, run.data, 72)
    assert receipt.greedy_tokens == 256 and receipt.logits_difference < 1e-6
    assert "to bf16, as it does, moves them by up to 1.0e-02" in " ".join(receipt.sentences)
    changed = {**answer, wrong: change(answer[wrong])}
    monkeypatch.setattr(torchtitan_verify, "ask_torchtitan", lambda _: changed)
    with pytest.raises(TrainingError, match=said):
        torchtitan_verify.verify_in_torchtitan(Path("."), run.model, run.data, 72)


def test_a_folder_that_torchtitan_cannot_load_is_not_left(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nanokimi.interop.export.has_torchtitan", lambda: True)
    monkeypatch.setattr("nanokimi.interop.export.verify_hf_folder", lambda *_, **__: None)
    monkeypatch.setattr(sys, "executable", "false")
    words = ["export", str(trained), "--format", "torchtitan", "--out", str(tmp_path / "new" / "out")]
    assert cli.main(words) == 1
    assert "torchtitan cannot load the folder" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_only_lines_with_the_text_of_a_special_token_may_get_other_ids(trained: Path) -> None:
    data = open_run(trained).data
    lines = ["a<|start|>b", "the ball"]
    ids = [[1], data.tokenizer.encode(lines[1]).tolist()]
    found = {"ids": np.array(sum(ids, [])), "lengths": np.array([len(i) for i in ids]), "end": np.array([])}
    special = {"special": np.array([END_OF_TEXT, "<|start|>"])}
    assert torchtitan_verify.compare_lines(found | special, [], lines, data) == 1
    with pytest.raises(TrainingError, match=r"other ids for 'a<\|start"):
        torchtitan_verify.compare_lines(found | {"special": np.array([], dtype=str)}, [], lines, data)


def fitting(config: KimiConfig) -> KimiConfig:
    """A random configuration with the sizes and the form of YaRN that torchtitan has."""

    def whole(size: int) -> int:
        return -(-size // 8) * 8

    yarn = config.rope_scaling
    return replace(
        config,
        vocab_size=300,
        hidden_size=whole(config.hidden_size),
        moe_intermediate_size=whole(config.moe_intermediate_size),
        qk_nope_head_dim=config.qk_nope_head_dim + 12,
        v_head_dim=config.v_head_dim + 14,
        rope_scaling=yarn and replace(yarn, mscale=yarn.mscale_all_dim),
    )


@pytest.mark.slow  # torchtitan takes half a minute to import
@pytest.mark.skipif(not has_torchtitan(), reason="torchtitan is not installed")
@pytest.mark.parametrize("seed", range(24))
def test_torchtitan_computes_every_configuration(seed: int, tmp_path: Path) -> None:
    """24 random NanoKimis, with and without query latent and YaRN, 0, 1 and 2 shared experts, dense or not."""
    from nanokimi.interop.torchtitan_process import run_torchtitan

    model = randomised(fitting(random_config(seed)[0]), seed).eval()
    write_hf_folder(model, ByteTokenizer(), 32, tmp_path)
    (tmp_path / FLAVOR_FILE).write_text(flavor_file(model, RunConfig()))
    ids = torch.randint(300, (2, 24), generator=torch.Generator().manual_seed(seed))
    found = run_torchtitan(
        {
            "folder": str(tmp_path),
            "windows": ids.tolist(),
            "prompts": ids[:, :4].tolist(),
            "count": 20,
            "lines": [],
        }
    )
    texts = torch.cat((ids[:, :4], torch.from_numpy(found["written"])), dim=1)
    with torch.inference_mode():
        expected, chosen = model(ids).logits_BTW.numpy(), model(texts[:, :-1]).logits_BTW[:, 3:].numpy()
    assert torchtitan_verify.largest(found["logits"], expected) < 1e-4
    assert torchtitan_verify.compare_written(found["written"], chosen)[0] > 0


@pytest.mark.slow  # torchtitan takes half a minute to import
@pytest.mark.skipif(not has_torchtitan(), reason="torchtitan is not installed")
@pytest.mark.parametrize("tokenizer", ["bpe", "unigram", "byte", "char"])
def test_torchtitan_verifies_a_run(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path, tokenizer)
    capsys.readouterr()
    assert cli.main(["export", str(run), "--format", "torchtitan", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Built by torchtitan" in printed and printed.count("- 256 greedy tokens are equal") == 2
    assert not list((tmp_path / "out").rglob("__pycache__"))
