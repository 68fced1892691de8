"""Models, variants and optimizers on the device: the numbers of the CPU, and no read that is not stated here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import TINY_GPT, TINY_KIMI, TINY_VARIANT
from test_variants import ATTENTIONS, CHOICE, FEEDS

from nanokimi.config.rules import OPTIMIZERS
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.kernels.attention import max_logits_on_gpu
from nanokimi.measure.audit import audit
from nanokimi.model.build import build_model
from nanokimi.model.loss import next_token_loss
from pretend_device.counts import COUNTS
from pretend_device.states import (
    COPIES_OF_A_STEP,
    FENCES_OF_A_STEP,
    READS_OF_A_STEP,
    cost_of_a_step,
    started,
    tiny_config,
)
from pretend_device.tensors import DEVICE


def losses_and_gradients(model: Any, ids_BT: torch.Tensor) -> list[torch.Tensor]:
    """Logits, logits of the attention and gradients of a training pass, on the CPU."""
    model.zero_grad()
    output = model.train()(ids_BT, want_max_logits=True)
    loss = next_token_loss(output.logits_BTW, ids_BT)
    (loss if output.aux_loss is None else loss + output.aux_loss).backward()
    reads = dict(COUNTS.reads)
    assert not reads, reads
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found = [output.logits_BTW, output.max_logits_LH, *gradients]
    return [x.detach().cpu() for x in found if x is not None]


def check_every_model_computes_what_the_cpu_computes(_: Path) -> None:
    """Both models and every part of a variant, plain and with activations recomputed: no read in either pass."""
    parts = {**ATTENTIONS, **FEEDS, "choice": CHOICE}
    variants = {name: replace(TINY_VARIANT, **changes) for name, changes in parts.items()}
    ids_BT = torch.randint(61, (2, 24), generator=torch.Generator().manual_seed(0))
    for name, config in {"nanokimi": TINY_KIMI, "nanogpt": TINY_GPT, **variants}.items():
        COUNTS.reset()
        model: Any = build_model(config, seed=0)
        expected = losses_and_gradients(model, ids_BT)
        model.to(DEVICE)
        ids = ids_BT.to(DEVICE)
        accelerate_(model)  # the plain loop over experts reads how many rows each has
        for recompute in (False, True) if name in ("nanokimi", "nanogpt", "mla") else (False,):
            model.activation_checkpointing = recompute
            COUNTS.reset()
            for mine, theirs in zip(losses_and_gradients(model, ids), expected, strict=True):
                torch.testing.assert_close(
                    mine, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


def check_optimizers_step_with_one_read(folder: Path) -> dict[str, Any]:
    """Every optimizer of ours."""
    config = tiny_config(folder)
    arm = config.nanokimi
    one_layer = replace(arm.model, num_hidden_layers=1, first_k_dense_replace=0)
    config, found = replace(config, nanokimi=replace(arm, model=one_layer)), {}
    for name in OPTIMIZERS:
        state = started(config, folder / name, "nanokimi", name=name)
        counts = cost_of_a_step(state)
        assert counts["fences"] == FENCES_OF_A_STEP and counts["copies"] == COPIES_OF_A_STEP, (name, counts)
        assert counts["reads"] == READS_OF_A_STEP, (name, COUNTS.reads)
        found[name] = counts
    return found


def check_the_largest_logits_are_exact(_: Path) -> None:
    """Of half-precision queries and keys: what float64 gives for the same numbers, in one block of rows or several."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        q_BHTX, k_BHSX = (torch.randn(2, 3, size, 8).to(dtype) for size in (40, 50))
        logits_BHTS = q_BHTX.double() @ k_BHSX.double().mT * 0.3
        hidden_TS = torch.ones(40, 50, dtype=torch.bool).triu(11)
        expected_H = logits_BHTS.masked_fill(hidden_TS, float("-inf")).amax(dim=(0, 2, 3))
        for chunk in (None, 16):
            found_H = max_logits_on_gpu(q_BHTX.to(DEVICE), k_BHSX.to(DEVICE), 0.3, chunk)
            assert found_H.dtype == torch.float32
            torch.testing.assert_close(found_H.cpu().double(), expected_H, rtol=1e-6, atol=0)


def check_the_audit_tells_rounding_from_a_leak(_: Path) -> None:
    """A model that is causal but for rounding is only known to be so in float64, which MPS lacks."""

    class Rounding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(16, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids)
            total = x.sum(dim=1, keepdim=True) * 1e4
            return x + (total + x - total - x)  # nothing but the rounding of the sum

    class Averaging(Rounding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embedding(ids)
            return x + x.mean(dim=1, keepdim=True)

    assert not audit(Averaging().to(DEVICE), vocab_size=16, context=8).causal
    here = audit(Rounding().to(DEVICE), vocab_size=16, context=8)
    there = audit(Rounding(), vocab_size=16, context=8)
    assert here.causal == there.causal, (here, there)
