"""Costs of a model from its configuration alone: parameters, FLOPs, cache. Tests compare them with counted ones.

Active parameters are the matrix parameters that multiply one token. They include the head, even if it is tied to the
embedding, and the K chosen ones of the routed experts. They do not include the input embedding, which is a look-up, nor
norm gains and biases.

A product with a matrix of N parameters takes 2 N FLOPs forward. A backward pass takes twice as many as a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanokimi.config import (
    GPTConfig,
    KimiConfig,
    ModelConfig,
    ModuleConfig,
    OptimConfig,
    TrainConfig,
    VariantConfig,
)
from nanokimi.config.variant_parts import ATTENTIONS, clip_heads, mla_cost, visible_keys
from nanokimi.measure.cost_module import module_cost
from nanokimi.measure.cost_variant import variant_parts
from nanokimi.optim.build import OF_MATRICES
from nanokimi.optim.groups import assign
from nanokimi.optim.shampoo import ROOT_ITERATIONS


@dataclass(frozen=True)
class Cost:
    """Costs of one model at one context length."""

    params_total: int
    params_active: int
    forward_flops_per_token: float
    train_flops_per_token: float
    cache_numbers_per_token: int
    cache_numbers_fixed: int = 0  # cached in addition, whatever the length of the text


def model_cost(config: ModelConfig, context_length: int, *, causal: bool = True) -> Cost:
    """Costs of a resolved configuration, averaged over the positions of a sequence of `context_length`.

    With `causal`, only the keys that a query sees count, (T + 1) / 2 on average. Without it, all T keys do, as in many
    papers and as a dense attention kernel computes.
    """
    if isinstance(config, VariantConfig):
        parts = variant_parts(config, context_length, causal)
        total, active, flops, cache, fixed = (sum(numbers) for numbers in zip(*parts, strict=True))
        return Cost(
            int(total), int(active), 2 * active + flops, 3 * (2 * active + flops), int(cache), int(fixed)
        )
    if isinstance(config, ModuleConfig):
        return Cost(*module_cost(config, context_length), 0)
    if isinstance(config, KimiConfig):
        total, active = _kimi_parameters(config)
        attention = mla_cost(config, context_length, causal)
        score_flops, cache = attention.flops, attention.cache_per_token
    else:
        total, active = _gpt_parameters(config)
        score_flops = 4 * config.hidden_size * visible_keys(context_length, causal)
        cache = 2 * config.hidden_size
    forward = 2 * active + config.num_hidden_layers * score_flops
    return Cost(total, active, forward, 3 * forward, cache * config.num_hidden_layers)


def _kimi_parameters(c: KimiConfig) -> tuple[int, int]:
    """(total, active) parameters of NanoKimi."""
    assert c.vocab_size is not None, "resolve() fills this in"
    d, attention = c.hidden_size, mla_cost(c, 1, True)
    expert = 3 * d * c.moe_intermediate_size
    shared_and_router = c.n_shared_experts * expert + d * c.n_routed_experts
    dense_layers = min(c.first_k_dense_replace, c.num_hidden_layers)
    moe_layers = c.num_hidden_layers - dense_layers
    always = c.num_hidden_layers * attention.active + dense_layers * 3 * d * c.intermediate_size
    always += moe_layers * shared_and_router + c.vocab_size * d
    gains = c.num_hidden_layers * (2 * d + attention.total - attention.active) + d
    embedding = 0 if c.tie_word_embeddings else c.vocab_size * d  # tied, it is counted as the head
    total = always + moe_layers * c.n_routed_experts * expert + embedding + gains
    return total, always + moe_layers * c.num_experts_per_tok * expert


def _gpt_parameters(c: GPTConfig) -> tuple[int, int]:
    """(total, active) parameters of NanoGPT."""
    assert c.vocab_size is not None and c.max_position_embeddings is not None, "resolve() fills these in"
    d, hidden, layers = c.hidden_size, c.intermediate_size or 4 * c.hidden_size, c.num_hidden_layers
    active = layers * (4 * d * d + 2 * d * hidden) + c.vocab_size * d
    norms = (2 * layers + 1) * d * (2 if c.bias else 1)
    biases = layers * (3 * d + d + hidden + d) if c.bias else 0
    return active + c.max_position_embeddings * d + norms + biases, active


def optimizer_flops(
    shapes: dict[str, tuple[int, ...]], optim: OptimConfig, model: ModelConfig, train: TrainConfig
) -> float:
    """FLOPs of matrix products in one optimizer step, on average, without elementwise work.

    QK-Clip computes all attention logits (T x T) again. `shapes` maps parameter names to shapes. The costs of an
    optimizer of a library or of the user's are unknown and count as 0.
    """
    if optim.name not in OF_MATRICES:
        return 0.0
    heads = model.num_attention_heads
    total = 0.0
    for name, shape in shapes.items():
        algorithm, blocks = assign(
            name, shape, num_heads=heads if optim.split_heads else 1, router=optim.router
        )
        if algorithm == "muon":
            matrices = blocks * (shape[0] if len(shape) == 3 else 1)
            total += matrices * matrix_update_flops(shape[-2] // blocks, shape[-1], optim)
    exact = optim.clips and optim.qk_clip_logits == "exact"
    if exact and not isinstance(model, ModuleConfig):
        columns = model.num_hidden_layers * clip_width(model)
        total += 2 * columns * train.batch_size * train.context_length**2
    return total


def clip_width(model: KimiConfig | GPTConfig | VariantConfig) -> int:
    """Columns of a layer's queries from which QK-Clip computes the logits again."""
    if isinstance(model, KimiConfig):
        return model.num_attention_heads * (model.qk_nope_head_dim + model.qk_rope_head_dim)
    if isinstance(model, GPTConfig):
        return model.hidden_size
    known = ATTENTIONS.get(model.attention)
    return clip_heads(model) if known is None else known.clip_width(model)


def matrix_update_flops(rows: int, columns: int, optim: OptimConfig) -> float:
    """FLOPs of the update of one hidden matrix.

    Newton-Schulz: one iteration on (m, n), m <= n, takes 4 m^2 n + 2 m^3. In Shampoo and SOAP, a pair of products, one
    on each side, takes 2 m n (m + n). G G^T and G^T G are one pair. Multiplying by Shampoo's roots is another, and SOAP
    rotates the gradient, the momentum and the update, three more. Every `precondition_every` steps, each side takes
    8 m^3 for an iteration of its root, or 2 m^3 for a basis and 8/3 m^3 for its QR decomposition.
    """
    m, n = sorted((rows, columns))
    if optim.name not in ("shampoo", "shampooclip", "soap"):
        return optim.ns_steps * (4 * m * m * n + 2 * m**3)
    both_sides, cubes = 2 * m * n * (m + n), m**3 + n**3
    if optim.name != "soap":
        return 2 * both_sides + 8 * ROOT_ITERATIONS * cubes / optim.precondition_every
    return 4 * both_sides + (2 + 8 / 3) * cubes / optim.precondition_every
