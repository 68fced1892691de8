"""Decoding of NanoKimi on a CPU, batch 1, with absorbed weights, in torch and in C (decode_kimi.c).

For a single token, a small model does little arithmetic and spends its time on starting operations. Therefore linear
operations are multiplied together beforehand: norm gains and the softmax scale are absorbed into the projections, the
keys' up-projection into the queries', and the values' into the output's. Router and shared expert become one matrix.
The result equals the model's up to rounding, which tests check.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F

from nanokimi.kernels.structs import KERNELS, Fields, Layers, here, pointers, struct
from nanokimi.model.attention import MultiHeadLatentAttention
from nanokimi.model.cache import Cache, LayerCache
from nanokimi.model.kimi import KimiBlock, NanoKimi
from nanokimi.model.layers import SwiGLU
from nanokimi.model.moe import MixtureOfExperts
from nanokimi.runtime.c_compiler import native_library

KimiLayer = struct(
    "width heads latent rotary query_low dense shared experts chosen expert_width normalise",
    "scaling eps latent_eps",
    "in query_down query_up latent_gain out first bias down expert_gate_up expert_down rows",
)


class AbsorbedKimi:
    """The weights of a NanoKimi, absorbed for decoding. `model` itself is not changed."""

    @torch.inference_mode()
    def __init__(self, model: NanoKimi) -> None:
        decoder = model.model
        self.embedding_WD = decoder.embed_tokens.weight
        cos_SR, sin_SR = decoder.rotary.cos_SR, decoder.rotary.sin_SR
        self.rotations_SR = torch.complex(cos_SR, sin_SR)
        self.eps = model.config.rms_norm_eps
        blocks = [cast(KimiBlock, block) for block in decoder.layers]
        self.layers = [(AbsorbedAttention(b), absorbed_feed_forward(b)) for b in blocks]
        self.head_WD = model.lm_head.weight * decoder.norm.weight

    @torch.inference_mode()
    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        """Append one token to the cache and return the next logits (W,)."""
        x_D = self.embedding_WD[token].clone()
        rotation_R = self.rotations_SR[cache.length]
        for (attend, feed_forward), layer_cache in zip(self.layers, cache.layers, strict=True):
            attend(x_D, rotation_R, layer_cache)
            feed_forward(x_D)
        return self.head_WD.mv(normed(x_D, self.eps))


def normed(x_D: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm without its gain, which is absorbed into the next matrix."""
    return F.rms_norm(x_D, x_D.shape, None, eps)


class AbsorbedAttention:
    """x += attention(norm(x)) for one vector, attending in the latent space."""

    def __init__(self, block: KimiBlock) -> None:
        a: MultiHeadLatentAttention = block.self_attn
        H, N, R, C = a.num_heads, a.nope_dim, a.rope_dim, a.latent_dim
        self.sizes = (H * C, (H + 1) * R, C)
        self.heads, self.latent_dim, self.rotary_dim, self.eps = H, C, R, block.input_layernorm.eps
        q_HXQ = a.q_up_proj.weight.view(H, N + R, -1) * a.scale
        k_up_HNC, v_up_HVC = a.kv_b_proj.weight.view(H, -1, C).split([N, a.value_dim], dim=1)
        q_latent_HCQ = k_up_HNC.mT @ q_HXQ[:, :N]
        gain_D = block.input_layernorm.weight
        c_CD, k_rope_RD = (a.kv_a_proj_with_mqa.weight * gain_D).split([C, R])
        queries = [q_latent_HCQ.flatten(0, 1), q_HXQ[:, N:].flatten(0, 1)]
        self.q_low: tuple[torch.Tensor, torch.Tensor] | None = None
        if a.has_query_latent:
            gain_Q = a.q_a_layernorm.weight
            self.q_low = (a.q_a_proj.weight * gain_D, torch.cat(queries) * gain_Q)
            self.in_XD = torch.cat([k_rope_RD, c_CD])
        else:
            self.in_XD = torch.cat([queries[0] * gain_D, queries[1] * gain_D, k_rope_RD, c_CD])
        self.latent_gain_C, self.latent_eps = a.kv_a_layernorm.weight, a.kv_a_layernorm.eps
        o_DHV = a.o_proj.weight.view(-1, H, a.value_dim)
        self.out_DX = torch.einsum("dhv,hvc->dhc", o_DHV, v_up_HVC).flatten(1).contiguous()

    def __call__(self, x_D: torch.Tensor, rotation_R: torch.Tensor, cache: LayerCache) -> None:
        h_D = normed(x_D, self.eps)
        projected = self.in_XD.mv(h_D)
        if self.q_low is not None:
            low_Q = self.q_low[0].mv(h_D)
            projected = torch.cat([self.q_low[1].mv(normed(low_Q, self.latent_eps)), projected])
        q_latent, rotary, c_C = projected.split(self.sizes)
        # Cloned, because complex numbers must start at an even offset.
        pairs = torch.view_as_complex(rotary.clone().view(self.heads + 1, -1, 2))
        # every head's query, then the shared key
        rotated_HR = torch.view_as_real(pairs * rotation_R).flatten(1)
        q_HL = torch.cat([q_latent.view(self.heads, -1), rotated_HR[:-1]], dim=1)
        latent_L = torch.cat(
            [F.rms_norm(c_C, c_C.shape, self.latent_gain_C, self.latent_eps), rotated_HR[-1]]
        )
        (latents_1SL,) = cache.append(latent_L[None, None])
        weights_HS = (q_HL @ latents_1SL[0].t()).softmax(dim=-1)
        out_HC = weights_HS @ latents_1SL[0, :, : self.latent_dim]
        x_D.addmv_(self.out_DX, out_HC.view(-1))


def absorbed_feed_forward(block: KimiBlock) -> AbsorbedDense | AbsorbedExperts:
    """x += feed_forward(norm(x)) for one vector."""
    gain_D, eps = block.post_attention_layernorm.weight, block.post_attention_layernorm.eps
    if isinstance(block.mlp, MixtureOfExperts):
        return AbsorbedExperts(block.mlp, gain_D, eps)
    return AbsorbedDense(block.mlp, gain_D, eps)


class AbsorbedDense:
    """x += swiglu(norm(x)) for one vector."""

    def __init__(self, mlp: SwiGLU, gain_D: torch.Tensor, eps: float) -> None:
        self.gate_up_GD = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * gain_D
        self.down_DF, self.eps = mlp.down_proj.weight, eps

    def __call__(self, x_D: torch.Tensor) -> None:
        gate_F, up_F = self.gate_up_GD.mv(normed(x_D, self.eps)).chunk(2)
        x_D.addmv_(self.down_DF, F.silu(gate_F) * up_F)


class AbsorbedExperts:
    """x += experts(norm(x)) for one vector, with the K chosen experts one after another, read in place."""

    def __init__(self, moe: MixtureOfExperts, gain_D: torch.Tensor, eps: float) -> None:
        router, experts, self.eps = moe.gate, moe.experts, eps
        self.num_chosen, self.scaling = router.num_chosen, router.scaling
        self.norm_topk_prob, self.bias_E = router.norm_topk_prob, router.e_score_correction_bias
        self.gate_up_EGD = torch.cat([experts.gate_proj, experts.up_proj], dim=1) * gain_D
        self.down_EDF = experts.down_proj
        self.gate_up, self.down = self.gate_up_EGD.unbind(0), self.down_EDF.unbind(0)
        first = [router.weight * gain_D]
        self.shared_down_DF: torch.Tensor | None = None
        if moe.shared_experts is not None:
            shared = moe.shared_experts
            first += [shared.gate_proj.weight * gain_D, shared.up_proj.weight * gain_D]
            self.shared_down_DF = shared.down_proj.weight
        self.sizes = [len(matrix) for matrix in first]
        self.first_XD = torch.cat(first)

    def __call__(self, x_D: torch.Tensor) -> None:
        h_D = normed(x_D, self.eps)
        logits_E, *shared = self.first_XD.mv(h_D).split(self.sizes)
        scores_E = logits_E.sigmoid()
        chosen = (scores_E + self.bias_E).topk(self.num_chosen, sorted=False).indices.tolist()
        scores = scores_E.tolist()
        total = sum(scores[e] for e in chosen) + 1e-20 if self.norm_topk_prob else 1.0
        if self.shared_down_DF is not None:
            x_D.addmv_(self.shared_down_DF, F.silu(shared[0]) * shared[1])
        for e in chosen:
            gate_F, up_F = self.gate_up[e].mv(h_D).chunk(2)
            x_D.addmv_(self.down[e], F.silu(gate_F) * up_F, alpha=scores[e] / total * self.scaling)


class NativeKimi:
    """Decodes like the AbsorbedKimi that it is made from, which holds the weights."""

    def __init__(self, absorbed: AbsorbedKimi, decode: Callable[..., None]) -> None:
        self.absorbed, self.decode = absorbed, decode
        fields = [attention_fields(a) | feed_forward_fields(f) for a, f in absorbed.layers]
        self.layers = Layers(KimiLayer, fields)
        self.rotations_SR = torch.view_as_real(absorbed.rotations_SR).flatten(1).contiguous()
        self.head = ctypes.c_void_p(self.layers.address(absorbed.head_WD))

    @torch.inference_mode()
    def __call__(self, token: int, cache: Cache) -> torch.Tensor:
        """Append one token to the cache and return the next logits (W,)."""
        position = cache.length
        self.layers.point_to(cache, "rows")
        x_D = self.absorbed.embedding_WD[token].clone()
        logits_W = x_D.new_empty(len(self.absorbed.head_WD))
        layers, rotation = self.layers.structs, self.rotations_SR[position]
        self.decode(
            layers,
            len(layers),
            self.head,
            len(logits_W),
            *pointers(x_D, rotation),
            *here(position, logits_W),
        )
        return logits_W


def kimi_library() -> ctypes.CDLL | None:
    """The functions of decode_kimi.c, or None where they cannot be compiled."""
    return native_library(KERNELS / "decode_kimi.c")


def native_kimi(absorbed: AbsorbedKimi) -> NativeKimi | None:
    """The decoder in C, or None if this machine cannot compile it."""
    library = kimi_library()
    return None if library is None else NativeKimi(absorbed, library.decode_kimi)


def attention_fields(attention: AbsorbedAttention) -> Fields:
    """Sizes and matrices of a layer's attention."""
    fields: Fields = {
        "width": attention.in_XD.shape[1],
        "heads": attention.heads,
        "latent": attention.latent_dim,
        "rotary": attention.rotary_dim,
        "eps": attention.eps,
        "latent_eps": attention.latent_eps,
        "in": attention.in_XD,
        "latent_gain": attention.latent_gain_C,
        "out": attention.out_DX,
    }
    if attention.q_low is not None:
        down_QD, up_XQ = attention.q_low
        fields |= {"query_low": len(down_QD), "query_down": down_QD, "query_up": up_XQ}
    return fields


def feed_forward_fields(part: AbsorbedDense | AbsorbedExperts) -> Fields:
    """Sizes and matrices of a layer's feed-forward part."""
    if isinstance(part, AbsorbedDense):
        return {"dense": part.down_DF.shape[1], "first": part.gate_up_GD, "down": part.down_DF}
    fields: Fields = {
        "experts": len(part.down_EDF),
        "chosen": part.num_chosen,
        "expert_width": part.down_EDF.shape[2],
        "normalise": int(part.norm_topk_prob),
        "scaling": part.scaling,
        "first": part.first_XD,
        "bias": part.bias_E,
        "expert_gate_up": part.gate_up_EGD,
        "expert_down": part.down_EDF,
    }
    if part.shared_down_DF is not None:
        fields |= {"shared": part.shared_down_DF.shape[1], "down": part.shared_down_DF}
    return fields
