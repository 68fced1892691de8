"""Folders of Hugging Face's, read with suspicion: they come from anyone, and a folder may be half written.

Only safetensors are read. Names and shapes are compared before any weight is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from nanokimi.errors import UserError
from nanokimi.interop.deepseek import Tensors
from nanokimi.runtime.files import read_json
from nanokimi.runtime.text import one_line

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64", "F32", "F16", "BF16"}
MOST_SHARDS = 1000
KIMI_TYPES = ("deepseek_v3", "kimi_k2")
GPT_TYPES = ("gpt2",)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder. Raises UserError if it is missing, damaged, or of another kind of model."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: name a folder of Hugging Face's, or nanoGPT's ckpt.pt")
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise UserError(f"{folder / 'config.json'} is not an object: it is no model's")
    kind = content.get("model_type")
    if kind not in KIMI_TYPES + GPT_TYPES:
        raise UserError(
            f"{folder / 'config.json'} has model_type {str(kind)[:60]}: deepseek_v3, kimi_k2 and gpt2 can be imported"
        )
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder's weights. Raises UserError if one is missing, or they are in another form."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        found = f", only {others[0]}: save it with safe_serialization=True" if others else ""
        raise UserError(f"{folder} has no {WEIGHTS} and no {INDEX}{found}")
    for name in (names := named_shards(folder)):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which its index names: the folder is not whole")
    return [folder / name for name in names]


def named_shards(folder: Path) -> list[str]:
    """The names of the files in a folder's index. Raises UserError if it is damaged, or names one elsewhere."""
    index = read_json(folder / INDEX)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{folder / INDEX} is damaged: it has no weight_map")
    names = sorted(set(where.values()))
    if len(names) > MOST_SHARDS or not names:
        raise UserError(f"{folder / INDEX} names {len(names)} files: expected 1 to {MOST_SHARDS}")
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX} names {name[:80]}: expected safetensors files beside it")
    return names


def read_weights(folder: Path, most_numbers: int) -> Tensors:
    """All tensors of a folder, at most `most_numbers` numbers.

    Raises UserError for a file that is missing, damaged or not in floating point, and for more numbers.
    """
    tensors: Tensors = {}
    numbers = 0
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118  it is no dictionary
                    view = file.get_slice(name)
                    if view.get_dtype() not in DTYPES:
                        raise UserError(
                            f"{path} holds {name} in {view.get_dtype()}: expected one of {', '.join(sorted(DTYPES))}"
                        )
                    numbers += torch.Size(view.get_shape()).numel()
                    if numbers > most_numbers:
                        raise UserError(
                            f"{folder} holds more numbers than the model of its config.json: it is of another model"
                        )
                    if name in tensors:
                        raise UserError(f"{folder} holds {name} twice")
                    tensors[name] = file.get_tensor(name)
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            reason = one_line(error)[:200]
            raise UserError(f"{path} is damaged, or not whole ({reason})") from None
    return tensors
