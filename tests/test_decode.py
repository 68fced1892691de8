"""Decoding a token at a time, with absorbed weights and in C, is the model's forward pass up to rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import TINY_GPT, TINY_KIMI
from hf_parity import InFloat64, rounds_no_worse, wide_copy

from nanokimi.config import YarnConfig
from nanokimi.kernels.decode import LARGEST_ABSORBED, DecodeStep, decode_step
from nanokimi.kernels.decode_gpt import NativeGPT, native_gpt
from nanokimi.kernels.decode_kimi import AbsorbedKimi, NativeKimi, native_kimi
from nanokimi.model.cache import Cache
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.runtime.c_compiler import find_compiler

VARIANTS = {
    "plain": TINY_KIMI,
    "query latent": replace(TINY_KIMI, q_lora_rank=12),
    "no shared expert": replace(TINY_KIMI, n_shared_experts=0),
    "two shared experts": replace(TINY_KIMI, n_shared_experts=2),
    "all dense": replace(TINY_KIMI, first_k_dense_replace=9),
    "all experts": replace(TINY_KIMI, first_k_dense_replace=0),
    "gates as they are": replace(TINY_KIMI, norm_topk_prob=False, num_experts_per_tok=3),
    "sizes that no vector divides": replace(
        TINY_KIMI, num_attention_heads=3, kv_lora_rank=13, qk_rope_head_dim=6, moe_intermediate_size=11
    ),
    "a value head of many vectors": replace(TINY_KIMI, kv_lora_rank=120),
    "yarn": replace(TINY_KIMI, rope_scaling=YarnConfig(factor=4.0, original_max_position_embeddings=8)),
}


def disturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Gains and biases as after training: none is 1 or 0 any more."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.mul_(1 + 0.3 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(std=0.05)
    return model.eval()


GPTS = {
    "plain": TINY_GPT,
    "biases": replace(TINY_GPT, bias=True),
    "one head": replace(TINY_GPT, num_attention_heads=1),
    "odd heads": replace(TINY_GPT, hidden_size=33, num_attention_heads=3, intermediate_size=50),
}
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler on this machine")


def decodes_like_the_model(model: torch.nn.Module, decode: DecodeStep, prompt: int, new: int) -> None:
    """After a prompt, so many tokens more one at a time: as near to the model in float64 as the model in fp32 is."""
    generator = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(61, (1, prompt + new), generator=generator)
    cache, fresh, wide = (Cache(2, prompt + new) for _ in range(3))
    with torch.inference_mode():
        expected_TW = model(ids_1T, fresh).logits_BTW[0]
        model(ids_1T[:, :prompt], cache)
        found_TW = torch.stack([decode(int(token), cache) for token in ids_1T[0, prompt:]])
    with InFloat64(), torch.no_grad():
        exact_TW = wide_copy(model)(ids_1T, wide).logits_BTW[0]
    assert cache.length == prompt + new
    for position, found_W in enumerate(found_TW, prompt):
        rounds_no_worse(found_W, expected_TW[position], exact_TW[position], f"token {position}")
    for layers in zip(cache.layers, fresh.layers, wide.layers, strict=True):
        for buffers in zip(*(layer.buffers for layer in layers), strict=True):
            rounds_no_worse(*buffers, "cache")


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_absorbed_weights_are_the_plain_ones(name: str) -> None:
    model = disturbed(NanoKimi(VARIANTS[name]))
    decodes_like_the_model(model, AbsorbedKimi(model), 5, 20)


@needs_compiler
@pytest.mark.parametrize("name", VARIANTS)
def test_logits_in_c_are_the_plain_ones(name: str) -> None:
    model = disturbed(NanoKimi(VARIANTS[name]))
    decode = native_kimi(AbsorbedKimi(model))
    assert decode is not None, "there is a compiler, and it fails"
    decodes_like_the_model(model, decode, 5, 20)


@needs_compiler
@pytest.mark.parametrize("name", GPTS)
def test_nanogpt_in_c_is_the_plain_one(name: str) -> None:
    model = disturbed(NanoGPT(GPTS[name]))
    decode = native_gpt(model)
    assert decode is not None, "there is a compiler, and it fails"
    decodes_like_the_model(model, decode, 5, 20)


@needs_compiler
@pytest.mark.parametrize("arm", ["nanokimi", "nanogpt"])
def test_a_long_cache_in_c(arm: str) -> None:
    """Long enough to be cut into stretches, and not a whole number of blocks."""
    size = {"max_position_embeddings": 2100}
    model = disturbed(
        NanoKimi(replace(TINY_KIMI, **size)) if arm == "nanokimi" else NanoGPT(replace(TINY_GPT, **size))
    )
    decodes_like_the_model(model, decode_step(model), 2061, 3)


@needs_compiler
@pytest.mark.parametrize("arm", ["nanokimi", "nanogpt"])
def test_decoding_in_c_gives_the_same_bits_with_any_threads(arm: str) -> None:
    size = {"max_position_embeddings": 2100}
    model = disturbed(
        NanoKimi(replace(TINY_KIMI, **size)) if arm == "nanokimi" else NanoGPT(replace(TINY_GPT, **size))
    )
    cache, decode, found = Cache(2, 2100), decode_step(model), []
    with torch.inference_mode():
        model(torch.arange(2061)[None] % 61, cache)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for layer in cache.layers:
                layer.length = 2061
            found.append(decode(3, cache))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_compiler
def test_large_logits_in_c() -> None:
    """Logits of attention far apart, and falling: exponentials underflow, and sums are rescaled from block to block."""
    model = disturbed(NanoKimi(replace(TINY_KIMI, max_position_embeddings=300)))
    with torch.no_grad():
        for attention in model.attentions():
            attention.q_up_proj.weight.mul_(400)
    decode = decode_step(model)
    ids_1T = torch.randint(61, (1, 290), generator=torch.Generator().manual_seed(3))
    cache = Cache(2, 300)
    with torch.inference_mode():
        expected = model(ids_1T, want_max_logits=True)
        assert expected.max_logits_LH.amax() > 100
        model(ids_1T[:, :-1], cache)
        found_W = decode(int(ids_1T[0, -1]), cache)
    with InFloat64(), torch.no_grad():
        exact_W = wide_copy(model)(ids_1T).logits_BTW[0, -1]
    rounds_no_worse(found_W, expected.logits_BTW[0, -1], exact_W)


def test_decoding_leaves_the_model_as_it_is_and_is_plain_for_other_models() -> None:
    model = disturbed(NanoKimi(TINY_KIMI))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = decode_step(model)
    assert isinstance(fast, NativeKimi if find_compiler() else AbsorbedKimi)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(decode_step(NanoGPT(TINY_GPT)), NativeGPT) == (find_compiler() is not None)
    large = NanoKimi(replace(TINY_KIMI, vocab_size=LARGEST_ABSORBED // 32))
    for other in (NanoKimi(TINY_KIMI).double(), NanoGPT(TINY_GPT).double(), large):
        assert not isinstance(decode_step(other), NativeKimi | NativeGPT | AbsorbedKimi)


@needs_compiler
def test_a_cache_of_another_dtype_is_refused() -> None:
    """C would read it as if it were fp32."""
    model = disturbed(NanoGPT(TINY_GPT))
    cache = Cache(2, 8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.tensor([[1, 2]]), cache)
        with pytest.raises(AssertionError, match="fp32"):
            decode_step(model)(3, cache)
        with pytest.raises(AssertionError, match="prompt"):
            decode_step(model)(3, Cache(2, 8))
    assert cache.length == 2, "a refusal changes nothing"
