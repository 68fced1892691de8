"""Short names on the command line, and the words of nanoGPT and Hugging Face for our settings.

A name without dots is, in this order: a setting of that name (`--seed`); a word of WORDS; the last part of one setting
that all arms share (`--batch_size`); the last part of a setting of the arm that is trained (`--lr`, `--hidden_size`).
`--model.X` and `--optim.X` also mean the arm that is trained. A command that trains several arms refuses the words of
an arm and names the settings in full, because one learning rate is not right for two optimizers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields

from nanokimi.config.schema import GPTConfig, KimiConfig, ModelName, ModuleConfig, RunConfig
from nanokimi.config.schema_optim import OptimConfig
from nanokimi.config.schema_variant import VariantConfig
from nanokimi.errors import UserError

WORDS: dict[str, str] = {
    "data": "dataset.path",
    "steps": "train.max_steps",
    "epochs": "train.max_epochs",
    "context": "train.context_length",
    "optimizer": "optim.name",
    # nanoGPT's
    "max_iters": "train.max_steps",
    "block_size": "train.context_length",
    "eval_interval": "train.eval_every",
    "n_layer": "model.num_hidden_layers",
    "n_head": "model.num_attention_heads",
    "n_embd": "model.hidden_size",
    "learning_rate": "optim.lr",
    "warmup_iters": "optim.warmup_steps",
    # Hugging Face's
    "num_train_epochs": "train.max_epochs",
    "per_device_train_batch_size": "train.batch_size",
    "per_device_eval_batch_size": "train.eval_batch_size",
    "eval_steps": "train.eval_every",
    "save_steps": "train.save_every",
    "save_total_limit": "train.keep_checkpoints",
    "torch_compile": "train.compile",
    "gradient_checkpointing": "train.activation_checkpointing",
    "max_grad_norm": "optim.grad_clip",
    "lr_scheduler_type": "optim.schedule",
    "adam_epsilon": "optim.eps",
}
"""What each word sets. `model.` and `optim.` are those of the arm that is trained."""

INSTEAD: dict[str, str] = {
    "min_lr": "--min_lr_ratio is the lowest rate as a share of the peak",
    "beta1": "--betas takes both, as in --betas [0.9,0.95]",
    "beta2": "--betas takes both, as in --betas [0.9,0.95]",
    "adam_beta1": "--betas takes both, as in --betas [0.9,0.95]",
    "adam_beta2": "--betas takes both, as in --betas [0.9,0.95]",
    "gradient_accumulation_steps": "--micro_batch_size is the sequences of one forward pass, and gradients accumulate "
    "up to --batch_size",
    "out_dir": "the folder for the results is --out",
    "output_dir": "the folder for the results is --out",
    "eval_iters": "every validation scores the whole validation part",
    "lr_decay_iters": "a schedule always ends with the budget, --max_steps",
    "decay_lr": "--schedule constant keeps the rate",
    "log_interval": "every step is recorded",
    "logging_steps": "every step is recorded",
    "fp16": "the precision is --dtype fp16",
    "bf16": "the precision is --dtype bf16",
}
"""Words of others that no setting of ours stands for, and what to do instead."""

TOP = tuple(field.name for field in fields(RunConfig))
OF_COMMANDS = (
    "config",
    "out",
    "resume",
    "allow-changes",
    "dry-run",
    "plugin",
    "arm",
    "arms",
    "print-config",
    "help-all",
)
"""Options of commands that are no settings, so that a mistyped one is named."""
SHARED_GROUPS = ("dataset", "train", "sample", "compare")
MODELS: dict[ModelName, type] = {
    "nanokimi": KimiConfig,
    "nanogpt": GPTConfig,
    "variant": VariantConfig,
    "module": ModuleConfig,
}
OF_MODELS = {name: [field.name for field in fields(cls)] for name, cls in MODELS.items()}
OF_OPTIMIZER = [field.name for field in fields(OptimConfig)]


def of_arm(name: str) -> str | None:
    """`model.X` or `optim.X` if a name on the command line is a word for a setting of the arm that is trained."""
    if name in TOP:
        return None
    name = WORDS.get(name, name)
    part, dot, last = name.partition(".")
    if dot:
        target = WORDS.get(last, name)
        target = target if target.startswith(f"{part}.") else name
        return target if part in ("model", "optim") else None
    if any(name in names for names in OF_MODELS.values()):
        return f"model.{name}"
    return f"optim.{name}" if name in OF_OPTIMIZER else None


def full_name(name: str, known: Collection[str], families: Sequence[ModelName]) -> str:
    """The dotted setting that a name on the command line stands for, or the name itself if it is unknown.

    `families` are those of the arms that are trained. Raises UserError for a word of an arm if there are several arms,
    or theirs does not have it, and for a word without a counterpart here.
    """
    if name in known:
        return name
    if WORDS.get(name, "") in known:
        return WORDS[name]
    shared = [f"{group}.{name}" for group in SHARED_GROUPS if f"{group}.{name}" in known]
    setting = of_arm(name)
    if len(shared) == 1 and setting is None:
        return shared[0]
    if setting is not None:
        having = [f"{family}.{setting}" for family in MODELS if f"{family}.{setting}" in known]
        mine = [key for key in having if key.partition(".")[0] in families]
        if shared:
            found = " or ".join(f"--{key}" for key in [*shared, *(mine or having)])
            raise UserError(f"--{name} may mean several settings: name {found}")
        if not mine and having:
            raise UserError(
                f"--{name} is no setting of {' or '.join(families)}: there is {', '.join(f'--{key}' for key in having)}"
            )
        if len(families) > 1:
            found = " or ".join(f"--{key}" for key in mine)
            raise UserError(f"--{name} is a setting of one arm, and several are trained: name {found}")
        return mine[0] if mine else name
    if name in INSTEAD:
        raise UserError(f"there is no option --{name}: {INSTEAD[name]}")
    return name


def last_parts(known: Collection[str]) -> list[str]:
    """Every name without dots that may be given: settings, words, and last parts."""
    return list(dict.fromkeys([*(key.rpartition(".")[2] for key in known), *WORDS, *OF_COMMANDS]))


def right_name(name: str, known: Collection[str]) -> str | None:
    """The setting in the same group that a dotted name with another's last part means: nanokimi.optim.learning_rate."""
    group, dot, last = name.rpartition(".")
    key = f"{group}.{WORDS.get(last, last).rpartition('.')[2]}"
    return key if dot and key in known and key != name else None
