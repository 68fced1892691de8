"""Shampoo: inverse roots against eigendecomposition, the update against loops in float64, grafting and handing over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nanokimi.optim.shampoo import RIDGE, Shampoo, inverse_root

Array = np.ndarray


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_condition(n: int, decades: float, seed: int = 0) -> torch.Tensor:
    """A symmetric matrix with eigenvalues from 1 down to 10^-decades."""
    q = torch.linalg.qr(random(n, n, seed=seed)).Q
    return q * torch.logspace(0, -decades, n, dtype=torch.float64) @ q.T


def exact_root(matrix: Array, p: int, ridge: float = RIDGE) -> Array:
    """By eigendecomposition, with the same ridge relative to the Frobenius norm."""
    values, vectors = np.linalg.eigh(matrix)
    size = np.linalg.norm(matrix)
    return (vectors * (np.maximum(values, 0) + ridge * size) ** (-1 / p)) @ vectors.T


def run(optimizer: torch.optim.Optimizer, p: nn.Parameter, gradients: list[torch.Tensor]) -> torch.Tensor:
    for gradient in gradients:
        p.grad = gradient.clone()
        optimizer.step()
    return p.detach()


# ---- roots


@pytest.mark.parametrize("n", [1, 16, 90])
@pytest.mark.parametrize(
    ("decades", "tolerance"), [(1, 1e-6), (2, 3e-6), (3, 1e-5), (4, 1e-4), (5, 1e-3), (6, 3e-3), (9, 5e-3)]
)
def test_roots_are_those_of_the_eigendecomposition(n: int, decades: float, tolerance: float) -> None:
    """In fp32 the error grows with the condition number, which the ridge ends; in float64 nothing is left of it."""
    matrix = 7.0 * with_condition(n, decades)
    expected = torch.from_numpy(exact_root(matrix.numpy(), 4))
    error = torch.linalg.matrix_norm(inverse_root(matrix.float()).double() - expected)
    assert float(error / torch.linalg.matrix_norm(expected)) < tolerance
    torch.testing.assert_close(inverse_root(matrix), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("p", [1, 2, 4, 8])
def test_roots_of_other_powers_and_of_stacks(p: int) -> None:
    stack = torch.stack([10.0**i * with_condition(12, 2, seed=i) for i in range(-2, 3)])
    for matrix, root in zip(stack, inverse_root(stack, p), strict=True):
        torch.testing.assert_close(
            root, torch.from_numpy(exact_root(matrix.numpy(), p)), rtol=1e-8, atol=1e-8
        )
    with pytest.raises(ValueError, match="power of two"):
        inverse_root(stack, 3)


def test_a_root_taken_p_times_undoes_the_matrix() -> None:
    matrix = with_condition(20, 1)
    root = inverse_root(matrix, ridge=0.0)
    torch.testing.assert_close(
        root @ root @ root @ root @ matrix, torch.eye(20).double(), rtol=1e-9, atol=1e-9
    )


def test_zero_and_deficient_matrices_have_finite_roots() -> None:
    thin = random(30, 3)
    stack = torch.stack([torch.zeros(30, 30).double(), thin @ thin.T, 1e-12 * thin @ thin.T])
    assert inverse_root(stack.float()).isfinite().all()
    roots = inverse_root(stack)
    assert torch.equal(roots[0], torch.eye(30).double())
    torch.testing.assert_close(roots[2], 1e3 * roots[1])


# ---- the update


def reference(
    start: Array, gradients: list[Array], *, lr: float, decay: float, every: int, handover: int | None
) -> Array:
    """The optimizer as loops over float64 matrices, roots by eigendecomposition."""
    (b1, b2), eps, b3 = (0.8, 0.9), 1e-8, 0.7
    w, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    left, right = np.zeros((len(w), len(w))), np.zeros((w.shape[1], w.shape[1]))
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        left, right = b3 * left + (1 - b3) * g @ g.T, b3 * right + (1 - b3) * g.T @ g
        if t % every == 1 or every == 1:
            left_root, right_root = (exact_root(x / (1 - b3**t), 4) for x in (left, right))
        adam = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        update = left_root @ (m / (1 - b1**t)) @ right_root
        if handover is None:
            update *= np.linalg.norm(adam) / np.linalg.norm(update)
        else:
            share = min((t - 1) / handover, 1)
            update *= min(1, min(w.shape) ** 0.5 / np.linalg.norm(update))
            update = (1 - share) * adam + share * 0.2 * max(w.shape) ** 0.5 * update
        w = w - lr * decay * w - lr * update
    return w


@pytest.mark.parametrize("handover", [None, 1, 5])
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(("shape", "blocks"), [((6, 9), 1), ((12, 5), 3), ((4, 6, 3), 1), ((2, 8, 5), 2)])
def test_each_matrix_moves_as_in_the_reference(
    shape: tuple[int, ...], blocks: int, every: int, handover: int | None
) -> None:
    """Stacks and row blocks are matrices of their own: each has its preconditioners and its grafted length."""
    start, gradients = random(*shape), [10.0**s * random(*shape, seed=s) for s in range(1, 10)]
    p = nn.Parameter(start.clone())
    optimizer = Shampoo(
        [{"params": [p], "blocks": blocks}],
        lr=0.1,
        weight_decay=0.3,
        betas=(0.8, 0.9),
        shampoo_beta=0.7,
        precondition_every=every,
        handover_steps=handover,
    )
    moved = run(optimizer, p, gradients)

    def cut(x: torch.Tensor) -> Array:
        return x.reshape(-1, shape[-2] // blocks, shape[-1]).numpy()

    for i, matrix in enumerate(cut(start)):
        own = [cut(g)[i] for g in gradients]
        expected = reference(matrix, own, lr=0.1, decay=0.3, every=every, handover=handover)
        np.testing.assert_allclose(cut(moved)[i], expected, rtol=1e-6, atol=1e-6)


def test_one_gradient_is_flattened_as_by_muon() -> None:
    """L^-1/4 G R^-1/4 = U V^T; the seed's exponent, -1/2, gave U S^-1 V^T."""
    gradient = random(8, 12)
    p = nn.Parameter(torch.zeros(8, 12, dtype=torch.float64))
    optimizer = Shampoo([p], lr=1.0, weight_decay=0.0, precondition_every=1, handover_steps=1)
    first = run(optimizer, p, [gradient]).clone()
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(
        run(optimizer, p, [gradient]) - first, -0.2 * 12**0.5 * u @ v, rtol=1e-3, atol=1e-3
    )


def test_history_is_kept() -> None:
    """The accumulator is the average of all products; the seed's kept a thousandth of it at every step."""
    gradients = [random(5, 7, seed=s) for s in range(20)]
    p = nn.Parameter(random(5, 7))
    optimizer = Shampoo([p], shampoo_beta=0.9)
    run(optimizer, p, gradients)
    expected = sum(0.1 * 0.9 ** (19 - s) * g @ g.T for s, g in enumerate(gradients))
    torch.testing.assert_close(optimizer.state[p]["left"][0], expected)


def test_grafted_updates_are_as_long_as_adams() -> None:
    shapes = [(6, 10), (3, 5, 8)]
    ours = [nn.Parameter(random(*s)) for s in shapes]
    theirs = [nn.Parameter(random(*s)) for s in shapes]
    shampoo = Shampoo(ours, lr=1e-2, weight_decay=0.0, betas=(0.9, 0.95))
    adam = torch.optim.Adam(theirs, lr=1e-2, betas=(0.9, 0.95))
    for step in range(13):
        before = [(p.detach().clone(), q.detach().clone()) for p, q in zip(ours, theirs, strict=True)]
        for p, q in zip(ours, theirs, strict=True):
            p.grad = q.grad = random(*p.shape, seed=step)
        shampoo.step()
        adam.step()
        for p, q, (a, b) in zip(ours, theirs, before, strict=True):
            x, y = p.detach() - a, q.detach() - b
            torch.testing.assert_close(torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(y))
            assert not torch.allclose(x, y, rtol=0.1)
