"""Weights on disk, as safetensors, and the weights that a run begins with."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nanokimi.config import RunConfig
from nanokimi.data.store import PreparedData, tokenizer_sha256
from nanokimi.errors import UserError
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.runtime.files import sync

WEIGHTS_FILE, DATA_FOLDER = "model.safetensors", "data"


def find_data(folder: Path) -> Path:
    """The prepared data of a run, which may be in the folder of the study or comparison that the run is part of."""
    *inner, outermost = (folder, *folder.resolve().parents[:2])
    return next((place for place in inner if (place / DATA_FOLDER).exists()), outermost) / DATA_FOLDER


def initial_model(config: RunConfig) -> LanguageModel:
    """The model of a resolved configuration with the weights that training starts from.

    Raises UserError if those of `train.init_from` cannot be used for it.
    """
    model = build_model(config.family.model, config.seed)
    path = initial_weights(config)
    if path is not None:
        load_weights(model, path)
    return model


def initial_weights(config: RunConfig) -> Path | None:
    """The file that `train.init_from` means; None: random weights. Raises UserError if it does not exist."""
    if config.train.init_from is None:
        return None
    path = Path(config.train.init_from) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"train.init_from {path.parent} has no {WEIGHTS_FILE}: name a finished run")
    return path


def require_start(config: RunConfig, data: PreparedData) -> None:
    """Raise UserError, naming the arm, if it cannot start from the weights of `train.init_from`."""
    if config.train.init_from is None:
        return
    try:
        require_same_tokenizer(config, data)
        initial_model(config)
    except UserError as error:
        raise UserError(f"{config.title}: {error}") from None


def require_same_tokenizer(config: RunConfig, data: PreparedData) -> None:
    """Raise UserError if the run that the weights come from had another tokenizer: ids would mean other text."""
    path = initial_weights(config)
    if path is None:
        return
    folder = path.parent
    if tokenizer_sha256(find_data(folder)) != data.tokenizer_sha256:
        raise UserError(
            f"train.init_from {folder} has another tokenizer than this text: name its own with --dataset.tokenizer "
            f"{find_data(folder) / 'tokenizer.json'}"
        )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers. A head tied to the embedding is stored once, as the embedding."""
    save_tensors(_untied(model), path)


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a safetensors file that is complete or does not exist. Raises OSError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        sync(temporary)
        os.replace(temporary, path)
    except SafetensorError as error:
        temporary.unlink(missing_ok=True)
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights written by `save_weights` into a model of the same configuration.

    Raises UserError if the file is missing, damaged, or for another model.
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
    """The state dictionary, with each tensor under one name only."""
    seen: set[int] = set()
    result = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            result[name] = tensor.contiguous()
    return result
