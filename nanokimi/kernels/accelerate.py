"""THE TABLE: which fast implementation replaces which function of `model` and `optim`, and where.

`model` and `optim` have their reference functions as attributes (`RMSNorm.norm`, `MultiHeadLatentAttention.core`, ...).
For each mechanism, the first row of TABLE that suits the machine replaces the reference. Without one, the reference
stays. Every implementation computes what the reference does, up to rounding, which tests/test_accelerate.py checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from nanokimi.kernels import attention, cross_entropy, decode_gpt, decode_kimi, experts, muon, rms_norm
from nanokimi.kernels.place import Mechanism, Place, Row
from nanokimi.kernels.structs import Choice
from nanokimi.model.attention import MultiHeadLatentAttention, latent_attention
from nanokimi.model.gpt import CausalSelfAttention
from nanokimi.model.layers import RMSNorm
from nanokimi.model.loss import next_token_loss
from nanokimi.model.moe import Experts, Router, mix_experts
from nanokimi.model.variants.attention import GroupedQueryAttention
from nanokimi.model.variants.feed_forward import StackedMLP
from nanokimi.optim.muon import Muon
from nanokimi.runtime.c_compiler import find_compiler
from nanokimi.runtime.device import cpu_has_fast_bf16

MANY_EXPERTS, FEW_CHOSEN = 16, 4  # measured: docs/performance.md
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def in_bf16(fast: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """`fast` under autocast to bf16, as in a training step, and `otherwise` for validation and generation in fp32."""
    return partial(by_autocast, fast, otherwise)


def by_autocast(fast: Callable[..., Any], otherwise: Callable[..., Any], *arguments: Any) -> Any:
    """Call one of two functions with the same arguments."""
    on = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return (fast if on else otherwise)(*arguments)


def is_fp32(owner: nn.Module) -> bool:
    """Whether all its weights are in fp32."""
    return all(p.dtype == torch.float32 for p in owner.parameters())


def has_whole_vectors(owner: Experts) -> bool:
    """Whether these experts have widths that experts.c takes."""
    return not any(size % experts.VECTOR for size in owner.gate_proj.shape[1:])


def can_group(place: Place, owner: nn.Module) -> bool:
    """Whether torch has a grouped product for these experts on a CPU."""
    return (
        place.device == "cpu"
        and not any(p.dtype == torch.float64 for p in owner.parameters())
        and experts.can_group(BYTES[place.dtype], *owner.parameters())
    )


def can_group_on_gpu(place: Place, owner: nn.Module) -> bool:
    """Whether torch multiplies these experts' groups in bf16 by one kernel on this GPU."""
    return place.groups and experts.can_group(BYTES["bf16"], *owner.parameters())


grouped_experts = partial(mix_experts, linear=experts.grouped_linear)


def fp32_experts(owner: Experts) -> Callable[..., Any]:
    """The experts of a model in bf16 during validation."""
    return grouped_experts if can_group(Place("cpu", "fp32", False), owner) else mix_experts


def uses_bf16(optimizer: Muon) -> bool:
    """Whether Newton-Schulz may be in bf16: for some group that is asked for, or the fastest dtype is."""
    return any(group["ns_dtype"] in (None, torch.bfloat16) for group in optimizer.param_groups)


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that torch.compile calls without tracing it."""
    return torch.compiler.disable(function)


NORM = Mechanism("RMSNorm", (RMSNorm,), "norm")
LATENT_ATTENTION = Mechanism("latent attention", (MultiHeadLatentAttention,), "core")
SOFTMAX_ATTENTION = Mechanism("softmax attention", (CausalSelfAttention, GroupedQueryAttention), "attend")
CHOICE_OF_EXPERTS = Mechanism("choice of experts", (Router,), "largest")
EXPERTS = Mechanism("experts", (Experts,), "mix")
EXPERTS_OF_TWO = Mechanism("experts of two matrices", (StackedMLP,), "linear")
MUON = Mechanism("Muon", (Muon,), "matrix_step")

BF16_C = "bf16 on a CPU that multiplies in it, and a C compiler"
BF16 = "bf16 on a CPU"
MUON_C = "Newton-Schulz in bf16 on a CPU that multiplies in it, and a C compiler"
TRACEABLE = "what torch.compile can trace"
GROUPED = "a CPU, and rows of whole 16 bytes"
GROUPED_ON_GPU = "compute capability 9 or 10: groups in one kernel; blocks in other dtypes"
BLOCKS_ON_GPU = "a GPU, where grouped products would read counts on the host"
LOGITS_ON_GPU = "a GPU, which is given as many queries at a time as fit, in half precision if they are"
NOT_COMPILED = "torch.compile groups bf16 alone"

TABLE = (
    Row(
        NORM,
        form="C",
        why=BF16_C,
        suits=lambda at, norm: at.c and is_fp32(norm) and rms_norm.norm_library() is not None,
        make=lambda _: in_bf16(rms_norm.native_rms_norm_to_bf16, rms_norm.fused_rms_norm),
    ),
    Row(
        NORM,
        form="fused, to bf16",
        why=BF16,
        suits=lambda at, norm: at.bf16_on_cpu and not at.compiled,
        make=lambda _: in_bf16(rms_norm.fused_rms_norm_to_bf16, rms_norm.fused_rms_norm),
    ),
    Row(
        NORM,
        form="fused",
        why="fp32 on a CPU: autograd would keep one tensor more",
        suits=lambda at, norm: at.device == "cpu" and not at.compiled and is_fp32(norm),
        make=lambda _: rms_norm.fused_rms_norm,
    ),
    Row(
        LATENT_ATTENTION,
        form="C",
        why=BF16_C,
        suits=lambda at, _: at.c and attention.attention_library() is not None,
        make=lambda _: in_bf16(attention.native_latent_attention, latent_attention),
    ),
    Row(
        LATENT_ATTENTION,
        form="eager",
        why=TRACEABLE,
        suits=lambda at, _: at.bf16_on_cpu and at.compiled,
        make=lambda _: attention.eager_latent_attention,
    ),
    Row(
        LATENT_ATTENTION,
        form="fused",
        why=BF16,
        suits=lambda at, _: at.bf16_on_cpu,
        make=lambda _: in_bf16(attention.fused_latent_attention, latent_attention),
    ),
    Row(
        LATENT_ATTENTION,
        form="largest logits in few products",
        why=LOGITS_ON_GPU,
        suits=lambda at, _: at.gpu,
        make=lambda _: partial(latent_attention, attend=attention.attend_on_gpu),
    ),
    Row(
        SOFTMAX_ATTENTION,
        form="C",
        why=BF16_C,
        suits=lambda at, _: at.c and attention.attention_library() is not None,
        make=lambda _: attention.native_attend,
    ),
    Row(
        SOFTMAX_ATTENTION,
        form="eager",
        why=BF16,
        suits=lambda at, _: at.bf16_on_cpu,
        make=lambda _: attention.eager_attend,
    ),
    Row(
        SOFTMAX_ATTENTION,
        form="largest logits in few products",
        why=LOGITS_ON_GPU,
        suits=lambda at, _: at.gpu,
        make=lambda _: attention.attend_on_gpu,
    ),
    Row(
        CHOICE_OF_EXPERTS,
        form="a maximum at a time",
        why="a few of many, on a CPU",
        suits=lambda at, router: (
            at.device == "cpu" and len(router.weight) > MANY_EXPERTS and router.num_chosen <= FEW_CHOSEN
        ),
        make=lambda _: experts.largest_by_maxima,
    ),
    Row(
        EXPERTS,
        form="C",
        why=BF16_C,
        suits=lambda at, own: (
            at.c and is_fp32(own) and has_whole_vectors(own) and experts.experts_library() is not None
        ),
        make=lambda own: in_bf16(experts.native_experts, fp32_experts(own)),
    ),
    Row(
        EXPERTS,
        form="blocks of rows, their number fixed",
        why=TRACEABLE,
        suits=lambda at, _: at.bf16_on_cpu and at.compiled,
        make=lambda own: in_bf16(experts.traceable_experts, fp32_experts(own)),
    ),
    Row(
        EXPERTS,
        form="blocks of rows",
        why=BF16,
        suits=lambda at, _: at.bf16_on_cpu,
        make=lambda own: in_bf16(experts.blocked_experts, fp32_experts(own)),
    ),
    Row(
        EXPERTS,
        form="grouped products of bf16",
        why=GROUPED_ON_GPU,
        suits=can_group_on_gpu,
        make=lambda _: partial(experts.experts_on_gpu, grouped=True),
    ),
    Row(
        EXPERTS,
        form="blocks of rows, their number fixed",
        why=BLOCKS_ON_GPU,
        suits=lambda at, _: at.gpu,
        make=lambda _: partial(experts.experts_on_gpu, grouped=False),
    ),
    Row(
        EXPERTS,
        form="grouped products, not compiled",
        why=NOT_COMPILED,
        suits=lambda at, own: at.compiled and at.dtype != "bf16" and can_group(at, own),
        make=lambda _: untraced(grouped_experts),
    ),
    Row(
        EXPERTS,
        form="not compiled",
        why="torch.compile cannot trace the loop",
        suits=lambda at, own: at.compiled and not can_group(at, own),
        make=lambda _: untraced(mix_experts),
    ),
    Row(
        EXPERTS,
        form="grouped products",
        why=GROUPED,
        suits=can_group,
        make=lambda _: grouped_experts,
    ),
    Row(
        EXPERTS_OF_TWO,
        form="grouped products of bf16",
        why=GROUPED_ON_GPU,
        suits=can_group_on_gpu,
        make=lambda _: partial(experts.linear_on_gpu, grouped=True),
    ),
    Row(
        EXPERTS_OF_TWO,
        form="blocks of rows, their number fixed",
        why=BLOCKS_ON_GPU,
        suits=lambda at, _: at.gpu,
        make=lambda _: partial(experts.linear_on_gpu, grouped=False),
    ),
    Row(
        EXPERTS_OF_TWO,
        form="grouped products, not compiled",
        why=NOT_COMPILED,
        suits=lambda at, own: at.compiled and at.dtype != "bf16" and can_group(at, own),
        make=lambda _: untraced(experts.grouped_linear),
    ),
    Row(
        EXPERTS_OF_TWO,
        form="grouped products",
        why=GROUPED,
        suits=can_group,
        make=lambda _: experts.grouped_linear,
    ),
    Row(
        MUON,
        form="C, the largest matrices in batches",
        why=MUON_C,
        suits=lambda at, optimizer: at.device == "cpu" and uses_bf16(optimizer) and muon.has_native_step(),
        make=lambda _: muon.native_matrix_step,
    ),
    Row(
        MUON,
        form="batches of one size",
        why="fewer, larger products",
        suits=lambda at, _: True,
        make=lambda _: muon.batched_matrix_step,
    ),
)


def accelerate_(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    dtype: str = "fp32",
    compiled: bool = False,
) -> list[Choice]:
    """Put fast implementations into a model, for its device, and into its optimizer. Returns what was chosen.

    Args:
        dtype: of the products in a training step, fp32, bf16 or fp16. Without autocast, the model runs in fp32.
        compiled: whether torch.compile will trace the model.

    Implementations in C are compiled now, if there is a C compiler. That takes seconds, once on each machine.
    """
    choices = put_in(model.modules(), Place(next(model.parameters()).device.type, dtype, compiled))
    return choices if optimizer is None else [*choices, *accelerate_optimizer_(optimizer)]


def accelerate_optimizer_(optimizer: torch.optim.Optimizer) -> list[Choice]:
    """Put fast implementations into an optimizer. Returns what was chosen."""
    device = optimizer.param_groups[0]["params"][0].device.type
    return put_in([optimizer], Place(device, "fp32", False))


def put_in(owners: Iterable[Any], place: Place) -> list[Choice]:
    """Set the attributes of each owner to the first implementation that suits, or back to the reference."""
    choices: dict[Choice, None] = {}
    for owner in owners:
        for mechanism in {row.mechanism: None for row in TABLE if isinstance(owner, row.mechanism.owners)}:
            vars(owner).pop(mechanism.attribute, None)  # the reference, until a row suits
            rows = (row for row in TABLE if row.mechanism == mechanism and row.suits(place, owner))
            row = next(rows, None)
            if row is not None:
                setattr(owner, mechanism.attribute, row.make(owner))
            form, why = (row.form, row.why) if row is not None else ("reference", "nothing faster here")
            choices[Choice(mechanism.name, form, why)] = None
    return list(choices)


def choose_loss(logits: int, dtype: str) -> tuple[Callable[..., torch.Tensor], Choice]:
    """The loss function for so many logits. In fp16, the unscaled gradients of pieces would be too small."""
    if logits < cross_entropy.LARGE or dtype == "fp16":
        return next_token_loss, Choice("loss", "reference", "logits are few, or in fp16")
    return cross_entropy.cross_entropy_in_pieces, Choice("loss", "in pieces", "logits are many")


def compile_ahead(device: str, dtype: str) -> None:
    """Compile what models at a place may use, so that processes started later find it.

    If that fails, the user is told here, once, and not by each of them.
    """
    place = Place(device, dtype, False)
    if device == "cpu":
        decode_gpt.gpt_library()
        decode_kimi.kimi_library()
        muon.has_native_step()
    if place.c:
        rms_norm.norm_library()
        attention.attention_library()
        experts.experts_library()


def why_no_c(place: Place) -> str:
    """Why the training kernels in C cannot be used here; empty if they can."""
    if not place.bf16_on_cpu:
        return f"they are for bf16 on a CPU, and this is {place.dtype} on {place.device}"
    if not cpu_has_fast_bf16():
        return "this processor has no AVX512-BF16"
    if find_compiler() is None:
        return "there is no C compiler, or NANOKIMI_NATIVE is 0"
    return "torch.compile cannot trace them" if place.compiled else ""
