"""The rules that settings must satisfy, and the values that are chosen for the user."""

from __future__ import annotations

import difflib
import math
from dataclasses import fields, is_dataclass, replace
from typing import Literal

from nanokimi.config.checks import (
    is_finite,
    require,
    require_effect,
    require_positive,
    require_possible,
    require_sampling,
    validate_positions,
)
from nanokimi.config.rules_variant import is_plugin, validate_variant
from nanokimi.config.schema import (
    BUDGETS,
    FAMILIES,
    TRACKERS,
    DatasetConfig,
    Family,
    GPTConfig,
    KimiConfig,
    ModuleFamily,
    RunConfig,
    SampleConfig,
    TrainConfig,
)
from nanokimi.config.schema_optim import OptimConfig
from nanokimi.config.text_sources import text_sources
from nanokimi.errors import UserError

TOKENIZERS = ("char", "byte", "bpe", "unigram")
LARGEST = {
    "num_hidden_layers": 1000,
    "first_k_dense_replace": 1000,
    "num_attention_heads": 1024,
    "n_routed_experts": 4096,
    "n_shared_experts": 64,
    "vocab_size": 1 << 21,
    "context_length": 1 << 24,
    "max_position_embeddings": 1 << 24,
    "original_max_position_embeddings": 1 << 24,
    "batch_size": 1 << 20,
    "micro_batch_size": 1 << 20,
    "ns_steps": 100,
    "threads": 1024,
    "shard": 1 << 20,
    "expert_parallel": 4096,
    "workers": 1024,
}
"""The largest values that a run can need. Larger ones would only fill the memory or never end."""
LARGEST_WIDTH = 1 << 20
"""The largest value of every other size of a model."""
LARGEST_NUMBER = 10**30
"""The largest value of every other whole number."""


def _refuse_huge(group: object, path: str, largest: int) -> None:
    """Refuse whole numbers that would only fill the memory, also in nested groups."""
    for field in fields(group):  # type: ignore[arg-type]
        value, name = getattr(group, field.name), f"{path}{field.name}"
        if is_dataclass(value):
            _refuse_huge(value, f"{name}.", LARGEST_WIDTH if field.name == "model" else largest)
        elif isinstance(value, int) and abs(value) > (limit := LARGEST.get(field.name, largest)):
            shown = value if abs(value) <= LARGEST_NUMBER else "a number of more than 30 digits"
            raise UserError(f"{name} is {shown}: it must be at most {limit}")


def validate(config: RunConfig) -> RunConfig:
    """Return `config` if its values are possible and fit together. Raise UserError naming the first that is not."""
    _refuse_huge(config, "", LARGEST_NUMBER)
    require(0 <= config.seed < 2**63, f"seed is {config.seed}: it must be at least 0 and below 2^63")
    _validate_dataset(config.dataset)
    _validate_train(config.train)
    _validate_sample(config.sample)
    require_positive(config.compare, "compare", ("turn_steps", "seeds"))
    require(config.seed + config.compare.seeds <= 2**63, f"seed {config.seed} leaves no room for more seeds")
    _validate_kimi(config.nanokimi.model, config.train)
    _validate_gpt(config.nanogpt.model, config.train)
    validate_variant(config.variant, config.train)
    _validate_module(config.module, config.model == "module", config.train)
    for name, arm in config.families.items():
        _validate_optim(arm.optim, f"{name}.optim")
    kimi_only = ("router", "router_bias_update_speed", "split_heads")
    require_effect(
        config.nanogpt.optim, "nanogpt.optim", kimi_only, "NanoGPT, which has no router and no MLA"
    )
    return config


def _validate_module(arm: ModuleFamily, trained: bool, train: TrainConfig) -> None:
    model, path = arm.model, "module.model"
    require(
        not trained or is_plugin(model.source),
        f"{path}.source is '{model.source}': expected FILE.py:CLASS, a class of yours",
    )
    require_positive(model, path, ("vocab_size", "max_position_embeddings"))
    validate_positions(model.max_position_embeddings, path, train)
    require(
        not arm.optim.clips,
        f"module.optim.name is {arm.optim.name}: QK-Clip needs to know the heads of the attention, and those of your "
        f"class are unknown: use {arm.optim.name.removesuffix('clip')}",
    )
    kimi_only = ("router", "router_bias_update_speed", "split_heads")
    require_effect(arm.optim, "module.optim", kimi_only, "a class of yours")


def _validate_dataset(dataset: DatasetConfig) -> None:
    require(
        0 < dataset.val_fraction < 1,
        f"dataset.val_fraction is {dataset.val_fraction}: it must lie between 0 and 1",
    )
    test_fraction = dataset.val_fraction if dataset.test_fraction is None else dataset.test_fraction
    require(0 < test_fraction < 1, f"dataset.test_fraction is {test_fraction}: it must lie between 0 and 1")
    require(
        dataset.val_fraction + test_fraction < 1,
        f"dataset.val_fraction {dataset.val_fraction} and dataset.test_fraction {test_fraction} leave nothing to train "
        "on: their sum must be below 1",
    )
    if text_sources(dataset):
        require(
            dataset.path == "",
            f"dataset.path {dataset.path} and dataset.sources are both set: leave one of them out",
        )
        require_effect(dataset, "dataset", ("text_column", "split"), "dataset.sources")
    if dataset.split == "nanogpt":
        require_effect(dataset, "dataset", ("val_fraction", "test_fraction"), "dataset.split nanogpt")
    require(
        dataset.tokenizer in TOKENIZERS or dataset.tokenizer.endswith((".json", ".model")),
        f"dataset.tokenizer is {dataset.tokenizer}: expected one of {', '.join(TOKENIZERS)}, or a path that ends in "
        ".json or .model",
    )
    if dataset.tokenizer in ("bpe", "unigram"):
        require(
            300 <= dataset.vocab_size <= 100_000,
            f"dataset.vocab_size is {dataset.vocab_size}: it must be 300 to 100000",
        )
    else:
        require_effect(dataset, "dataset", ("vocab_size",), f"dataset.tokenizer {dataset.tokenizer}")
    require(
        0 < dataset.fraction <= 1, f"dataset.fraction is {dataset.fraction}: it must be above 0, at most 1"
    )
    require(dataset.text_column != "", "dataset.text_column is empty: name the column that holds the text")
    require(dataset.cache != "", "dataset.cache is empty: name a folder, or leave it out")
    require_positive(dataset, "dataset", ("characters", "workers"))


def _validate_train(train: TrainConfig) -> None:
    counts = ("context_length", "batch_size", "micro_batch_size", "threads", "eval_every", "eval_batch_size")
    others = ("telemetry_every", "sample_every", "save_every", "keep_checkpoints", "memory_limit_gb", "shard")
    require_positive(train, "train", (*counts, *others, "expert_parallel", *BUDGETS))
    require(
        train.context_length >= 2,
        f"train.context_length is {train.context_length}: it must be at least 2, because the audit changes a token and "
        "looks at the one before it",
    )
    named = [name for name in BUDGETS if getattr(train, name) is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none"
        raise UserError(f"train names {found} as its budget: name exactly one of {', '.join(BUDGETS)}")
    tracked = [name for name in train.track.split(",") if name]
    require(
        set(tracked) <= set(TRACKERS) and len(set(tracked)) == len(tracked),
        f"train.track is {train.track}: expected some of {', '.join(TRACKERS)}, each once, with commas between",
    )
    micro = train.micro_batch_size
    require(
        micro is None or train.batch_size % micro == 0,
        f"train.batch_size {train.batch_size} is not a multiple of train.micro_batch_size {micro}",
    )


def _validate_sample(sample: SampleConfig) -> None:
    require(sample.prompts != (), "sample.prompts is empty: give at least one prompt")
    require(
        all(sample.prompts or ()),
        "sample.prompts holds an empty prompt: a story needs at least one character to go on",
    )
    require_positive(sample, "sample", ("max_new_tokens", "judged_stories", "questions"))
    require_sampling(sample, "sample.")


def _validate_kimi(model: KimiConfig, train: TrainConfig) -> None:
    path = "nanokimi.model"
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    of_attention = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    of_feed_forward = (
        "intermediate_size",
        "moe_intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
    )
    others = ("routed_scaling_factor", "rms_norm_eps", "latent_norm_eps", "rope_theta", "initializer_range")
    require_positive(model, path, (*sizes, *of_attention, *of_feed_forward, *others))
    require(
        model.qk_rope_head_dim % 2 == 0,
        f"{path}.qk_rope_head_dim is {model.qk_rope_head_dim}: rotation needs an even number",
    )
    require(
        model.num_experts_per_tok <= model.n_routed_experts,
        f"{path}.num_experts_per_tok {model.num_experts_per_tok} is above n_routed_experts {model.n_routed_experts}",
    )
    for name in ("n_shared_experts", "first_k_dense_replace", "aux_loss_alpha"):
        value = getattr(model, name)
        require(is_finite(value) and value >= 0, f"{path}.{name} is {value}: it must be 0 or more")
    widths = model.num_attention_heads * (
        model.qk_nope_head_dim + model.qk_rope_head_dim + 2 * model.v_head_dim
    )
    widths += 3 * (model.n_routed_experts + model.n_shared_experts) * model.moe_intermediate_size
    widths += 3 * model.intermediate_size
    require_possible(path, model.num_hidden_layers * widths + 2 * (model.vocab_size or 0), model.hidden_size)
    validate_positions(model.max_position_embeddings, path, train)
    if model.rope_scaling is not None:
        yarn = model.rope_scaling
        require_positive(
            yarn, f"{path}.rope_scaling", ("original_max_position_embeddings", "beta_fast", "beta_slow")
        )
        require(
            1 <= yarn.factor < math.inf, f"{path}.rope_scaling.factor is {yarn.factor}: it must be at least 1"
        )


def _validate_gpt(model: GPTConfig, train: TrainConfig) -> None:
    path = "nanogpt.model"
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    require_positive(model, path, (*sizes, "layer_norm_epsilon", "initializer_range"))
    heads = model.num_attention_heads
    require(
        model.hidden_size % heads == 0,
        f"{path}.hidden_size {model.hidden_size} does not divide into num_attention_heads {heads}",
    )
    widths = 4 * model.hidden_size + 2 * (model.intermediate_size or 4 * model.hidden_size)
    require_possible(path, model.num_hidden_layers * widths + (model.vocab_size or 0), model.hidden_size)
    require(0 <= model.dropout < 1, f"{path}.dropout is {model.dropout}: it must be at least 0 and below 1")
    validate_positions(model.max_position_embeddings, path, train)


OF_MUON = ("adamw_lr", "momentum", "nesterov", "ns_steps", "ns_dtype", "router", "eps")
OF_PRECONDITIONERS = ("adamw_lr", "router", "split_heads", "precondition_every", "shampoo_beta", "eps")
OF_QK_CLIP = ("qk_clip_tau", "qk_clip_logits")
OF_THIRD_PARTY = ("momentum", "nesterov", "eps", "options")
OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw": ("adamw_lr", "eps"),
    "muon": (*OF_MUON, "split_heads"),
    "muonclip": (*OF_MUON, "split_heads", *OF_QK_CLIP),
    "truemuon": (*OF_MUON, "split_heads"),
    "lion": (),
    "shampoo": (*OF_PRECONDITIONERS, "handover_steps"),
    "shampooclip": (*OF_PRECONDITIONERS, "handover_steps", *OF_QK_CLIP),
    "soap": OF_PRECONDITIONERS,
}
"""Each of our own optimizers, with the settings that it reads in addition to those that all of them read."""
LIBRARIES = ("torch", "pytorch-optimizer")


def _validate_optim(optim: OptimConfig, path: str) -> None:
    _validate_optimizer_name(optim.name, f"{path}.name")
    positive = ("lr", "adamw_lr", "eps", "ns_steps", "qk_clip_tau", "precondition_every", "handover_steps")
    require_positive(optim, path, (*positive, "grad_clip"))
    for name in ("weight_decay", "router_bias_update_speed", "warmup_steps"):
        value = getattr(optim, name)
        require(is_finite(value) and value >= 0, f"{path}.{name} is {value}: it must be 0 or more")
    for name in ("decay_fraction", "min_lr_ratio"):
        require(
            0 <= getattr(optim, name) <= 1, f"{path}.{name} is {getattr(optim, name)}: it must lie in 0 to 1"
        )
    for value in (*optim.betas, optim.momentum, optim.shampoo_beta):
        require(
            0 <= value < 1,
            f"{path}.betas, momentum and shampoo_beta must be at least 0 and below 1, not {value}",
        )
    read = OF_THIRD_PARTY if optim.third_party else OPTIMIZERS[optim.name]
    settings = dict.fromkeys(name for names in (OF_THIRD_PARTY, *OPTIMIZERS.values()) for name in names)
    require_effect(
        optim, path, tuple(key for key in settings if key not in read), f"{path}.name {optim.name}"
    )
    if optim.schedule != "wsd":
        require_effect(optim, path, ("decay_fraction",), f"{path}.schedule {optim.schedule}")


def _validate_optimizer_name(name: str, path: str) -> None:
    library, colon, what = name.rpartition(":")
    known = ", ".join(OPTIMIZERS)
    if colon:
        require(
            what != "" and (library in LIBRARIES or library.endswith(".py")),
            f"{path} is {name}: expected one of {known}, torch:NAME, pytorch-optimizer:NAME or FILE.py:NAME",
        )
    elif name not in OPTIMIZERS:
        close = difflib.get_close_matches(name, OPTIMIZERS, n=1)
        raise UserError(
            f"{path} is {name}: expected one of {known}, torch:NAME, pytorch-optimizer:NAME or FILE.py:NAME"
            + (f"; the nearest is {close[0]}" if close else "")
        )


def resolve(
    config: RunConfig, *, vocab_size: int, device: str, dtype: Literal["fp32", "bf16", "fp16"], threads: int
) -> RunConfig:
    """Fill in what depends on the text and the machine, so that the saved file repeats the run exactly.

    Values that follow from other settings stay None, so that they still follow if the saved file is edited.
    """
    require(
        vocab_size >= 2,
        "the text has a single token, so there is nothing to predict: use another text or tokenizer",
    )
    train = replace(config.train, device=device, dtype=dtype, threads=threads)
    families = {
        name: _resolve_sizes(name, arm, vocab_size, train.context_length)
        for name, arm in config.families.items()
    }
    return validate(replace(config, train=train, **families))  # type: ignore[arg-type]  # each keeps its type


def _resolve_sizes(name: str, arm: Family, vocab_size: int, context_length: int) -> Family:
    """The family with its vocabulary and longest sequence filled in."""
    model = arm.model
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise UserError(
            f"{name}.model.vocab_size {model.vocab_size} is below the tokenizer's {vocab_size}: leave it out, or "
            "raise it"
        )
    sizes = {
        "vocab_size": model.vocab_size or vocab_size,
        "max_position_embeddings": model.max_position_embeddings or context_length,
    }
    return replace(arm, model=replace(model, **sizes))  # type: ignore[arg-type]


def is_resolved(config: RunConfig) -> bool:
    """Whether this configuration has been through `resolve`.

    Only the families that are trained count, because files saved by earlier versions may lack newer families.
    """
    train = config.train
    named = {spec.get("from") for spec in config.arms.values()} & set(FAMILIES)
    models = [config.families[name].model for name in {config.model, *named}]  # type: ignore[index]
    chosen = [size for model in models for size in (model.vocab_size, model.max_position_embeddings)]
    return None not in (*chosen, train.threads) and "auto" not in (train.device, train.dtype)


def routed_scaling(n_routed_experts: int, num_experts_per_tok: int) -> float:
    """The gate scale that gives K weighted experts the size of one dense layer (Moonlight, arXiv 2502.16982, fig. 6).

    It is the mean of 1 / ||p||_2 over Gaussian router logits, where p are the K largest sigmoids divided by their sum.
    K2's own 2.827 is this number for 384 experts with 8 chosen. Rounded to three decimals.
    """
    import numpy as np

    logits_ME = np.random.default_rng(0).standard_normal((20_000, n_routed_experts))
    scores_ME = 1 / (1 + np.exp(-logits_ME))
    top_MK = np.sort(scores_ME, axis=1)[:, -num_experts_per_tok:]
    gates_MK = top_MK / top_MK.sum(axis=1, keepdims=True)
    return round(float(np.mean(1 / np.linalg.norm(gates_MK, axis=1))), 3)
