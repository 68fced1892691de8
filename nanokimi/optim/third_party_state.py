"""The state of a third-party optimizer as named tensors and plain JSON, and back, without knowing what it contains.

Beside tensors, libraries keep lists of matrices, counters and text, and counters also in parameter groups. A tree of
JSON holds everything. Where there was a tensor it has {"tensor": name}, and the strides if it was not contiguous.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch

CONFIGURED = frozenset(
    ("params", "lr", "initial_lr", "peak_lr", "betas", "eps", "momentum", "nesterov", "weight_decay")
)
"""Entries of parameter groups that come from the configuration, which may have changed when a run resumes."""


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of an optimizer: tensors by name, and the rest as JSON. Raises ValueError for other objects."""
    content = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    groups = [
        {name: value for name, value in group.items() if name not in CONFIGURED and _is_data(value)}
        for group in content["param_groups"]
    ]
    tree = {
        "state": _pack(content["state"], "state", tensors),
        "param_groups": _pack(groups, "groups", tensors),
    }
    return tensors, tree


def _is_data(value: Any) -> bool:
    """Whether an entry of a group can be stored. What cannot, such as a dtype, is taken to be a setting."""
    try:
        _pack(value, "", {})
    except ValueError:
        return False
    return True


def unpack_(
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
    tree: dict[str, Any],
    options: frozenset[str],
) -> None:
    """Load what `pack` returned into a new optimizer. Entries of groups that `options` names keep their values."""
    own = optimizer.state_dict()
    stored_groups = _unpack(tree["param_groups"], tensors)
    if len(stored_groups) != len(own["param_groups"]):
        raise ValueError(f"{len(stored_groups)} parameter groups, not {len(own['param_groups'])}")
    fixed = CONFIGURED | options
    for group, stored in zip(own["param_groups"], stored_groups, strict=True):
        group.update({name: value for name, value in stored.items() if name not in fixed})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = _unpack(tree["state"], tensors)
    if any(type(index) is int and not 0 <= index < len(parameters) for index in state):
        raise ValueError("state of parameters that the optimizer does not have")
    optimizer.load_state_dict({"state": state, "param_groups": own["param_groups"]})
    # Undo the cast of load_state_dict, which gives every tensor the parameter's dtype.
    for index, values in state.items():
        if type(index) is int:  # some also keep state under a name, for no parameter
            p = parameters[index]
            optimizer.state[p] = _restored(values, optimizer.state[p], p.device)


def _restored(saved: Any, loaded: Any, device: torch.device) -> Any:
    """`saved` in its own dtypes, on the device that `load_state_dict` chose, or else the parameter's."""
    if isinstance(saved, torch.Tensor):
        return saved.to(loaded.device if isinstance(loaded, torch.Tensor) else device)
    if isinstance(saved, dict):
        return {key: _restored(value, loaded[key], device) for key, value in saved.items()}
    if isinstance(saved, list | tuple | deque):
        parts = (_restored(a, b, device) for a, b in zip(saved, loaded, strict=True))
        return deque(parts, maxlen=saved.maxlen) if isinstance(saved, deque) else type(saved)(parts)
    return saved


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().clone().contiguous()  # safetensors refuses tensors that share storage
        return {"tensor": name} | ({} if value.is_contiguous() else {"stride": list(value.stride())})
    if isinstance(value, dict):
        entries = [[key, _pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        if not all(type(key) in (int, float, str) for key in value):
            raise ValueError(f"{name} has keys that are neither numbers nor text")
        return {"dict": entries}
    if isinstance(value, list | tuple | deque):
        items = [_pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        kind = next(k for k in (deque, list, tuple) if isinstance(value, k)).__name__
        return {kind: items} | ({"maxlen": value.maxlen} if isinstance(value, deque) else {})
    if type(value) is float and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise ValueError(f"{name} is of type {type(value).__name__}, which is neither a tensor nor plain data")


def _unpack(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        tensor = tensors[node["tensor"]]
        if "stride" not in node:
            return tensor
        # Products of a matrix stored by columns may differ in the last bit from those of one stored by rows.
        return torch.empty_strided(tensor.shape, node["stride"], dtype=tensor.dtype).copy_(tensor)
    if "dict" in node:
        return {key: _unpack(item, tensors) for key, item in node["dict"]}
    if "list" in node:
        return [_unpack(item, tensors) for item in node["list"]]
    if "tuple" in node:
        return tuple(_unpack(item, tensors) for item in node["tuple"])
    if "deque" in node:
        return deque((_unpack(item, tensors) for item in node["deque"]), maxlen=node["maxlen"])
    return float(node["float"])
