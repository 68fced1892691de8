"""NanoKimi as DeepSeek-V3 (transformers' DeepseekV3ForCausalLM), and back: the configuration and the weights.

The names of parameters are the same. Only the experts differ: ours are stacked, a file has each expert on its own, and
transformers 5 holds them stacked with gate and up as one matrix. All three forms can be read.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import torch

from nanokimi.config import KimiConfig, YarnConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.errors import UserError

Tensors = dict[str, torch.Tensor]
LATENT_EPS = 1e-6
"""Epsilon of the norms of the query and key-value latents, which the stock class fixes."""
LARGEST_EXACT = 1 << 53
"""Whole numbers below this are exact as float; JSON's may be so long that they are none."""
EXPERT = re.compile(r"(.*\.mlp\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")
MATRICES = ("gate_proj", "up_proj", "down_proj")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

SAME_NAMES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank"),
    *("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "intermediate_size", "moe_intermediate_size"),
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "first_k_dense_replace"),
    *("norm_topk_prob", "max_position_embeddings", "rms_norm_eps", "initializer_range"),
    "tie_word_embeddings",
)
"""Settings that both sides call the same."""
FIXED: dict[str, tuple[Any, ...]] = {
    "n_group": (1,),
    "topk_group": (1,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "moe_layer_freq": (1,),
    "attention_dropout": (0, 0.0),
}
"""What NanoKimi computes in one way only: the settings of a folder must have one of these values, if it names them."""
STOCK_DEFAULTS: dict[str, Any] = {
    **{"n_group": 8, "topk_group": 4, "first_k_dense_replace": 3, "norm_topk_prob": True},
    **{"rms_norm_eps": 1e-6, "initializer_range": 0.02, "n_shared_experts": 1, "q_lora_rank": 1536},
    "tie_word_embeddings": False,
}
"""What the stock class takes where a config.json is silent."""


def deepseek_config(config: KimiConfig) -> dict[str, Any]:
    """The config.json of a resolved NanoKimi, without the ids of special tokens.

    Raises UserError if the stock class cannot compute what the model does.
    """
    latent_eps = config.rms_norm_eps if config.latent_norm_eps is None else config.latent_norm_eps
    if latent_eps != LATENT_EPS:
        raise UserError(
            f"the model's latent norms have epsilon {latent_eps:g}, and those of DeepseekV3ForCausalLM {LATENT_EPS:g}: "
            "only a model with that one can be exported"
        )
    dense = config.first_k_dense_replace >= config.num_hidden_layers
    if config.n_routed_experts < 2 and not dense:
        raise UserError("DeepseekV3ForCausalLM needs at least 2 routed experts, and the model has 1")
    scaling = config.routed_scaling_factor or routed_scaling(
        config.n_routed_experts, config.num_experts_per_tok
    )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        yarn = config.rope_scaling
        rope |= {"rope_type": "yarn", **{field.name: getattr(yarn, field.name) for field in fields(yarn)}}
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        **{name: getattr(config, name) for name in SAME_NAMES},
        "num_key_value_heads": config.num_attention_heads,
        "routed_scaling_factor": scaling,
        "rope_parameters": rope,
        "rope_interleave": True,
        **{name: values[0] for name, values in FIXED.items()},
        "aux_loss_alpha": config.aux_loss_alpha,
        "seq_aux": True,
        "num_nextn_predict_layers": 0,
    }


def kimi_config(content: Mapping[str, Any]) -> KimiConfig:
    """The NanoKimi of a DeepSeek-V3 style config.json.

    Raises UserError for a setting that NanoKimi does not have, or that has an impossible value.
    """
    content = {**STOCK_DEFAULTS, **content}
    for name, allowed in FIXED.items():
        if content.get(name, allowed[0]) not in allowed:
            raise UserError(f"config.json has {name} {content[name]}, and NanoKimi {allowed[0]}")
    if content.get("quantization_config"):
        raise UserError("config.json says that the weights are quantized: import the original ones")
    heads = content.get("num_attention_heads")
    if content.get("num_key_value_heads") not in (None, heads):
        raise UserError("config.json has num_key_value_heads, fewer than heads: MLA's are as many")
    values = {name: content[name] for name in SAME_NAMES if name in content}
    values["n_shared_experts"] = values["n_shared_experts"] or 0
    rope = rope_settings(content)
    eps = values["rms_norm_eps"]
    return checked(
        KimiConfig,
        {
            **values,
            "routed_scaling_factor": content.get("routed_scaling_factor", 2.5),
            "aux_loss_alpha": content.get("aux_loss_alpha") or 0.0,
            "rope_theta": rope.get("rope_theta") or content.get("rope_theta") or 10000.0,
            "rope_scaling": yarn_config(rope),
            "latent_norm_eps": None if eps == LATENT_EPS else LATENT_EPS,
        },
    )


def rope_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of rotary positions, in old or new words. Raises UserError if it is no object."""
    result: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = content.get(name) or {}
        if not isinstance(value, Mapping):
            raise UserError(f"config.json has {name} {str(value)[:60]!r}: expected an object")
        result |= value
    return result


def yarn_config(rope: Mapping[str, Any]) -> YarnConfig | None:
    """YaRN as a config.json describes it; None for plain RoPE. Raises UserError for any other form."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"config.json has rotary positions of type {kind}: NanoKimi has default and yarn")
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    names = [field.name for field in fields(YarnConfig)]
    values = {name: rope.get(name, defaults.get(name)) for name in names}
    if any(type(value) not in (int, float) for value in values.values()):
        raise UserError(f"config.json describes YaRN without {' or '.join(names)}")
    if values["mscale"] and values["mscale_all_dim"]:
        return YarnConfig(**{name: value for name, value in values.items() if value is not None})
    raise UserError("config.json describes YaRN without mscale and mscale_all_dim, which NanoKimi needs")


def checked(kind: type, values: Mapping[str, Any]) -> Any:
    """A configuration of these values. Raises UserError for one of another type than the field's, or one missing."""
    for field in fields(kind):
        if field.name not in values:
            continue
        value, allowed = values[field.name], str(field.type)
        fits = {
            "int": type(value) is int,
            "float": type(value) is float or type(value) is int and abs(value) < LARGEST_EXACT,
            "bool": type(value) is bool,
            "None": value is None,
            "Literal['gelu', 'gelu_new']": value in ("gelu", "gelu_new"),
            "YarnConfig": isinstance(value, YarnConfig),
        }
        if not any(fits.get(name.strip(), False) for name in allowed.split("|")):
            raise UserError(f"config.json has {field.name} {str(value)[:60]!r}: expected {allowed}")
    missing = [
        name
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if values.get(name) is None
    ]
    if missing or values.get("max_position_embeddings") is None:
        raise UserError(f"config.json does not say {(*missing, 'max_position_embeddings')[0]}")
    return kind(**values)


def to_deepseek(weights: Mapping[str, torch.Tensor], config: KimiConfig) -> Tensors:
    """The tensors of a stock folder: our state dictionary with each expert's matrices under names of their own.

    A tied head is written, too: transformers ties it, and other readers look for it.
    """
    result: Tensors = {}
    for name, tensor in weights.items():
        stem, _, matrix = name.rpartition(".")
        if stem.endswith(".experts") and matrix in MATRICES:
            result |= {f"{stem}.{e}.{matrix}.weight": one.clone() for e, one in enumerate(tensor)}
        else:
            result[name] = tensor.contiguous()
    if config.tie_word_embeddings:
        result[HEAD] = result[EMBEDDING].clone()  # a file holds no memory twice
    if config.n_shared_experts == 0:  # the stock class has matrices without a single number there
        for layer in range(config.first_k_dense_replace, config.num_hidden_layers):
            stem = f"model.layers.{layer}.mlp.shared_experts."
            for matrix in MATRICES:
                shape = (config.hidden_size, 0) if matrix == "down_proj" else (0, config.hidden_size)
                result[f"{stem}{matrix}.weight"] = torch.zeros(shape)
    return result


def from_deepseek(tensors: Mapping[str, torch.Tensor], config: KimiConfig, *, interleaved: bool) -> Tensors:
    """Our state dictionary from the tensors of a folder, in fp32.

    Layers for multi-token prediction are left out. A tied head that is not stored is the embedding. Without
    `interleaved`, the rotary rows are in halves and are put in pairs. The expected names and shapes are checked by
    `require_same_shapes`, not here.
    """
    result: Tensors = {}
    stacks: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer = re.match(r"model\.layers\.(\d+)\.", name)
        if layer and int(layer[1]) >= config.num_hidden_layers:
            continue
        if name.endswith("rotary_emb.inv_freq") or tensor.numel() == 0:
            continue
        wide = tensor.float()
        if found := EXPERT.fullmatch(name):
            stacks.setdefault(found[1] + found[3], {})[int(found[2])] = wide
        elif name.endswith(".experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            gate, up = wide.chunk(2, dim=1) if wide.dim() == 3 else (wide, wide)
            result[stem + "gate_proj"], result[stem + "up_proj"] = gate.contiguous(), up.contiguous()
        else:
            result[name] = wide
    for name, by_expert in stacks.items():
        result[name] = stacked(name, by_expert)
    if config.tie_word_embeddings and HEAD not in result and EMBEDDING in result:
        result[HEAD] = result[EMBEDDING].clone()
    return result if interleaved else {n: pairs_of_halves(n, t, config) for n, t in result.items()}


def has_own_head(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a head is stored that is not the embedding. Then transformers ties neither, whatever config.json says."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    return head is not None and embedding is not None and not torch.equal(head, embedding)


def stacked(name: str, by_expert: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """The matrices of all experts as one tensor. Raises UserError if one is missing or of another shape."""
    shapes = {tuple(tensor.shape) for tensor in by_expert.values()}
    if sorted(by_expert) != list(range(len(by_expert))) or len(shapes) != 1:
        raise UserError(f"the experts of {name} are not whole: one is missing, or has another shape")
    return torch.stack([by_expert[e] for e in range(len(by_expert))])


def pairs_of_halves(name: str, tensor: torch.Tensor, config: KimiConfig) -> torch.Tensor:
    """A tensor whose rotary rows (first halves, then second halves) are put in the order of pairs."""
    rotary = config.qk_rope_head_dim
    order = torch.arange(rotary).view(2, -1).t().flatten()
    if name.endswith("kv_a_proj_with_mqa.weight"):
        return torch.cat((tensor[:-rotary], tensor[-rotary:][order]))
    if name.endswith(("q_proj.weight", "q_b_proj.weight")):
        heads = tensor.unflatten(0, (config.num_attention_heads, -1))
        kept, turned = heads[:, :-rotary], heads[:, -rotary:][:, order]
        return torch.cat((kept, turned), dim=1).flatten(0, 1)
    return tensor


def require_same_shapes(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError naming the first tensor that is missing, extra or misshaped."""
    wrong: Collection[str] = sorted(set(found) ^ set(expected)) + [
        name for name in sorted(set(found) & set(expected)) if found[name].shape != expected[name].shape
    ]
    for name in wrong:
        if name not in found:
            raise UserError(
                f"the weights lack {name}: the folder is not whole, or its config.json is of another"
            )
        if name not in expected:
            raise UserError(f"the weights hold {name}, which the model of config.json does not have")
        shapes = f"{tuple(found[name].shape)}, where config.json means {tuple(expected[name].shape)}"
        raise UserError(f"the weights hold {name} of shape {shapes}")
