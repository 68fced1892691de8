"""SOAP: loops in float64, an independent implementation, and that turning the problem turns the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nanokimi.optim.soap import SOAP

Array = np.ndarray


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach()


def reference(
    start: Array, gradients: list[Array], bases: tuple[Array, Array], *, lr: float, decay: float, every: int
) -> Array:
    """Algorithm 3 of the paper for one matrix, its authors' order of the eigenvectors in algorithm 4.

    The first bases are given: where the first gradient is not square, nothing says how to turn its null space.
    """
    (b1, b2), eps, b3 = (0.8, 0.9), 1e-8, 0.7
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    first = gradients[0]
    left, right = (1 - b3) * first @ first.T, (1 - b3) * first.T @ first
    q_left, q_right = bases
    for t, g in enumerate(gradients[1:], 1):
        turned = q_left.T @ g @ q_right
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * turned**2
        n = (q_left.T @ m @ q_right) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - lr * decay * w - lr * q_left @ n @ q_right.T
        left, right = b3 * left + (1 - b3) * g @ g.T, b3 * right + (1 - b3) * g.T @ g
        if t % every == 0:
            rows = np.argsort(-np.diag(q_left.T @ left @ q_left))
            columns = np.argsort(-np.diag(q_right.T @ right @ q_right))
            v = v[rows][:, columns]
            q_left = np.linalg.qr(left @ q_left[:, rows])[0]
            q_right = np.linalg.qr(right @ q_right[:, columns])[0]
    return w


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("shape", "blocks"), [((6, 9), 1), ((12, 5), 3), ((4, 6, 3), 1), ((2, 8, 5), 2)])
def test_each_matrix_moves_as_in_the_reference(shape: tuple[int, ...], blocks: int, every: int) -> None:
    start, gradients = random(*shape), [random(*shape, seed=s) for s in range(1, 12)]
    p = nn.Parameter(start.clone())
    optimizer = SOAP(
        [{"params": [p], "blocks": blocks}],
        lr=0.1,
        weight_decay=0.3,
        betas=(0.8, 0.9),
        shampoo_beta=0.7,
        precondition_every=every,
    )
    run(optimizer, p, gradients[:1])
    bases = [optimizer.state[p][f"{side}_basis"].numpy().copy() for side in ("left", "right")]
    moved = run(optimizer, p, gradients[1:])

    def cut(x: torch.Tensor) -> Array:
        return x.reshape(-1, shape[-2] // blocks, shape[-1]).numpy()

    for i, matrix in enumerate(cut(start)):
        own = [cut(g)[i] for g in gradients]
        expected = reference(matrix, own, (bases[0][i], bases[1][i]), lr=0.1, decay=0.3, every=every)
        np.testing.assert_allclose(cut(moved)[i], expected, rtol=1e-7, atol=1e-7)


def test_matrices_move_as_under_an_independent_implementation() -> None:
    library = pytest.importorskip("pytorch_optimizer")
    # square, since a null space of the first gradient is turned as rounding will have it
    start, gradients = random(8, 8), [random(8, 8, seed=s) for s in range(1, 30)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    options = dict(lr=0.05, betas=(0.9, 0.95), shampoo_beta=0.8, weight_decay=0.0)
    a = run(SOAP([ours], precondition_every=5, **options), ours, gradients)
    b = run(library.SOAP([theirs], precondition_frequency=5, **options), theirs, gradients)
    # epsilon is added to the second moment before it is bias-corrected there, and after it here
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["soap", "adam"])
def test_turning_the_problem_turns_the_way(name: str) -> None:
    """Gradients A G B^T give A (way of G) B^T for orthogonal A and B; Adam's way depends on the axes."""
    a, b = (torch.linalg.qr(random(8, 8, seed=seed)).Q for seed in (50, 51))
    gradients = [random(8, 8, seed=s) for s in range(1, 15)]
    ways = []
    for left, right in ((torch.eye(8).double(), torch.eye(8).double()), (a, b)):
        p = nn.Parameter(torch.zeros(8, 8, dtype=torch.float64))
        soap = SOAP([p], lr=0.1, weight_decay=0.0, precondition_every=3)
        optimizer = soap if name == "soap" else torch.optim.Adam([p], lr=0.1, betas=(0.9, 0.95))
        ways.append(left.T @ run(optimizer, p, [left @ g @ right.T for g in gradients]) @ right)
    difference = torch.linalg.matrix_norm(ways[0] - ways[1]) / torch.linalg.matrix_norm(ways[0])
    assert difference < 1e-5 if name == "soap" else difference > 0.2


def test_the_first_step_only_finds_the_bases() -> None:
    p = nn.Parameter(random(5, 7))
    optimizer = SOAP([p])
    gradient = random(5, 7, seed=1)
    assert torch.equal(run(optimizer, p, [gradient]), random(5, 7))
    left, right = optimizer.state[p]["left_basis"][0], optimizer.state[p]["right_basis"][0]
    turned = left.T @ gradient @ right
    expected = torch.zeros(5, 7, dtype=torch.float64)
    expected[:, :5] = torch.diag(torch.linalg.svdvals(gradient))
    torch.testing.assert_close(turned.abs(), expected, rtol=1e-9, atol=1e-9)


def test_bases_stay_orthogonal_and_find_the_eigenvectors() -> None:
    """Gradients that always have the same products: power iteration converges to their eigenvectors, sorted."""
    scales = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    u, v = torch.linalg.qr(random(5, 5, seed=1)).Q, torch.linalg.qr(random(7, 5, seed=2)).Q
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(random(5, 7))
    optimizer = SOAP([p], precondition_every=2)
    for _ in range(60):
        signs = torch.randint(0, 2, (5,), generator=generator) * 2.0 - 1
        p.grad = u * scales * signs @ v.T
        optimizer.step()
    left, right = optimizer.state[p]["left_basis"][0], optimizer.state[p]["right_basis"][0]
    torch.testing.assert_close(left.T @ left, torch.eye(5).double(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(right.T @ right, torch.eye(7).double(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((left.T @ u).abs(), torch.eye(5).double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((right[:, :5].T @ v).abs(), torch.eye(5).double(), rtol=1e-6, atol=1e-6)
