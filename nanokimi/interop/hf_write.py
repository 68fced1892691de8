"""A run's model as a folder of Hugging Face's, in the form of a stock class: configuration, weights, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from nanokimi.config import GPTConfig, KimiConfig, VariantConfig
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import UserError
from nanokimi.interop.deepseek import Tensors, deepseek_config, to_deepseek
from nanokimi.interop.fast_tokenizer import fast_tokenizer, tokenizer_config
from nanokimi.interop.gpt2 import gpt2_config, to_gpt2
from nanokimi.model.build import LanguageModel
from nanokimi.runtime.files import write_json
from nanokimi.train.weights import save_tensors


def stock_config(model: LanguageModel) -> dict[str, Any]:
    """The config.json of the stock class that computes what a model does. Raises UserError if there is none."""
    if isinstance(model.config, KimiConfig):
        return deepseek_config(model.config)
    if isinstance(model.config, GPTConfig):
        return gpt2_config(model.config)
    family = "variant" if isinstance(model.config, VariantConfig) else "module"
    raise UserError(
        f"a model of the family {family} has no stock class in transformers: only NanoKimi "
        "(DeepseekV3ForCausalLM) and NanoGPT (GPT2LMHeadModel) can be exported"
    )


def stock_weights(model: LanguageModel) -> Tensors:
    """The tensors of the stock class, in fp32 on the CPU."""
    weights = {name: tensor.detach().float().cpu() for name, tensor in model.state_dict().items()}
    if isinstance(model.config, KimiConfig):
        return to_deepseek(weights, model.config)
    return to_gpt2(weights)


def write_hf_folder(
    model: LanguageModel, tokenizer: Tokenizer, context_length: int, folder: Path, *, starts: bool = True
) -> None:
    """Write everything but the model card into an existing empty folder.

    With `starts` the tokenizer puts end-of-text before a text whose model was trained on documents. Raises UserError
    for a model without a stock class.
    """
    start = tokenizer.start_id if starts else None
    special = {"bos_token_id": start, "eos_token_id": tokenizer.end_of_text_id, "pad_token_id": None}
    write_json(folder / "config.json", {**stock_config(model), "dtype": "float32", **special})
    settings = {name: number for name, number in special.items() if number is not None}
    write_json(folder / "generation_config.json", {"do_sample": False, **settings})
    write_json(folder / "tokenizer.json", fast_tokenizer(tokenizer, starts=starts))
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, context_length, starts=starts))
    with torch.no_grad():
        save_tensors(stock_weights(model), folder / "model.safetensors")
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # it is written for its owner alone
