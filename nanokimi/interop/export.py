"""`nanokimi export`: a run's model in another program's form, checked before the folder gets its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanokimi.config.arms import slug
from nanokimi.errors import UserError
from nanokimi.interop.card import model_card, origin
from nanokimi.interop.gguf_file import require_gguf, verify_gguf, write_gguf
from nanokimi.interop.gguf_model import (
    gguf_model,
    require_same_model,
    require_whole_blocks,
    with_stored_weights,
)
from nanokimi.interop.gguf_tokenizer import gguf_tokenizer
from nanokimi.interop.gguf_verify import GgufReceipt, has_llama, verify_in_llama
from nanokimi.interop.hf_write import stock_config, write_hf_folder
from nanokimi.interop.torchtitan_flavor import FLAVOR_FILE, flavor_file
from nanokimi.interop.torchtitan_verify import HandOverReceipt, has_torchtitan, verify_in_torchtitan
from nanokimi.interop.verify import Receipt, require_transformers, verify_hf_folder
from nanokimi.runtime.files import first_missing, remove_what_was_made, write_atomic
from nanokimi.train.run_folder import first_seeds, open_run

Say = Callable[[str], None]


def export_hf(folder: Path, out: Path, checkpoint: str) -> Receipt:
    """Write a Hugging Face folder of the run in `folder` to `out`, reload it and compare.

    Raises:
        UserError: there is no such run, no stock class for it, or `out` cannot be used.
        TrainingError: what was reloaded computes something else. There is no folder then.
    """
    require_transformers()
    run = open_run(folder, "cpu", checkpoint)
    stock_class = stock_config(run.model)["architectures"][0]
    context_length = run.model.config.max_position_embeddings
    assert context_length is not None, "resolve() fills this in"
    with finished_folder(out) as partial:
        write_hf_folder(run.model, run.data.tokenizer, context_length, partial)
        receipt = verify_hf_folder(partial, run.model, run.data, context_length)
        write_atomic(partial / "README.md", model_card(run, checkpoint, stock_class, receipt))
    return receipt


def export_torchtitan(folder: Path, out: Path, checkpoint: str) -> HandOverReceipt:
    """Write a Hugging Face folder with a flavor file of torchtitan to `out`, load it in both programs and compare.

    The tokenizer puts nothing before a text, since torchtitan's loader ends each document with end-of-text, as ours
    does. Where torchtitan is not installed, the receipt says that it was not verified there.

    Raises:
        UserError: there is no such run, torchtitan has no form for it, or `out` cannot be used.
        TrainingError: what was reloaded computes something else. There is no folder then.
    """
    require_transformers()
    run = open_run(folder, "cpu", checkpoint)
    flavor = flavor_file(run.model, run.config)
    stock_class = stock_config(run.model)["architectures"][0]
    context_length = run.model.config.max_position_embeddings
    assert context_length is not None, "resolve() fills this in"
    with finished_folder(out) as partial:
        write_hf_folder(run.model, run.data.tokenizer, context_length, partial, starts=False)
        write_atomic(partial / FLAVOR_FILE, flavor)
        stock = verify_hf_folder(partial, run.model, run.data, context_length, starts=False)
        titan = None
        if has_torchtitan():
            titan = verify_in_torchtitan(partial, run.model, run.data, context_length)
        receipt = HandOverReceipt(stock, titan)
        write_atomic(partial / "README.md", model_card(run, checkpoint, stock_class, receipt))
    return receipt


@contextmanager
def finished_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`, which gets that name when the block has ended well and is removed otherwise.

    Raises UserError if `out` holds something, or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists, and an export never overwrites: choose another --out")
    place = Path(os.path.realpath(out))  # "." has no name, and a link to an empty folder stays one
    made = first_missing(place.parent)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
    except (OSError, ValueError) as error:
        raise UserError(cannot_write(out, made, error)) from None
    try:
        yield partial
        if place.exists():
            place.rmdir()
        os.replace(partial, place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if made is not None:
            remove_what_was_made(made, made)
        raise


def export_gguf(folder: Path, out: Path, checkpoint: str, kind: str) -> tuple[GgufReceipt, Path]:
    """Write a GGUF file of the run in `folder`, with weights of type `kind`, and compare what it holds and computes.

    `out` is a file if its name ends in .gguf, and otherwise a folder that gets `model-KIND.gguf`. Returns the receipt
    and the file.

    Raises:
        UserError: there is no such run, llama.cpp has no form for it, or `out` cannot be used.
        TrainingError: what was read back, or what llama.cpp computes, is something else. There is no file then.
    """
    require_gguf()
    run = open_run(folder, "cpu", checkpoint)
    content, tokenizer = gguf_model(run.model), run.data.tokenizer
    require_whole_blocks(content, kind)
    vocab_size, context_length = run.model.config.vocab_size, run.model.config.max_position_embeddings
    assert vocab_size is not None and context_length is not None, "resolve() fills these in"
    description = f"A small language model, {origin(run)}"
    about = {"general.name": run.config.title, "general.description": description}
    metadata = {**about, **content.metadata, **gguf_tokenizer(tokenizer, vocab_size)}
    file = out if out.name.endswith(".gguf") else out / f"model-{kind}.gguf"
    with finished_file(file) as partial:
        require_same_model(run.model, content)
        write_gguf(partial, content, metadata, kind)
        stored, error = verify_gguf(partial, content, metadata, kind)
        llama = None
        if has_llama():
            models = run.model, with_stored_weights(run.model, stored)
            llama = verify_in_llama(partial, models, run.data, context_length, (content.architecture, kind))
    return GgufReceipt(kind, len(stored), error, llama), file


@contextmanager
def finished_file(out: Path) -> Iterator[Path]:
    """A file beside `out`, which gets that name when the block has ended well and is removed otherwise.

    Raises UserError if `out` exists, or cannot be written.
    """
    if os.path.lexists(out):
        raise UserError(f"{out} exists, and an export never overwrites: choose another --out")
    folder = out.absolute().parent
    made = first_missing(folder)
    partial = folder / f".{out.name}.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except (OSError, ValueError) as error:
        raise UserError(cannot_write(out, made, error)) from None
    try:
        yield partial
        os.replace(partial, out)
    except BaseException:
        partial.unlink(missing_ok=True)
        if made is not None:
            remove_what_was_made(made, made)
        raise


def cannot_write(out: Path, made: Path | None, error: Exception) -> str:
    """The message for an `out` that cannot be made; folders `made` for it are removed."""
    if made is not None and made.exists():
        remove_what_was_made(made, made)
    return f"cannot write {out}: {getattr(error, 'strerror', None) or error}; choose another --out"


def run_to_export(folder: Path, arm: str | None) -> Path:
    """The folder of the one run that is meant: of a comparison, the first seed of an arm.

    Raises UserError if an arm has to be named, or there is none of that name.
    """
    runs = first_seeds(folder)
    if arm is None and len(runs) == 1:
        return runs[0]
    names = {run.parent.name if run.name.startswith("seed-") else run.name: run for run in runs}
    shown = ", ".join(names)
    if arm is None:
        raise UserError(f"{folder} is a comparison: name one of its arms with --arm: {shown}")
    found = [run for name, run in names.items() if arm in (name, run.name) or slug(arm) == name]
    if len(found) != 1 or len(runs) == 1 and runs[0] == folder:
        raise UserError(f"{folder} has no arm '{arm}': there is {shown}")
    return found[0]
