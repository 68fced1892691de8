"""What a variant may hold: which parts there are, which fit together, and which settings they would ignore."""

from __future__ import annotations

from nanokimi.config.checks import (
    is_finite,
    require,
    require_effect,
    require_positive,
    require_possible,
    validate_positions,
)
from nanokimi.config.schema import Family, ModuleArm, TrainConfig, VariantArm, VariantConfig
from nanokimi.config.schema_optim import OptimConfig

ATTENTIONS = ("mha", "gqa", "mla", "latent")
EXPERTS = ("none", "soft", "topk", "sigmoid-bias", "expert_choice")

READ_BY_ATTENTION: dict[str, tuple[str, ...]] = {
    "head_dim": ("mha", "gqa", "latent"),
    "qkv_bias": ("mha", "gqa", "latent"),
    "num_key_value_heads": ("gqa",),
    "q_lora_rank": ("mla",),
    "kv_lora_rank": ("mla",),
    "qk_nope_head_dim": ("mla",),
    "qk_rope_head_dim": ("mla",),
    "v_head_dim": ("mla",),
    "num_latents": ("latent",),
}
READ_BY_EXPERTS: dict[str, tuple[str, ...]] = {
    "moe_intermediate_size": EXPERTS[1:],
    "n_routed_experts": EXPERTS[1:],
    "n_shared_experts": EXPERTS[1:],
    "num_experts_per_tok": ("topk", "sigmoid-bias"),
    "first_k_dense_replace": EXPERTS[1:],
    "norm_topk_prob": ("topk", "sigmoid-bias"),
    "routed_scaling_factor": EXPERTS[1:],
    "aux_loss_alpha": ("topk", "sigmoid-bias"),
    "capacity_factor": ("expert_choice",),
}
"""Settings that only some parts read. A part of the user's own may read any."""


def is_plugin(part: str) -> bool:
    """Whether a part is a class in a file of the user's, FILE.py:NAME."""
    path, colon, name = part.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def plugins_of(arm: Family) -> list[str]:
    """FILE.py:NAME of every class of the user's that an arm is made of."""
    parts: list[str] = [arm.optim.name]
    if isinstance(arm, VariantArm):
        parts += [arm.model.attention, arm.model.experts]
    if isinstance(arm, ModuleArm):
        parts.append(arm.model.source)
    return [part for part in parts if is_plugin(part)]


def validate_variant(arm: VariantArm, train: TrainConfig) -> None:
    """Raise UserError naming the first setting that is impossible, does not fit, or would be ignored."""
    model, path = arm.model, "variant.model"
    for name, known in (("attention", ATTENTIONS), ("experts", EXPERTS)):
        part = getattr(model, name)
        require(
            part in known or is_plugin(part),
            f"{path}.{name} is {part}: expected one of {', '.join(known)}, or FILE.py:NAME with --plugin",
        )
    _validate_sizes(model, path, train)
    _validate_heads(model, path)
    _refuse_ignored(model, path)
    _validate_optim(arm.optim, model, "variant.optim")


def _validate_sizes(model: VariantConfig, path: str, train: TrainConfig) -> None:
    sizes: tuple[str, ...] = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    sizes += (
        "head_dim",
        "num_key_value_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
    )
    sizes += ("v_head_dim", "num_latents", "intermediate_size", "moe_intermediate_size", "n_routed_experts")
    sizes += ("num_experts_per_tok", "routed_scaling_factor", "capacity_factor", "norm_eps", "rope_theta")
    require_positive(model, path, sizes + ("initializer_range",))
    for name in ("n_shared_experts", "first_k_dense_replace", "aux_loss_alpha"):
        value = getattr(model, name)
        require(is_finite(value) and value >= 0, f"{path}.{name} is {value}: it must be 0 or more")
    require(0 <= model.dropout < 1, f"{path}.dropout is {model.dropout}: it must be at least 0 and below 1")
    if model.experts in ("topk", "sigmoid-bias"):
        require(
            model.num_experts_per_tok <= model.n_routed_experts,
            f"{path}.num_experts_per_tok {model.num_experts_per_tok} is above n_routed_experts "
            f"{model.n_routed_experts}",
        )
    if model.experts == "expert_choice":
        require(
            model.capacity_factor <= model.n_routed_experts,
            f"{path}.capacity_factor {model.capacity_factor} is above n_routed_experts {model.n_routed_experts}",
        )
    own = model.num_attention_heads * (model.head_dim or 0)
    widths = 4 * max(model.hidden_size, own) + 3 * (model.intermediate_size or 4 * model.hidden_size)
    if model.attention == "mla":
        qk_dim = model.qk_nope_head_dim + model.qk_rope_head_dim
        widths += model.num_attention_heads * (qk_dim + 2 * model.v_head_dim)
    if model.experts != "none":
        widths += 3 * (model.n_routed_experts + model.n_shared_experts) * model.moe_intermediate_size
    require_possible(path, model.num_hidden_layers * widths + 2 * (model.vocab_size or 0), model.hidden_size)
    validate_positions(model.max_position_embeddings, path, train)


def _validate_heads(model: VariantConfig, path: str) -> None:
    """How the heads share the width, the keys, and positions."""
    heads, rope = model.num_attention_heads, model.positions == "rope"
    if model.attention == "mla":
        require(rope, f"{path}.attention mla needs {path}.positions rope: its shared key is rotary")
        require(
            model.qk_rope_head_dim % 2 == 0,
            f"{path}.qk_rope_head_dim is {model.qk_rope_head_dim}: rotation needs an even number",
        )
        return
    require(
        not (rope and model.attention == "latent"),
        f"{path}.positions rope does not fit {path}.attention latent: its queries stand at no position",
    )
    require(
        model.head_dim is not None or model.hidden_size % heads == 0,
        f"{path}.hidden_size {model.hidden_size} does not divide into num_attention_heads {heads}",
    )
    width = head_width(model)
    require(not rope or width % 2 == 0, f"{path}: heads are {width} wide, and rotation needs an even number")
    groups = model.num_key_value_heads
    require(
        groups is None or heads % groups == 0,
        f"{path}.num_attention_heads {heads} does not divide into num_key_value_heads {groups}",
    )
    require(
        model.attention != "gqa" or groups is not None or heads == 1 or heads % 2 == 0,
        f"{path}.num_key_value_heads is not given, and num_attention_heads {heads} has no half: name it",
    )


def _refuse_ignored(model: VariantConfig, path: str) -> None:
    for part, readers in (("attention", READ_BY_ATTENTION), ("experts", READ_BY_EXPERTS)):
        chosen = getattr(model, part)
        if not is_plugin(chosen):
            ignored = tuple(name for name, parts in readers.items() if chosen not in parts)
            require_effect(model, path, ignored, f"{path}.{part} {chosen}")
    if model.positions != "rope":
        require_effect(model, path, ("rope_theta",), f"{path}.positions {model.positions}")
    if model.initialization in ("torch", "xavier"):
        require_effect(model, path, ("initializer_range",), f"{path}.initialization {model.initialization}")
    dense = model.experts == "none" or model.first_k_dense_replace > 0
    if not dense:
        require_effect(model, path, ("intermediate_size",), f"{path}.experts in every layer")
    if model.attention == "mla" and model.norm == "rmsnorm" and (not dense or model.feed_forward == "swiglu"):
        require_effect(model, path, ("bias",), "rmsnorm, mla and these feed-forward layers, which have none")


def _validate_optim(optim: OptimConfig, model: VariantConfig, path: str) -> None:
    """Refuse the router's and the heads' settings where there is neither."""
    if model.experts == "none":
        require_effect(optim, path, ("router",), "variant.model.experts none")
    if not is_plugin(model.experts) and model.experts != "sigmoid-bias":
        require_effect(optim, path, ("router_bias_update_speed",), f"variant.model.experts {model.experts}")
    if not is_plugin(model.attention) and model.attention not in ("mla", "mha"):
        require_effect(optim, path, ("split_heads",), f"variant.model.attention {model.attention}")


def head_width(model: VariantConfig) -> int:
    """Width of a head of mha, gqa and latent."""
    return model.head_dim or model.hidden_size // model.num_attention_heads


def has_qkv_bias(model: VariantConfig) -> bool:
    """Whether the queries, keys and values of mha, gqa and latent have biases."""
    return model.bias if model.qkv_bias is None else model.qkv_bias


def key_value_heads(model: VariantConfig) -> int:
    """Heads of keys and values of mha and gqa."""
    if model.attention != "gqa":
        return model.num_attention_heads
    return model.num_key_value_heads or max(model.num_attention_heads // 2, 1)


def rotary_width(model: VariantConfig) -> int:
    """Dimensions of a head that RoPE turns."""
    return model.qk_rope_head_dim if model.attention == "mla" else head_width(model)


def dense_width(model: VariantConfig) -> int:
    """Hidden units of a dense layer."""
    if model.intermediate_size is not None:
        return model.intermediate_size
    # Three matrices of this width are as large as two of four times the model's.
    if model.feed_forward == "swiglu":
        return -(-model.hidden_size // 3) * 8
    return 4 * model.hidden_size


def has_experts(model: VariantConfig, layer: int) -> bool:
    """Whether a block has experts instead of a dense layer."""
    return model.experts != "none" and layer >= model.first_k_dense_replace
