"""Expert pruning: a trained model without its least used experts, and what that costs before and after a recovery.

Every layer keeps the experts that the tokens of the validation text chose most. The router loses the rows of the
others, so it chooses among the remaining ones and its gates add up as before. The scale of the gates stays the one that
the model was trained with. The result is an ordinary run that continues the old one: its steps count from there, and
its batches are the next ones. In recovery the learning rate falls from RECOVERY_LR of the old peak to 0 (not tuned).
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanokimi.config import GPTConfig, ModuleConfig, OptimConfig, RunConfig, VariantConfig
from nanokimi.config.files import save_config
from nanokimi.config.rules import validate
from nanokimi.config.rules_variant import is_plugin
from nanokimi.data.batches import iterate_validation
from nanokimi.data.store import PreparedData, open_prepared
from nanokimi.errors import UserError
from nanokimi.measure.evaluate import evaluate, windows_at_a_time
from nanokimi.runtime.device import choose_device
from nanokimi.runtime.files import read_json, write_json
from nanokimi.train.checkpoint import save_checkpoint
from nanokimi.train.prune_record import PRUNE_FILE
from nanokimi.train.result import RESULT_FILE
from nanokimi.train.run import train_alone
from nanokimi.train.run_folder import (
    CONFIG_FILE,
    DATA_FOLDER,
    Run,
    find_data,
    fresh_folder,
    open_run,
)
from nanokimi.train.state import build_state

RECOVERY_LR = 0.1  # of the arm's peak rate


def prune(
    folder: Path, out: Path, *, keep: int, recover_steps: int = 0, device: str | None = None
) -> dict[str, Any]:
    """Keep the `keep` most used experts of each layer of a finished run, and write the new run to `out`.

    Returns the content of prune.json: losses in nats per token, and the use of each layer's experts.

    Raises:
        UserError: there are no experts to drop, or `keep` does not fit.
    """
    run = open_run(folder, device)
    require_prunable(run, keep)
    run.data.scored("test")  # refuses data without a test part now, not at the end
    train = run.config.train
    usage_LE = expert_usage(run.model, run.data, train.context_length)
    kept_LE = usage_LE.topk(keep, dim=1).indices.sort(dim=1).values
    before = evaluate(run.model, run.data, train.context_length, train.eval_batch_size).loss
    steps = read_steps(folder)
    config = pruned_config(run, keep, steps, recover_steps)
    if device is not None:
        config = replace(config, train=replace(config.train, device=str(choose_device(device))))
    earlier = read_json(folder / PRUNE_FILE) if (folder / PRUNE_FILE).is_file() else {}
    with fresh_folder(out):
        shutil.copytree(find_data(folder), out / DATA_FOLDER)
        save_config(config, out / CONFIG_FILE)
        state = build_state(config, open_prepared(out / DATA_FOLDER), out)
        state.model.load_state_dict(pruned_weights(run.model, kept_LE))
        state.step = steps
        pruned = evaluate(state.model, run.data, train.context_length, train.eval_batch_size).loss
        save_checkpoint(state)
        record = {
            "source": folder.resolve().name,
            "init_from": train.init_from or earlier.get("init_from"),
            "kept": keep,
            "of": usage_LE.shape[1],
            "recover_steps": recover_steps,
            "val_loss_before": before,
            "val_loss_pruned": pruned,
            "val_loss_recovered": None,
            "usage": (usage_LE / usage_LE.sum(dim=1, keepdim=True)).tolist(),
            "kept_experts": kept_LE.tolist(),
        }
        write_json(out / PRUNE_FILE, record)
    train_alone(config, out, resume=True)
    completed: dict[str, Any] = read_json(out / PRUNE_FILE)
    return completed


def require_prunable(run: Run, keep: int) -> None:
    """Refuse a model that has no experts, or whose experts cannot be ranked by their use."""
    model = run.config.family.model
    variant = model.experts if isinstance(model, VariantConfig) else ""
    if isinstance(model, GPTConfig | ModuleConfig) or not routers_of(run.model):
        raise UserError(f"{run.folder} has no experts to drop")
    if variant == "expert_choice" or is_plugin(variant):
        raise UserError(f"experts {variant} cannot be pruned: their use does not tell how useful they are")
    least = 1 if variant == "soft" else model.num_experts_per_tok
    if not least <= keep < model.n_routed_experts:
        raise UserError(
            f"--keep is {keep}: of {model.n_routed_experts} experts, {least} to {model.n_routed_experts - 1} can stay"
        )


def routers_of(model: nn.Module) -> list[Any]:
    """The routers of a model, in the order of its layers. Empty if it has none."""
    find: Any = getattr(model, "routers", list)
    return list(find())


def read_steps(folder: Path) -> int:
    """The number of steps of a finished run."""
    path = folder / RESULT_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {RESULT_FILE}: the run has not finished")
    steps = read_json(path).get("steps")
    if type(steps) is not int or steps < 1:
        raise UserError(f"{path} does not say how many steps the run took")
    return steps


@torch.inference_mode()
def expert_usage(model: nn.Module, data: PreparedData, context_length: int) -> torch.Tensor:
    """How many validation tokens chose each expert (soft: the sum of their shares), (layers, E), on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    windows = windows_at_a_time(context_length)
    total_LE: torch.Tensor | float = 0.0
    for batch in iterate_validation(data.train_ids, data.val_ids, context_length, windows):  # no token twice
        routing = model(torch.from_numpy(batch.inputs).to(device)).routing
        counts_LE = torch.stack([layer.counts_E for layer in routing]).cpu()
        total_LE = total_LE + counts_LE.double()  # in two steps: MPS has no float64
    assert isinstance(total_LE, torch.Tensor), "there is no empty validation text"
    return total_LE


def pruned_config(run: Run, keep: int, steps: int, recover_steps: int) -> RunConfig:
    """The run's configuration with fewer experts, the same scale of the gates, and a budget that includes recovery."""
    config = run.config
    arm, train = config.family, config.train
    assert not isinstance(arm.model, GPTConfig | ModuleConfig), "require_prunable() refuses these"
    scaling = routers_of(run.model)[0].scaling
    model = replace(arm.model, n_routed_experts=keep, routed_scaling_factor=scaling)
    optim = recovery(arm.optim, steps, recover_steps) if recover_steps else arm.optim
    no_other_budget: dict[str, Any] = dict(max_epochs=None, max_tokens=None, max_flops=None, max_seconds=None)
    # Weights that the run began with have all experts, and do not fit.
    train = replace(train, init_from=None, max_steps=steps + recover_steps, **no_other_budget)
    changed = replace(arm, model=model, optim=optim)  # type: ignore[arg-type]
    return validate(replace(config, train=train, **{config.model: changed}))  # type: ignore[arg-type]


def recovery(optim: OptimConfig, steps: int, recover_steps: int) -> OptimConfig:
    """The same optimizer, restarted, with a rate that falls to 0 during recovery."""
    return replace(
        optim,
        lr=optim.lr * RECOVERY_LR,
        adamw_lr=None if optim.adamw_lr is None else optim.adamw_lr * RECOVERY_LR,
        schedule="wsd",
        warmup_steps=0,
        decay_fraction=recover_steps / (steps + recover_steps),
        min_lr_ratio=0.0,
    )


def pruned_weights(model: nn.Module, kept_LE: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state dictionary without the dropped experts' matrices, router rows and biases."""
    routers = {id(router): layer for layer, router in enumerate(routers_of(model))}
    kept_by_prefix: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if id(module) in routers:
            rows = kept_LE[routers[id(module)]]
            kept_by_prefix[f"{name}."] = kept_by_prefix[f"{name.removesuffix('gate')}experts."] = rows
    weights = {}
    for name, tensor in model.state_dict().items():
        prefix = next((p for p in kept_by_prefix if name.startswith(p)), None)
        if prefix is not None:
            tensor = tensor.index_select(0, kept_by_prefix[prefix].to(tensor.device))
        weights[name] = tensor
    return weights
