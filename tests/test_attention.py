"""Attention: formulas head by head, cache, rotary positions, largest logits, causality."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from hf_parity import stock_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from nanokimi.config import GPTConfig, KimiConfig, YarnConfig
from nanokimi.kernels.attention import eager_attend, eager_attention, is_whole_bf16, native_attend
from nanokimi.model.attention import MultiHeadLatentAttention
from nanokimi.model.build import build_model
from nanokimi.model.cache import Cache, LayerCache
from nanokimi.model.layers import Rotary, rotary_frequencies, rotate, yarn_temperature
from nanokimi.model.sdpa import causal_attention, causal_max_logits
from nanokimi.runtime.c_compiler import find_compiler
from nanokimi.runtime.device import cpu_has_fast_bf16

YARN = YarnConfig(factor=4.0, original_max_position_embeddings=8, beta_fast=4.0, mscale=0.707)
VARIANTS = {
    "plain": TINY_KIMI,
    "query latent": replace(TINY_KIMI, q_lora_rank=12, num_attention_heads=3),
    "wide values": replace(TINY_KIMI, v_head_dim=28),
    "values as wide as keys": replace(TINY_KIMI, v_head_dim=24),
    "yarn": replace(TINY_KIMI, rope_scaling=YARN, qk_rope_head_dim=12),
}
MODELS = {"nanokimi": TINY_KIMI, "nanogpt": TINY_GPT}


def make_attention(config: KimiConfig, seed: int = 0) -> tuple[MultiHeadLatentAttention, Rotary]:
    """A float64 attention with weights large enough for a spiky softmax, and its angles."""
    torch.manual_seed(seed)
    attention = MultiHeadLatentAttention(config)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.4) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    assert config.max_position_embeddings is not None
    rotary = Rotary(
        config.qk_rope_head_dim, config.rope_theta, config.max_position_embeddings, config.rope_scaling
    )
    return attention.double(), rotary.double()


def random_inputs(config: KimiConfig, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, length, config.hidden_size, generator=generator, dtype=torch.float64)


def naive_mla(
    attention: MultiHeadLatentAttention, config: KimiConfig, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """MLA from DeepSeek-V2's formulas, one head and one query at a time: the output, and each head's largest logit."""
    weights = {name: p.detach() for name, p in attention.named_parameters()}
    N, R, V, C = (
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.v_head_dim,
        config.kv_lora_rank,
    )
    scale = (N + R) ** -0.5
    cos_sin_scale = 1.0
    frequencies = [config.rope_theta ** (-2 * i / R) for i in range(R // 2)]
    if config.rope_scaling is not None:  # frequencies have a test of their own; here they are taken as given
        yarn = config.rope_scaling
        frequencies = rotary_frequencies(R, config.rope_theta, yarn).double().tolist()
        whole = 0.1 * yarn.mscale_all_dim * math.log(yarn.factor) + 1
        scale *= whole**2
        cos_sin_scale = (0.1 * yarn.mscale * math.log(yarn.factor) + 1) / whole

    def norm(v: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return gain * v / (v.pow(2).mean() + config.rms_norm_eps).sqrt()

    def turn(v: torch.Tensor, position: int) -> torch.Tensor:
        turned = v.clone()
        for i, frequency in enumerate(frequencies):
            c, s = math.cos(position * frequency), math.sin(position * frequency)
            turned[2 * i] = (v[2 * i] * c - v[2 * i + 1] * s) * cos_sin_scale
            turned[2 * i + 1] = (v[2 * i] * s + v[2 * i + 1] * c) * cos_sin_scale
        return turned

    out = torch.empty_like(x)
    largest = torch.full((config.num_attention_heads,), -math.inf, dtype=torch.float64)
    for b in range(x.shape[0]):
        queries, latents, rope_keys = [], [], []
        for t in range(x.shape[1]):
            if config.q_lora_rank is None:
                queries.append(weights["q_proj.weight"] @ x[b, t])
            else:
                low = norm(weights["q_a_proj.weight"] @ x[b, t], weights["q_a_layernorm.weight"])
                queries.append(weights["q_b_proj.weight"] @ low)
            down = weights["kv_a_proj_with_mqa.weight"] @ x[b, t]
            latents.append(norm(down[:C], weights["kv_a_layernorm.weight"]))
            rope_keys.append(turn(down[C:], t))
        for t in range(x.shape[1]):
            heads = []
            for h in range(config.num_attention_heads):
                q = queries[t][h * (N + R) : (h + 1) * (N + R)]
                up = weights["kv_b_proj.weight"][h * (N + V) : (h + 1) * (N + V)]
                logits = torch.stack(
                    [
                        scale * (q[:N] @ (up[:N] @ latents[s]) + turn(q[N:], t) @ rope_keys[s])
                        for s in range(t + 1)
                    ]
                )
                largest[h] = max(largest[h], logits.max())
                shares = (logits - logits.max()).exp()
                shares = shares / shares.sum()
                heads.append(sum(shares[s] * (up[N:] @ latents[s]) for s in range(t + 1)))
            out[b, t] = weights["o_proj.weight"] @ torch.cat(heads)
    return out, largest


@pytest.mark.parametrize("name", VARIANTS)
def test_mla_is_its_formulas(name: str) -> None:
    """Norms and rotary tables are computed in fp32, hence the tolerance."""
    config = VARIANTS[name]
    attention, rotary = make_attention(config)
    x = random_inputs(config, 2, 9)
    out, largest = attention(x, rotary(0, 9), want_max_logits=True)
    expected, expected_largest = naive_mla(attention, config, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(largest.double(), expected_largest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunks", [(1,) * 11, (5, 1, 1, 1, 1, 1, 1), (4, 3, 4), (6, 1, 3, 1)])
@pytest.mark.parametrize("name", VARIANTS)
def test_cached_attention_is_expanded_attention(
    name: str, chunks: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    """Absorbed decode (one token) and prefill on top of a cache (several) both give the full pass's outputs."""
    config = VARIANTS[name]
    attention, rotary = (m.to(dtype) for m in make_attention(config))
    x = random_inputs(config, 2, 11).to(dtype)
    expected, _ = attention(x, rotary(0, 11))
    cache = LayerCache(16)
    start, pieces = 0, []
    for count in chunks:
        piece = x[:, start : start + count]
        pieces.append(attention(piece, rotary(start, count), cache)[0])
        start += count
    error = (torch.cat(pieces, dim=1) - expected).abs().max() / expected.abs().max()
    assert error.item() <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunks", [(1,) * 12, (7, 1, 1, 1, 1, 1), (3, 5, 1, 3)])
@pytest.mark.parametrize("name", MODELS)
def test_cached_logits_are_those_of_a_full_forward(
    name: str, chunks: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    model = build_model(replace(MODELS[name], initializer_range=0.2), 0).to(dtype).eval()
    ids = torch.randint(61, (2, 12), generator=torch.Generator().manual_seed(3))
    expected = model(ids).logits_BTW
    cache = Cache(2, 12)
    pieces = [model(piece, cache).logits_BTW for piece in ids.split(list(chunks), dim=1)]
    assert cache.length == 12
    error = (torch.cat(pieces, dim=1) - expected).abs().max() / expected.abs().max()
    assert error.item() <= tolerance


def test_cache_keeps_the_latent_and_one_rotary_key_per_token() -> None:
    config = VARIANTS["query latent"]
    attention, rotary = make_attention(config)
    x, cache = random_inputs(config, 2, 6), LayerCache(10)
    attention(x[:, :5], rotary(0, 5), cache)
    attention(x[:, 5:], rotary(5, 1), cache)
    assert [tuple(buffer.shape) for buffer in cache.buffers] == [(2, 10, 16 + 8)]
    assert cache.length == 6
    assert cache.bytes_per_token == 8 * (config.kv_lora_rank + config.qk_rope_head_dim)
    down = x @ attention.kv_a_proj_with_mqa.weight.T
    latents, keys = cache.buffers[0].split([config.kv_lora_rank, config.qk_rope_head_dim], dim=-1)
    assert torch.allclose(latents[:, :6], attention.kv_a_layernorm(down[..., :16]), atol=1e-6)
    assert torch.allclose(keys[:, :6], rotate(down[..., 16:], *rotary(0, 6)), atol=1e-12)


def test_cache_refuses_more_than_it_holds() -> None:
    cache = LayerCache(4)
    cache.append(torch.zeros(1, 3, 2))
    with pytest.raises(AssertionError, match="cache of 4 tokens cannot hold 5"):
        cache.append(torch.zeros(1, 2, 2))


@settings(max_examples=30, deadline=None)
@given(
    distance=st.integers(0, 30), start=st.integers(0, 60), half=st.integers(1, 8), seed=st.integers(0, 1000)
)
def test_rotary_scores_depend_on_distance_alone(distance: int, start: int, half: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 2 * half, generator=generator, dtype=torch.float64)
    rotary = Rotary(2 * half, 1000.0, 128, None).double()

    def score(query_at: int, key_at: int) -> float:
        return float((rotate(q[None], *rotary(query_at, 1)) * rotate(k[None], *rotary(key_at, 1))).sum())

    size = float(q.norm() * k.norm())
    assert score(start + distance, start) == pytest.approx(score(distance, 0), abs=2e-5 * size)
    assert score(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-12 * size)


def test_rotary_scores_do_depend_on_distance() -> None:
    rotary = Rotary(8, 1000.0, 64, None)
    x = torch.ones(1, 40, 8)
    turned = rotate(x, *rotary(0, 40))
    scores = (turned[0, 0] * turned[0]).sum(-1)
    assert len(set(scores.tolist())) == 40


def test_rotation_keeps_norms_and_turns_pairs_by_their_frequency() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, 3, 12, generator=generator, dtype=torch.float64)
    rotary = Rotary(12, 100.0, 64, None).double()
    turned = rotate(x, *rotary(17, 20))
    pairs, turned_pairs = x.unflatten(-1, (-1, 2)), turned.unflatten(-1, (-1, 2))
    assert torch.allclose(turned_pairs.norm(dim=-1), pairs.norm(dim=-1), rtol=1e-6)
    before, after = (torch.view_as_complex(p.contiguous()) for p in (pairs, turned_pairs))
    for i in range(6):
        angle = torch.arange(17, 37).double() * 100.0 ** (-2 * i / 12)
        expected = before[..., i] * torch.exp(1j * angle)[None, :, None]
        assert torch.allclose(after[..., i], expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 2.0, 4.0, 32.0])
@pytest.mark.parametrize(("beta_fast", "beta_slow"), [(1.0, 1.0), (32.0, 1.0), (4.0, 0.5)])
@pytest.mark.parametrize(("mscale", "mscale_all_dim"), [(1.0, 1.0), (0.707, 1.0), (1.0, 0.5)])
def test_yarn_is_that_of_transformers(
    factor: float, beta_fast: float, beta_slow: float, mscale: float, mscale_all_dim: float
) -> None:
    for rope_dim, theta, context in ((16, 10000.0, 64), (64, 50000.0, 4096), (8, 100.0, 32)):
        yarn = YarnConfig(
            factor=factor,
            original_max_position_embeddings=context,
            beta_fast=beta_fast,
            beta_slow=beta_slow,
            mscale=mscale,
            mscale_all_dim=mscale_all_dim,
        )
        config = replace(
            TINY_KIMI,
            qk_rope_head_dim=rope_dim,
            rope_theta=theta,
            rope_scaling=yarn,
            max_position_embeddings=200,
        )
        theirs = DeepseekV3RotaryEmbedding(stock_config(config))
        ours = Rotary(rope_dim, theta, 200, yarn)
        frequencies = rotary_frequencies(rope_dim, theta, yarn)
        torch.testing.assert_close(frequencies, theirs.inv_freq, rtol=1e-6, atol=0)
        cos, sin = theirs(torch.zeros(1, 1), torch.arange(200)[None])
        torch.testing.assert_close(ours.cos_SR, cos[0, :, : rope_dim // 2], rtol=1e-4, atol=2e-4)
        torch.testing.assert_close(ours.sin_SR, sin[0, :, : rope_dim // 2], rtol=1e-4, atol=2e-4)
        scaling = DeepseekV3Attention(stock_config(config), 0).scaling
        assert MultiHeadLatentAttention(config).scale == pytest.approx(scaling, rel=1e-12)


def test_k2s_temperature() -> None:
    assert yarn_temperature(32.0, 1.0) ** 2 == pytest.approx(1.8133, abs=1e-4)
    assert yarn_temperature(1.0, 1.0) == yarn_temperature(0.5, 1.0) == 1.0


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 20),
    more_keys=st.integers(0, 6),
    chunk=st.integers(1, 21),
    seed=st.integers(0, 1000),
)
def test_largest_logits_are_those_of_a_loop(queries: int, more_keys: int, chunk: int, seed: int) -> None:
    """Chunk borders and keys that precede the queries included; hidden keys are the largest of all."""
    generator = torch.Generator().manual_seed(seed)
    keys = queries + more_keys
    q = torch.randn(2, 3, queries, 4, generator=generator)
    k = torch.randn(2, 3, keys, 4, generator=generator) * torch.linspace(1, 30, keys)[:, None]
    expected = [
        max(
            0.7 * float(q[b, h, t] @ k[b, h, s])
            for b in range(2)
            for t in range(queries)
            for s in range(more_keys + t + 1)
        )
        for h in range(3)
    ]
    assert causal_max_logits(q, k, 0.7, chunk=chunk).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_largest_logits_may_be_negative() -> None:
    q, k = torch.ones(1, 2, 3, 4), -torch.ones(1, 2, 3, 4)
    assert causal_max_logits(q, k, 0.5).tolist() == [-2.0, -2.0]


def test_gpt_reports_the_largest_logits_of_its_formula() -> None:
    config = replace(TINY_GPT, bias=True, initializer_range=0.4)
    attention = build_model(config, 0).attentions()[0].double()
    x = random_inputs(TINY_KIMI, 2, 7)
    torch.nn.init.normal_(attention.c_attn.bias)
    q, k, _ = (x @ attention.c_attn.weight.T + attention.c_attn.bias).split(32, dim=-1)
    expected = [
        max(
            (q[b, t, h * 16 : h * 16 + 16] @ k[b, s, h * 16 : h * 16 + 16]).item() / 4
            for b in range(2)
            for t in range(7)
            for s in range(t + 1)
        )
        for h in range(2)
    ]
    assert attention(x, want_max_logits=True)[1].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [3, 8, 11])
def test_padding_of_values_changes_nothing(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 2, 6, 8, generator=generator, dtype=torch.float64)
    v = torch.randn(2, 2, 6, width, generator=generator, dtype=torch.float64)
    logits = (q @ k.mT * 0.3).masked_fill(torch.ones(6, 6).triu(1).bool(), -math.inf)
    torch.testing.assert_close(causal_attention(q, k, v, 0.3), logits.softmax(-1) @ v, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*MODELS, "nanokimi with yarn"])
def test_later_tokens_change_nothing_before_them(name: str) -> None:
    """Routing included: what an expert gets elsewhere must not reach back."""
    config: KimiConfig | GPTConfig = MODELS.get(name, replace(TINY_KIMI, rope_scaling=YARN))
    model = build_model(replace(config, initializer_range=0.2), 0).double().eval()
    ids = torch.randint(61, (2, 16), generator=torch.Generator().manual_seed(3))
    expected = model(ids).logits_BTW
    for cut in (1, 7, 15):
        changed = ids.clone()
        changed[:, cut:] = (changed[:, cut:] + 1 + torch.arange(16 - cut) % 5) % 61
        logits = model(changed).logits_BTW
        torch.testing.assert_close(logits[:, :cut], expected[:, :cut], rtol=0, atol=1e-12)
        assert (logits[:, cut:] - expected[:, cut:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_every_earlier_token_matters(name: str) -> None:
    model = build_model(replace(MODELS[name], initializer_range=0.2), 0).double().eval()
    ids = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(3))
    expected = model(ids).logits_BTW[0, -1]
    for position in range(12):
        changed = ids.clone()
        changed[0, position] = (changed[0, position] + 1) % 61
        assert (model(changed).logits_BTW[0, -1] - expected).abs().max() > 1e-4, position


@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_a_batch_do_not_see_each_other(name: str) -> None:
    model = build_model(replace(MODELS[name], initializer_range=0.2), 0).double().eval()
    ids = torch.randint(61, (4, 10), generator=torch.Generator().manual_seed(3))
    together = model(ids).logits_BTW
    alone = torch.cat([model(row[None]).logits_BTW for row in ids])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 7, 64])
def test_eager_attention_is_the_fused_one(length: int) -> None:
    """In float64 to 1e-12, gradients too; in bf16 no farther from float64 than twice what the fused kernel is."""
    torch.manual_seed(0)
    shapes = [(3, 2, length, 24), (3, 2, length, 24), (3, 2, length, 16)]
    wide = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    direction = torch.randn(3, 2, length, 16, dtype=torch.float64)

    def run(dtype: torch.dtype, eager: bool) -> list[torch.Tensor]:
        inputs = [x.detach().to(dtype).requires_grad_() for x in wide]
        function = eager_attention if eager else lambda *a: (causal_attention(*a), None)
        out, _ = function(*inputs, 0.3)
        out.backward(direction.to(dtype))
        return [out.detach().double(), *(x.grad.double() for x in inputs if x.grad is not None)]

    exact = run(torch.float64, False)
    for a, b in zip(run(torch.float64, True), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for ours, fused, true in zip(run(torch.bfloat16, True), run(torch.bfloat16, False), exact, strict=True):
        assert (ours - true).norm() <= 2 * (fused - true).norm() + 1e-3 * true.norm()


needs_c = pytest.mark.skipif(
    not cpu_has_fast_bf16() or find_compiler() is None, reason="needs a processor with bf16 and a C compiler"
)


@pytest.mark.parametrize("in_c", [pytest.param(True, marks=needs_c), False])
def test_attention_in_bf16_is_causal_and_knows_its_largest_logits(in_c: bool) -> None:
    attend = native_attend if in_c else eager_attend
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 16, dtype=torch.bfloat16) for _ in range(3))
    assert is_whole_bf16(q, k, 0.0) and not is_whole_bf16(q, k, 0.1)
    assert not is_whole_bf16(q.float(), k.float(), 0) and not is_whole_bf16(q[:, :, 1:], k, 0)
    out, largest = attend(q, k, v, 0.7, want_max_logits=True)
    assert largest is not None
    torch.testing.assert_close(largest, causal_max_logits(q, k, 0.7), rtol=2**-7, atol=0.0)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, 5:], v2[:, :, 5:] = 100.0, -100.0
    assert torch.equal(attend(q, k2, v2, 0.7)[0][:, :, :5], out[:, :, :5])
