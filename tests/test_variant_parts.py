"""Each attention and each mixture of experts against a reference written naively, one position after another."""

from __future__ import annotations

import cmath
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_variants import ATTENTIONS, shaken, some_ids, variant

from nanokimi.kernels.accelerate import accelerate_
from nanokimi.kernels.experts import grouped_linear
from nanokimi.model.build import build_model
from nanokimi.model.cache import LayerCache
from nanokimi.model.layers import Rotary
from nanokimi.model.variants.attention import GroupedQueryAttention
from nanokimi.model.variants.experts import (
    EXPERTS,
    ChosenExperts,
    ExpertChoice,
    ExpertLayer,
    SoftExperts,
    SoftmaxRouter,
)
from nanokimi.model.variants.feed_forward import dense_layer
from nanokimi.model.variants.latent import LatentAttention, Pool, pool_chunk
from nanokimi.optim.qk_clip import qk_clip_

Vector = torch.Tensor


def some_inputs(tokens: int, rows: int = 2, width: int = 32, seed: int = 3) -> torch.Tensor:
    return torch.randn(
        rows, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def turned(vector: Vector, position: int, theta: float) -> Vector:
    """RoPE of one vector: each pair of numbers is a complex number, turned by position * theta^(-2i / width)."""
    out = []
    for i in range(len(vector) // 2):
        number = complex(float(vector[2 * i]), float(vector[2 * i + 1]))
        number *= cmath.exp(1j * position * theta ** (-2 * i / len(vector)))
        out += [number.real, number.imag]
    return torch.tensor(out, dtype=torch.float64)


def rows_of(projection: torch.nn.Linear, x: Vector, head: int, width: int) -> Vector:
    """What a projection gives one head."""
    rows = slice(head * width, (head + 1) * width)
    y = projection.weight[rows] @ x
    return y if projection.bias is None else y + projection.bias[rows]


# ---- multi-head and grouped-query attention


def naive_attention(
    attention: GroupedQueryAttention, x_TD: torch.Tensor, theta: float | None
) -> tuple[torch.Tensor, list[float]]:
    """Loops over heads, positions and keys."""
    width, heads, tokens = attention.head_dim, attention.num_heads, len(x_TD)
    per_group = heads // attention.num_groups
    out, tops = [], [-math.inf] * heads
    for t in range(tokens):
        parts = []
        for head in range(heads):
            group = head // per_group
            query = rows_of(attention.q_proj, x_TD[t], head, width)
            keys = [rows_of(attention.k_proj, x_TD[s], group, width) for s in range(t + 1)]
            if theta is not None:
                query = turned(query, t, theta)
                keys = [turned(key, s, theta) for s, key in enumerate(keys)]
            logits = [float(query @ key) / math.sqrt(width) for key in keys]
            tops[head] = max(tops[head], *logits)
            weights = [math.exp(logit - max(logits)) for logit in logits]
            values = [rows_of(attention.v_proj, x_TD[s], group, width) for s in range(t + 1)]
            parts.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
        y = attention.o_proj.weight @ torch.cat(parts)
        out.append(y if attention.o_proj.bias is None else y + attention.o_proj.bias)
    return torch.stack(out), tops


@pytest.mark.parametrize("name", ["mha", "mha rope", "mha bias", "gqa", "gqa rope"])
@torch.no_grad()
def test_attention_is_the_naive_one(name: str) -> None:
    config = variant(**ATTENTIONS[name], rope_theta=30.0)
    attention = shaken(GroupedQueryAttention(config)).double()
    x_BTD = some_inputs(7)
    rotary = Rotary(attention.head_dim, 30.0, 48, None).double()  # float32 angles
    rope = config.positions == "rope"
    found_BTD, top_H = attention(x_BTD, rotary(0, 7) if rope else None, None, True)
    references = [naive_attention(attention, x_TD, 30.0 if rope else None) for x_TD in x_BTD]
    tolerance = 1e-5 if rope else 1e-10
    expected_BTD = torch.stack([y for y, _ in references])
    torch.testing.assert_close(found_BTD, expected_BTD, rtol=tolerance, atol=tolerance)
    expected_H = [max(tops) for tops in zip(*(tops for _, tops in references), strict=True)]
    assert top_H.tolist() == pytest.approx(expected_H, rel=1e-5)


def test_groups_keep_fewer_numbers() -> None:
    for groups in (1, 2, 4):
        model = build_model(variant(attention="gqa", num_key_value_heads=groups), 0)
        cache = LayerCache(8)
        model.attentions()[0](some_inputs(5).float(), None, cache)
        assert cache.bytes_per_token == 2 * groups * 8 * 4


@pytest.mark.parametrize("name", [*ATTENTIONS])
@torch.no_grad()
def test_rescaling_multiplies_the_logits_of_its_head_alone(name: str) -> None:
    model = shaken(build_model(variant(**ATTENTIONS[name]), 0)).double()
    attention, x_BTD = model.attentions()[0], some_inputs(9)
    angles = model.model.rotary(0, 9) if model.model.rotary is not None else None
    before_H = attention(x_BTD, angles, None, True)[1]
    gamma_H = torch.tensor([1.0, 0.5, 1.0, 0.25], dtype=torch.float64)
    kept = {key: p.clone() for key, p in attention.named_parameters()}
    attention.rescale_heads_(gamma_H)
    after_H = attention(x_BTD, angles, None, True)[1]
    changed = {key for key, p in attention.named_parameters() if not torch.equal(p, kept[key])}
    if name.startswith("gqa"):  # keys belong to several heads
        assert {key.split(".")[0] for key in changed} == {"q_proj"}
    assert not any(key.startswith(("v_proj", "o_proj")) for key in changed)
    exact = slice(None) if not name.startswith("latent") else [0, 2]  # see LatentAttention.rescale_heads_
    torch.testing.assert_close(after_H[exact].double(), (before_H * gamma_H)[exact], rtol=1e-5, atol=1e-7)
    assert (after_H[[1, 3]] < before_H[[1, 3]]).all()


@torch.no_grad()
def test_rescaling_latent_attention_multiplies_its_pooling_logits() -> None:
    attention = build_model(variant(attention="latent"), 0).attentions()[0].double()
    gamma_H = torch.tensor([1.0, 0.5, 0.1, 0.25], dtype=torch.float64)
    before_JHX = attention.latents.clone().unflatten(-1, (4, -1))
    attention.rescale_heads_(gamma_H)
    after_JHX = attention.latents.unflatten(-1, (4, -1))
    torch.testing.assert_close(after_JHX, before_JHX * gamma_H[:, None])


@pytest.mark.parametrize("name", ["mha bias", "gqa rope", "mla"])
@torch.no_grad()
def test_qk_clip_brings_the_loudest_head_to_tau(name: str) -> None:
    model = shaken(build_model(variant(**ATTENTIONS[name], num_hidden_layers=1), 0))
    before_LH = model(some_ids(), want_max_logits=True).max_logits_LH
    tau = float(before_LH.sort().values[0, 1]) + 1e-3
    clipped = qk_clip_(model.attentions(), before_LH, tau)
    after_LH = model(some_ids(), want_max_logits=True).max_logits_LH
    assert int(clipped) == 2
    torch.testing.assert_close(after_LH, before_LH.clamp(max=tau), rtol=1e-4, atol=1e-5)


# ---- latent attention


def naive_latent(attention: LatentAttention, x_TD: torch.Tensor) -> torch.Tensor:
    """At every position every latent pools the whole prefix anew, with a plain softmax."""
    width, heads = attention.head_dim, attention.num_heads
    out = []
    for t in range(len(x_TD)):
        parts = []
        for head in range(heads):
            keys = [rows_of(attention.k_proj, x_TD[s], head, width) for s in range(t + 1)]
            values = torch.stack([rows_of(attention.v_proj, x_TD[s], head, width) for s in range(t + 1)])
            pooled = []
            for latent in attention.latents:
                query = latent[head * width : (head + 1) * width]
                logits = torch.stack([query @ key / math.sqrt(width) for key in keys])
                pooled.append(logits.softmax(0) @ values)
            query = rows_of(attention.q_proj, x_TD[t], head, width)
            logits = torch.stack([query @ vector / math.sqrt(width) for vector in pooled])
            parts.append(logits.softmax(0) @ torch.stack(pooled))
        y = attention.o_proj.weight @ torch.cat(parts)
        out.append(y if attention.o_proj.bias is None else y + attention.o_proj.bias)
    return torch.stack(out)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 33])
def test_latent_attention_is_the_naive_one_gradients_included(tokens: int, bias: bool) -> None:
    attention = shaken(build_model(variant(attention="latent", bias=bias), 0)).attentions()[0].double()
    x_BTD = some_inputs(tokens).requires_grad_()
    found_BTD = attention(x_BTD)[0]
    expected_BTD = torch.stack([naive_latent(attention, x_TD) for x_TD in x_BTD])
    torch.testing.assert_close(found_BTD, expected_BTD, rtol=1e-10, atol=1e-10)
    inputs = [x_BTD, *attention.parameters()]
    direction = torch.randn(found_BTD.shape, generator=torch.Generator().manual_seed(1)).double()
    found = torch.autograd.grad(found_BTD, inputs, direction, allow_unused=tokens == 1)
    expected = torch.autograd.grad(expected_BTD, inputs, direction, allow_unused=tokens == 1)
    for mine, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-8, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    size=st.sampled_from([0.0, 1.0, 30.0, 1e4, 1e30]),
    seed=st.integers(0, 2**20),
)
def test_pooling_in_pieces_is_a_softmax_over_the_prefix(pieces: list[int], size: float, seed: int) -> None:
    """In float32, with logits of any size: nothing overflows, and no weight is lost."""
    generator, tokens = torch.Generator().manual_seed(seed), sum(pieces)
    logits = torch.randn(1, 1, 2, tokens, generator=generator) * size
    values = torch.randn(1, 1, tokens, 3, generator=generator)
    pool = Pool(torch.full((1, 1, 2), -math.inf), torch.zeros(1, 1, 2, 3))
    found, start = [], 0
    for piece in pieces:
        pool, held = pool_chunk(pool, logits[..., start : start + piece], values[:, :, start : start + piece])
        found.append(held)
        start += piece
    held = torch.cat(found, dim=3)
    for t in range(tokens):
        weights = logits[0, 0, :, : t + 1].double().softmax(-1)
        expected = weights @ values[0, 0, : t + 1].double()
        # a log weight is rounded like a logit: 1e4 has steps of a thousandth
        tolerance = 1e-5 if size <= 30 else 5e-3
        torch.testing.assert_close(held[0, 0, :, t].double(), expected, rtol=tolerance, atol=tolerance)


def test_latents_forget_nothing_and_grow_nothing_while_decoding() -> None:
    attention = shaken(build_model(variant(attention="latent"), 0)).attentions()[0]
    cache = LayerCache(2000)
    sizes = set()
    x_BTD = some_inputs(500, rows=1).float()
    with torch.no_grad():
        whole_BTD = attention(x_BTD)[0]
        for t in range(500):
            y_B1D = attention(x_BTD[:, t : t + 1], None, cache)[0]
            torch.testing.assert_close(y_B1D[:, 0], whole_BTD[:, t], rtol=1e-3, atol=1e-4)
            sizes.add(sum(x.numel() for x in cache.state))
    assert sizes == {4 * 3 * (8 + 1)} and cache.length == 500 and not cache.buffers


def test_a_cache_with_a_state_still_refuses_more_tokens_than_it_was_made_for() -> None:
    cache = LayerCache(3)
    cache.carry(3, torch.zeros(1))
    with pytest.raises(AssertionError, match="cannot hold 4"):
        cache.carry(1, torch.zeros(1))


@torch.no_grad()
def test_largest_latent_logits_cover_pooling_and_reading() -> None:
    model = shaken(build_model(variant(attention="latent", num_attention_heads=1), 0))
    attention = model.attentions()[0].double()
    x_1TD = some_inputs(40, rows=1)
    k_TX, v_TX, q_TX = ((proj(x_1TD))[0] for proj in (attention.k_proj, attention.v_proj, attention.q_proj))
    pooling_JT = attention.latents @ k_TX.t() * attention.scale
    pooled_TJX = torch.stack([pooling_JT[:, : t + 1].softmax(-1) @ v_TX[: t + 1] for t in range(40)])
    reading_TJ = torch.einsum("tx,tjx->tj", q_TX, pooled_TJX) * attention.scale
    for factor in (1.0, 20.0):  # first pooling's is the larger, then reading's
        attention.q_proj.weight.mul_(factor)
        expected = max(float(pooling_JT.max()), float(reading_TJ.max()) * factor)
        assert float(attention(x_1TD, None, None, True)[1]) == pytest.approx(expected, rel=1e-6)
    assert float(reading_TJ.max()) < float(pooling_JT.max()) < 20 * float(reading_TJ.max())


# ---- feed-forward


FORMS: dict[str, Any] = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
}


@pytest.mark.parametrize("form", [*FORMS, "swiglu"])
@torch.no_grad()
def test_dense_layers(form: str) -> None:
    layer, x = dense_layer(variant(feed_forward=form, bias=form != "swiglu")).double(), some_inputs(5)
    if form == "swiglu":
        assert layer.up_proj.out_features == 88  # 8/3 of 32 is 85.3
        gate, up = layer.gate_proj(x), layer.up_proj(x)
        hidden = gate / (1 + torch.exp(-gate)) * up
    else:
        assert layer.up_proj.out_features == 128
        hidden = FORMS[form](x @ layer.up_proj.weight.t() + layer.up_proj.bias)
    torch.testing.assert_close(layer(x), layer.down_proj(hidden))


# ---- experts


def one_expert(layer: ExpertLayer, e: int, x_D: Vector, form: str) -> Vector:
    """One expert's answer to one token."""
    stack = layer.experts
    hidden = stack.up_proj[e] @ x_D
    if form == "swiglu":
        hidden = F.silu(stack.gate_proj[e] @ x_D) * hidden  # type: ignore[union-attr]
    else:
        hidden = FORMS[form](hidden)
    return stack.down_proj[e] @ hidden


def softmax_shares(layer: ExpertLayer, x_D: Vector) -> list[float]:
    powers = [math.exp(float(row @ x_D)) for row in layer.gate.weight]
    return [power / sum(powers) for power in powers]


def build_layer(form: str, **changes: Any) -> Any:
    config = variant(feed_forward=form, **changes)
    layer = EXPERTS[config.experts](config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return layer


def with_shared(layer: ExpertLayer, y_D: Vector, x_D: Vector) -> Vector:
    return y_D if layer.shared_experts is None else y_D + layer.shared_experts(x_D)


@pytest.mark.parametrize("form", [*FORMS, "swiglu"])
@pytest.mark.parametrize("shared", [0, 2])
@torch.no_grad()
def test_soft_experts_are_the_weighted_sum_of_all(form: str, shared: int) -> None:
    layer = build_layer(form, experts="soft", n_shared_experts=shared, routed_scaling_factor=1.5)
    x_BTD = some_inputs(5)
    y_BTD, routing = layer(x_BTD)
    loads = [0.0] * 4
    for x_D, y_D in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        shares = softmax_shares(layer, x_D)
        loads = [load + share for load, share in zip(loads, shares, strict=True)]
        expected = sum(1.5 * share * one_expert(layer, e, x_D, form) for e, share in enumerate(shares))
        torch.testing.assert_close(y_D, with_shared(layer, expected, x_D))
    assert isinstance(layer, SoftExperts) and float(routing.balance_loss) == 0
    assert routing.counts_E.tolist() == pytest.approx(loads)


@pytest.mark.parametrize("form", [*FORMS, "swiglu"])
@pytest.mark.parametrize("normed", [False, True])
@torch.no_grad()
def test_topk_experts_token_by_token(form: str, normed: bool) -> None:
    layer = build_layer(form, experts="topk", norm_topk_prob=normed, n_shared_experts=1)
    x_BTD = some_inputs(6)
    y_BTD, routing = layer(x_BTD)
    counts, entropy = [0] * 4, 0.0
    every_share = []
    for x_D, y_D in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        shares = softmax_shares(layer, x_D)
        every_share.append(shares)
        best = sorted(range(4), key=lambda e: -shares[e])[:2]
        total = sum(shares[e] for e in best) if normed else 1.0
        expected = sum(shares[e] / total * one_expert(layer, e, x_D, form) for e in best)
        torch.testing.assert_close(y_D, with_shared(layer, expected, x_D))
        entropy -= sum(share * math.log(share) for share in shares) / 12
        for e in best:
            counts[e] += 1
    assert isinstance(layer, ChosenExperts) and routing.counts_E.tolist() == counts
    assert float(routing.entropy) == pytest.approx(entropy)
    means = [sum(column) / 12 for column in zip(*every_share, strict=True)]
    switch = 4 * sum(count / 24 * mean for count, mean in zip(counts, means, strict=True))
    assert float(routing.balance_loss) == pytest.approx(switch)


def test_switchs_loss_is_1_when_even_and_pulls_towards_it() -> None:
    router = SoftmaxRouter(variant(experts="topk", num_experts_per_tok=1)).double()
    with torch.no_grad():
        router.weight.copy_(torch.eye(4, 32) * 5)
    even = torch.eye(4, 32, dtype=torch.float64).unsqueeze(0)
    assert float(router(even)[2].balance_loss.detach()) == pytest.approx(1.0)
    crowded = torch.cat((even, even[:, :1], even[:, :1]), dim=1).requires_grad_()
    loss = router(crowded)[2].balance_loss
    assert float(loss.detach()) > 1
    (gradient,) = torch.autograd.grad(loss, router.weight)
    assert float(gradient[0, 0]) > 0, "the crowded expert's score goes down"


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_sigmoid_bias_with_other_experts_is_kimis_router(form: str) -> None:
    layer = build_layer(form, experts="sigmoid-bias", routed_scaling_factor=1.3)
    layer.gate.e_score_correction_bias.copy_(torch.tensor([0.0, 0.9, 0.0, -0.9]))
    x_BTD = some_inputs(6)
    y_BTD, routing = layer(x_BTD)
    for x_D, y_D in zip(x_BTD.flatten(0, 1), y_BTD.flatten(0, 1), strict=True):
        scores = [1 / (1 + math.exp(-float(row @ x_D))) for row in layer.gate.weight]
        biased = [s + float(b) for s, b in zip(scores, layer.gate.e_score_correction_bias, strict=True)]
        best = sorted(range(4), key=lambda e: -biased[e])[:2]
        total = sum(scores[e] for e in best)
        expected = sum(1.3 * scores[e] / total * one_expert(layer, e, x_D, form) for e in best)
        torch.testing.assert_close(y_D, expected)
    assert float(routing.counts_E.sum()) == 24


@pytest.mark.parametrize("form", ["relu", "swiglu"])
@pytest.mark.parametrize(("tokens", "capacity"), [(6, 9), (1, 1)])
@torch.no_grad()
def test_experts_choose_tokens_of_the_whole_batch(form: str, tokens: int, capacity: int) -> None:
    """12 tokens, 4 experts, 3 experts a token: 9 tokens each; of very few tokens every expert still takes one."""
    factor = 3.0 if tokens == 6 else 0.1
    layer = build_layer(form, experts="expert_choice", capacity_factor=factor)
    x_BTD = some_inputs(tokens)
    y_BTD, routing = layer(x_BTD)
    x_MD = x_BTD.flatten(0, 1)
    shares = [softmax_shares(layer, x_D) for x_D in x_MD]
    expected = [torch.zeros(32, dtype=torch.float64) for _ in x_MD]
    for e in range(4):
        for m in sorted(range(len(x_MD)), key=lambda m: -shares[m][e])[:capacity]:
            expected[m] = expected[m] + shares[m][e] * one_expert(layer, e, x_MD[m], form)
    torch.testing.assert_close(y_BTD.flatten(0, 1), torch.stack(expected))
    assert isinstance(layer, ExpertChoice) and routing.counts_E.tolist() == [capacity] * 4


@pytest.mark.parametrize("width", [16, 10])
@torch.no_grad()
def test_grouped_and_looped_experts_agree(width: int) -> None:
    """Rows of 10 numbers are not whole 16 bytes: those go through the loop."""
    layer = EXPERTS["topk"](variant(experts="topk", moe_intermediate_size=width)).float()
    for parameter in layer.parameters():
        parameter.normal_(std=0.3)
    wide = EXPERTS["topk"](variant(experts="topk", moe_intermediate_size=width)).double()
    wide.load_state_dict(layer.state_dict())
    x = some_inputs(20)
    accelerate_(layer)
    assert (layer.experts.linear is grouped_linear) == (width == 16)
    torch.testing.assert_close(layer(x.float())[0], wide(x)[0].float(), rtol=1e-4, atol=1e-5)
