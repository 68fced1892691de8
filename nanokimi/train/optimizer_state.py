"""An optimizer's state in a checkpoint. For our own optimizers every tensor is known, and no other is accepted."""

from __future__ import annotations

import json
from typing import Any

import torch

from nanokimi.optim.adamw import MatrixOptimizer
from nanokimi.optim.lion import Lion
from nanokimi.optim.third_party_state import pack, unpack_
from nanokimi.runtime.parallel import like, whole
from nanokimi.train.state import TrainState

Shapes = dict[str, torch.Size]


def flatten_optimizer(state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of a run's optimizer: tensors by "parameter.name", and the rest as JSON.

    With several processes, all must call this together, and the main one gets the tensors, whole.
    """
    if state.config.family.optim.third_party:
        return pack(state.optimizer)
    tensors, rest = {}, {}
    for index, values in state.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                kept = whole(value)
                if state.world.is_main:  # the others only send their rows
                    tensors[f"{index}.{name}"] = kept.contiguous()
            else:
                rest[f"{index}.{name}"] = value
    return tensors, json.loads(json.dumps(rest))


def unflatten_optimizer_(state: TrainState, tensors: dict[str, torch.Tensor], rest: dict[str, Any]) -> None:
    """Load into a run's optimizer what `flatten_optimizer` returned for an equal one.

    Parameter groups are not loaded, because they follow from the configuration. Raises ValueError if state is missing,
    extra or misshaped. A third-party optimizer may raise anything.
    """
    optim = state.config.family.optim
    if optim.third_party:
        unpack_(state.optimizer, tensors, rest, frozenset(optim.options))
        return
    by_index: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest}.items():
        index, name = key.split(".", 1)
        by_index.setdefault(int(index), {})[name] = value
    number = 0
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            if by_index:
                _require_shapes(
                    number, by_index.get(number, {}), expected_state(state.optimizer, parameter, group)
                )
            number += 1
    if any(index >= number for index in by_index):
        raise ValueError(f"the optimizer has only {number} parameters")
    for place, parameter in enumerate(p for group in state.optimizer.param_groups for p in group["params"]):
        for name, value in by_index.get(place, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                by_index[place][name] = like(value, parameter)
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def expected_state(optimizer: torch.optim.Optimizer, p: torch.Tensor, group: dict[str, Any]) -> Shapes:
    """The shapes of what one of our own optimizers keeps for a parameter that it has updated."""
    if isinstance(optimizer, Lion | MatrixOptimizer) and group.get("algorithm") != "adamw":
        shaped = torch.empty_like(p, device="meta")
        return {name: tensor.shape for name, tensor in optimizer.new_state(shaped, group).items()}
    if group.get("algorithm") == "muon":
        return {"momentum_buffer": p.shape}
    return {"step": torch.Size(()), "exp_avg": p.shape, "exp_avg_sq": p.shape}


def _require_shapes(number: int, kept: dict[str, Any], expected: Shapes) -> None:
    if set(kept) != set(expected):
        raise ValueError(f"parameter {number} has the optimizer state {', '.join(sorted(kept)) or 'of none'}")
    for name, shape in expected.items():
        if name == "step" and kept[name].dim() != 0:
            raise ValueError(f"optimizer state {number}.step is not a number")
        if kept[name].shape != shape:
            raise ValueError(f"optimizer state {number}.{name} has another shape than its parameter")
