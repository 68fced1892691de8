"""The folded decoder is the plain model's decoding up to rounding, for every kind of NanoKimi."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nanokimi.config import YarnConfig
from nanokimi.model.cache import Cache
from nanokimi.model.folded import LARGEST_FOLDED, LONG, FoldedKimi, attend_latents, decode_step
from nanokimi.model.gpt import NanoGPT
from nanokimi.model.kimi import NanoKimi
from tests.conftest import TINY_GPT, TINY_KIMI

VARIANTS = {
    "plain": TINY_KIMI,
    "query latent": replace(TINY_KIMI, q_lora_rank=12),
    "no shared expert": replace(TINY_KIMI, n_shared_experts=0),
    "two shared experts": replace(TINY_KIMI, n_shared_experts=2),
    "all dense": replace(TINY_KIMI, first_k_dense_replace=9),
    "all experts": replace(TINY_KIMI, first_k_dense_replace=0),
    "gates as they are": replace(TINY_KIMI, norm_topk_prob=False, num_experts_per_tok=3),
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


@pytest.mark.parametrize("name", VARIANTS)
def test_folded_logits_are_the_plain_ones(name: str) -> None:
    """After a prompt of 5 tokens, 20 more; within 2e-6 of logits whose spread is near 0.3."""
    model = disturbed(NanoKimi(VARIANTS[name]))
    folded = decode_step(model)
    assert isinstance(folded, FoldedKimi)
    prompt_1T, ids = torch.randint(61, (1, 5)), torch.randint(61, (20,)).tolist()
    one, other = Cache(2, 32), Cache(2, 32)
    with torch.inference_mode():
        model(prompt_1T, one)
        model(prompt_1T, other)
        for token in ids:
            plain_W = model(torch.tensor([[token]]), one).logits_BTW[0, -1]
            torch.testing.assert_close(folded(token, other), plain_W, atol=2e-6, rtol=1e-5)
    assert one.length == other.length == 25
    for a, b in zip(one.layers, other.layers, strict=True):
        torch.testing.assert_close(a.buffers[0][:, :25], b.buffers[0][:, :25], atol=2e-6, rtol=1e-5)


def test_folding_leaves_the_model_as_it_is_and_is_not_for_every_model() -> None:
    model = disturbed(NanoKimi(TINY_KIMI))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decode_step(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not isinstance(decode_step(NanoGPT(TINY_GPT)), FoldedKimi)
    assert not isinstance(decode_step(NanoKimi(TINY_KIMI).double()), FoldedKimi)
    large = NanoKimi(replace(TINY_KIMI, vocab_size=LARGEST_FOLDED // 32))
    assert not isinstance(decode_step(large), FoldedKimi), (
        "a large model reads its weights, and needs no second copy"
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, LONG - 1, LONG, LONG + 1, 3 * LONG + 2])
def test_attention_in_stretches_is_attention(tokens: int, threads: int) -> None:
    """Any number of cached tokens and threads, also those that do not divide; logits are large enough to matter."""
    generator = torch.Generator().manual_seed(0)
    q_HL = 3 * torch.randn(4, 10, generator=generator, dtype=torch.float64)
    latents_SL = torch.randn(tokens + 5, 10, generator=generator, dtype=torch.float64)[:tokens]
    expected = torch.softmax(q_HL @ latents_SL.T, dim=-1) @ latents_SL[:, :7]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(attend_latents(q_HL, latents_SL, 7), expected, rtol=1e-12, atol=1e-12)
    finally:
        torch.set_num_threads(before)
