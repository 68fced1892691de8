"""Lion: the paper's update by hand, and an independent implementation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanokimi.optim.lion import Lion


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(optimizer_of: object, shapes: list[tuple[int, ...]], steps: int) -> list[torch.Tensor]:
    parameters = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = optimizer_of(parameters)  # type: ignore[operator]
    for step in range(steps):
        for i, p in enumerate(parameters):
            p.grad = random(*p.shape, seed=100 * step + i)
        optimizer.step()
    return [p.detach() for p in parameters]


def test_parameters_move_as_under_an_independent_implementation() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    shapes: list[tuple[int, ...]] = [(7,), (5, 6), (2, 3, 4)]
    options = dict(lr=3e-3, betas=(0.8, 0.9), weight_decay=0.2)
    ours = run(lambda p: Lion(p, **options), shapes, 30)
    theirs = run(lambda p: library.Lion(p, **options), shapes, 30)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_two_steps_by_hand() -> None:
    """The sign is of beta1 m + (1 - beta1) g, the average is kept with beta2; decay is decoupled."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([p], lr=0.1, betas=(0.5, 0.9), weight_decay=0.5)
    p.grad = torch.tensor([4.0, -1.0, 0.0])
    optimizer.step()  # m = 0.1 g afterwards
    expected = torch.tensor([1.0, -2.0, 3.0]) * 0.95 - 0.1 * torch.tensor([1.0, -1.0, 0.0])
    torch.testing.assert_close(p.detach(), expected)
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.tensor([0.4, -0.1, 0.0]))
    p.grad = torch.tensor([-0.3, 0.2, -1.0])
    optimizer.step()  # 0.5 * [0.4, -0.1, 0] + 0.5 * g = [0.05, 0.05, -0.5]
    torch.testing.assert_close(p.detach(), expected * 0.95 - 0.1 * torch.tensor([1.0, 1.0, -1.0]))


def test_gradients_decide() -> None:
    """The seed's "Muon" gave bit-identical weights for different gradients."""
    moved = []
    for seed in (1, 2):
        p = nn.Parameter(random(20, 20))
        optimizer = Lion([p], lr=0.01)
        p.grad = random(20, 20, seed=seed)
        optimizer.step()
        assert float(((p.detach() - random(20, 20)) * p.grad).sum()) < 0
        moved.append(p.detach())
    assert 0.3 < float((moved[0] == moved[1]).float().mean()) < 0.7


def test_without_gradients_only_decay_remains() -> None:
    p, untouched = nn.Parameter(random(4, 4)), nn.Parameter(random(4, 4))
    optimizer = Lion([p, untouched], lr=0.1, weight_decay=0.5)
    p.grad = torch.zeros(4, 4)
    optimizer.step()
    torch.testing.assert_close(p.detach(), random(4, 4) * 0.95)
    assert torch.equal(untouched, random(4, 4)) and set(optimizer.state) == {p}
