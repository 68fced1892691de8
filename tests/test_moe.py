"""Mixture of experts: routing, balance, and experts that compute what a plain loop computes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TINY_KIMI
from hf_parity import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.config import KimiConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.kernels.accelerate import accelerate_
from nanokimi.kernels.experts import (
    can_group,
    experts_on_gpu,
    grouped_linear,
    largest_by_maxima,
    linear_on_gpu,
)
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.moe import (
    MixtureOfExperts,
    Router,
    expert_linear,
    mix_experts,
)

SIX = replace(TINY_KIMI, n_routed_experts=6, num_experts_per_tok=3, routed_scaling_factor=1.7)


@settings(max_examples=40, deadline=None)
@given(experts=st.integers(5, 70), count=st.integers(1, 5), rows=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_largest_are_topks(experts: int, count: int, rows: int, seed: int) -> None:
    scores = torch.randn(2, rows, experts, generator=torch.Generator().manual_seed(seed))
    before = scores.clone()
    found = largest_by_maxima(scores, count)
    assert found.shape == (2, rows, count) and torch.equal(scores, before)
    assert torch.equal(found.sort(-1).values, scores.topk(count).indices.sort(-1).values)


def make_moe(config: KimiConfig, seed: int = 0, bias: float = 0.0) -> MixtureOfExperts:
    """A layer with random weights and, if wanted, random router biases."""
    torch.manual_seed(seed)
    moe = MixtureOfExperts(config)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    moe.gate.e_score_correction_bias.normal_(std=bias) if bias else None
    return moe


def random_x(batch: int, length: int, width: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        batch, length, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("counts", [(4, 3, 7, 2), (0, 9, 0, 7), (0, 0, 0, 16), (16, 0, 0, 0)])
def test_grouped_products_equal_looped_ones(
    counts: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """Outputs and gradients, experts without tokens included: theirs are zero."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator).to(dtype) for shape in ((16, 32), (4, 16, 32))]
    weight = torch.randn(16, 16, generator=generator).to(dtype)  # of the outputs in the loss
    results = []
    for run in (grouped_linear, expert_linear):
        x, matrices = (v.clone().requires_grad_() for v in values)
        y = run(x, torch.tensor(counts, dtype=torch.float32), matrices)
        (y * weight).sum().backward()
        results.append([y, x.grad, matrices.grad])
    for grouped, looped in zip(*results, strict=True):
        assert relative_error(grouped, looped) <= tolerance
    assert all(bool(results[0][2][e].any()) == (count > 0) for e, count in enumerate(counts))


@pytest.mark.parametrize("counts", [(4, 3, 70, 2), (0, 9, 0, 7), (0, 0, 0, 16), (1, 0, 0, 2)])
def test_products_on_a_gpu_equal_looped_ones(counts: tuple[int, ...]) -> None:
    """In blocks whose number is fixed, or for a few tokens by copies: outputs and gradients, empty experts included."""
    tokens = sum(counts)
    chosen = torch.arange(4).repeat_interleave(torch.tensor(counts))[torch.randperm(tokens)][:, None]
    counts_E = torch.tensor(counts, dtype=torch.float32)
    x, gates = doubles(tokens, 8), doubles(tokens, 1, seed=1)
    weights = [doubles(4, 6, 8, seed=2), doubles(4, 6, 8, seed=3), doubles(4, 8, 6, seed=4)]
    results = []
    for mix in (mix_experts, partial(experts_on_gpu, grouped=False)):
        y = mix(x, chosen, gates, counts_E, tuple(weights))
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, gates, *weights])])
    for linear in (expert_linear, partial(linear_on_gpu, grouped=False)):
        y = linear(x, counts_E, weights[0])
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, weights[0]])])
    for looped, blocked in (results[:2], results[2:]):
        for mine, theirs in zip(blocked, looped, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_grouping_is_only_chosen_where_it_works() -> None:
    aligned, crooked = torch.zeros(4, 16, 32), torch.zeros(4, 6, 32)
    assert can_group(4, aligned) and not can_group(4, crooked)
    assert can_group(2, aligned) and not can_group(2, torch.zeros(4, 12, 32))  # 24 bytes
    moe = make_moe(replace(TINY_KIMI, moe_intermediate_size=6))
    accelerate_(moe)
    moe(torch.randn(1, 5, 32))[0].sum().backward()  # grouped_mm would refuse


def naive_moe(moe: MixtureOfExperts, config: KimiConfig, x_MD: torch.Tensor) -> torch.Tensor:
    """DeepSeek-V3's formulas, token by token."""
    assert config.routed_scaling_factor is not None

    def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        hidden = gate @ x
        return down @ (hidden / (1 + (-hidden).exp()) * (up @ x))

    rows = []
    for x in x_MD:
        scores = 1 / (1 + (-(moe.gate.weight @ x)).exp())
        ranking = (scores + moe.gate.e_score_correction_bias).tolist()
        chosen = sorted(range(len(ranking)), key=lambda e: -ranking[e])[: config.num_experts_per_tok]  # noqa: B023
        total = sum(scores[e] for e in chosen) if config.norm_topk_prob else 1.0
        y = torch.zeros_like(x)
        for e in chosen:
            expert = swiglu(x, moe.experts.gate_proj[e], moe.experts.up_proj[e], moe.experts.down_proj[e])
            y = y + config.routed_scaling_factor * scores[e] / total * expert
        shared = moe.shared_experts
        if shared is not None:
            y = y + swiglu(x, shared.gate_proj.weight, shared.up_proj.weight, shared.down_proj.weight)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("sizes", [(4, 2), (6, 3), (5, 5), (7, 1)])
def test_mixture_is_its_formula(sizes: tuple[int, int], normalise: bool, shared: int) -> None:
    config = replace(
        TINY_KIMI,
        n_routed_experts=sizes[0],
        num_experts_per_tok=sizes[1],
        norm_topk_prob=normalise,
        n_shared_experts=shared,
    )
    moe = make_moe(config, bias=0.2).double()
    x = random_x(2, 9)
    y, _ = moe(x)
    torch.testing.assert_close(
        y.flatten(0, 1), naive_moe(moe, config, x.flatten(0, 1)), rtol=1e-12, atol=1e-12
    )


def test_normalised_gates_sum_to_the_scale() -> None:
    moe = make_moe(SIX, bias=0.3).double()
    _, gates, _ = moe.gate(random_x(3, 8))
    assert torch.allclose(gates.sum(-1), torch.tensor(1.7, dtype=torch.float64), rtol=1e-12)
    _, gates, _ = make_moe(replace(SIX, norm_topk_prob=False)).double().gate(random_x(3, 8))
    assert (gates.sum(-1) - 1.7).abs().min() > 1e-3


def test_bias_steers_the_choice_but_not_the_weights() -> None:
    router = make_moe(SIX).gate.double()
    x = random_x(2, 20)
    chosen, gates, _ = router(x)
    router.e_score_correction_bias += 5.0  # the same for all: no choice changes
    same, same_gates, _ = router(x)
    assert torch.equal(same.sort(-1).values, chosen.sort(-1).values)
    torch.testing.assert_close(same_gates.sort(-1).values, gates.sort(-1).values, rtol=1e-12, atol=0)
    router.e_score_correction_bias[2] += 5.0  # beyond any score
    steered, steered_gates, routing = router(x)
    assert (steered == 2).any(-1).all() and int(routing.counts_E[2]) == 40
    scores = (x.flatten(0, 1) @ router.weight.T).sigmoid().gather(1, steered)
    torch.testing.assert_close(steered_gates, 1.7 * scores / scores.sum(-1, keepdim=True), rtol=1e-12, atol=0)


def test_bias_update_lifts_the_idle_and_lowers_the_busy() -> None:
    router = make_moe(SIX).gate
    router.e_score_correction_bias.zero_()
    router.update_bias_(torch.tensor([9.0, 0.0, 4.0, 4.0, 5.0, 2.0]), 0.01)  # mean 4
    expected = torch.tensor([-1.0, 1, 0, 0, -1, 1]) * 0.01
    assert torch.allclose(router.e_score_correction_bias, expected, atol=1e-9)
    router.e_score_correction_bias.zero_()
    router.update_bias_(torch.tensor([19.0, 1.0, 1.0, 1.0, 1.0, 1.0]), 0.01)  # signs -1 +1*5, mean 2/3
    expected = (torch.tensor([-1.0, 1, 1, 1, 1, 1]) - 2 / 3) * 0.01
    assert torch.allclose(router.e_score_correction_bias, expected, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50), min_size=6, max_size=6), min_size=1, max_size=8))
def test_biases_keep_zero_mean(history: list[list[int]]) -> None:
    router = Router(SIX)
    for counts in history:
        router.update_bias_(torch.tensor(counts, dtype=torch.float32), 0.01)
    assert abs(float(router.e_score_correction_bias.mean())) < 1e-7
    assert not router.e_score_correction_bias.requires_grad


def test_bias_updates_balance_a_lopsided_router() -> None:
    router = make_moe(SIX).gate
    with torch.no_grad():
        router.weight[:, 0] = torch.linspace(-2, 2, 6)
    x = random_x(4, 64).float() + torch.eye(32)[0]
    violations = []
    for _ in range(300):
        counts = router(x)[2].counts_E
        violations.append(float(counts.max() / counts.mean()) - 1)
        router.update_bias_(counts, 0.01)
    assert violations[0] > 0.5 and max(violations[-20:]) < 0.15


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 12),
    experts=st.integers(1, 9),
    extra=st.integers(0, 8),
    seed=st.integers(0, 100),
)
def test_no_token_is_lost(batch: int, length: int, experts: int, extra: int, seed: int) -> None:
    """Each token has K different experts, and the counts add up to M * K."""
    chosen_per_token = 1 + extra % experts
    config = replace(TINY_KIMI, n_routed_experts=experts, num_experts_per_tok=chosen_per_token)
    router = make_moe(config, seed, bias=0.3).gate
    chosen, gates, routing = router(random_x(batch, length, seed=seed).float())
    assert int(routing.counts_E.sum()) == batch * length * chosen_per_token
    assert routing.counts_E.tolist() == torch.bincount(chosen.flatten(), minlength=experts).tolist()
    assert all(len(set(row)) == chosen_per_token for row in chosen.tolist())
    assert (gates > 0).all()


def naive_balance_loss(router: Router, x_BTD: torch.Tensor, chosen_per_token: int) -> float:
    """DeepSeek-V3, eq. 17-20, to the letter: f counts the top K of the scores themselves, without the bias."""
    B, T, _ = x_BTD.shape
    E = router.weight.shape[0]
    losses = []
    for b in range(B):
        scores = [(router.weight @ x_BTD[b, t]).sigmoid().tolist() for t in range(T)]
        loss = 0.0
        for i in range(E):
            hits = sum(sorted(s)[::-1].index(s[i]) < chosen_per_token for s in scores)
            f = E / (chosen_per_token * T) * hits
            loss += f * sum(s[i] / sum(s) for s in scores) / T
        losses.append(loss)
    return sum(losses) / B


def test_balance_loss_is_eq_17_to_20() -> None:
    router = make_moe(SIX).gate.double()
    x = random_x(3, 7)
    expected = naive_balance_loss(router, x, 3)
    assert router(x)[2].balance_loss.item() == pytest.approx(expected, rel=1e-12)


def test_balance_loss_counts_the_scores_own_top_k() -> None:
    """Eq. 18 takes the top K of the scores s, not of s + b: the bias must not decide what the loss calls a load."""
    router = make_moe(SIX, bias=0.3).gate.double()
    x = random_x(3, 7)
    expected = naive_balance_loss(router, x, 3)
    assert router(x)[2].balance_loss.item() == pytest.approx(expected, rel=1e-12)


def test_balance_loss_is_one_at_perfect_balance_and_more_else() -> None:
    """Tokens that are unit vectors, and a router that sends each to an expert of its own."""
    config = replace(TINY_KIMI, n_routed_experts=4, num_experts_per_tok=1)
    router = make_moe(config).gate.double()
    with torch.no_grad():
        router.weight.fill_(-2.0)
        for e in range(4):
            router.weight[e, e] = 2.0
    even, lopsided = torch.eye(32).double()[None, :4], torch.eye(32).double()[None, [0, 0, 0, 1]]
    assert router(even)[2].balance_loss.item() == pytest.approx(1.0, rel=1e-12)
    assert router(lopsided)[2].balance_loss.item() > 1.5
    # per sequence, not per batch: two sequences that are balanced only together are not balanced
    halves = torch.eye(32).double()[torch.tensor([[0, 0, 1, 1], [2, 2, 3, 3]])]
    assert router(halves)[2].balance_loss.item() > 1.5


def test_gradient_of_the_balance_loss_flows_through_the_scores_alone() -> None:
    """f is a count without gradient: the gradient is that of sum f P with f held fixed."""
    router = make_moe(SIX).gate.double()
    x = random_x(2, 7)
    chosen, _, routing = router(x)
    (gradient,) = torch.autograd.grad(routing.balance_loss, router.weight)
    hits = torch.nn.functional.one_hot(chosen.view(2, 7, 3), 6).sum(dim=(1, 2)).double()
    scores = (x @ router.weight.T).sigmoid()
    shares = (scores / scores.sum(-1, keepdim=True)).mean(1)
    (expected,) = torch.autograd.grad((hits * 6 / (3 * 7) * shares).sum(-1).mean(), router.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert gradient.any() and not routing.counts_E.requires_grad and not routing.entropy.requires_grad


def test_entropy_is_that_of_the_normalised_scores() -> None:
    router = make_moe(SIX).gate.double()
    x = random_x(2, 5)
    scores = (x @ router.weight.T).sigmoid().flatten(0, 1)
    expected = torch.distributions.Categorical(probs=scores).entropy().mean()
    assert router(x)[2].entropy.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("experts", "chosen", "expected"), [(64, 6, 2.446), (256, 8, 2.827), (384, 8, 2.828), (8, 2, 1.409)]
)
def test_scaling_factors_are_the_published_ones(experts: int, chosen: int, expected: float) -> None:
    assert routed_scaling(experts, chosen) == pytest.approx(expected, abs=0.01)


def test_router_stays_in_fp32_under_autocast() -> None:
    moe = make_moe(SIX)
    x = random_x(2, 30).float()
    expected_chosen, expected_gates, expected = moe.gate(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen, gates, routing = moe.gate(x)
        y, _ = moe(x)
        assert (x @ x.mT).dtype == torch.bfloat16  # autocast is on
    assert gates.dtype == routing.balance_loss.dtype == torch.float32
    assert torch.equal(chosen, expected_chosen) and torch.equal(gates, expected_gates)
    assert torch.equal(routing.balance_loss, expected.balance_loss)
    full = moe(x)[0]
    assert 1e-5 < relative_error(y, full) < 2e-2  # the experts do run in bf16


def test_bf16_model_routes_in_fp32() -> None:
    moe = make_moe(SIX).bfloat16()
    x = random_x(2, 30).bfloat16()
    _, gates, _ = moe.gate(x)
    scores = (x.float().flatten(0, 1) @ moe.gate.weight.float().T).sigmoid()
    assert gates.dtype == torch.float32
    top = scores.topk(3, dim=-1).values
    expected = 1.7 * top / top.sum(-1, keepdim=True)
    torch.testing.assert_close(gates.sort(-1).values, expected.sort(-1).values, rtol=1e-6, atol=0)


def test_routers_are_in_the_order_of_the_routing() -> None:
    model = NanoKimi(replace(TINY_KIMI, num_hidden_layers=3, first_k_dense_replace=1))
    with torch.no_grad():
        for layer, router in enumerate(model.routers()):
            router.e_score_correction_bias[layer] = 5.0
    output = model(torch.zeros(1, 6, dtype=torch.int64))
    assert [int(r.counts_E[layer]) for layer, r in enumerate(output.routing)] == [6, 6]
