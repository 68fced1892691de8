"""NanoGPT and NanoKimi as the composable model, so that one of their parts can be replaced and the rest kept."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from nanokimi.config.rules_variant import dense_width, is_plugin
from nanokimi.config.schema import GPTConfig, KimiConfig, RunConfig, VariantConfig, VariantFamily
from nanokimi.errors import UserError

OF_VARIANT = {one.name for one in fields(VariantConfig)}


def gpt_as_variant(model: GPTConfig) -> VariantConfig:
    """NanoGPT as a configuration of the composable model. Raises UserError for OpenAI's activation."""
    if model.activation_function != "gelu":
        raise UserError(
            f"nanogpt.model.activation_function: a model with replaced parts has gelu, not {model.activation_function}"
        )
    return VariantConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        max_position_embeddings=model.max_position_embeddings,
        norm_eps=model.layer_norm_epsilon,
        bias=model.bias,
        dropout=model.dropout,
        intermediate_size=model.intermediate_size or 4 * model.hidden_size,
        initializer_range=model.initializer_range,
    )


def kimi_as_variant(model: KimiConfig) -> VariantConfig:
    """NanoKimi as a configuration of the composable model.

    Raises UserError for YaRN and for another epsilon of the latents' norms, which that has not.
    """
    if model.rope_scaling is not None:
        raise UserError("nanokimi.model.rope_scaling: a model with replaced parts has none: set it to null")
    if model.latent_norm_eps not in (None, model.rms_norm_eps):
        raise UserError(
            "nanokimi.model.latent_norm_eps: a model with replaced parts has none: set it to null"
        )
    same = OF_VARIANT & {one.name for one in fields(KimiConfig)}
    return VariantConfig(
        **{name: getattr(model, name) for name in same},
        norm="rmsnorm",
        norm_eps=model.rms_norm_eps,
        positions="rope",
        attention="mla",
        feed_forward="swiglu",
        experts="sigmoid-bias",
        initialization="gpt2" if model.rescale_prenorm_residual else "flat",
    )


def composed(config: RunConfig) -> RunConfig:
    """The configuration of NanoGPT or NanoKimi as a variant with the same parts, sizes and optimizer.

    Others are returned as they are.
    """
    family = config.family
    if isinstance(family.model, GPTConfig):
        model = replace(gpt_as_variant(family.model), intermediate_size=family.model.intermediate_size)
    elif isinstance(family.model, KimiConfig):
        model = kimi_as_variant(family.model)
    else:
        return config
    name = config.title if config.name else ""
    return replace(config, model="variant", name=name, variant=VariantFamily(model=model, optim=family.optim))


def composed_for(config: RunConfig, model: dict[str, Any]) -> RunConfig:
    """The configuration, composed if only the composable model has one of these settings."""
    own = {one.name for one in fields(config.family.model)}
    return composed(config) if set(model) & (OF_VARIANT - own) else config


def with_width_of_replaced(base: VariantConfig, said: dict[str, Any]) -> dict[str, Any]:
    """Settings of an arm whose dense layers a class of the user's replaces, with the width that those had."""
    replaced = base.experts == "none" and is_plugin(str(said.get("experts", "none")))
    return {"moe_intermediate_size": dense_width(base), **said} if replaced else said
