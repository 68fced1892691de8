"""The fast path by hand equals the plain one: gradients by finite differences, values and whole steps side by side."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_KIMI
from hf_parity import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.model import by_hand, layers, moe
from nanokimi.model.attend import written_out_attention
from nanokimi.model.by_hand import (
    BlockPlan,
    ExpertsByHand,
    LatentAttentionByHand,
    RMSNormByHand,
    block_rows,
    takes_fast_path,
)
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.layers import rotate
from nanokimi.model.moe import count_experts, looped_swiglu
from nanokimi.model.native_train import HeadSizes
from nanokimi.runtime.device import cpu_has_fast_bf16

DOUBLE = torch.float64


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    values = torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def test_rms_norm_is_torchs() -> None:
    x, weight = random(3, 5, 8), random(8, seed=1)
    torch.testing.assert_close(
        RMSNormByHand.apply(x, weight, 1e-2, DOUBLE),
        F.rms_norm(x, (8,), weight, 1e-2),
        rtol=1e-13,
        atol=1e-13,
    )
    assert torch.autograd.gradcheck(lambda x, w: RMSNormByHand.apply(x, w, 1e-2, DOUBLE), (x, weight))
    rounded = RMSNormByHand.apply(x.float(), weight.float(), 1e-2, torch.bfloat16)
    assert torch.equal(rounded, F.rms_norm(x.float(), (8,), weight.float(), 1e-2).bfloat16())


def test_attention_is_rotation_and_softmax_attention() -> None:
    H, N, R, V, T = 2, 3, 4, 5, 6
    q, kv, k_rope = random(2, T, H * (N + R)), random(2, T, H * (N + V), seed=1), random(2, T, R, seed=2)
    angle_TR = torch.rand(T, R // 2, dtype=DOUBLE) * 6
    cos, sin = 1.3 * angle_TR.cos(), 1.3 * angle_TR.sin()  # YaRN's temperature scales them
    sizes, turn_TR = HeadSizes(H, N, R, V), torch.complex(cos, sin)

    def attend(q: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        return LatentAttentionByHand.apply(q, kv, k_rope, turn_TR, sizes, 0.3)[0]

    assert torch.autograd.gradcheck(attend, (q, kv, k_rope))
    q_nope, q_rope = q.unflatten(-1, (H, -1)).split([N, R], dim=-1)
    k_nope, v = kv.unflatten(-1, (H, -1)).split([N, V], dim=-1)
    k_turned = rotate(k_rope, cos, sin).unsqueeze(2).expand(-1, -1, H, -1)
    heads = (torch.cat((q_nope, rotate(q_rope, cos, sin)), -1), torch.cat((k_nope, k_turned), -1), v)
    out, max_logits = written_out_attention(*(x.transpose(1, 2) for x in heads), 0.3)
    found, found_max = LatentAttentionByHand.apply(q, kv, k_rope, turn_TR, sizes, 0.3)
    torch.testing.assert_close(found, out.transpose(1, 2).flatten(-2), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found_max.float(), max_logits)


def mixed(chosen_MK: torch.Tensor, experts: int) -> None:
    """Compare values, and gradients by autograd, with experts in a loop."""
    M, K = chosen_MK.shape
    x, gates = random(M, 6), random(M, K, seed=1)
    weights = [random(experts, 5, 6, seed=2), random(experts, 5, 6, seed=3), random(experts, 6, 5, seed=4)]
    counts_E = count_experts(chosen_MK.reshape(1, -1), experts)[0]
    plan = BlockPlan.of(chosen_MK, counts_E)
    order = chosen_MK.flatten().argsort(stable=True)
    y_MKD = looped_swiglu(x.repeat_interleave(K, 0)[order], counts_E, *weights)[order.argsort()].view(M, K, 6)
    plain = (y_MKD * gates.unsqueeze(-1)).sum(1)
    found = ExpertsByHand.apply(x, gates, *weights, plan)
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
    assert torch.autograd.gradcheck(lambda *a: ExpertsByHand.apply(*a, plan), arguments)


def test_blocks_grow_with_the_experts_share() -> None:
    assert [block_rows(8 * share, 8) for share in (1, 255, 256, 1023, 1024, 9999)] == [
        64,
        64,
        128,
        128,
        256,
        256,
    ]


needs_bf16 = pytest.mark.skipif(not cpu_has_fast_bf16(), reason="the path is for processors with bf16")


@pytest.mark.parametrize("in_c", [pytest.param(True, marks=needs_bf16), False])
@pytest.mark.parametrize("q_lora_rank", [None, 16])
def test_a_whole_model_takes_the_same_step(
    monkeypatch: pytest.MonkeyPatch, q_lora_rank: int | None, in_c: bool
) -> None:
    """Loss, logits and every gradient in bf16, by hand and plainly; the plain fp32 ones are the measure of both."""
    if not in_c:
        for name in ("norm_kernel", "attention_kernel"):
            monkeypatch.setattr(by_hand, name, lambda: None)
        monkeypatch.setattr(by_hand, "experts_kernel", lambda width, hidden: None)
    config = replace(TINY_KIMI, q_lora_rank=q_lora_rank, initializer_range=0.2)
    torch.manual_seed(0)
    model = NanoKimi(config)
    ids = torch.randint(0, int(config.vocab_size or 0), (4, 32))

    def step(fast: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        for module in (by_hand, layers, moe):
            monkeypatch.setattr(module, "takes_fast_path", lambda x: fast)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            output = model(ids, want_max_logits=True)
        F.cross_entropy(output.logits_BTW[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        assert output.max_logits_LH is not None
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return output.logits_BTW.detach().float(), output.max_logits_LH, gradients

    exact, plain, fast = step(False, torch.float32), step(False, torch.bfloat16), step(True, torch.bfloat16)
    assert exact[2].keys() == plain[2].keys() == fast[2].keys()
    assert relative_error(fast[0], exact[0]) <= 1.5 * relative_error(plain[0], exact[0])
    assert relative_error(fast[1], exact[1]) <= 0.02
    errors = [
        [float((by[2][name] - exact[2][name]).norm() / exact[2][name].norm()) for name in exact[2]]
        for by in (fast, plain)
    ]
    assert sum(errors[0]) <= 1.5 * sum(errors[1]), errors


@needs_bf16
def test_the_path_is_for_autocast_in_bf16() -> None:
    x = torch.zeros(2)
    assert not takes_fast_path(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert takes_fast_path(x) and layers.RMSNorm(2, 1e-6)(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert not takes_fast_path(x)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults of glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """The next step finds the pages of the last one: without it, each of 20 MB is cleared again by the system."""
    code = (
        "import resource, torch; from nanokimi.runtime.device import keep_freed_memory, release_memory, memory_bytes\n"
        "cpu = torch.device('cpu'); faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "step = lambda: [torch.ones(5 << 18) for _ in range(4)]\n"
        "keep_freed_memory(cpu)\n"
        "for _ in range(3): step()\n"
        "before = faults()\n"
        "for _ in range(10): step()\n"
        "print(faults() - before); held = memory_bytes(cpu); release_memory(cpu); print(held - memory_bytes(cpu))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    faults, released = map(int, result.stdout.split())
    assert faults < 1000  # 20 MB are 5,120 pages, ten times
    assert released > 10e6
