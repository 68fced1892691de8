"""Fast equals reference: every row of the table computes what it stands in for, values and gradients, any threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_GPT, TINY_KIMI
from hf_parity import relative_error
from torch import nn

from nanokimi import Muon, MuonClip, accelerate_
from nanokimi.config import VariantConfig
from nanokimi.kernels import accelerate, attention, decode_gpt, decode_kimi, experts, muon, rms_norm
from nanokimi.kernels.accelerate import (
    BF16,
    BF16_C,
    CHOICE_OF_EXPERTS,
    MUON,
    TABLE,
    TRACEABLE,
    Place,
    Row,
    accelerate_optimizer_,
    choose_loss,
    why_no_c,
)
from nanokimi.kernels.cross_entropy import LARGE, cross_entropy_in_pieces
from nanokimi.kernels.muon import batched_matrix_step, native_matrix_step
from nanokimi.model.attention import MultiHeadLatentAttention, rotated_queries
from nanokimi.model.gpt import CausalSelfAttention, NanoGPT
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.layers import RMSNorm
from nanokimi.model.loss import next_token_loss
from nanokimi.model.moe import Experts, Router
from nanokimi.model.variants.feed_forward import StackedMLP
from nanokimi.optim.muon import Muon as ReferenceMuon
from nanokimi.runtime.c_compiler import find_compiler
from nanokimi.runtime.device import cpu_has_fast_bf16

KIMI = replace(TINY_KIMI, n_routed_experts=20, num_experts_per_tok=3)
TOKENS, WIDTH, HIDDEN, EXPERTS = 40, 32, 16, 20
Tensors = list[torch.Tensor]
Call = Callable[[Callable[..., Any], Tensors], torch.Tensor]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chosen_experts() -> tuple[torch.Tensor, torch.Tensor]:
    """(M, K) and the counts; some experts get no token, one gets many."""
    scores_ME = random(TOKENS, EXPERTS, seed=8) + 2 * random(EXPERTS, seed=9)
    chosen_MK = scores_ME.topk(3, dim=-1).indices
    return chosen_MK, torch.bincount(chosen_MK.flatten(), minlength=EXPERTS).float()


def case_of(row: Row) -> tuple[Any, Tensors, Call]:
    """An owner of the row's attribute, inputs to differentiate by, and how the function is called with them."""
    kind, (chosen_MK, counts_E) = row.mechanism.owners[0], chosen_experts()
    matrices = [random(EXPERTS, HIDDEN, WIDTH, seed=s) / 6 for s in (1, 2)]
    matrices.append(random(EXPERTS, WIDTH, HIDDEN, seed=3) / 6)
    if kind is RMSNorm:
        inputs = [random(3, 5, WIDTH), 1 + 0.3 * random(WIDTH, seed=1)]
        return RMSNorm(WIDTH, 1e-3), inputs, lambda f, x: f(*x, 1e-3)
    if kind is MultiHeadLatentAttention:
        mla = MultiHeadLatentAttention(KIMI)
        (H, N, R, V), T = mla.sizes, 20
        angles_TR = torch.outer(torch.arange(T).float(), 1 / 10 ** torch.arange(R // 2))
        angles = (1.2 * angles_TR.cos(), 1.2 * angles_TR.sin())
        inputs = [random(2, T, H * (N + R)), random(2, T, H * (N + V), seed=1), random(2, T, R, seed=2)]
        return mla, inputs, lambda f, x: f(*x, angles, mla.sizes, mla.scale, True)
    if kind is CausalSelfAttention:
        inputs = [random(2, 3, 20, 8, seed=s) for s in (0, 1, 2)]
        return CausalSelfAttention(TINY_GPT), inputs, lambda f, x: f(*x, 0.3, want_max_logits=True)
    if kind is Experts:
        inputs = [random(TOKENS, WIDTH), random(TOKENS, 3, seed=5).abs(), *matrices]
        return Experts(KIMI), inputs, lambda f, x: f(x[0], chosen_MK, x[1], counts_E, tuple(x[2:]))
    if kind is StackedMLP:
        rows = random(int(counts_E.sum()), WIDTH)
        config = VariantConfig(hidden_size=WIDTH, n_routed_experts=EXPERTS, moe_intermediate_size=HIDDEN)
        return StackedMLP(config), [rows, matrices[0]], lambda f, x: f(x[0], counts_E, x[1])
    assert kind is Router
    return Router(KIMI), [random(TOKENS, EXPERTS)], lambda f, x: f(x[0], 3)


def values_and_gradients(function: Callable[..., Any], call: Call, inputs: Tensors) -> Tensors:
    """What a function gives (the largest logits, too), and the gradients of its inputs, in float64."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    found = call(function, leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    out = outputs[0]
    out.backward(random(*out.shape, seed=99).bfloat16().to(out.dtype))
    return [x.detach().double() for x in (*outputs, *(leaf.grad for leaf in leaves))]


@contextmanager
def as_in_training(row: Row) -> Iterator[torch.dtype]:
    """Autocast as the row is for; gives the dtype of activations."""
    bf16 = row.why in (BF16, BF16_C, TRACEABLE)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        yield torch.bfloat16 if bf16 else torch.float32


def skip_without_c(row: Row) -> None:
    if row.form.startswith("C") and (not cpu_has_fast_bf16() or find_compiler() is None):
        pytest.skip("needs a processor that multiplies in bf16, and a C compiler")


DIFFERENTIABLE = [row for row in TABLE if row.mechanism not in (MUON, CHOICE_OF_EXPERTS)]


@pytest.mark.parametrize("row", DIFFERENTIABLE, ids=lambda row: f"{row.mechanism.name}: {row.form}")
def test_fast_equals_reference(row: Row) -> None:
    """Against the reference in float64, any threads: errors of rounding to the row's dtype; in C, the same bits."""
    skip_without_c(row)
    owner, inputs, call = case_of(row)
    reference, fast = getattr(type(owner), row.mechanism.attribute), row.make(owner)
    before, results = torch.get_num_threads(), []
    with as_in_training(row) as dtype:
        weights_apart = {Experts: 2, RMSNorm: 1}.get(type(owner), len(inputs))
        given = [x.to(dtype) if i < weights_apart and x.dim() > 1 else x for i, x in enumerate(inputs)]
        if isinstance(owner, Experts):
            given[1] = inputs[1]  # gates are in fp32
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(values_and_gradients(fast, call, given))
        finally:
            torch.set_num_threads(before)
    exact = values_and_gradients(reference, call, [x.double() for x in given])
    for found in results:
        for mine, truth in zip(found, exact, strict=True):
            assert mine.shape == truth.shape
            assert (mine - truth).norm() <= (0.03 if dtype == torch.bfloat16 else 1e-5) * truth.norm()
        if row.form.startswith("C"):
            assert all(torch.equal(a, b) for a, b in zip(results[0], found, strict=True))


def test_a_maximum_at_a_time_finds_the_largest() -> None:
    row = next(row for row in TABLE if row.mechanism is CHOICE_OF_EXPERTS)
    owner, (scores,), call = case_of(row)
    found, wanted = (call(f, [scores]).sort(-1).values for f in (row.make(owner), Router.largest))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("row", [r for r in TABLE if r.mechanism is MUON], ids=lambda row: row.form)
def test_muons_fast_step_is_the_reference(row: Row) -> None:
    """Five steps of matrices of several sizes, alone and in blocks, against float64."""
    skip_without_c(row)
    dtype = torch.bfloat16 if row.form.startswith("C") else torch.float32
    shapes = [(48, 16), (16, 48), (3, 40, 24), (36, 36), (36, 36)]

    def way(fast: bool, ns_dtype: torch.dtype) -> Tensors:
        parameters = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
        alone, fused = {"params": parameters[:4]}, {"params": parameters[4:], "blocks": 3, "lr": 0.03}
        optimizer = ReferenceMuon([alone, fused], lr=0.02, ns_dtype=ns_dtype)
        if fast:
            setattr(optimizer, row.mechanism.attribute, row.make(optimizer))
        for step in range(5):
            for i, p in enumerate(parameters):
                p.grad = random(*p.shape, seed=10 * step + i + 50)
            optimizer.step()
        return [p.detach() - random(*p.shape, seed=i) for i, p in enumerate(parameters)]

    exact, fast = way(False, torch.float64), way(True, dtype)
    for mine, truth in zip(fast, exact, strict=True):
        assert relative_error(mine, truth) < (0.03 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("q_lora_rank", [None, 16])
def test_a_whole_model_takes_the_same_step(q_lora_rank: int | None, dtype: str) -> None:
    """Loss, logits and every gradient, fast and reference; the reference in fp32 is the measure of both.

    Eager and fused attention round logits to bf16, which the reference's does not: hence twice its error.
    """
    torch.manual_seed(0)
    model = NanoKimi(replace(TINY_KIMI, q_lora_rank=q_lora_rank, initializer_range=0.2))
    ids = torch.randint(0, 61, (4, 32))

    def step(model: NanoKimi, dtype: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            output = model(ids, want_max_logits=True)
        F.cross_entropy(output.logits_BTW[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        assert output.max_logits_LH is not None
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return output.logits_BTW.detach().float(), output.max_logits_LH, gradients

    exact, plain = step(model, "fp32"), step(model, dtype)
    accelerated = deepcopy(model)
    accelerate_(accelerated, dtype=dtype)
    fast = step(accelerated, dtype)
    assert exact[2].keys() == plain[2].keys() == fast[2].keys()
    bound = 1e-5 if dtype == "fp32" else 1.5 * relative_error(plain[0], exact[0])
    assert relative_error(fast[0], exact[0]) <= bound
    assert relative_error(fast[1], exact[1]) <= 0.02
    errors = [
        sum(float((by[2][name] - exact[2][name]).norm() / exact[2][name].norm()) for name in exact[2])
        for by in (fast, plain)
    ]
    assert errors[0] <= max(2 * errors[1], 1e-5 * len(exact[2])), errors


def forms(model: nn.Module, **options: Any) -> dict[str, str]:
    return {choice.mechanism: choice.form for choice in accelerate_(model, **options)}


def test_each_place_takes_its_row() -> None:
    kimi, gpt = NanoKimi(TINY_KIMI), NanoGPT(TINY_GPT)
    in_c = cpu_has_fast_bf16() and find_compiler() is not None
    core, attend = "latent attention", "softmax attention"
    assert forms(kimi) == {
        **{"RMSNorm": "fused", core: "reference", "choice of experts": "reference"},
        "experts": "grouped products",
    }
    assert forms(gpt) == {attend: "reference"} and CausalSelfAttention.attend is gpt.attentions()[0].attend
    found = forms(kimi, dtype="bf16")
    assert found[core] == ("C" if in_c else "fused")
    assert found["experts"] == ("C" if in_c else "blocks of rows")
    assert forms(gpt, dtype="bf16")[attend] == ("C" if in_c else "eager")
    found = forms(kimi, dtype="bf16", compiled=True)
    assert (found["RMSNorm"], found[core]) == ("reference", "eager")
    assert found["experts"] == "blocks of rows, their number fixed"
    assert forms(kimi, compiled=True)["experts"] == "grouped products, not compiled"
    assert set(forms(kimi.double()).values()) == {"reference"}
    crooked = NanoKimi(replace(TINY_KIMI, moe_intermediate_size=6))  # rows of 24 bytes, or 12
    assert forms(crooked)["experts"] == "reference"
    many = NanoKimi(replace(TINY_KIMI, n_routed_experts=17))
    assert forms(many)["choice of experts"] == "a maximum at a time"


def test_what_is_for_bf16_is_taken_under_autocast_alone() -> None:
    """Validation and stories run without it, in fp32, whatever the training step's dtype."""
    model, x = NanoKimi(TINY_KIMI), random(2, 3, 32)
    accelerate_(model, dtype="bf16")
    norm = model.model.norm
    assert norm(x).dtype == torch.float32
    torch.testing.assert_close(norm(x), RMSNorm.norm(x, norm.weight, norm.eps), rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.float16):
        assert norm(x).dtype == torch.float32


def test_fast_forms_leave_the_class_and_other_models_alone() -> None:
    model, other = NanoKimi(TINY_KIMI), NanoKimi(TINY_KIMI)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accelerate_(model)
    assert model.model.norm.norm is not RMSNorm.norm and other.model.norm.norm is RMSNorm.norm
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert deepcopy(model).model.norm.norm is model.model.norm.norm


def test_muon_alone_is_fast_without_ceremony() -> None:
    """`from nanokimi import Muon` has the fast step; the lesson's has the reference until it is accelerated."""
    p = nn.Parameter(random(8, 8))
    fast, plain = Muon([p]), ReferenceMuon([p])
    assert fast.matrix_step is not plain.matrix_step
    accelerate_(NanoKimi(TINY_KIMI), plain)
    assert plain.matrix_step in (batched_matrix_step, native_matrix_step)
    clip = MuonClip([p], attentions=[])
    assert clip.matrix_step is fast.matrix_step and isinstance(clip, ReferenceMuon)


def test_many_logits_are_worked_through_in_pieces() -> None:
    assert choose_loss(LARGE - 1, "fp32")[0] is next_token_loss
    assert choose_loss(LARGE, "bf16")[0] is cross_entropy_in_pieces
    assert choose_loss(LARGE, "fp16")[0] is next_token_loss


def test_why_there_is_no_c_is_said() -> None:
    assert "fp32 on cpu" in why_no_c(Place("cpu", "fp32", False))
    reason = why_no_c(Place("cpu", "bf16", False))
    assert (reason == "") == (cpu_has_fast_bf16() and find_compiler() is not None)


def test_queries_keep_what_has_no_position() -> None:
    mla = MultiHeadLatentAttention(KIMI)
    H, N, R, _ = mla.sizes
    q, angles = random(1, 4, H * (N + R)), (torch.zeros(4, R // 2), torch.ones(4, R // 2))
    turned = rotated_queries(q, angles, mla.sizes)
    given = q.unflatten(-1, (H, -1)).transpose(1, 2)
    assert torch.equal(turned[..., :N], given[..., :N])
    assert not torch.equal(turned[..., N:], given[..., N:])


@pytest.mark.parametrize(
    ("ns_dtype", "form"), [(None, "C"), (torch.bfloat16, "C"), (torch.float32, "batches")]
)
def test_muons_step_in_c_is_for_newton_schulz_in_bf16(
    ns_dtype: torch.dtype | None, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dtype of training is; what is reported must be what is used."""
    monkeypatch.setattr("nanokimi.kernels.muon.has_native_step", lambda: True)
    p = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = ReferenceMuon([p], ns_dtype=ns_dtype)
    (choice,) = accelerate_optimizer_(optimizer)
    assert choice.form.startswith(form) and (form != "C" or "Newton-Schulz" in choice.why)
    assert optimizer.matrix_step is (native_matrix_step if form == "C" else batched_matrix_step)


@pytest.mark.parametrize(
    ("place", "files"),
    [
        (("cpu", "fp32"), {"decode_gpt", "decode_kimi", "muon"}),
        (("cpu", "bf16"), {"decode_gpt", "decode_kimi", "muon", "rms_norm", "attention", "experts"}),
        (("cuda", "bf16"), set()),
    ],
)
def test_what_a_place_may_use_is_compiled_ahead(
    place: tuple[str, str], files: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that each process of a comparison finds it, and the user is told once if it fails."""
    asked: list[str] = []
    for module in (attention, decode_gpt, decode_kimi, experts, muon, rms_norm):
        monkeypatch.setattr(module, "native_library", lambda source: asked.append(source.stem))
    for module in ("accelerate", "muon", "place"):
        monkeypatch.setattr(f"nanokimi.kernels.{module}.cpu_has_fast_bf16", lambda: True)
    accelerate.compile_ahead(*place)
    assert set(asked) == files
