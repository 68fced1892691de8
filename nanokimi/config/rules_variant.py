"""The rules for a variant's settings: possible values, combinations that fit, and settings that would be ignored."""

from __future__ import annotations

from nanokimi.config.checks import (
    is_finite,
    require,
    require_effect,
    require_positive,
    require_possible,
    validate_positions,
)
from nanokimi.config.schema import Family, ModuleFamily, TrainConfig, VariantConfig, VariantFamily
from nanokimi.config.schema_optim import OptimConfig
from nanokimi.config.variant_parts import ATTENTIONS, EXPERTS, check_heads, head_width, ignored_by


def is_plugin(part: str) -> bool:
    """Whether a name is of the form FILE.py:NAME, a class in a file of the user's."""
    path, colon, name = part.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def plugins_of(arm: Family) -> list[str]:
    """FILE.py:NAME of every class of the user's that an arm uses."""
    parts: list[str] = [arm.optim.name]
    if isinstance(arm, VariantFamily):
        parts += [arm.model.attention, arm.model.experts]
    if isinstance(arm, ModuleFamily):
        parts.append(arm.model.source)
    return [part for part in parts if is_plugin(part)]


def validate_variant(arm: VariantFamily, train: TrainConfig) -> None:
    """Raise UserError naming the first setting that is impossible, does not fit or would be ignored."""
    model, path = arm.model, "variant.model"
    for name, known in (("attention", list(ATTENTIONS)), ("experts", list(EXPERTS))):
        part = getattr(model, name)
        require(
            part in known or is_plugin(part),
            f"{path}.{name} is {part}: expected one of {', '.join(known)}, or FILE.py:NAME with --plugin",
        )
    _validate_sizes(model, path, train)
    check = check_heads if is_plugin(model.attention) else ATTENTIONS[model.attention].check
    check(model, path)
    _refuse_ignored(model, path)
    _validate_optim(arm.optim, model, "variant.optim")


def _validate_sizes(model: VariantConfig, path: str, train: TrainConfig) -> None:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    read = [name for row in ATTENTIONS.values() for name in row.reads]
    of_attention = [name for name in read if not isinstance(getattr(model, name), bool)]
    of_feed_forward = (
        "intermediate_size",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
    )
    others = ("routed_scaling_factor", "capacity_factor", "norm_eps", "rope_theta", "initializer_range")
    require_positive(model, path, (*sizes, *of_attention, *of_feed_forward, *others))
    for name in ("n_shared_experts", "first_k_dense_replace", "aux_loss_alpha"):
        value = getattr(model, name)
        require(is_finite(value) and value >= 0, f"{path}.{name} is {value}: it must be 0 or more")
    require(0 <= model.dropout < 1, f"{path}.dropout is {model.dropout}: it must be at least 0 and below 1")
    if not is_plugin(model.experts):
        EXPERTS[model.experts].check(model, path)
    if is_plugin(model.attention):
        widths = 4 * max(model.hidden_size, model.num_attention_heads * (model.head_dim or 0))
    else:
        widths = ATTENTIONS[model.attention].cost(model, 1, True).active // model.hidden_size
    widths += 3 * (model.intermediate_size or 4 * model.hidden_size)
    if model.experts != "none":
        widths += 3 * (model.n_routed_experts + model.n_shared_experts) * model.moe_intermediate_size
    require_possible(path, model.num_hidden_layers * widths + 2 * (model.vocab_size or 0), model.hidden_size)
    validate_positions(model.max_position_embeddings, path, train)


def _refuse_ignored(model: VariantConfig, path: str) -> None:
    for part, chosen in (("attention", model.attention), ("experts", model.experts)):
        require_effect(model, path, ignored_by(part, chosen), f"{path}.{part} {chosen}")
    if model.positions != "rope":
        require_effect(model, path, ("rope_theta",), f"{path}.positions {model.positions}")
    if model.initialization in ("torch", "xavier"):
        require_effect(model, path, ("initializer_range",), f"{path}.initialization {model.initialization}")
    dense = model.experts == "none" or model.first_k_dense_replace > 0
    if not dense and not is_plugin(model.experts):  # a class of the user's may read it
        require_effect(model, path, ("intermediate_size",), f"{path}.experts in every layer")
    if model.attention == "mla" and model.norm == "rmsnorm" and (not dense or model.feed_forward == "swiglu"):
        require_effect(model, path, ("bias",), "rmsnorm, mla and these feed-forward layers, which have none")


def _validate_optim(optim: OptimConfig, model: VariantConfig, path: str) -> None:
    """Refuse settings for routers and heads that the model does not have."""
    if model.experts == "none":
        require_effect(optim, path, ("router",), "variant.model.experts none")
    if not is_plugin(model.experts) and not EXPERTS[model.experts].router_bias:
        require_effect(optim, path, ("router_bias_update_speed",), f"variant.model.experts {model.experts}")
    if not is_plugin(model.attention) and not ATTENTIONS[model.attention].split_heads:
        require_effect(optim, path, ("split_heads",), f"variant.model.attention {model.attention}")


def rotary_width(model: VariantConfig) -> int:
    """Dimensions of a head that RoPE rotates."""
    width = head_width if is_plugin(model.attention) else ATTENTIONS[model.attention].rotary_width
    return width(model)


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
