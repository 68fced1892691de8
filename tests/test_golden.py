"""The first 20 training losses of both models, in fp32 on one CPU thread: a refactor leaves them alone.

A change that is meant to move them rewrites them in the same commit, and says why:

    python tests/test_golden.py --write
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT, TINY_KIMI

from nanokimi.config import GPTConfig, KimiConfig, OptimConfig
from nanokimi.model.build import build_model
from nanokimi.model.kimi import NanoKimi
from nanokimi.optim.build import build_optimizer
from nanokimi.optim.schedule import lr_scale

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
STEPS, BATCH, LENGTH = 20, 8, 16
# In any order of rounding: under ATen's default, AVX2 and MKL's oldest instructions, and under rounding.py's seeds 1 to
# 6, no loss moved by more than 2.5e-7, two units in the last place. This is forty times as much, and less than one
# token's other expert would move a loss of 128 tokens.
TOLERANCE = 1e-5
# every mechanism takes part: query latent, clipped heads, balancing, auxiliary loss, schedule
RUNS: dict[str, tuple[KimiConfig | GPTConfig, OptimConfig]] = {
    "nanokimi": (
        replace(TINY_KIMI, q_lora_rank=24, aux_loss_alpha=1e-2, initializer_range=0.15),
        OptimConfig(
            name="muonclip",
            lr=1e-2,
            ns_dtype="fp32",
            qk_clip_tau=1.5,
            router_bias_update_speed=1e-2,
            schedule="wsd",
            warmup_steps=4,
        ),
    ),
    "nanogpt": (replace(TINY_GPT, bias=True), OptimConfig(name="adamw", lr=5e-3, warmup_steps=4)),
}


def golden_losses(name: str) -> list[float]:
    """Losses of a run whose every number follows from this file."""
    torch.set_num_threads(1)
    config, optim = RUNS[name]
    model = build_model(config, seed=0)
    optimizer = build_optimizer(model, optim, config.num_attention_heads)
    losses = []
    for step in range(STEPS):
        positions = torch.arange(BATCH * (LENGTH + 1)) + 1000 * step
        ids = ((positions * positions * 3 + positions * 7) // 11 % 61).view(BATCH, LENGTH + 1)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * lr_scale(step, STEPS, optim)
        output = model(ids[:, :-1], want_max_logits=True)
        loss = F.cross_entropy(output.logits_BTW.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        (loss if output.aux_loss is None else loss + output.aux_loss).backward()
        if optim.name == "muonclip":
            optimizer.step(max_logits_LH=output.max_logits_LH)
        else:
            optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, NanoKimi):
            for router, routing in zip(model.routers(), output.routing, strict=True):
                router.update_bias_(routing.counts_E, optim.router_bias_update_speed)
    return losses


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_the_recorded_ones(name: str) -> None:
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
    assert len(expected) == STEPS
    assert golden_losses(name) == pytest.approx(expected, rel=TOLERANCE)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(
        json.dumps({name: golden_losses(name) for name in RUNS}, indent=1) + "\n", encoding="utf-8"
    )
