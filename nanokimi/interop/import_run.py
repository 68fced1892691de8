"""`nanokimi import`: a model that others trained becomes a run, which every command that opens a run takes.

A run has a text. Where none is named it is the built-in stories, so that the commands work; what a score on them means
is for the user to judge. The tokenizer comes with the folder, or is named; its file is kept in the run's folder.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nanokimi.config import (
    DatasetConfig,
    GPTConfig,
    GPTFamily,
    KimiConfig,
    KimiFamily,
    RunConfig,
    TrainConfig,
)
from nanokimi.config.files import save_config
from nanokimi.config.rules import validate
from nanokimi.data.nanogpt import META, is_nanogpt_folder
from nanokimi.data.plain_pickle import read_plain_pickle
from nanokimi.data.sources import absolute, is_name, open_source
from nanokimi.data.tokenizers.foreign import is_foreign, own_files
from nanokimi.data.tokenizers.own import read_named
from nanokimi.errors import UserError
from nanokimi.interop.deepseek import Tensors, from_deepseek, has_own_head, kimi_config, require_same_shapes
from nanokimi.interop.fast_tokenizer import whole
from nanokimi.interop.gguf_tokenizer import ANY_CHARACTER
from nanokimi.interop.gpt2 import from_gpt2, gpt_config
from nanokimi.interop.hf_read import KIMI_TYPES, read_config, read_weights
from nanokimi.interop.nanogpt_file import read_nanogpt, without_masks
from nanokimi.measure.cost import model_cost
from nanokimi.model.build import build_model
from nanokimi.runtime.files import file_sha256, read_bytes, write_json
from nanokimi.train.run_folder import CONFIG_FILE, fresh_folder, keep_environment, set_up
from nanokimi.train.weights import save_weights

IMPORT_FILE = "import.json"
LONGEST_CONTEXT = 1024
"""A model with more positions is scored, and trained further, on so many, unless another context is named."""
BUILT_IN_TEXT, BUILT_IN_CHARACTERS = "tales-short", 1_000_000
SPARE_NUMBERS = 2.0
"""Times the parameters of the model, how many numbers a file may hold: heads may be stored twice, masks beside."""


@dataclass(frozen=True)
class Source:
    """A model as it was found."""

    kind: str
    config: KimiConfig | GPTConfig
    weights: Tensors
    sha256: str


def import_model(
    path: Path,
    out: Path,
    *,
    data: str = "",
    tokenizer: str = "",
    context: int | None = None,
    origin: str = "",
) -> RunConfig:
    """Make the run folder `out` of the model in `path`, and return its configuration.

    Args:
        path: a DeepSeek-V3, Kimi K2 or GPT-2 folder of Hugging Face's, or nanoGPT's ckpt.pt.
        data: what `dataset.path` may be; empty: the built-in stories.
        tokenizer: a tokenizer.json, a SentencePiece .model or nanoGPT's meta.pkl; empty: that of the folder.
        context: tokens per sequence; None: all positions of the model, LONGEST_CONTEXT at most.
        origin: where the folder came from, for import.json; empty: its name.

    Raises UserError, and leaves nothing, if any of them cannot be used.
    """
    source = read_source(path)
    positions = source.config.max_position_embeddings
    assert positions is not None, "the readers require it"
    context = min(positions, LONGEST_CONTEXT) if context is None else context
    config = configured(source.config, path, data, context)
    files = tokenizer_files(path, data, tokenizer)
    with fresh_folder(out):
        for name, content in files.items():
            (out / name).write_bytes(content)
        chosen = out / next(iter(files))
        dataset = replace(config.dataset, tokenizer=absolute(str(chosen)))
        assert source.config.vocab_size is not None, "the readers require it"
        require_ids(chosen, path, source.config.vocab_size, dataset)
        config, _ = set_up(replace(config, dataset=dataset), out)
        model = build_model(config.family.model, config.seed)
        model.load_state_dict(source.weights)
        save_weights(model, out / "model.safetensors")
        keep_environment(out, config.train.device)
        found = {
            "schema_version": 1,
            "kind": source.kind,
            "source": origin or path.resolve().name,
            "sha256": source.sha256,
        }
        write_json(out / IMPORT_FILE, {**found, "model": asdict(source.config)})
        save_config(config, out / CONFIG_FILE)
    return config


def require_ids(tokenizer: Path, path: Path, known: int, dataset: DatasetConfig) -> None:
    """Raise UserError if the model in `path`, of `known` ids, has too few for its tokenizer or for its text.

    Documents need an id for their ends, which the tokenizer of a model that was trained on a single text lacks.
    """
    found = read_named(tokenizer)
    if found.vocab_size > known:
        raise UserError(
            f"{path} has a model of {known} ids, and its tokenizer has {found.vocab_size}: name the model's own with "
            "--tokenizer"
        )
    if found.vocab_size == known and found.end_of_text_id is None and holds_documents(dataset):
        what = "the built-in stories" if dataset.path == BUILT_IN_TEXT else dataset.path
        raise UserError(
            f"{path} has a model of {known} ids, none of them for the ends of documents, as {what} would need: name a "
            "single text with --data TEXT"
        )


def holds_documents(dataset: DatasetConfig) -> bool:
    """Whether a text is of documents, and not a single one."""
    return not is_nanogpt_folder(dataset.path) and open_source(dataset).text_file is None


def read_source(path: Path) -> Source:
    """The model of a folder or file, compared with what its configuration says."""
    if path.is_dir():
        content = read_config(path)
        config = config_in(content)
        numbers = parameters_of(config)
        tensors = read_weights(path, int(SPARE_NUMBERS * numbers))
        if isinstance(config, KimiConfig):
            interleaved = content.get("rope_interleave") is not False
            tied = config.tie_word_embeddings and not has_own_head(tensors)
            config = replace(config, tie_word_embeddings=tied)
            weights = from_deepseek(tensors, config, interleaved=interleaved)
        else:
            weights, biased = from_gpt2(tensors)
            config = replace(config, bias=biased)
        kind, sha256 = content["model_type"], hash_of(path)
    elif path.is_file():
        config, weights = read_nanogpt(path)
        parameters_of(config)
        weights, kind, sha256 = without_masks(weights), "nanogpt", file_sha256(path)
    else:
        raise UserError(f"there is no file or folder {path}")
    with torch.device("meta"):
        expected = build_model(config, 0).state_dict()
    require_same_shapes(weights, expected)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"the weights hold {name} with a number that is not finite")
    return Source(kind, config, weights, sha256)


def config_in(content: dict[str, Any]) -> KimiConfig | GPTConfig:
    """The model that a config.json describes. Raises UserError if nanokimi does not have it."""
    return kimi_config(content) if content["model_type"] in KIMI_TYPES else gpt_config(content, bias=True)


def parameters_of(config: KimiConfig | GPTConfig) -> int:
    """The size of a model. Raises UserError if it is impossible, before anything of that size is made."""
    context = config.max_position_embeddings
    assert context is not None, "the readers require it"
    validate(with_model(RunConfig(train=TrainConfig(context_length=min(context, 2), max_steps=1)), config))
    return model_cost(config, 2).params_total


def hash_of(folder: Path) -> str:
    """One hash of a folder's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted((folder / "config.json", *folder.glob("*.safetensors"))):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def with_model(config: RunConfig, model: KimiConfig | GPTConfig) -> RunConfig:
    """A configuration that trains this model."""
    if isinstance(model, KimiConfig):
        return replace(config, model="nanokimi", nanokimi=KimiFamily(model=model))
    return replace(config, model="nanogpt", nanogpt=GPTFamily(model=model))


def configured(model: KimiConfig | GPTConfig, path: Path, data: str, context: int) -> RunConfig:
    """The configuration of the run, without its tokenizer."""
    text = data or BUILT_IN_TEXT
    dataset = DatasetConfig(
        path=text if is_name(text) else absolute(text), characters=None if data else BUILT_IN_CHARACTERS
    )
    name = path.resolve().stem if path.is_file() else path.resolve().name
    train = TrainConfig(context_length=context, max_steps=1000)
    return validate(with_model(RunConfig(name=name, dataset=dataset, train=train), model))


def tokenizer_files(path: Path, data: str, named: str) -> dict[str, bytes]:
    """The files that the run keeps of its tokenizer, the one to name first. Raises UserError if there is none."""
    if named.endswith(".pkl"):
        return {"tokenizer.json": characters_of(Path(named))}
    if named and not is_foreign(named):
        raise UserError(f"--tokenizer {named}: expected a tokenizer.json, a .model or nanoGPT's meta.pkl")
    candidates = [Path(named)] if named else []
    if path.is_dir() and not named:
        candidates = [path / "tokenizer.json", path / "tokenizer.model"]
    for file in candidates:
        if file.is_file():
            first, *beside = own_files(file)  # of prepared data, there may be two
            return {f"tokenizer{first.suffix}": read_bytes(first), **{f.name: read_bytes(f) for f in beside}}
    if named:
        raise UserError(f"--tokenizer {named} is not a file: check the path")
    if data and is_nanogpt_folder(data) and (Path(data) / META).is_file():
        return {"tokenizer.json": characters_of(Path(data) / META)}
    where = "has no tokenizer.json or tokenizer.model" if path.is_dir() else "holds no tokenizer"
    raise UserError(
        f"{path} {where}: name it with --tokenizer FILE (tokenizer.json, .model, or nanoGPT's meta.pkl)"
    )


def characters_of(path: Path) -> bytes:
    """A tokenizer.json of nanoGPT's characters, which refuses any other character."""
    try:
        meta = read_plain_pickle(read_bytes(path))
        characters = [meta["itos"][number] for number in range(len(meta["itos"]))]
        if not all(isinstance(one, str) and len(one) == 1 for one in characters):
            raise ValueError("its itos holds more than single characters")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be used ({error}): expected the meta.pkl of nanoGPT's characters"
        ) from None
    vocab = {character: number for number, character in enumerate(characters)}
    one_by_one = {
        "type": "Split",
        "pattern": {"Regex": ANY_CHARACTER},
        "behavior": "Isolated",
        "invert": False,
    }
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<no such character>"}
    content = whole(model, pre_tokenizer=one_by_one, decoder={"type": "Fuse"})
    return json.dumps(content, indent=1).encode()
