"""Other people's models as arms of a comparison: nanoGPT's own model.py, and a class from transformers.

    git clone https://github.com/karpathy/nanoGPT
    nanokimi compare --data text.txt --seeds 3 \\
        --arm "nanoGPT: from=examples/models_of_others.py:NanoGPT model.folder=nanoGPT optim.lr=1e-3" \\
        --arm "Llama: from=examples/models_of_others.py:Llama optim.lr=3e-3"

Arguments of the class other than `vocab_size` and `context_length` are settings of the arm (`model.n_embd=64`). The
model is tried and audited before training; it is then trained, counted, evaluated and sampled from (without a cache)
like any other.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

import torch
from torch import nn


class NanoGPT(nn.Module):
    """`GPT` from a nanoGPT checkout, unchanged, with the sizes of nanoGPT's CPU recipe."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        folder: str = "nanoGPT",
        n_layer: int = 4,
        n_head: int = 4,
        n_embd: int = 128,
    ) -> None:
        super().__init__()
        spec = importlib.util.spec_from_file_location("nanogpt_model", Path(folder) / "model.py")
        assert spec is not None and spec.loader is not None
        theirs = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(theirs)
        sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "dropout": 0.0, "bias": False}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
            config = theirs.GPTConfig(vocab_size=vocab_size, block_size=context_length, **sizes)
            self.gpt = theirs.GPT(config)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, W). Without targets nanoGPT computes only those of the last position."""
        ids_BT = ids_BT.contiguous()  # it calls view() on them
        logits_BTW: torch.Tensor = self.gpt(ids_BT, targets=ids_BT)[0]
        return logits_BTW


class Llama(nn.Module):
    """transformers' `LlamaForCausalLM`, at the size of nanoGPT's CPU recipe."""

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int = 352,
    ) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=vocab_size,
            max_position_embeddings=context_length,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_attention_heads,
            intermediate_size=intermediate_size,
        )
        self.llama = LlamaForCausalLM(config)

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, W)."""
        logits_BTW: torch.Tensor = self.llama(input_ids=ids_BT, use_cache=False).logits
        return logits_BTW
