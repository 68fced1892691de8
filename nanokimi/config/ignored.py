"""Settings that were typed: for which arm they are, and which a command would ignore."""

from __future__ import annotations

from collections.abc import Sequence

from nanokimi.config.arms import arm_configs, origin_of
from nanokimi.config.parsing import expand, settings
from nanokimi.config.rules_variant import is_plugin
from nanokimi.config.schema import FAMILIES, RunConfig
from nanokimi.config.words import of_arm
from nanokimi.errors import UserError

GROUPS: dict[str, tuple[str, ...]] = {
    "train": ("seed", "model", "name", "dataset.", "train.", "sample."),
    "compare": ("seed", "dataset.", "train.", "sample.", "compare."),
    "sweep": ("seed", "model", "dataset.", "train."),
    "ladder": ("seed", "dataset.", "train.", "nanokimi.", "nanogpt."),
    "scale": ("seed", "dataset.", "train.", "nanokimi.", "nanogpt."),
    "bench": ("seed", "dataset.tokenizer", "dataset.vocab_size", "train."),
    "prepare": ("dataset.", "train.context_length"),
}
"""The settings that each command reads, beside those of the arms' families where these are not named."""
NOT_IN_A_STUDY = {
    "train.shard": "each run of a study is one process",
    "train.expert_parallel": "each run of a study is one process",
    "train.threads": "each run of a study has one thread (--workers is how many run at a time)",
    **dict.fromkeys(
        (f"train.{name}_every" for name in ("eval", "telemetry", "sample", "save")),
        "a run of a study is scored once, at its end",
    ),
    "train.track": "the runs of a study are in its own files",
    "train.keep_checkpoints": "a study removes the checkpoints of a finished run, unless --keep is given",
}
NOT_IN_BENCH = {
    **dict.fromkeys(
        (
            f"train.{name}"
            for name in ("track", "eval_every", "sample_every", "save_every", "keep_checkpoints")
        ),
        "bench trains no run",
    ),
    "train.shard": "bench measures one process",
    "train.expert_parallel": "bench measures one process",
    **dict.fromkeys((f"train.max_{name}" for name in ("tokens", "flops", "seconds", "epochs", "steps")), ""),
}


def split_arm_words(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options in `rest` for settings, and those whose words are for the arm that is trained, such as `--lr`."""
    shared: list[str] = []
    of_arms: list[str] = []
    remaining = list(rest)
    while remaining:
        word = remaining.pop(0)
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        target = of_arms if word.startswith("--") and of_arm(name) else shared
        target.append(word)
        if "=" not in word and word.startswith("--") and remaining and not remaining[0].startswith("--"):
            target.append(remaining.pop(0))
    return shared, of_arms


def refuse_ignored(command: str, config: RunConfig, rest: Sequence[str]) -> None:
    """Raises UserError for a setting in `rest`, without words of an arm, that `command` would ignore."""
    alone = command == "train"
    trained: dict[str, list[RunConfig]] = {config.model: [config]} if alone else {}
    if command in ("compare", "sweep", "bench"):
        for name, arm in arm_configs(config).items():
            trained.setdefault(origin_of(config, name), []).append(arm)
    reasons = NOT_IN_A_STUDY if command in ("sweep", "ladder", "scale") else {}
    reasons = NOT_IN_BENCH if command == "bench" else reasons
    for option in expand(rest, [config.model] if alone else FAMILIES):
        key, _, value = option.removeprefix("--").partition("=")
        if value == "null" and key.startswith("train.max_"):
            continue  # put there because another budget is given
        if is_plugin(value):
            continue  # `refuse_unused_plugins` speaks of --plugin
        if key in reasons:
            raise UserError(f"--{key} has no effect with {command}: {reasons[key] or 'it has no budget'}")
        family = key.partition(".")[0]
        if key.startswith(GROUPS[command]):
            continue
        if family not in trained:
            whose = f", which trains {' and '.join(trained)}" if trained and family in FAMILIES else ""
            raise UserError(f"--{key} has no effect with {command}{whose}: leave it out")
        mine = settings(config).get(key)
        if not alone and all(settings(arm).get(key) != mine for arm in trained[family]):
            part = key.partition(".")[2]
            names = " and ".join(arm.title for arm in trained[family])
            sets = f"sets {part} itself" if len(trained[family]) == 1 else f"set {part} themselves"
            words = " ".join(f'--arm "{arm.title}: {part}={value}"' for arm in trained[family])
            raise UserError(f"--{key} has no effect: {names} {sets}; change it with {words}")


def refuse_overridden(base: RunConfig, config: RunConfig, rest: Sequence[str], name: str) -> None:
    """Raises UserError for a setting of a family in `rest` that the arm `name`, made from `base`, replaces."""
    then, now = settings(base), settings(config)
    for option in expand(rest):
        key = option.removeprefix("--").partition("=")[0]
        family, _, part = key.partition(".")
        if family == config.model and then.get(key) != now.get(key):
            raise UserError(f"--{key} has no effect: the arm {name} sets {part} itself; use --{part}")


def rate_left_behind(config: RunConfig, rest: Sequence[str]) -> str | None:
    """One line if `rest` changes the learning rate of the trained arm, but not the second one that the preset sets."""
    given = {option.removeprefix("--").partition("=")[0] for option in expand(rest, [config.model])}
    rate, second = f"{config.model}.optim.lr", f"{config.model}.optim.adamw_lr"
    kept = config.family.optim.adamw_lr
    if rate not in given or second in given or kept is None:
        return None
    return (
        f"{second}, the rate of embeddings, head, norm gains and biases, stays {kept:g}: to make it follow {rate}, add "
        f"--{second} null"
    )
