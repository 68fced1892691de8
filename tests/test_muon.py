"""Muon: torch's own on plain matrices, and what it adds: stacks, row blocks, AdamW groups."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hf_parity import SAME, InFloat64, relative_error
from torch import nn

from nanokimi.kernels.muon import Muon, fastest_dtype
from nanokimi.optim.groups import muon_groups
from nanokimi.optim.muon import NEWTON_SCHULZ_COEFFICIENTS, newton_schulz

Shape = tuple[int, ...]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(
    m: int, n: int, values: torch.Tensor, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A float64 matrix with these singular values, and its U V^T."""
    u, _, v = torch.linalg.svd(random(m, n, seed=seed, dtype=torch.float64), full_matrices=False)
    return u * values @ v, u @ v


def run(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    shapes: list[Shape],
    steps: int,
    start: list[torch.Tensor] | None = None,
    gain: float = 1.0,
) -> list[torch.Tensor]:
    """Parameters after `steps` steps with gradients that follow from step and index alone."""
    values = start or [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    parameters = [nn.Parameter(value.clone()) for value in values]
    optimizer = make(parameters)
    for step in range(steps):
        for i, p in enumerate(parameters):
            p.grad = gain * random(*p.shape, seed=100 * step + i, dtype=p.dtype)
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(24, 24), (48, 16), (16, 48), (1, 20), (96, 33)])
def test_matrices_move_as_under_torchs_muon(
    shape: Shape, weight_decay: float, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both iterations in float64 the ways are the same; in bf16, ours is no farther from that than torch's.

    (In C: test_kernels.py.) The gradients are large, as the two guard against a norm of zero in different places.
    """
    monkeypatch.setattr("nanokimi.kernels.muon.takes_native_step", lambda *_: False)
    options = dict(lr=0.02, weight_decay=weight_decay, momentum=0.9, nesterov=nesterov)

    def theirs(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Muon(p, adjust_lr_fn="match_rms_adamw", **options)

    def ours(p: list[nn.Parameter], dtype: torch.dtype = torch.bfloat16) -> torch.optim.Optimizer:
        return Muon(p, ns_dtype=dtype, **options)

    def way(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int) -> torch.Tensor:
        return run(make, [shape], steps, [start], gain=1e6)[0] - start

    start = random(*shape, dtype=torch.float64)
    for steps in (1, 2, 30):
        with InFloat64():
            exact = way(theirs, steps)
            assert relative_error(way(lambda p: ours(p, torch.float64), steps), exact) <= SAME, steps
        rounded, reference = (relative_error(way(make, steps), exact) for make in (ours, theirs))
        assert 0 < rounded <= 2 * reference and reference < 0.05, (steps, rounded, reference)


def test_weight_decay_is_decoupled_and_at_the_plain_rate() -> None:
    """A huge decay makes the share of the update vanish: what remains is (1 - lr * decay)^steps."""
    start = [1e6 * random(8, 8)]
    (p,) = run(lambda p: Muon(p, lr=0.1, weight_decay=2.0), [(8, 8)], 3, start)
    torch.testing.assert_close(p, start[0] * 0.8**3, rtol=1e-5, atol=1.0)


def test_adamw_groups_move_as_under_torchs_adamw() -> None:
    shapes: list[Shape] = [(7,), (5, 6), (2, 3, 4)]

    def theirs(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(p, lr=3e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)

    def ours(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        group = {"params": p, "algorithm": "adamw"}
        return Muon([group], lr=3e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)

    for a, b in zip(run(ours, shapes, 20), run(theirs, shapes, 20), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n"), [(32, 32), (64, 16), (16, 64)])
def test_newton_schulz_flattens_the_spectrum(m: int, n: int, dtype: torch.dtype) -> None:
    """Whatever the singular values were (within a factor of 10), they end near 1, along the same directions."""
    for seed in range(5):
        size = min(m, n)
        matrix, target = with_singular_values(m, n, torch.linspace(10, 1, size).double(), seed)
        result = newton_schulz(1e3 * matrix, dtype=dtype)
        values = torch.linalg.svdvals(result)
        assert 0.6 < float(values.min()) and float(values.max()) < 1.25
        assert relative_error(result, target) < 0.3
        cosine = float((result * target).sum() / (result.norm() * target.norm()))
        assert cosine > 0.98


def test_newton_schulz_only_changes_singular_values() -> None:
    """U^T X V stays diagonal, and holds the polynomial applied five times to the normalised singular values."""
    values = torch.linspace(2, 0.1, 12).double()
    u, _, v = torch.linalg.svd(random(20, 12, dtype=torch.float64), full_matrices=False)
    result = newton_schulz(u * values @ v, dtype=torch.float64)
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    x = values / (values.norm() + 1e-7)
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    torch.testing.assert_close(u.T @ result @ v.T, torch.diag(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_rounding_of_the_iteration_matters_little(dtype: torch.dtype, tolerance: float) -> None:
    matrix, _ = with_singular_values(40, 24, torch.linspace(5, 1, 24).double())
    exact = newton_schulz(matrix, dtype=torch.float64)
    rounded = newton_schulz(matrix.float(), dtype=dtype)
    assert rounded.dtype == torch.float32
    assert 0 < relative_error(rounded, exact) < tolerance


def test_newton_schulz_ignores_scale_and_commutes_with_transposition() -> None:
    matrix = random(3, 10, 6, dtype=torch.float64)
    result = newton_schulz(matrix, dtype=torch.float64)
    torch.testing.assert_close(newton_schulz(1e4 * matrix, dtype=torch.float64), result, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        newton_schulz(matrix.mT, dtype=torch.float64), result.mT, rtol=1e-12, atol=1e-12
    )
    assert not newton_schulz(torch.zeros(4, 4)).any()


def test_unnamed_iteration_dtype_is_that_of_the_matrices_or_the_faster_one() -> None:
    small = random(16, 16)
    assert fastest_dtype(small) in (torch.float32, torch.bfloat16)
    assert torch.equal(newton_schulz(small), newton_schulz(small, dtype=small.dtype))


def test_each_expert_is_a_matrix_of_its_own() -> None:
    def make(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return Muon(p, lr=0.02, ns_dtype=torch.float64)

    start = random(5, 12, 8)
    stacked = nn.Parameter(start.clone())
    singles = [nn.Parameter(matrix.clone()) for matrix in start]
    together, apart = make([stacked]), make(singles)
    for step in range(5):
        gradients = random(5, 12, 8, seed=step + 1) * torch.tensor([1.0, 10, 0.1, 1, 1])[:, None, None]
        gradients[3] = 0  # an expert that saw no token
        stacked.grad = gradients
        for p, gradient in zip(singles, gradients, strict=True):
            p.grad = gradient.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(
        stacked.detach(), torch.stack([p.detach() for p in singles]), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("shape", [(24, 8), (48, 32), (2, 24, 8)])
def test_row_blocks_are_matrices_of_their_own(shape: Shape) -> None:
    """The size of the update is that of the block's shape, not of the whole's."""
    start, gradient = random(*shape), random(*shape, seed=1)
    whole = nn.Parameter(start.clone())
    parts = [nn.Parameter(part.clone()) for part in start.chunk(3, dim=-2)]
    together = Muon([{"params": [whole], "blocks": 3}], lr=0.02, ns_dtype=torch.float64)
    apart = Muon(parts, lr=0.02, ns_dtype=torch.float64)
    whole.grad = gradient
    for part, part_gradient in zip(parts, gradient.chunk(3, dim=-2), strict=True):
        part.grad = part_gradient.clone()
    together.step()
    apart.step()
    expected = torch.cat([part.detach() for part in parts], dim=-2)
    torch.testing.assert_close(whole.detach(), expected, rtol=1e-6, atol=1e-7)
    plain = run(lambda p: Muon(p, lr=0.02, ns_dtype=torch.float64), [shape], 1, [start])[0]
    assert relative_error(whole - start, plain - start) > 0.1


def test_batching_of_equal_sizes_changes_nothing() -> None:
    """Two plain matrices, a stack of three and a fused one share a batch of eight; each moves as if alone."""
    shapes: list[Shape] = [(12, 8), (12, 8), (3, 12, 8), (36, 8), (8, 12)]
    starts = [random(*shape, seed=i) for i, shape in enumerate(shapes)]
    gradients = [10.0**i * random(*shape, seed=50 + i) for i, shape in enumerate(shapes)]

    def move(indices: list[int]) -> list[torch.Tensor]:
        parameters = [nn.Parameter(starts[i].clone()) for i in indices]
        groups = []
        for i, p in zip(indices, parameters, strict=True):
            p.grad = gradients[i].clone()
            groups.append({"params": [p], "blocks": 3 if i == 3 else 1, "lr": 0.01 * (i + 1)})
        Muon(groups, ns_dtype=torch.float64).step()
        return [p.detach() for p in parameters]

    together = move(list(range(5)))
    for i in range(5):
        torch.testing.assert_close(together[i], move([i])[0], rtol=1e-6, atol=1e-7)


def test_groups_keep_their_own_settings() -> None:
    """Rate, decay, momentum, steps and dtype of each group are its own, though groups share batches."""
    options: list[dict[str, object]] = [
        dict(lr=0.01, weight_decay=0.0),
        dict(lr=0.05, momentum=0.5),
        dict(lr=0.01, ns_steps=3),
        dict(lr=0.01, nesterov=False, ns_dtype=torch.bfloat16),
    ]

    def grouped(p: list[nn.Parameter]) -> torch.optim.Optimizer:
        return Muon([{"params": [q], **option} for q, option in zip(p, options, strict=True)])

    starts = [random(12, 8)] * 4
    together = run(grouped, [(12, 8)] * 4, 4, starts)
    for i, option in enumerate(options):

        def alone(p: list[nn.Parameter], option: dict[str, object] = option) -> torch.optim.Optimizer:
            return Muon(p, **option)  # type: ignore[arg-type]

        p = nn.Parameter(starts[i].clone())
        optimizer = alone([p])
        for step in range(4):
            p.grad = random(12, 8, seed=100 * step + i)
            optimizer.step()
        torch.testing.assert_close(together[i], p.detach(), rtol=1e-5, atol=1e-6)


def test_gradient_decides_the_update_and_is_left_as_it_is() -> None:
    start = random(10, 6)
    moved = []
    for seed in (1, 2):
        p = nn.Parameter(start.clone())
        p.grad = random(10, 6, seed=seed)
        optimizer = Muon([p], lr=0.02, weight_decay=0.0)
        for _ in range(2):
            optimizer.step()
            assert torch.equal(p.grad, random(10, 6, seed=seed))
        descent = float(((p.detach() - start) * p.grad).sum())
        assert descent < 0
        moved.append(p.detach() - start)
    cosine = float((moved[0] * moved[1]).sum() / (moved[0].norm() * moved[1].norm()))
    assert abs(cosine) < 0.5


@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_is_the_average_of_past_gradients(nesterov: bool) -> None:
    """The second update is the orthogonalised average of both gradients, by hand."""
    first, second = random(9, 7, seed=1), random(9, 7, seed=2)
    p = nn.Parameter(torch.zeros(9, 7))
    optimizer = Muon([p], lr=1.0, weight_decay=0.0, momentum=0.8, nesterov=nesterov, ns_dtype=torch.float64)
    p.grad = first.clone()
    optimizer.step()
    before = p.detach().clone()
    p.grad = second.clone()
    optimizer.step()
    average = 0.8 * (0.2 * first) + 0.2 * second
    direction = 0.8 * average + 0.2 * second if nesterov else average
    expected = -0.2 * 3 * newton_schulz(direction, dtype=torch.float64)
    torch.testing.assert_close(p.detach() - before, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128), (4, 48, 32)])
def test_updates_have_the_size_of_adamws(shape: Shape) -> None:
    """RMS about 0.2 (times the rate) whatever the shape; a bit less, as the singular values end below 1."""
    start = random(*shape)
    (p,) = run(lambda p: Muon(p, lr=1.0, weight_decay=0.0), [shape], 1)
    rms = float((p - start).pow(2).mean().sqrt())
    assert rms == pytest.approx(0.2, rel=0.2)


def test_stopped_and_resumed_is_uninterrupted() -> None:
    def make(model: nn.Module) -> Muon:
        return Muon(muon_groups(model.named_parameters()), lr=0.02)

    def go_on(model: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            x = random(16, 6, seed=step)
            model(x).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    straight = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 4))
    stopped = copy.deepcopy(straight)
    go_on(straight, make(straight), range(8))
    optimizer = make(stopped)
    go_on(stopped, optimizer, range(4))
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = make(stopped)
    resumed.load_state_dict(saved)
    go_on(stopped, resumed, range(4, 8))
    for a, b in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_stay_and_get_no_state() -> None:
    used, unused, vector = (nn.Parameter(random(4, 4)) for _ in range(3))
    used.grad = random(4, 4, seed=1)
    optimizer = Muon([{"params": [used, unused]}, {"params": [vector], "algorithm": "adamw"}])
    optimizer.step()
    assert torch.equal(unused, random(4, 4)) and torch.equal(vector, random(4, 4))
    assert not torch.equal(used, random(4, 4)) and set(optimizer.state) == {used}


def test_closure_is_evaluated_with_gradients() -> None:
    p = nn.Parameter(random(4, 4))

    def closure() -> torch.Tensor:
        loss = p.pow(2).sum()
        loss.backward()
        return loss

    loss = Muon([p], lr=0.1).step(closure)
    assert loss.item() == pytest.approx(random(4, 4).pow(2).sum().item())
    assert not torch.equal(p, random(4, 4))


def test_vectors_and_crooked_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\).*needs matrices"):
        Muon([nn.Parameter(torch.zeros(5))])
    with pytest.raises(ValueError, match=r"shape \(7, 4\) in 3 blocks"):
        Muon([{"params": [nn.Parameter(torch.zeros(7, 4))], "blocks": 3}])
    Muon([{"params": [nn.Parameter(torch.zeros(5))], "algorithm": "adamw"}])


def test_foreign_model_learns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    x = random(128, 8)
    y = (x[:, :3] + 0.5 * x[:, 3:6]).argmax(dim=1)
    optimizer = Muon(muon_groups(model.named_parameters()), lr=0.05)
    losses = []
    for _ in range(80):
        loss = F.cross_entropy(model(x), y)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] > 0.9 and losses[-1] < 0.2
