"""Backward passes of our own in torch: gradients by finite differences, and what they stand in for in float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.kernels.attention import FusedLatentAttention, eager_attention
from nanokimi.kernels.experts import BlockedExperts, BlockPlan, block_rows
from nanokimi.kernels.rms_norm import FusedRMSNorm
from nanokimi.model.attention import HeadSizes
from nanokimi.model.layers import rotate
from nanokimi.model.moe import count_experts, mix_experts

DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def test_rms_norm_is_torchs() -> None:
    x, weight = random(3, 5, 8), random(8, seed=1)
    torch.testing.assert_close(
        FusedRMSNorm.apply(x, weight, 1e-2, DOUBLE),
        F.rms_norm(x, (8,), weight, 1e-2),
        rtol=1e-13,
        atol=1e-13,
    )
    assert torch.autograd.gradcheck(lambda x, w: FusedRMSNorm.apply(x, w, 1e-2, DOUBLE), (x, weight))
    rounded = FusedRMSNorm.apply(x.float(), weight.float(), 1e-2, torch.bfloat16)
    assert torch.equal(rounded, F.rms_norm(x.float(), (8,), weight.float(), 1e-2).bfloat16())


def test_attention_is_rotation_and_softmax_attention() -> None:
    H, N, R, V, T = 2, 3, 4, 5, 6
    q, kv, k_rope = random(2, T, H * (N + R)), random(2, T, H * (N + V), seed=1), random(2, T, R, seed=2)
    angle_TR = torch.rand(T, R // 2, dtype=DOUBLE) * 6
    cos, sin = 1.3 * angle_TR.cos(), 1.3 * angle_TR.sin()  # YaRN's temperature scales them
    sizes, turn_TR = HeadSizes(H, N, R, V), torch.complex(cos, sin)

    def attend(q: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        return FusedLatentAttention.apply(q, kv, k_rope, turn_TR, sizes, 0.3)[0]

    assert torch.autograd.gradcheck(attend, (q, kv, k_rope))
    q_nope, q_rope = q.unflatten(-1, (H, -1)).split([N, R], dim=-1)
    k_nope, v = kv.unflatten(-1, (H, -1)).split([N, V], dim=-1)
    k_turned = rotate(k_rope, cos, sin).unsqueeze(2).expand(-1, -1, H, -1)
    heads = (torch.cat((q_nope, rotate(q_rope, cos, sin)), -1), torch.cat((k_nope, k_turned), -1), v)
    out, max_logits = eager_attention(*(x.transpose(1, 2) for x in heads), 0.3)
    found, found_max = FusedLatentAttention.apply(q, kv, k_rope, turn_TR, sizes, 0.3)
    torch.testing.assert_close(found, out.transpose(1, 2).flatten(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_max.float(), max_logits)


def mixed(chosen_MK: torch.Tensor, experts: int) -> None:
    """Compare values, and gradients by autograd, with experts in a loop."""
    M, K = chosen_MK.shape
    x, gates = random(M, 6), random(M, K, seed=1)
    weights = [random(experts, 5, 6, seed=2), random(experts, 5, 6, seed=3), random(experts, 6, 5, seed=4)]
    counts_E = count_experts(chosen_MK.reshape(1, -1), experts)[0]
    plan = BlockPlan.of(chosen_MK, counts_E)
    plain = mix_experts(x, chosen_MK, gates, counts_E, tuple(weights))
    found = BlockedExperts.apply(x, gates, *weights, plan)
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    weight = random(M, 6, seed=5).detach()
    for mine, theirs in zip(
        *(torch.autograd.grad((y * weight).sum(), [x, gates, *weights]) for y in (found, plain)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), tokens=st.integers(1, 300), experts=st.integers(1, 9), skew=st.floats(0, 4))
def test_experts_equal_looped_ones(seed: int, tokens: int, experts: int, skew: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    bias_E = skew * torch.randn(experts, generator=generator)
    scores = torch.randn(tokens, experts, generator=generator) + bias_E
    mixed(scores.topk(min(2, experts), dim=-1).indices, experts)


@pytest.mark.parametrize("all_to", [0, 3])
def test_one_expert_may_take_everything(all_to: int) -> None:
    mixed(torch.full((130, 1), all_to), 4)


def test_experts_gradients_by_finite_differences() -> None:
    chosen = torch.tensor([[0, 2], [2, 1], [0, 1]])
    plan = BlockPlan.of(chosen, torch.tensor([2.0, 2.0, 2.0, 0.0]))
    weights = [random(4, 3, 4, seed=2), random(4, 3, 4, seed=3), random(4, 4, 3, seed=4)]
    arguments = (random(3, 4), random(3, 2, seed=1), *weights)
    assert torch.autograd.gradcheck(lambda *a: BlockedExperts.apply(*a, plan), arguments)


def test_blocks_grow_with_the_experts_share() -> None:
    assert [block_rows(8 * share, 8) for share in (1, 255, 256, 1023, 1024, 9999)] == [
        64,
        64,
        128,
        128,
        256,
        256,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """The next step finds the pages of the last one: without it, each of 20 MB is cleared again by the system."""
    code = (
        "import resource, torch; from nanokimi.runtime.device import keep_freed_memory, release_memory, memory_bytes\n"
        "cpu = torch.device('cpu'); faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "step = lambda: [torch.ones(5 << 18) for _ in range(4)]\n"
        "keep_freed_memory(cpu)\n"
        "for _ in range(3): step()\n"
        "counts = []\n"
        "for _ in range(5):\n"
        "    before = faults()\n"
        "    for _ in range(10): step()\n"
        "    counts.append(faults() - before)\n"
        "print(min(counts)); held = memory_bytes(cpu); release_memory(cpu); print(held - memory_bytes(cpu))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    faults, released = map(int, result.stdout.split())
    # 20 MB are 5,120 pages, ten times. Of five rounds the best counts: in others the system may take idle memory back.
    assert faults < 1000
    assert released > 10e6
