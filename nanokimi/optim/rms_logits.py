"""An estimate of each head's largest attention logit from the weights alone.

An earlier nanoKimi (seed 0) clipped by such estimates. After a norm, inputs have an RMS of 1, times the gain. If their
directions were isotropic, a head's query would have the length |W_q diag(gain)|_F, and its key likewise. The estimate
of the largest logit is scale * |q| |k|, as if some query and some key were parallel. It is too low where inputs lie
along large directions of the weights, and too high where no query and key are parallel. Training records show it beside
the exact logits. Unlike the original, it estimates each head separately and splits the interleaved rows of MLA by head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

INPUT_NORMS = ("input_layernorm", "ln_1")  # beside the attention in its block


@torch.no_grad()
def rms_logits(model: nn.Module) -> torch.Tensor:
    """Estimates (L, H) for every layer of a model whose `attentions()` are MLA, MHA or GQA.

    Raises ValueError for an attention whose query and key projections have unknown names.
    """
    blocks = {child: block for block in model.modules() for child in block.children()}
    estimates = []
    for attention in model.attentions():  # type: ignore[operator]  # every model of ours has it
        norms = [getattr(blocks[attention], name) for name in INPUT_NORMS if hasattr(blocks[attention], name)]
        if len(norms) != 1:
            raise ValueError("the block of the attention has no norm with a known name before it")
        estimates.append(head_estimates(attention, norms[0]))
    return torch.stack(estimates)


def can_estimate(model: nn.Module) -> bool:
    """Whether `rms_logits` can estimate the logits of all of a model's attentions."""
    try:
        rms_logits(model)
    except (AttributeError, ValueError):
        return False
    return True


def head_estimates(attention: Any, norm: Any) -> torch.Tensor:
    """One estimate for each head (H,) of an attention whose input comes from `norm`."""
    projections = getattr(attention, "projections", None)
    if projections == "latent":
        return latent_estimates(attention, norm)
    if projections == "fused":
        third = attention.c_attn.out_features // 3  # rows of the queries, of the keys and of the values
        q, k, _ = lengths_of(attention.c_attn, norm).split(third)
    elif projections == "separate":
        q, k = lengths_of(attention.q_proj, norm), lengths_of(attention.k_proj, norm)
    else:
        raise ValueError(f"{type(attention).__name__} has no query and key projections with known names")
    heads = attention.num_heads
    width = len(q) // heads
    q_H, k_G = (row_sizes.unflatten(0, (-1, width)).sum(dim=1).sqrt() for row_sizes in (q, k))
    return attention.scale * q_H * k_G.repeat_interleave(heads // len(k_G))  # GQA: G heads of keys, G <= H


def latent_estimates(attention: Any, norm: Any) -> torch.Tensor:
    """The estimates of the parts without position and of the rotary parts, whose sum is the logit."""
    heads, nope, latent = attention.num_heads, attention.nope_dim, attention.latent_dim
    query_norm = attention.q_a_layernorm if attention.has_query_latent else norm
    q_HX = lengths_of(attention.q_up_proj, query_norm).unflatten(0, (heads, -1))
    kv_HX = lengths_of(attention.kv_b_proj, attention.kv_a_layernorm).unflatten(0, (heads, -1))
    shared_R = lengths_of(attention.kv_a_proj_with_mqa, norm)[latent:]  # one rotary key for all heads
    without_position_H = (q_HX[:, :nope].sum(dim=1) * kv_HX[:, :nope].sum(dim=1)).sqrt()
    rotary_H = (q_HX[:, nope:].sum(dim=1) * shared_R.sum()).sqrt()
    return attention.scale * (without_position_H + rotary_H)


def lengths_of(projection: nn.Linear, norm: Any) -> torch.Tensor:
    """Mean square of each output, with gain and biases, for isotropic inputs of the norm."""
    weight = projection.weight.float()
    mean_square = (weight * norm.weight.float()).square().sum(dim=1)
    shift = torch.zeros_like(mean_square)
    if getattr(norm, "bias", None) is not None:
        shift = weight @ norm.bias.float()
    if projection.bias is not None:
        shift = shift + projection.bias.float()
    return mean_square + shift.square()
