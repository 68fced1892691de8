"""The training step's kernels in C are what they replace: as near to float64 as torch in bf16, whatever the sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import PATIENCE, TINY_KIMI
from hf_parity import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanokimi import Muon, accelerate_
from nanokimi.kernels import muon
from nanokimi.kernels.attention import (
    FusedLatentAttention,
    NativeAttention,
    NativeLatentAttention,
    attention_library,
    eager_attention,
)
from nanokimi.kernels.experts import BlockedExperts, BlockPlan, NativeExperts, experts_library
from nanokimi.kernels.muon import LARGEST, takes_native_step
from nanokimi.kernels.rms_norm import FusedRMSNorm, NativeRMSNorm, norm_library
from nanokimi.model.attention import HeadSizes
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.moe import count_experts
from nanokimi.model.sdpa import causal_max_logits
from nanokimi.optim.muon import newton_schulz
from nanokimi.runtime.c_compiler import find_compiler
from nanokimi.runtime.device import cpu_has_fast_bf16

pytestmark = pytest.mark.skipif(
    not cpu_has_fast_bf16() or find_compiler() is None, reason="needs a processor with bf16 and a C compiler"
)
ENOUGH = 5000  # numbers, of which the rounding averages out
BF16, DOUBLE = torch.bfloat16, torch.float64
Tensors = list[torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def values_and_gradients(function: Callable[..., torch.Tensor], inputs: Tensors) -> Tensors:
    """What the function gives, and the gradients of its inputs, all in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    weight = random(*out.shape, seed=99).bfloat16()
    out.backward(weight.to(out.dtype))
    found = [out, *(x.grad for x in leaves if x.grad is not None)]
    assert len(found) == len(inputs) + 1
    return [x.detach().double() for x in found]


def is_nearer(
    native: Callable[..., torch.Tensor],
    in_torch: Callable[..., torch.Tensor],
    exact: Callable[..., torch.Tensor],
    inputs: Tensors,
    real_size: bool = False,
) -> None:
    """Value and gradients: errors below 2%; of a real size, at most 1.1 times torch's in bf16, too.

    A few numbers may be the small differences of large ones: 6%, and of 1 at least.
    """
    wanted = values_and_gradients(exact, [x.double() for x in inputs])
    found, others = (values_and_gradients(f, inputs) for f in (native, in_torch))
    for mine, theirs, truth in zip(found, others, wanted, strict=True):
        error, size = (mine - truth).norm(), truth.norm().clamp_min(truth.numel() ** 0.5)
        assert error <= (0.02 if truth.numel() >= 64 else 0.06) * size, (error / size, truth.shape)
        if real_size and truth.numel() >= ENOUGH:
            assert error <= 1.1 * (theirs - truth).norm(), (error / size, truth.shape)


def same_with_any_threads(function: Callable[..., torch.Tensor], inputs: Tensors) -> None:
    """One to three threads give the same bits."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(values_and_gradients(function, inputs))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    library = norm_library()
    assert library is not None
    return NativeRMSNorm.apply(library, x, weight, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 64, 16), (130, 56), (5, 200)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    inputs = [random(*shape).to(dtype), 1 + 0.3 * random(shape[-1], seed=1)]

    def in_torch(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return FusedRMSNorm.apply(x, weight, 1e-3, BF16)

    def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, 1e-3)

    is_nearer(norm, in_torch, exact, inputs, real_size=True)
    same_with_any_threads(norm, inputs)


def test_rms_norm_of_a_part_of_wider_rows() -> None:
    """As the latent is: the first columns of a projection that holds the rotary key, too."""
    wide, weight = random(3, 4, 72).bfloat16(), random(56, seed=1)
    found = []
    for part in (wide[..., :56], wide[..., :56].contiguous()):
        leaf = part.detach().requires_grad_()  # keeps its strides
        assert leaf.stride() == part.stride()
        out = norm(leaf, weight)
        out.square().sum().backward()
        found.append((out, leaf.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    turned = random(4, 3, 8).transpose(0, 1)
    assert torch.equal(norm(turned, weight[:8]), norm(turned.contiguous(), weight[:8]))


def experts_case(
    tokens: int,
    chosen: int,
    experts: int,
    width: int,
    hidden: int,
    skew: float,
    seed: int = 0,
    real: bool = False,
) -> None:
    """Compare experts with torch's fused ones and with plain ones in float64."""
    bias_E = skew * random(experts, seed=seed + 7)
    choice_MK = (random(tokens, experts, seed=seed) + bias_E).topk(chosen, dim=-1).indices
    counts_E = count_experts(choice_MK.view(1, -1), experts)[0]
    library = experts_library()
    assert library is not None

    def native(x: torch.Tensor, gates: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        return NativeExperts.apply(library, x, gates, *matrices, choice_MK)

    def in_torch(x: torch.Tensor, gates: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        return BlockedExperts.apply(x, gates, *matrices, BlockPlan.of(choice_MK, counts_E))

    def exact(x: torch.Tensor, gates: torch.Tensor, *matrices: torch.Tensor) -> torch.Tensor:
        gate, up, down = (w[choice_MK] for w in matrices)
        hidden_MKF = F.silu(torch.einsum("mkfd,md->mkf", gate, x)) * torch.einsum("mkfd,md->mkf", up, x)
        return torch.einsum("mk,mkdf,mkf->md", gates, down, hidden_MKF)

    scale = width**-0.5
    matrices = [scale * random(experts, hidden, width, seed=s) for s in (1, 2)]
    inputs = [random(tokens, width, seed=4).bfloat16(), random(tokens, chosen, seed=5).abs()]
    inputs += [*matrices, scale * random(experts, width, hidden, seed=3)]
    is_nearer(native, in_torch, exact, inputs, real)
    same_with_any_threads(native, inputs)


@settings(max_examples=25, deadline=None, derandomize=True)  # bounds on rounding are statistical
@given(
    tokens=st.integers(1, 200),
    chosen=st.integers(1, 3),
    experts=st.integers(3, 9),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    skew=st.sampled_from([0.0, 1.0, 10.0]),
    seed=st.integers(0, 99),
)
def test_experts(
    tokens: int, chosen: int, experts: int, sizes: tuple[int, int], skew: float, seed: int
) -> None:
    """Also experts without tokens, one that gets them all, and blocks that are not full."""
    experts_case(tokens, chosen, experts, 16 * sizes[0], 16 * sizes[1], skew, seed)


def test_experts_of_a_real_size() -> None:
    experts_case(2048, 2, 8, 128, 112, 0.5, real=True)


def attention_case(B: int, T: int, sizes: HeadSizes, gain: float = 1.0, real: bool = False) -> None:
    """Compare attention with torch's fused ones and with plain products in float64."""
    H, N, R, V = sizes
    angles_TR = torch.outer(torch.arange(T).float(), 1 / 10 ** torch.arange(R // 2))
    turn_TR, scale = 1.2 * torch.polar(torch.ones(T, R // 2), angles_TR), (N + R) ** -0.5
    library = attention_library()
    assert library is not None

    def native(q: torch.Tensor, kv: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        return NativeLatentAttention.apply(library, q, kv, k_rope, turn_TR, sizes, scale)[0]

    def by_torch(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        turn = turn_TR.to(torch.complex128 if dtype == DOUBLE else torch.complex64)
        return lambda *inputs: FusedLatentAttention.apply(*inputs, turn, sizes, scale)[0]

    inputs = [gain * random(B, T, H * (N + R)), random(B, T, H * (N + V), seed=1), random(B, T, R, seed=2)]
    inputs = [x.bfloat16() for x in inputs]
    is_nearer(native, by_torch(BF16), by_torch(DOUBLE), inputs, real)
    same_with_any_threads(native, inputs)
    found = NativeLatentAttention.apply(library, *inputs, turn_TR, sizes, scale)[1]
    exact = [x.double() for x in inputs]
    wanted = FusedLatentAttention.apply(*exact, turn_TR.to(torch.complex128), sizes, scale)[1]
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0.01, atol=0.01)


@settings(max_examples=25, deadline=None, derandomize=True)  # bounds on rounding are statistical
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 150),
    sizes=st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.sampled_from([2, 6, 16, 18]), st.integers(1, 40)
    ),
)
def test_attention(B: int, T: int, sizes: tuple[int, int, int, int]) -> None:
    attention_case(B, T, HeadSizes(*sizes))


@pytest.mark.parametrize("gain", [1.0, 10.0])
def test_attention_of_a_real_size(gain: float) -> None:
    attention_case(4, 64, HeadSizes(4, 32, 16, 32), gain, real=True)
    attention_case(1, 1100, HeadSizes(2, 32, 16, 32), gain, real=True)


@pytest.mark.parametrize("shape", [(3, 2, 1, 5), (2, 3, 70, 24), (4, 4, 64, 32), (1, 2, 1100, 16)])
def test_attention_of_any_heads(shape: tuple[int, ...]) -> None:
    """Queries, keys and values as one projection gives them, and values of another width."""
    B, H, T, X = shape
    library = attention_library()
    assert library is not None

    def native(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return NativeAttention.apply(library, q, k, v, 0.3)[0]

    def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return eager_attention(q, k, v, 0.3)[0]

    fused = random(B, T, 3, H, X).bfloat16().unbind(2)
    is_nearer(native, plain, plain, [x.transpose(1, 2) for x in fused], T >= 64)
    apart = [random(B, H, T, n, seed=n).bfloat16() for n in (X, X, X + 3)]
    is_nearer(native, plain, plain, apart, T >= 64)
    same_with_any_threads(native, apart)
    found = NativeAttention.apply(library, *apart, 0.3)[1]
    torch.testing.assert_close(found, causal_max_logits(*apart[:2], 0.3), rtol=0.01, atol=0.01)


def test_attention_reads_heads_where_they_lie() -> None:
    """NanoGPT's queries, keys and values stand three to a token; a copy of them gives the same bits."""
    library, found = attention_library(), []
    fused = [x.transpose(1, 2) for x in random(2, 70, 3, 2, 24).bfloat16().unbind(2)]
    for heads in (fused, [x.contiguous() for x in fused]):
        leaves = [x.detach().requires_grad_() for x in heads]
        assert [x.stride() for x in leaves] == [x.stride() for x in heads]
        out = NativeAttention.apply(library, *leaves, 0.3)[0]
        out.square().sum().backward()
        found.append([out, *(x.grad for x in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_that_do_not_lie_in_a_row() -> None:
    """Of a sum the gradient is one number, spread; C must not read a copy that is gone already."""
    x, weight = random(64, 32).requires_grad_(), random(32, seed=1).requires_grad_()
    norm(x, weight).sum().backward()
    spread = [x.grad, weight.grad]
    x.grad = weight.grad = None
    (norm(x, weight) * torch.ones(64, 32, dtype=BF16)).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(spread, (x.grad, weight.grad), strict=True))

    matrices = [
        random(3, *shape, seed=s).requires_grad_() for s, shape in enumerate([(16, 32), (16, 32), (32, 16)])
    ]
    tokens, gates = random(400, 32).bfloat16().requires_grad_(), random(400, 1).requires_grad_()
    library, choice = experts_library(), torch.arange(400)[:, None] % 3
    inputs = [tokens, gates, *matrices]
    found = []
    for weight in (torch.ones(()), torch.ones(400, 32)):
        y = NativeExperts.apply(library, *inputs, choice)
        found.append(torch.autograd.grad((y * weight).sum(), inputs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_not_a_number_stays_one() -> None:
    """In a query, a key or a value of one head: its outputs are not numbers, the other head's are."""
    sizes, turn_TR, library = HeadSizes(2, 16, 8, 16), torch.ones(20, 4, dtype=torch.complex64), None
    library = attention_library()
    for which, column in ((0, 3), (1, 5), (1, 20)):
        inputs = [random(1, 20, n, seed=n).bfloat16() for n in (48, 64, 8)]
        inputs[which][0, 7, column] = float("nan")
        out = NativeLatentAttention.apply(library, *inputs, turn_TR, sizes, 0.3)[0].unflatten(-1, (2, -1))
        assert out[0, 7, 0].isnan().any() and not out[:, :, 1].isnan().any()


def test_more_tokens_than_positions_are_refused() -> None:
    model = NanoKimi(TINY_KIMI)
    accelerate_(model, dtype="bf16")
    with torch.autocast("cpu", BF16), pytest.raises(AssertionError, match="40 tokens"):
        model(torch.zeros(1, 40, dtype=torch.long))


def test_experts_kept_in_bf16_are_left_to_torch() -> None:
    """C would read them as fp32."""
    moe = NanoKimi(TINY_KIMI).model.layers[1].mlp.bfloat16()  # type: ignore[union-attr]
    assert {c.mechanism: c.form for c in accelerate_(moe, dtype="bf16")}["experts"] == "blocks of rows"
    x = random(2, 8, 32).bfloat16()
    with torch.autocast("cpu", BF16):
        found = moe(x)[0]
        expected = moe.float()(x)[0]
    assert relative_error(found.double(), expected.double()) < 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_memory_that_runs_out_is_an_error_like_any_other() -> None:
    """Scratch memory that cannot be had: MemoryError, and the weights are what they were."""
    code = """
import resource, torch
from torch import nn
from nanokimi import Muon
p = nn.Parameter(torch.randn(700, 700)); p.grad = torch.randn(700, 700)
optimizer = Muon([p]); optimizer.step(); before = p.detach().clone()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 20), resource.RLIM_INFINITY))
try:
    optimizer.step()
except MemoryError as error:
    print(error, torch.equal(p, before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.startswith("out of memory") and done.stdout.endswith("True\n"), done.stderr


def test_attention_is_causal_to_the_bit() -> None:
    """No later token, and nothing of another sequence, moves a bit of an output or a gradient."""
    sizes, T, changed = HeadSizes(2, 16, 8, 16), 70, 41
    turn_TR = torch.ones(T, 4, dtype=torch.complex64)
    inputs = [random(2, T, n, seed=n).bfloat16() for n in (48, 64, 8)]
    library = attention_library()

    def first_rows(inputs: Tensors) -> Tensors:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = NativeLatentAttention.apply(library, *leaves, turn_TR, sizes, 0.3)[0]
        out[0, :changed].float().square().sum().backward()
        return [out[0, :changed].detach(), *(x.grad[0, :changed] for x in leaves if x.grad is not None)]

    others = [x.clone() for x in inputs]
    for x in others:
        x[0, changed:], x[1] = 5.0, -3.0
    for a, b in zip(first_rows(inputs), first_rows(others), strict=True):
        assert torch.equal(a, b)


SHAPES = [(1, 1), (24, 24), (48, 16), (16, 48), (1, 20), (96, 33), (3, 112, 128), (2, 336, 128), (70, 130)]


def moved(shape: tuple[int, ...], steps: int, **options: object) -> torch.Tensor:
    """How far a parameter goes in so many steps of Muon."""
    p = nn.Parameter(random(*shape))
    optimizer = Muon([p], lr=0.02, **options)  # type: ignore[arg-type]
    for step in range(steps):
        p.grad = random(*shape, seed=step + 1)
        optimizer.step()
    return p.detach() - random(*shape)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_muon(shape: tuple[int, ...], nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors against the iteration in float64 below 3%; for matrices of some size at most 1.1 times torch's in bf16."""
    options = dict(nesterov=nesterov, weight_decay=0.1, momentum=0.9)
    for steps in (1, 5):
        native = moved(shape, steps, ns_dtype=BF16, **options)
        with monkeypatch.context() as patch:
            patch.setattr(muon, "takes_native_step", lambda *_: False)
            exact = moved(shape, steps, ns_dtype=DOUBLE, **options)
            in_torch = moved(shape, steps, ns_dtype=BF16, **options)
        error = relative_error(native, exact)
        assert error < 0.03
        if native.numel() > 500:
            assert not torch.equal(native, in_torch), "nothing ran in C"
            assert error <= 1.1 * relative_error(in_torch, exact)


def test_muon_with_any_threads_and_gradients_that_do_not_lie_in_a_row() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads, spread in ((1, False), (2, True), (3, False)):
            torch.set_num_threads(threads)
            p = nn.Parameter(random(6, 40, 24))
            gradient = random(6, 40, 24, seed=1)
            p.grad = gradient.mT.contiguous().mT if spread else gradient
            Muon([{"params": [p], "blocks": 2}], lr=0.1, ns_dtype=BF16).step()
            results.append(p.detach())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_what_is_not_for_c_stays_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    p = random(4, 4)
    assert takes_native_step(p, BF16)
    for other, dtype in (
        (p, torch.float32),
        (p.double(), BF16),
        (p.mT[:, :2], BF16),
        (p.new_empty(LARGEST + 1, 1), BF16),
    ):
        assert not takes_native_step(other, dtype)
    called, in_c = [], muon.native_muon_step
    monkeypatch.setattr(
        muon, "native_muon_step", lambda members, steps: called.extend(members) or in_c(members, steps)
    )
    large, small = nn.Parameter(random(1025, 512)), nn.Parameter(random(32, 48))
    large.grad, small.grad = random(1025, 512, seed=1), random(32, 48, seed=2)
    Muon([large, small], lr=1.0, weight_decay=0.0).step()
    assert [member.parameter.shape for member in called] == [small.shape]
    for p, seed in ((large, 1), (small, 2)):
        update = newton_schulz(random(*p.shape, seed=seed), dtype=DOUBLE) * -0.2 * max(p.shape) ** 0.5
        assert relative_error(p.detach() - random(*p.shape), update) < 0.03


def test_a_step_of_a_model_calls_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()
    for function in (NativeRMSNorm, NativeLatentAttention, NativeExperts):
        forward, name = function.forward, function.__name__
        monkeypatch.setattr(
            function, "forward", staticmethod(lambda *a, f=forward, n=name: (called.add(n), f(*a))[1])
        )
    model = NanoKimi(TINY_KIMI)
    accelerate_(model, dtype="bf16")
    with torch.autocast("cpu", BF16):
        model(torch.randint(61, (2, 32)))
    assert called == {"NativeRMSNorm", "NativeLatentAttention", "NativeExperts"}
    called.clear()
    model(torch.randint(61, (2, 32)))  # in fp32, as validation is
    assert not called
