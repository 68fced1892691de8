"""What every optimizer owes, by the names that a configuration has for them: gradients count, losses fall."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT, TINY_KIMI, WORDS
from torch import nn

from nanokimi.config import OptimConfig
from nanokimi.config import rules as config_rules
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.optim.build import ELEMENTWISE, OF_MATRICES, build_optimizer
from nanokimi.optim.shampoo import Shampoo
from nanokimi.optim.soap import SOAP

# rates that suit a quadratic and a tiny model, each on its own scale
OPTIMIZERS: dict[str, OptimConfig] = {
    "adamw": OptimConfig(lr=1e-2),
    "muon": OptimConfig(name="muon", lr=1e-2),
    "muonclip": OptimConfig(name="muonclip", lr=1e-2),
    "muonclip by rms": OptimConfig(name="muonclip", lr=1e-2, qk_clip_logits="rms"),
    "truemuon": OptimConfig(name="truemuon", lr=2e-2, adamw_lr=1e-2, momentum=0.9),
    "lion": OptimConfig(name="lion", lr=2e-3),
    "shampoo": OptimConfig(name="shampoo", lr=1e-2),
    "shampoo handing over": OptimConfig(name="shampoo", lr=1e-2, handover_steps=20),
    "soap": OptimConfig(name="soap", lr=1e-2),
    "torch:NAdam": OptimConfig(name="torch:NAdam", lr=1e-2),
    "torch:SGD": OptimConfig(name="torch:SGD", lr=1e-1, weight_decay=0.0),
    "pytorch-optimizer:Lion": OptimConfig(name="pytorch-optimizer:Lion", lr=2e-3),
    "pytorch-optimizer:SOAP": OptimConfig(name="pytorch-optimizer:SOAP", lr=1e-2),
}
IDS = torch.randint(61, (3, 20), generator=torch.Generator().manual_seed(5))


def test_every_optimizer_has_its_settings_and_its_class_and_is_tried_here() -> None:
    classes = {*ELEMENTWISE, *OF_MATRICES}
    for name in config_rules.OPTIMIZERS:
        assert name in classes, f"{name} is in OPTIMIZERS of config/rules.py, but not in optim/build.py"
    for name in classes:
        assert name in config_rules.OPTIMIZERS, (
            f"{name} is in optim/build.py, but not in OPTIMIZERS of config/rules.py"
        )
        assert name.removesuffix("clip") in OPTIMIZERS, f"add settings of {name} to OPTIMIZERS in this file"


@pytest.fixture(params=OPTIMIZERS)
def optim(request: pytest.FixtureRequest) -> OptimConfig:
    if request.param.startswith("pytorch-optimizer:"):
        pytest.importorskip("pytorch_optimizer")
    return OPTIMIZERS[request.param]


def step(model: LanguageModel, optimizer: torch.optim.Optimizer, optim: OptimConfig) -> None:
    extra: dict[str, Any] = {}
    if optim.name == "muonclip" and optim.qk_clip_logits == "exact":
        extra["max_logits_LH"] = model(IDS, want_max_logits=True).max_logits_LH
    optimizer.step(**extra)


class Quadratic(nn.Module):
    """A matrix, a stack and a vector that are wanted elsewhere, the matrix with an uneven curvature."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.zeros(10, 6))
        self.stack = nn.Parameter(torch.zeros(3, 6, 8))
        self.bias = nn.Parameter(torch.zeros(7))
        self.wanted = [0.1 * torch.randn(p.shape, generator=generator) for p in self.parameters()]
        self.curvature = torch.linspace(0.3, 3.0, 6)

    def attentions(self) -> list[nn.Module]:
        return []

    def loss(self) -> torch.Tensor:
        differences = [p - w for p, w in zip(self.parameters(), self.wanted, strict=True)]
        differences[0] = differences[0] * self.curvature
        return torch.stack([d.square().sum() for d in differences]).sum()


def test_a_quadratic_is_solved(optim: OptimConfig) -> None:
    if optim.name == "muonclip":
        pytest.skip("has no attention")
    model = Quadratic()
    optimizer = build_optimizer(model, replace(optim, weight_decay=0.0), 1)
    before = model.loss().item()
    for number in range(400):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (1 - number / 400)
        model.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.loss().item() < 1e-3 * before


def test_a_tiny_model_learns(optim: OptimConfig) -> None:
    """Twenty words in a fixed order: from ln 61 to below a third of it in 60 steps.

    Optimizers of matrices on NanoKimi, whose experts are a stack of them; those that see single numbers on NanoGPT.
    """
    model = build_model(TINY_KIMI if optim.name in OF_MATRICES or "SOAP" in optim.name else TINY_GPT, 0)
    optimizer = build_optimizer(model, optim, 2)
    order = torch.tensor([hash_of(word) for word in WORDS * 4])
    ids = order.unfold(0, 21, 1)[:24]
    losses = []
    for _ in range(60):
        output = model(ids[:, :-1])
        loss = F.cross_entropy(output.logits_BTW.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        loss.backward()
        step(model, optimizer, optim)
        optimizer.zero_grad()
    assert losses[0] > 3.9 and losses[-1] < losses[0] / 3, losses[-1]


def hash_of(word: str) -> int:
    return sum(ord(c) * (i + 1) for i, c in enumerate(word)) % 61


def test_different_gradients_move_differently_and_are_left_as_they_are(optim: OptimConfig) -> None:
    """A seed's "Muon" moved alike whatever the gradient was."""
    moved = []
    for seed in (1, 2):
        model = build_model(TINY_KIMI, 0)
        start = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = build_optimizer(model, replace(optim, weight_decay=0.0), 2)
        generator = torch.Generator().manual_seed(seed)
        gradients = {n: torch.randn(p.shape, generator=generator) for n, p in model.named_parameters()}
        for _ in range(2):  # SOAP's first step only looks
            for name, p in model.named_parameters():
                p.grad = gradients[name].clone()
            step(model, optimizer, optim)
            assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters())
        way = {name: p.detach() - start[name] for name, p in model.named_parameters()}
        for name, change in way.items():
            assert float((change * gradients[name]).sum()) < 0, name
        moved.append(way)
    for name in moved[0]:
        assert not torch.equal(moved[0][name], moved[1][name]), name


def test_without_gradients_nothing_but_decay_happens(optim: OptimConfig) -> None:
    """Gradients of zero: each weight is multiplied by 1 - lr * decay, or left; without a gradient, left."""
    model = build_model(TINY_GPT, 0)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, optim, 2)
    for name, p in model.named_parameters():
        p.grad = None if name.startswith("transformer.h.1") else torch.zeros_like(p)
    for _ in range(2):
        step(model, optimizer, optim)
    for name, p in model.named_parameters():
        if name.startswith("transformer.h.1"):
            assert torch.equal(p, start[name]) and not optimizer.state.get(p), name
            continue
        rate = optim.adamw_lr if optim.adamw_lr and "wte" in name or "wpe" in name else optim.lr
        most = 2 * (rate or optim.lr) * optim.weight_decay * 1.01
        shrunk = (1 - p.detach() / start[name]).abs().max()
        assert shrunk <= most + 1e-6, name


def test_every_parameter_is_in_one_group_that_has_a_peak_rate(optim: OptimConfig) -> None:
    for config in (TINY_GPT, TINY_KIMI, replace(TINY_GPT, bias=True)):
        model = build_model(config, 0)
        groups = build_optimizer(model, optim, 2).param_groups
        members = [p for group in groups for p in group["params"]]
        assert len(members) == len(set(members)) and set(members) == set(model.parameters())
        assert all(group["peak_lr"] == group["lr"] > 0 for group in groups)


# ---- what the preconditioned ones have in common

PRECONDITIONED = {
    "shampoo": (partial(Shampoo, precondition_every=4), 0.1),
    "shampoo handing over": (partial(Shampoo, precondition_every=4, handover_steps=3), 0.1),
    "soap": (partial(SOAP, lr=1e-2, precondition_every=4), 0.5),
}


@pytest.mark.parametrize("name", PRECONDITIONED)
def test_an_expert_without_tokens_stays_and_one_that_comes_late_moves(name: str) -> None:
    make, most = PRECONDITIONED[name]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 5, generator=generator)
    p = nn.Parameter(start.clone())
    optimizer = make([p], weight_decay=0.0)
    for number in range(11):
        p.grad = torch.randn(3, 4, 5, generator=generator)
        p.grad[0] = 0
        if number < 6:
            p.grad[1] = 0
        optimizer.step()
    assert p.isfinite().all()
    assert torch.equal(p[0], start[0])
    assert 0 < float((p[1] - start[1]).detach().abs().max()) < most


@pytest.mark.parametrize("kind", [Shampoo, SOAP])
def test_vectors_and_crooked_blocks_are_refused(kind: type[torch.optim.Optimizer]) -> None:
    with pytest.raises(ValueError, match=rf"{kind.__name__} cannot update a parameter of shape \(5,\)"):
        kind([nn.Parameter(torch.zeros(5))])
    with pytest.raises(ValueError, match=r"shape \(7, 4\) in 3 blocks"):
        kind([{"params": [nn.Parameter(torch.zeros(7, 4))], "blocks": 3}])
