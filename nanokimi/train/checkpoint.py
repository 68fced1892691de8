"""Weights and checkpoints on disk: safetensors for tensors, JSON for the rest, nothing that runs code when read.

A checkpoint is a folder `checkpoints/step-00002000`, written under another name and renamed when whole. Batches,
dropout and samples are functions of (seed, step), so weights, optimizer and clocks are all there is to store.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from nanokimi.train.loop import TrainState


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers; a head tied to the embedding is stored once, as the embedding."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(_untied(model), temporary, metadata={"format": "pt"})
    os.replace(temporary, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights written by `save_weights` into a model of the same configuration.

    Raises UserError if the file is missing, damaged or of another model.
    """
    stored = read_tensors(path)
    expected = _untied(model)
    wrong = sorted(set(stored) ^ set(expected)) + [
        name for name in sorted(set(stored) & set(expected)) if stored[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path} does not fit the model in config.yaml: '{wrong[0]}' is missing, extra or misshaped"
        )
    model.load_state_dict(stored, strict=False)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dictionary without second names of one tensor."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            result[name] = tensor.contiguous()
    return result


def save_checkpoint(state: TrainState) -> Path:
    """Write the whole state; then remove checkpoints beyond the newest `keep_checkpoints`."""
    folder = state.folder / "checkpoints"
    final = folder / f"step-{state.step:08d}"
    if final.exists():
        return final  # the end of a run that was also due for saving
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_weights(state.model, temporary / "model.safetensors")
    tensors, rest = _flatten_optimizer(state.optimizer.state_dict())
    save_file(tensors, temporary / "optimizer.safetensors")
    metrics = state.folder / "metrics.jsonl"
    write_json(
        temporary / "state.json",
        {
            "schema_version": 1,
            "step": state.step,
            "train_seconds": state.train_seconds,
            "best_val_loss": state.best_val_loss if state.best_val_loss < float("inf") else None,
            "peak_memory_bytes": state.peak_memory_bytes,
            "scaler": state.scaler.state_dict(),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
            "telemetry": state.telemetry.state(),
            "optimizer_state": rest,
        },
    )
    os.replace(temporary, final)
    for old in sorted(folder.glob("step-*"))[: -state.config.train.keep_checkpoints]:
        shutil.rmtree(old)
    return final


def load_newest_checkpoint(state: TrainState) -> bool:
    """Put `state` where the newest checkpoint of its folder left off; False if there is none.

    Records written after that checkpoint are cut off metrics.jsonl: the resumed run writes them again.
    """
    found = sorted((state.folder / "checkpoints").glob("step-*"))
    metrics = state.folder / "metrics.jsonl"
    if not found:
        metrics.unlink(missing_ok=True)
        return False
    folder = found[-1]
    stored = read_json(folder / "state.json")
    load_weights(state.model, folder / "model.safetensors")
    tensors = read_tensors(folder / "optimizer.safetensors")
    state.optimizer.load_state_dict(_unflatten_optimizer(state.optimizer, tensors, stored["optimizer_state"]))
    state.scaler.load_state_dict(stored["scaler"])
    state.step, state.train_seconds = stored["step"], stored["train_seconds"]
    state.best_val_loss = float("inf") if stored["best_val_loss"] is None else stored["best_val_loss"]
    state.peak_memory_bytes = stored["peak_memory_bytes"]
    state.telemetry.load(stored["telemetry"], state.device)
    state.resumed = True
    if metrics.exists():
        os.truncate(metrics, stored["metrics_bytes"])
    return True


def _flatten_optimizer(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(tensors by "parameter.name", everything else that JSON holds) of an optimizer's state dictionary."""
    tensors, rest = {}, {}
    for index, values in content["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.contiguous()
            else:
                rest[f"{index}.{name}"] = value
    return tensors, json.loads(json.dumps(rest))


def _unflatten_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> dict[str, Any]:
    """A state dictionary with the optimizer's own groups (they follow from the configuration) and the stored state."""
    by_index: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **rest}.items():
        index, name = key.split(".", 1)
        by_index.setdefault(int(index), {})[name] = value
    return {"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]}
