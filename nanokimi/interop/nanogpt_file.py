"""nanoGPT's ckpt.pt: its weights, read without running anything that the file says.

The file is a zip archive with a pickle. torch reads it with `weights_only`, which allows tensors and plain data. A
packed archive is refused, because it could unpack to any size; so is a tensor that shows more numbers than it stores.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from nanokimi.config import GPTConfig
from nanokimi.errors import UserError
from nanokimi.interop.deepseek import Tensors, checked
from nanokimi.interop.gpt2 import HEAD
from nanokimi.runtime.text import one_line

COMPILED = "_orig_mod."
"""What torch.compile puts before every name."""


def read_nanogpt(path: Path) -> tuple[GPTConfig, Tensors]:
    """The configuration and our state dictionary of a checkpoint.

    Raises UserError for a file that is damaged, that would run code, or that is not nanoGPT's.
    """
    require_plain_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, and the pickle decides which
        reason = one_line(error).partition(". ")[0][:160]
        raise UserError(f"{path} is not nanoGPT's ckpt.pt, or would run code ({reason})") from None
    arguments = content.get("model_args") if isinstance(content, dict) else None
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise UserError(f"{path} has no model and model_args: it is not nanoGPT's ckpt.pt")
    config: GPTConfig = checked(
        GPTConfig,
        {
            "vocab_size": arguments.get("vocab_size"),
            "hidden_size": arguments.get("n_embd"),
            "num_hidden_layers": arguments.get("n_layer"),
            "num_attention_heads": arguments.get("n_head"),
            "max_position_embeddings": arguments.get("block_size"),
            "bias": arguments.get("bias", True),
            "dropout": arguments.get("dropout", 0.0),
        },
    )
    return config, dict(plain_tensor(path, name, tensor) for name, tensor in weights.items())


def require_plain_archive(path: Path) -> None:
    """Raise UserError for a file that is no zip archive, or one that is packed."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [one for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
            size = sum(one.file_size for one in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read as nanoGPT's ckpt.pt ({reason})") from None
    if packed or size > path.stat().st_size:
        raise UserError(f"{path} is a packed archive: torch.save writes them as they are")


def plain_tensor(path: Path, name: Any, tensor: Any) -> tuple[str, torch.Tensor]:
    """A parameter's name and its value in fp32. Raises UserError if it is none."""
    fine = isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
    if not fine or not tensor.is_floating_point():
        raise UserError(f"{path} holds {str(name)[:80]}, which is not a tensor of floating-point numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path} holds {name[:80]}, which shows more numbers than it stores")
    return name.removeprefix(COMPILED), tensor.float().clone().contiguous()


def without_masks(tensors: Tensors) -> Tensors:
    """The tensors without the causal masks of old versions, and with the head that is tied."""
    kept = {name: one for name, one in tensors.items() if not name.endswith(".attn.bias")}
    if "transformer.wte.weight" in kept:
        kept.setdefault(HEAD, kept["transformer.wte.weight"])
    return kept
