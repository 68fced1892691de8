"""NanoKimi and NanoGPT in the words of GGUF, the file format of llama.cpp: metadata and tensors.

NanoKimi is llama.cpp's architecture `deepseek2`, and NanoGPT its `gpt2`. Attention is stored absorbed: the matrix that
expands latents is split, the keys' part transposed, and there is one key-value head, the latent.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from nanokimi.config import GPTConfig, KimiConfig, YarnConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.errors import TrainingError, UserError
from nanokimi.interop.deepseek import Tensors
from nanokimi.interop.gpt2 import to_gpt2
from nanokimi.interop.hf_write import stock_config
from nanokimi.model.build import LanguageModel
from nanokimi.model.kimi import NanoKimi
from nanokimi.model.layers import rotary_frequencies

Arrays = dict[str, np.ndarray]
SIGMOID = 2
"""llama.cpp's number for a router with sigmoid scores."""
NO_QUERY_LATENT = (26, 27)
"""Numbers of layers from which llama.cpp concludes that a deepseek2 has no query latent."""
LLAMA_BETAS = (32.0, 1.0)
"""YaRN's beta_fast and beta_slow in llama.cpp's deepseek2, which reads none from the file."""
BLOCK = 32
"""Numbers that share a scale in Q8_0 and Q4_0."""
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "Q4_0": 2}
"""The types that can be written, and llama.cpp's numbers for whole files of them."""
KEPT_IN_F32 = ("position_embd.weight", "ffn_gate_inp.weight")
"""Matrices that llama.cpp never quantises: positions and routers. Vectors are not quantised either."""

KIMI_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.experts.gate_proj": "ffn_gate_exps.weight",
    "mlp.experts.up_proj": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
}
GPT_NAMES = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
"""Our names and GGUF's, without the part that numbers the layer."""
ROW_SETTINGS = {
    "attn_q_b": "q_lora_rank",
    "attn_k_b": "qk_nope_head_dim",
    "attn_v_b": "kv_lora_rank",
    "ffn_down": "intermediate_size",
    "ffn_down_exps": "moe_intermediate_size",
    "ffn_down_shexp": "n_shared_experts * moe_intermediate_size",
}
"""The setting that is the length of a tensor's rows, where it is not hidden_size."""


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file says of a model."""

    architecture: str
    metadata: dict[str, Any]
    """Without the tokenizer's. The type of each value is that of the file: bool, int (uint32), float, str."""
    tensors: Arrays
    """In fp32, as (rows, row) or (experts or heads, rows, row)."""


def gguf_model(model: LanguageModel) -> GgufModel:
    """The content of a model's file. Raises UserError if llama.cpp has no architecture that computes it."""
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    if isinstance(model.config, KimiConfig):
        metadata, tensors = kimi_metadata(model.config), kimi_tensors(weights, model.config)
        return GgufModel("deepseek2", metadata, {name: one.numpy() for name, one in tensors.items()})
    if isinstance(model.config, GPTConfig):
        tensors = gpt_tensors(weights)
        return GgufModel("gpt2", gpt_metadata(model.config), {n: one.numpy() for n, one in tensors.items()})
    stock_config(model)  # says which models can be exported
    raise AssertionError("a model that is neither has been refused")


def kimi_metadata(config: KimiConfig) -> dict[str, Any]:
    """The metadata of a resolved NanoKimi. Raises UserError if llama.cpp cannot compute it."""
    require_llama_can(config)
    latent, rope = config.kv_lora_rank, config.qk_rope_head_dim
    values: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "leading_dense_block_count": min(config.first_k_dense_replace, config.num_hidden_layers),
        "vocab_size": config.vocab_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.q_lora_rank": config.q_lora_rank or 0,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": config.qk_nope_head_dim + rope,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": rope,
        "rope.freq_base": float(config.rope_theta),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": max(config.n_shared_experts, 1),
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_group_count": 1,
        "expert_group_used_count": 1,
        "expert_weights_scale": float(
            config.routed_scaling_factor
            or routed_scaling(config.n_routed_experts, config.num_experts_per_tok)
        ),
        "expert_weights_norm": config.norm_topk_prob,
        "expert_gating_func": SIGMOID,
    }
    values |= {} if config.rope_scaling is None else yarn_metadata(config.rope_scaling, config)
    return {f"deepseek2.{name}": value for name, value in values.items()}


def require_llama_can(config: KimiConfig) -> None:
    """Raise UserError naming what llama.cpp's deepseek2 does not have, or takes for something else."""
    problem = ""
    if config.latent_norm_eps not in (None, config.rms_norm_eps):
        problem = (
            f"one epsilon for all norms, and the model has {config.latent_norm_eps:g} for its latents and "
            f"{config.rms_norm_eps:g} for the others"
        )
    elif config.q_lora_rank is not None and config.num_hidden_layers in NO_QUERY_LATENT:
        problem = (
            f"no query latent (q_lora_rank) with {config.num_hidden_layers} layers, and the model has one"
        )
    elif config.n_routed_experts < 2 and config.first_k_dense_replace < config.num_hidden_layers:
        problem = "at least 2 routed experts, and the model has 1"
    if problem:
        raise UserError(
            f"llama.cpp's deepseek2 has {problem}: it cannot be exported as gguf, use --format hf"
        )


def yarn_metadata(yarn: YarnConfig, config: KimiConfig) -> dict[str, Any]:
    """The metadata of YaRN. llama.cpp's deepseek2 knows one pair of betas, and one mscale for both purposes.

    Raises UserError for a model that would compute something else with them.
    """
    fixed = replace(yarn, beta_fast=LLAMA_BETAS[0], beta_slow=LLAMA_BETAS[1])
    ours, theirs = (
        rotary_frequencies(config.qk_rope_head_dim, config.rope_theta, one) for one in (yarn, fixed)
    )
    if not torch.equal(ours, theirs) or yarn.mscale != yarn.mscale_all_dim:
        raise UserError(
            "llama.cpp computes YaRN only with beta_fast 32, beta_slow 1 and mscale equal to mscale_all_dim; the "
            f"model's rope_scaling has {yarn.beta_fast:g}, {yarn.beta_slow:g}, {yarn.mscale:g} and "
            f"{yarn.mscale_all_dim:g} and cannot be exported as gguf: use --format hf"
        )
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(yarn.factor),
        "rope.scaling.original_context_length": yarn.original_max_position_embeddings,
        "rope.scaling.yarn_log_multiplier": 0.1 * yarn.mscale_all_dim,
    }


def kimi_tensors(weights: Mapping[str, torch.Tensor], config: KimiConfig) -> Tensors:
    """The tensors of a NanoKimi. Without shared experts there is one of zeros, because llama.cpp needs one."""
    result: Tensors = {}
    for name, tensor in weights.items():
        stem, prefix = without_layer(name)
        if stem == "self_attn.kv_b_proj.weight":
            heads = tensor.unflatten(0, (config.num_attention_heads, -1))
            keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
            result[f"{prefix}attn_k_b.weight"] = keys.transpose(1, 2).contiguous()
            result[f"{prefix}attn_v_b.weight"] = values.contiguous()
        else:
            result[prefix + KIMI_NAMES[stem]] = tensor.contiguous()
        if stem == "mlp.gate.weight" and config.n_shared_experts == 0:
            width, hidden = config.moe_intermediate_size, config.hidden_size
            for part in ("gate", "up"):
                result[f"{prefix}ffn_{part}_shexp.weight"] = torch.zeros(width, hidden)
            result[f"{prefix}ffn_down_shexp.weight"] = torch.zeros(hidden, width)
    return result


def gpt_metadata(config: GPTConfig) -> dict[str, Any]:
    """The metadata of a resolved NanoGPT."""
    values: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size or 4 * config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }
    return {f"gpt2.{name}": value for name, value in values.items()}


def gpt_tensors(weights: Mapping[str, torch.Tensor]) -> Tensors:
    """The tensors of a NanoGPT: every bias is there, and the tied head is left out."""
    result: Tensors = {}
    for name, tensor in to_gpt2(weights).items():
        stem, prefix = without_layer(name)
        module, _, part = stem.rpartition(".")
        plain = weights.get(name, tensor)  # not transposed: a bias that is added has no other form
        result[f"{prefix}{GPT_NAMES[module]}.{part}"] = plain.contiguous()
    return result


def with_stored_weights(model: LanguageModel, stored: Mapping[str, np.ndarray]) -> LanguageModel:
    """A copy of a model with the weights of a file, which quantisation may have changed."""
    result = copy.deepcopy(model).cpu().float()
    if isinstance(result, NanoKimi) and result.config.tie_word_embeddings:
        # A file quantises the head apart from the embedding.
        result.lm_head.weight = nn.Parameter(result.lm_head.weight.detach().clone())
    state = result.state_dict()
    for name, tensor in state.items():
        stem, prefix = without_layer(name)
        if stem == "self_attn.kv_b_proj.weight":
            keys = stored[f"{prefix}attn_k_b.weight"].transpose(0, 2, 1)
            array = np.concatenate((keys, stored[f"{prefix}attn_v_b.weight"]), axis=1).reshape(tensor.shape)
        elif name == "lm_head.weight" and isinstance(model.config, GPTConfig):
            continue
        else:
            module, _, part = stem.rpartition(".")
            array = stored[prefix + (KIMI_NAMES.get(stem) or f"{GPT_NAMES[module]}.{part}")]
        state[name] = torch.from_numpy(np.array(array, dtype=np.float32))
    if isinstance(model.config, GPTConfig):
        state["lm_head.weight"] = state["transformer.wte.weight"]
    result.load_state_dict(state)
    return result


def require_same_model(model: LanguageModel, content: GgufModel) -> None:
    """Raise TrainingError unless a file's tensors, before they are quantised, give the model back bit for bit.

    Otherwise a tensor in the wrong place would be in the model that llama.cpp's result is compared with, too.
    """
    back = with_stored_weights(model, content.tensors).state_dict()
    for name, tensor in model.state_dict().items():
        if not torch.equal(back[name], tensor.float().cpu()):
            raise TrainingError(f"the file's tensors do not give back {name}: nothing was exported")


def without_layer(name: str) -> tuple[str, str]:
    """(the rest of a parameter's name, GGUF's prefix of its layer), such as ("attn.c_attn.weight", "blk.3.")."""
    for start in ("model.layers.", "transformer.h."):
        if name.startswith(start):
            number, _, rest = name.removeprefix(start).partition(".")
            return rest, f"blk.{number}."
    return name, ""


def stored_type(name: str, array: np.ndarray, wanted: str) -> str:
    """The type in which a tensor is stored in a file of the type that is `wanted`."""
    return "F32" if array.ndim == 1 or name.endswith(KEPT_IN_F32) else wanted


def require_whole_blocks(content: GgufModel, wanted: str) -> None:
    """Raise UserError naming the settings whose rows have no whole number of blocks of a quantised type."""
    if wanted not in ("Q8_0", "Q4_0"):
        return
    found: dict[str, int] = {}
    for name, array in content.tensors.items():
        if stored_type(name, array, wanted) == wanted and array.shape[-1] % BLOCK:
            found.setdefault(row_setting(name, content.architecture), array.shape[-1])
    if found:
        sizes = " and ".join(f"{size} ({setting})" for setting, size in found.items())
        raise UserError(
            f"{wanted} stores rows in blocks of {BLOCK} numbers, and the model has rows of {sizes}: "
            "use --type F16 or F32, or train a model whose sizes are multiples of 32"
        )


def row_setting(name: str, architecture: str) -> str:
    """The setting that is the length of a tensor's rows."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind == "attn_output" and architecture == "deepseek2":
        return "num_attention_heads * v_head_dim"
    return ROW_SETTINGS.get(kind, "hidden_size")
