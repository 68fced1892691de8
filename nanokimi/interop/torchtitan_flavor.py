"""A NanoKimi in the words of torchtitan, which trains on many machines: its flavor of `deepseek_v3`, as a Python file.

The file lies in the exported folder and reads its weights and tokenizer from there. Nothing is written into torchtitan:
`--module` takes any module that Python finds.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nanokimi import __version__
from nanokimi.config import GPTConfig, KimiConfig, OptimConfig, RunConfig
from nanokimi.config.rules import routed_scaling
from nanokimi.errors import UserError
from nanokimi.interop.deepseek import LATENT_EPS
from nanokimi.interop.hf_write import stock_config
from nanokimi.model.build import LanguageModel
from nanokimi.model.layers import yarn_temperature

FLAVOR_FILE = "nanokimi_torchtitan.py"
ALIGNED = 8
"""Numbers in bf16 that make the 16 bytes by which torch's grouped product wants rows to be aligned."""
SMALLEST_HEAD = 16
"""Dimensions of a head that FlexAttention needs on a GPU."""
SMALLEST_STEP = 1e-12
"""A step of the router's biases that changes none of them: torchtitan needs one above 0 to have biases at all."""


def require_torchtitan_can(model: LanguageModel) -> KimiConfig:
    """The model's configuration. Raises UserError naming what torchtitan does not have."""
    config = model.config
    if isinstance(config, GPTConfig):
        raise UserError("torchtitan has no GPT-2, so a NanoGPT cannot be handed over to it: use --format hf")
    stock_config(model)
    assert isinstance(config, KimiConfig), "stock_config() refuses all other families"
    yarn = config.rope_scaling
    heads = {
        "qk_nope_head_dim + qk_rope_head_dim": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
    }
    small = [f"{name} {size}" for name, size in heads.items() if size < SMALLEST_HEAD]
    widths = {name: getattr(config, name) for name in ("hidden_size", "moe_intermediate_size")}
    odd = [f"{name} {size}" for name, size in widths.items() if size % ALIGNED]
    problem = ""
    if config.num_hidden_layers == 0:
        problem = "at least one layer, and the model has num_hidden_layers 0"
    elif yarn and yarn_temperature(yarn.factor, yarn.mscale) != yarn_temperature(
        yarn.factor, yarn.mscale_all_dim
    ):
        problem = (
            f"one temperature of YaRN, and the model has mscale {yarn.mscale:g} and mscale_all_dim "
            f"{yarn.mscale_all_dim:g}"
        )
    elif odd and config.first_k_dense_replace < config.num_hidden_layers:
        problem = f"experts whose widths are multiples of {ALIGNED}, and the model has {' and '.join(odd)}"
    elif small:
        problem = f"heads of at least {SMALLEST_HEAD} dimensions, and the model has {' and '.join(small)}"
    if problem:
        raise UserError(f"torchtitan needs {problem}: it cannot be handed over, use --format hf")
    return config


def layer_sizes(config: KimiConfig) -> dict[str, Any]:
    """The arguments of torchtitan's `build_mla_moe_layers` that describe a resolved NanoKimi."""
    yarn = config.rope_scaling
    return {
        "n_layers": config.num_hidden_layers,
        "n_dense_layers": min(config.first_k_dense_replace, config.num_hidden_layers),
        "dim": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "q_lora_rank": config.q_lora_rank or 0,
        "kv_lora_rank": config.kv_lora_rank,
        "qk_nope_head_dim": config.qk_nope_head_dim,
        "qk_rope_head_dim": config.qk_rope_head_dim,
        "v_head_dim": config.v_head_dim,
        "mscale": yarn.mscale_all_dim if yarn else 1.0,
        "dense_hidden_dim": config.intermediate_size,
        "moe_hidden_dim": config.moe_intermediate_size,
        "num_experts": config.n_routed_experts,
        "num_shared_experts": config.n_shared_experts,
        "router_top_k": config.num_experts_per_tok,
        "router_score_func": "sigmoid",
        "router_route_scale": config.routed_scaling_factor
        or routed_scaling(config.n_routed_experts, config.num_experts_per_tok),
        "router_route_norm": config.norm_topk_prob,
    }


def rope_settings(config: KimiConfig) -> dict[str, Any]:
    """The arguments of torchtitan's `ComplexRoPE.Config`."""
    plain = {
        "dim": config.qk_rope_head_dim,
        "max_seq_len": config.max_position_embeddings,
        "theta": config.rope_theta,
    }
    yarn = config.rope_scaling
    if yarn is None:
        return plain
    return {
        **plain,
        "scaling": "yarn",
        "rope_factor": yarn.factor,
        "beta_fast": yarn.beta_fast,
        "beta_slow": yarn.beta_slow,
        "original_seq_len": yarn.original_max_position_embeddings,
    }


def training_settings(config: RunConfig, optim: OptimConfig) -> dict[str, Any]:
    """What the run was trained with, as far as torchtitan has it. Muon's updates have AdamW's size."""
    return {
        "lr": optim.lr if optim.name == "adamw" else optim.adamw_lr or optim.lr,
        "betas": tuple(optim.betas),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
        "max_norm": optim.grad_clip or float("inf"),
        "warmup_steps": optim.warmup_steps,
        "min_lr_factor": optim.min_lr_ratio,
        "local_batch_size": config.train.batch_size,
        "load_balance_coeff": max(optim.router_bias_update_speed, SMALLEST_STEP),
    }


def flavor_file(model: LanguageModel, run: RunConfig) -> str:
    """The Python file. Raises UserError for a model that torchtitan does not have."""
    config = require_torchtitan_can(model)
    values = {
        "VERSION": __version__,
        "LAUNCH": launch_line(Path("DIR")),
        "LAYERS = {}": f"LAYERS = {pretty(layer_sizes(config))}",
        "ROPE = {}": f"ROPE = {pretty(rope_settings(config))}",
        "TRAINING = {}": f"TRAINING = {pretty(training_settings(run, run.family.optim))}",
        "VOCAB_SIZE = 0": f"VOCAB_SIZE = {config.vocab_size}",
        "NORM_EPS, LATENT_NORM_EPS = 0, 0": f"NORM_EPS, LATENT_NORM_EPS = {config.rms_norm_eps!r}, {LATENT_EPS!r}",
        "INIT_STD = 0": f"INIT_STD = {config.initializer_range!r}",
    }
    text = TEMPLATE
    for placeholder, value in values.items():
        assert text.count(placeholder) == 1, placeholder
        text = text.replace(placeholder, value)
    return text


def pretty(values: dict[str, Any]) -> str:
    """A dictionary as Python, one entry a line, in the order given."""
    lines = [f'    "{name}": {python_text(value)},' for name, value in values.items()]
    return "\n".join(["{", *lines, "}"])


def python_text(value: Any) -> str:
    """A number, a text or a tuple of them as Python."""
    if isinstance(value, str):
        return f'"{value}"'
    return 'float("inf")' if value == float("inf") else repr(value)


def launch_line(folder: Path) -> str:
    """The command that trains on with eight GPUs of one machine."""
    return (
        f"PYTHONPATH={shlex.quote(str(folder))} torchrun --nproc_per_node=8 -m torchtitan.train "
        f"--module {FLAVOR_FILE.removesuffix('.py')} --config nanokimi --dataloader.dataset_path TEXT.jsonl"
    )


TEMPLATE = '''\
"""A NanoKimi for torchtitan 0.3: a flavor of its deepseek_v3, and a configuration to train on. By nanokimi VERSION.

    LAUNCH

DIR is this folder, and TEXT.jsonl has a line {"text": "..."} for each document. Every option of torchtitan can follow,
such as --training.steps or --parallelism.expert_parallel_degree. What torchtitan computes otherwise: experts are
rounded to bf16, even in fp32; there is no auxiliary loss that balances them (only the router's biases); and the
optimizer is AdamW, because it has no MuonClip.
"""

from functools import partial
from pathlib import Path

from torch import nn
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    default_adamw,
    register_moe_load_balancing_hook,
)
from torchtitan.config import TrainingConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataLoader
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.deepseek_v3 import (
    DeepSeekV3Model,
    build_mla_moe_layers,
    parallelize_deepseekv3,
)
from torchtitan.models.deepseek_v3.state_dict_adapter import DeepSeekV3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

HERE = Path(__file__).resolve().parent
VOCAB_SIZE = 0
NORM_EPS, LATENT_NORM_EPS = 0, 0
INIT_STD = 0
LAYERS = {}
ROPE = {}
TRAINING = {}


def json_lines(path):
    from datasets import load_dataset

    return load_dataset("json", data_files=path, split="train")


DATASETS["json_lines"] = DatasetConfig(
    path="", loader=json_lines, sample_processor=lambda sample: sample["text"]
)


def model_config(attn_backend="flex", moe_comm_backend="standard", non_blocking_capacity_factor=None):
    """The model. Initial weights matter only where no checkpoint is loaded."""
    normal = {"weight": partial(nn.init.normal_, std=INIT_STD), "bias": nn.init.zeros_}
    ones = {"weight": nn.init.ones_}
    layers = build_mla_moe_layers(
        **LAYERS,
        rope=ComplexRoPE.Config(**ROPE),
        attn_backend=attn_backend,
        moe_comm_backend=moe_comm_backend,
        non_blocking_capacity_factor=non_blocking_capacity_factor,
        linear_init=normal,
        norm_init=ones,
        depth_init=lambda layer: normal,
        depth_experts_init=lambda layer: dict.fromkeys(
            ("w1_EFD", "w2_EDF", "w3_EFD"), normal["weight"]
        ),
    )
    for layer in layers:
        layer.attention_norm.eps = layer.ffn_norm.eps = NORM_EPS
        layer.attention.q_norm.eps = layer.attention.kv_norm.eps = LATENT_NORM_EPS
        if layer.moe is not None:
            layer.moe.load_balance_coeff = TRAINING["load_balance_coeff"]
            if LAYERS["num_shared_experts"] == 0:
                layer.moe.shared_experts = None
    dim = LAYERS["dim"]
    return DeepSeekV3Model.Config(
        vocab_size=VOCAB_SIZE,
        dim=dim,
        tok_embeddings=Embedding.Config(
            num_embeddings=VOCAB_SIZE, embedding_dim=dim, param_init=normal
        ),
        norm=RMSNorm.Config(normalized_shape=dim, eps=NORM_EPS, param_init=ones),
        lm_head=Linear.Config(in_features=dim, out_features=VOCAB_SIZE, param_init=normal),
        layers=layers,
    )


def model_spec(**backends):
    """The model, with torchtitan's own functions for deepseek_v3."""
    return ModelSpec(
        name="deepseek_v3",
        flavor="nanokimi",
        model=model_config(**backends),
        parallelize_fn=parallelize_deepseekv3,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=register_moe_load_balancing_hook,
        state_dict_adapter=DeepSeekV3StateDictAdapter,
    )


def nanokimi():
    """What `--config nanokimi` trains: begins with the weights beside this file, which --checkpoint.* changes."""
    return Trainer.Config(
        model_spec=model_spec(),
        hf_assets_path=str(HERE),
        loss=ChunkedLossWrapper.Config(
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=VOCAB_SIZE)
        ),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="json_lines"),
        optimizer=default_adamw(
            **{name: TRAINING[name] for name in ("lr", "betas", "eps", "weight_decay")}
        ),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=TRAINING["warmup_steps"],
            decay_type="cosine",
            min_lr_factor=TRAINING["min_lr_factor"],
        ),
        training=TrainingConfig(
            local_batch_size=TRAINING["local_batch_size"],
            seq_len=ROPE["max_seq_len"],
            max_norm=TRAINING["max_norm"],
            steps=1000,
            disable_cuda_graphs=True,  # expert parallelism synchronises with the host
        ),
        checkpoint=CheckpointManager.Config(
            enable=True,
            initial_load_path=str(HERE),
            initial_load_in_hf=True,
            last_save_in_hf=True,
        ),
    )
'''
"""The file with empty settings: `flavor_file` fills them in."""
