"""Weights on disk, as safetensors, and the weights that a run begins with."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from nanokimi.config import RunConfig
from nanokimi.data.store import PreparedData, tokenizer_sha256
from nanokimi.errors import UserError
from nanokimi.model.build import LanguageModel, build_model
from nanokimi.runtime.files import file_sha256, read_json, sync, write_json
from nanokimi.runtime.parallel import is_sharded, like

WEIGHTS_FILE, DATA_FOLDER = "model.safetensors", "data"
START_FILE, START_RECORD = "initial.safetensors", "initial.json"
"""A copy of the weights that `train.init_from` named, beside the data, and its record: a run that is resumed, or goes
back to its beginning, begins with the same weights whatever has become of the other run's folder."""


def find_data(folder: Path) -> Path:
    """The prepared data of a run, which may be in the folder of the study or comparison that the run is part of."""
    *inner, outermost = (folder, *folder.resolve().parents[:2])
    return next((place for place in inner if (place / DATA_FOLDER).exists()), outermost) / DATA_FOLDER


def initial_model(config: RunConfig, folder: Path) -> LanguageModel:
    """The model of a resolved configuration with the weights that training in `folder` starts from.

    Raises UserError if those of `train.init_from` cannot be used for it.
    """
    model = build_model(config.family.model, config.seed)
    path = initial_weights(config, folder)
    if path is not None:
        kept = kept_start(config, folder)
        if kept is not None and file_sha256(path) != kept["sha256"]:
            raise UserError(
                f"{path} is damaged: take it and {START_RECORD} away to read {kept['source']} again"
            )
        load_weights(model, path, None if kept is None else Path(kept["source"], WEIGHTS_FILE))
    return model


def keep_start(config: RunConfig, folder: Path) -> None:
    """Copy the weights that `train.init_from` names into `folder`, where its data is, unless that has been done.

    Weights that are not there are left to `initial_weights`. Raises UserError as `kept_start` does.
    """
    if config.train.init_from is None or kept_start(config, folder) is not None:
        return
    source = Path(config.train.init_from)
    if not (source / WEIGHTS_FILE).is_file():
        return
    shutil.copyfile(source / WEIGHTS_FILE, folder / START_FILE)
    sync(folder / START_FILE)
    digests = {
        "sha256": file_sha256(folder / START_FILE),
        "tokenizer_sha256": tokenizer_sha256(find_data(source)),
    }
    write_json(folder / START_RECORD, {"schema_version": 1, "source": str(source), **digests})


def kept_start(config: RunConfig, folder: Path) -> dict[str, str] | None:
    """The record of the weights that were copied for a run, or for the comparison or study that it is part of.

    Raises UserError if it is damaged, or of another run than `train.init_from` names.
    """
    path = find_data(folder).with_name(START_RECORD)
    if config.train.init_from is None or not path.is_file():
        return None
    record = read_json(path)
    names = ("source", "sha256", "tokenizer_sha256")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in names):
        raise UserError(f"{path} is not the file that the run wrote")
    if record["source"] != config.train.init_from:
        raise UserError(
            f"the run in {path.parent} began with the weights of {record['source']}, not {config.train.init_from}: "
            "begin with others in a new folder"
        )
    return record


def initial_weights(config: RunConfig, folder: Path) -> Path | None:
    """The file of the weights that training in `folder` starts from; None: random weights.

    Raises UserError if there is no copy of those that `train.init_from` names, and they are not there any more.
    """
    if config.train.init_from is None:
        return None
    if kept_start(config, folder) is not None:
        return find_data(folder).with_name(START_FILE)
    path = Path(config.train.init_from) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"train.init_from {path.parent} has no {WEIGHTS_FILE}: name a finished run")
    return path


def require_start(config: RunConfig, data: PreparedData, folder: Path) -> None:
    """Raise UserError, naming the arm, if it cannot start from the weights of `train.init_from`."""
    if config.train.init_from is None:
        return
    try:
        require_same_tokenizer(config, data, folder)
        initial_model(config, folder)
    except UserError as error:
        raise UserError(f"{config.title}: {error}") from None


def require_same_tokenizer(config: RunConfig, data: PreparedData, folder: Path) -> None:
    """Raise UserError if the run that the weights come from had another tokenizer: ids would mean other text."""
    if initial_weights(config, folder) is None:
        return
    assert config.train.init_from is not None
    source, kept = Path(config.train.init_from), kept_start(config, folder)
    theirs = tokenizer_sha256(find_data(source)) if kept is None else kept["tokenizer_sha256"]
    if theirs != data.tokenizer_sha256:
        raise UserError(
            f"train.init_from {source} has another tokenizer than this text: name its own with --dataset.tokenizer "
            f"{find_data(source) / 'tokenizer.json'}"
        )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers. A head tied to the embedding is stored once, as the embedding."""
    save_tensors({name: tensor.contiguous() for name, tensor in untied(model).items()}, path)


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


def load_weights(model: nn.Module, path: Path, origin: Path | None = None) -> None:
    """Read weights written by `save_weights` into a model of the same configuration.

    Raises UserError if the file (named as `origin`, if it is a copy of that) is missing, damaged, or for another model.
    """
    stored = read_tensors(path)
    expected = untied(model)
    wrong = sorted(set(stored) ^ set(expected)) + [
        name for name in sorted(set(stored) & set(expected)) if stored[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{origin or path} does not fit the model in config.yaml: '{wrong[0]}' is missing, extra or misshaped"
        )
    load_whole_(model, stored)


def load_whole_(model: nn.Module, stored: dict[str, torch.Tensor]) -> None:
    """Load whole tensors by name; of a sharded model, each process takes its rows of them."""
    own = model.state_dict()
    model.load_state_dict({name: like(tensor, own[name]) for name, tensor in stored.items()}, strict=False)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def untied(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers by name, each of them under one name only.

    A tied one is a single object, or another in the same memory. Addresses alone do not tell: sharded and empty tensors
    have none.
    """
    seen: set[tuple[str, int]] = set()
    result = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        has_address = not is_sharded(tensor) and not tensor.is_meta and tensor.numel() > 0
        marks = {("object", id(tensor))} | ({("address", tensor.data_ptr())} if has_address else set())
        if not marks & seen:
            result[name] = tensor.detach()
        seen |= marks
    return result
