"""TrueMuon: the seed's update with its momentum repaired, without a scale for the shape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanokimi.optim.muon import newton_schulz
from nanokimi.optim.true_muon import TrueMuon

Shape = tuple[int, ...]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def reference(start: torch.Tensor, gradients: list[torch.Tensor], lr: float, beta: float, decay: float):
    """The seed's own step, but for the momentum: each matrix alone, `p -= lr * (O + decay * p)`."""
    p, m = start.clone(), torch.zeros_like(start)
    for grad in gradients:
        m = beta * m + (1 - beta) * grad
        x = beta * m + (1 - beta) * grad  # the seed had: beta * m + grad
        p = p - lr * (newton_schulz(x, dtype=torch.float32) + decay * p)
    return p


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_it_is_the_seeds_step_with_the_momentum_repaired(shape: Shape) -> None:
    start, gradients = random(*shape), [random(*shape, seed=s) for s in range(1, 9)]
    p = nn.Parameter(start.clone())
    optimizer = TrueMuon([p], lr=0.03, momentum=0.8, weight_decay=0.5, ns_dtype=torch.float32)
    for grad in gradients:
        p.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), reference(start, gradients, 0.03, 0.8, 0.5), rtol=1e-4, atol=1e-5)


def test_the_defaults_are_the_seeds() -> None:
    """beta 0.9, decay 0.01, rate 1e-2: seen in what a step does."""
    start, gradients = random(8, 12), [random(8, 12, seed=s) for s in (1, 2, 3)]
    p = nn.Parameter(start.clone())
    optimizer = TrueMuon([p])
    for grad in gradients:
        p.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(p.detach(), reference(start, gradients, 1e-2, 0.9, 0.01), rtol=1e-4, atol=1e-5)


def test_momentum_is_not_inert() -> None:
    """After eight gradients along one direction, a single opposite one does not turn the update round.

    In the seed, `beta * m + grad`, it did: the fresh gradient had more than half of the weight.
    """
    direction = random(12, 12)
    p = nn.Parameter(torch.zeros(12, 12))
    optimizer = TrueMuon([p], weight_decay=0.0)
    for sign in [1.0] * 8 + [-1.0]:
        before = p.detach().clone()
        p.grad = sign * direction
        optimizer.step()
    assert float(((p.detach() - before) * direction).sum()) < 0
    m = sum(0.1 * 0.9**age for age in range(1, 9)) - 0.1
    assert 0.9 * m - 0.1 > 0 > 0.9 * m - 1  # ours, the seed's


def test_each_shape_has_the_same_spectral_size() -> None:
    shapes: list[Shape] = [(8, 8), (64, 16), (3, 16, 32), (48, 16)]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "blocks": 3}]
    optimizer = TrueMuon(groups, lr=0.5, weight_decay=0.0, ns_dtype=torch.float32)
    for i, p in enumerate(parameters):
        p.grad = random(*p.shape, seed=i)
    optimizer.step()
    for p, blocks in zip(parameters, (1, 1, 1, 3), strict=True):
        matrices = p.detach().reshape(-1, p.shape[-2] // blocks, p.shape[-1])
        sizes = torch.linalg.matrix_norm(matrices, ord=2)
        assert ((0.5 * 0.9 < sizes) & (sizes < 0.5 * 1.3)).all()


def test_adamw_groups_and_own_rates_are_left_as_they_are() -> None:
    vector, matrix = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, 4))
    optimizer = TrueMuon(
        [{"params": [vector], "algorithm": "adamw", "lr": 1e-3}, {"params": [matrix], "lr": 0.2}], lr=0.1
    )
    adamw, muon = optimizer.param_groups
    assert adamw["lr"] == 1e-3 and adamw["weight_decay"] == 0.01
    assert muon["lr"] == 0.2 and muon["weight_decay"] == 0.01


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\)"):
        TrueMuon([nn.Parameter(torch.zeros(5))])
