"""What a notebook needs: open runs, write, score and audit. `docs/python.md` shows it in use.

A run is named by its folder, as a string or a Path, or by the name of weights that come with the package; of a
comparison's folder, `arm` says which arm is meant.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from nanokimi.config.arms import slug
from nanokimi.data.parts import split_note
from nanokimi.data.sources import absolute, is_name
from nanokimi.data.store import as_validation_text
from nanokimi.data.tokenizers.own import Tokenizer
from nanokimi.errors import UserError
from nanokimi.generation.sampling import Sampling
from nanokimi.generation.text import Completion, TextSettings
from nanokimi.generation.text import complete as complete_texts
from nanokimi.inside.favourites import favourites
from nanokimi.inside.inspection import Inspection
from nanokimi.inside.look import write_and_look
from nanokimi.inside.subject import Subject, subject_of
from nanokimi.inside.view import View
from nanokimi.measure.audit import AuditResult
from nanokimi.measure.audit import audit as audit_module
from nanokimi.measure.audit_inputs import windows_of
from nanokimi.measure.evaluate import evaluate as score
from nanokimi.model.build import LanguageModel
from nanokimi.pretrained import is_shipped, run_path
from nanokimi.runtime.text import listed
from nanokimi.train.run_folder import Run, open_run, runs_in

RunPath = str | os.PathLike[str]


class Loaded(NamedTuple):
    """What `load` returns: `model, tokenizer = load("runs/x")`."""

    model: LanguageModel
    tokenizer: Tokenizer


def load(
    run: RunPath, *, arm: str | None = None, checkpoint: str = "final", device: str | None = None
) -> Loaded:
    """The trained model of a run, ready to write, and its tokenizer.

    Args:
        run: its folder, or the name of shipped weights ("tales-1m": NanoKimi, if `arm` does not name another).
        arm: of a comparison's folder, the arm (of several seeds, the first; "nanokimi/seed-2" names one).
        checkpoint: "final", "best", "last", or a step that is kept.
        device: such as "cpu" or "cuda"; None: the run's.

    Raises UserError if the folder holds no such run, or several and `arm` names none of them.
    """
    opened = open_arm(run, arm, checkpoint, device)
    opened.model.eval()
    return Loaded(opened.model, opened.data.tokenizer)


def open_arm(run: RunPath, arm: str | None, checkpoint: str, device: str | None) -> Run:
    """The one run that a folder and an arm's name mean; of shipped weights without a name, that of NanoKimi.

    Raises UserError if there is none, or several.
    """
    if not str(run).strip():
        raise UserError('the path of the run is empty: name its folder (the current one is ".")')
    folder = run_path(run)
    runs = runs_in(folder)
    if arm is None and len(runs) > 1 and is_shipped(folder):
        arm = "nanokimi"
    names = {path.relative_to(folder).as_posix() if path != folder else path.name: path for path in runs}
    if arm is None:
        if len(runs) > 1 or runs[0] != folder:
            raise UserError(
                f"{folder} is a comparison: choose an arm of it, with arm= one of {listed(names)}"
            )
        return open_run(folder, device, checkpoint)
    wanted = arm.rstrip("/")
    for name, path in sorted(names.items(), key=lambda item: len(item[0])):
        if path != folder and (name == wanted or name.rpartition("/seed-")[0] in (wanted, slug(wanted))):
            return open_run(path, device, checkpoint)
    raise UserError(f"{folder} has no arm '{arm}': there is {listed(names)}")


def complete(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 256,
    num_samples: int = 1,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    context_length: int | None = None,
) -> list[Completion]:
    """Continue one or several prompts in one batch: `num_samples` texts of each, in order, with seeds counted up.

    A text depends on its seed, not on the others of the batch (on an accelerator up to rounding). The model sees the
    last `context_length` tokens; None: as many as it has positions for.

    Raises UserError for a prompt that is empty or cannot be encoded, and for values that cannot be.
    """
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    settings = TextSettings(
        max_new_tokens=max_new_tokens,
        num_samples=num_samples,
        sampling=sampling,
        seed=seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    return complete_texts(model, tokenizer, prompts, settings, context_length=context_length)


def evaluate(
    run: RunPath,
    *,
    arm: str | None = None,
    part: str = "test",
    data: RunPath | None = None,
    checkpoint: str = "final",
    device: str | None = None,
) -> dict[str, Any]:
    """The scores of a run, as `nanokimi evaluate --json` prints them (`test_loss`, `test_bits_per_byte`, ...).

    `part` is "test" or "val"; with `data`, another text is scored whole, under the names `val_...`.
    """
    if part not in ("val", "test"):
        raise UserError(f"part is {part}: expected val or test")
    opened = open_arm(run, arm, checkpoint, device)
    return scores_of(opened, part) if data is None else scores_of(opened, "val", os.fspath(data))


def scores_of(run: Run, part: str, text: str | None = None, column: str | None = None) -> dict[str, Any]:
    """The scores of an opened run; `text` is another one, scored as if it were the validation part.

    `column` is that of the text in its records; None: the run's.
    """
    data, note = run.data, split_note(run.data.metadata)
    if text is not None:
        place = text if is_name(text) else absolute(text)
        data, note = as_validation_text(run.data, place, column, run.config.dataset.text_column), None
    train = run.config.train
    found = score(run.model, data, train.context_length, train.eval_batch_size, part=part).record()
    head = {"name": run.config.title, "seed": run.config.seed, "folder": str(run.folder)}
    tokens = {f"{part}_tokens": len(data.scored(part).ids)}
    return {**head, **tokens, **found, **({"split_note": note} if note else {})}


def audit(run: RunPath | nn.Module, *, arm: str | None = None, **options: Any) -> AuditResult:
    """Whether a model sees the tokens that it has to predict.

    Args:
        run: a run's folder, or any module that maps token ids (B, T) to logits (B, T, W); of a module,
            `vocab_size` and `context` have to be given.
        options: those of `nanokimi.measure.audit.audit`, such as `max_cuts` and `seed`.
    """
    if not isinstance(run, nn.Module):
        return audit_run(open_arm(run, arm, "final", None), **options)
    if arm is not None:
        raise UserError("arm names a run of a comparison's folder, and a module was given: leave out arm=")
    return audit_module(run, **options)


def audit_run(
    run: Run, *, vocab_size: int | None = None, context: int | None = None, **options: Any
) -> AuditResult:
    """Audit an opened run's model, also on windows of its validation text.

    Raises UserError for sizes that the model does not have.
    """
    model = run.config.family.model
    most, longest = model.vocab_size, model.max_position_embeddings
    assert most is not None and longest is not None, "resolve() fills them in"
    vocab_size = most if vocab_size is None else vocab_size
    context = run.config.train.context_length if context is None else context
    if not 2 <= vocab_size <= most or not 2 <= context <= longest:
        raise UserError("vocab_size and context must be at least 2 and at most the model's own")
    windows = [window for window in windows_of(run.data.val_ids, context) if window.max() < vocab_size]
    usual = {"batch_size": run.config.train.eval_batch_size, "windows": windows}
    return audit_module(run.model, vocab_size=vocab_size, context=context, **{**usual, **options})


def inspect(
    run: RunPath | Loaded,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    arm: str | None = None,
    checkpoint: str = "final",
    device: str | None = None,
    favourite_tokens: int = 0,
) -> Inspection:
    """Let a model continue a prompt and look inside while it does. A notebook shows the result as a view.

    Args:
        run: a run's folder, or what `load` returned (without the favourites, which need the run's text).
        max_new_tokens: 0: only read the prompt. The other words are those of `complete`.
        arm, checkpoint, device: as for `load`.
        favourite_tokens: validation tokens over which the experts' favourite tokens are counted; 0: none.

    Raises UserError for a prompt that is empty, cannot be encoded or is longer than the context.
    """
    if isinstance(run, Loaded):
        positions = run.model.config.max_position_embeddings
        assert positions is not None, "a model of a run has positions"
        name = type(run.model).__name__
        subject = Subject(name=name, model=run.model, tokenizer=run.tokenizer, context_length=positions)
    else:
        subject = subject_of(open_arm(run, arm, checkpoint, device))
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    settings = TextSettings(max_new_tokens=max_new_tokens, sampling=sampling, seed=seed)
    found = write_and_look(subject, prompt, settings)
    liked = favourites(subject, tokens=favourite_tokens) if favourite_tokens else None
    return Inspection(subject, View(found, liked))
