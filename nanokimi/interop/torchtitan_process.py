"""Run an exported folder in torchtitan in a process that imports the flavor file and changes two functions.

`python -m nanokimi.interop.torchtitan_process REQUEST.json RESULT.npz`

It goes torchtitan's own way: the configuration that its trainer would get, the model that this builds, the tensors as
its checkpointer reads them. Two changes make that run on a CPU: FlexAttention and its mask are not compiled, and, for
the comparison, experts are not rounded to bf16 on the way.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nanokimi.interop.torchtitan_flavor import FLAVOR_FILE


def run_torchtitan(request: dict[str, Any]) -> dict[str, np.ndarray]:
    """What torchtitan makes of a folder.

    Args:
        request: "folder", "windows" (B lists of T ids), "prompts" (P lists of ids), "count" (tokens to write after each
            prompt) and "lines" (texts).

    Returns:
        "logits" (B, T, W) in fp32, "rounded_logits" with experts in bf16, "written" (P, count), "ids" of all lines with
        "lengths" of each, "end" of text (empty without one), and the texts of "special" tokens.
    """
    folder = request["folder"]
    model = loaded_model(folder)
    windows = torch.tensor(request["windows"])
    prompts = torch.tensor(request["prompts"])
    rounded = logits(model, windows)
    with experts_in_fp32():
        exact = logits(model, windows)
        written = greedy(model, prompts, request["count"])
    ids, end, special = encoded(folder, request["lines"])
    return {
        "logits": exact.numpy(),
        "rounded_logits": rounded.numpy(),
        "written": written.numpy(),
        "ids": np.array([token for line in ids for token in line], dtype=np.int64),
        "lengths": np.array([len(line) for line in ids], dtype=np.int64),
        "end": np.array([] if end is None else [end], dtype=np.int64),
        "special": np.array(special, dtype=np.str_),
    }


def loaded_model(folder: str) -> Any:
    """torchtitan's model of the flavor file, with the folder's weights as torchtitan's checkpointer reads them.

    Raises ValueError if it leaves out a tensor of the folder that holds a number.
    """
    from safetensors import safe_open
    from torch.distributed.checkpoint.state_dict_loader import load

    trainer = flavor_module(Path(folder, FLAVOR_FILE)).nanokimi()
    spec = trainer.model_spec
    spec.model.update_from_config(config=trainer)
    model = spec.model.build()
    adapter = spec.state_dict_adapter(spec.model, folder)
    tensors = adapter.to_hf({name: torch.full_like(t, torch.nan) for name, t in model.state_dict().items()})
    with safe_open(Path(folder, "model.safetensors"), "pt") as stored:
        left_out = [n for n in stored.keys() if n not in tensors and 0 not in stored.get_slice(n).get_shape()]
    if left_out:
        raise ValueError(f"it leaves out {left_out[0]}")
    load(tensors, storage_reader=adapter.get_hf_storage_reader(folder), no_dist=True)
    model.load_state_dict(adapter.from_hf(tensors))
    return model.eval()


def flavor_module(path: Path) -> Any:
    """The flavor file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.inference_mode()
def logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    """The logits of a batch (B, T, W)."""
    from torch.nn.attention import flex_attention as flex
    from torchtitan.models.common import attention

    attention.FlexAttention._compiled_flex_attn = staticmethod(flex.flex_attention)
    attention._compiled_create_block_mask = flex.create_block_mask
    positions_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    masks = model.get_attention_masks(positions=positions_BT)
    result: torch.Tensor = model(ids_BT, positions=positions_BT, attention_masks=masks)
    return result.float()


@contextmanager
def experts_in_fp32() -> Iterator[None]:
    """Leave out the rounding that torchtitan's experts do whatever the dtype of the model is."""
    rounding = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = torch.Tensor.float  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.bfloat16 = rounding  # type: ignore[method-assign]


def greedy(model: Any, prompts_PT: torch.Tensor, count: int) -> torch.Tensor:
    """The likeliest tokens after each prompt (P, count)."""
    ids = prompts_PT
    for _ in range(count):
        ids = torch.cat((ids, logits(model, ids)[:, -1:].argmax(dim=-1)), dim=1)
    return ids[:, prompts_PT.shape[1] :]


def encoded(folder: str, lines: list[str]) -> tuple[list[list[int]], int | None, list[str]]:
    """The ids of lines in torchtitan's tokenizer, without what it puts around a document, its end-of-text and the texts
    of its special tokens.
    """
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer(tokenizer_path=folder)
    ids = [tokenizer.encode(line, add_bos=False, add_eos=False) for line in lines]
    added = tokenizer.tokenizer.get_added_tokens_decoder().values()
    return ids, tokenizer.eos_id, [token.content for token in added if token.special]


def main() -> None:
    """Read the request, and write the result."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    np.savez(sys.argv[2], **run_torchtitan(request))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
