"""The command line. Each verb imports what it needs when it runs, so that `--help` is instant.

Exit status: 0 done, 1 a leak found or a run that could not go on, 2 bad input (one line says what), 130 / 143 stopped
by a signal after saving.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanokimi.errors import TrainingError, UserError

if TYPE_CHECKING:
    from nanokimi.measure.audit import AuditResult

HELP = """\
nanokimi: train Kimi K2's ideas at nano scale beside NanoGPT, and measure honestly which is better.

usage: nanokimi VERB [options]

  compare    train NanoKimi and NanoGPT on the same text and write one report
  train      train one of them
  sample     continue a prompt with a trained model
  evaluate   score a trained model on the whole validation text
  audit      prove that a model does not read the answer (exit status 1 if it does)

`nanokimi VERB --help` shows a verb's options. First steps: nanokimi compare --data path/to/text.txt
"""

RUN_OPTIONS = """\
  --config NAME_OR_PATH   a preset or a YAML file (default: {default}); presets: {presets}
  --data PATH             the text, UTF-8 (short for --dataset.path)
  --out DIR               a new folder for the results (default: the next free runs/{verb}-...)
  --seed N                initial weights, batches and samples follow from it
  --resume                continue the interrupted run in --out
"""

DEFAULT_CONFIG = "shakespeare-char"

USAGE = {
    "compare": "usage: nanokimi compare --data PATH [options] [--any.setting VALUE ...]\n\n" + RUN_OPTIONS,
    "train": "usage: nanokimi train --data PATH [options] [--any.setting VALUE ...]\n\n"
    + RUN_OPTIONS
    + "  --model NAME            nanokimi (default) or nanogpt\n",
    "sample": """\
usage: nanokimi sample RUN_FOLDER [options]

  RUN_FOLDER              of `train`, or of `compare` (both models answer)
  --prompt TEXT           what to continue (default: the run's own prompts)
  --max_new_tokens N      tokens to write
  --temperature X         0: always the likeliest token
  --top_k N, --top_p X    draw among the likeliest tokens only
  --seed N                (default: the run's)
  --device NAME           (default: the run's)
""",
    "evaluate": """\
usage: nanokimi evaluate RUN_FOLDER [options]

  RUN_FOLDER              of `train`, or of `compare` (both models are scored)
  --data PATH             score this text instead, all of it, with the run's tokenizer
  --device NAME           (default: the run's)
Prints one JSON object for each model.
""",
    "audit": """\
usage: nanokimi audit RUN_FOLDER [options]
       nanokimi audit FILE.py:NAME --vocab_size N --context N [options]

  RUN_FOLDER              of `train`, or of `compare` (both models are audited)
  FILE.py:NAME            a function or class of yours that, called without arguments, returns an nn.Module which
                          maps token ids to logits; the file is executed
  --vocab_size N          number of token ids
  --context N             sequence length to test (default for a run: its own)
  --device NAME           (default for a run: its own)
Exit status 1 if a model is LEAKING.
""",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verbs: dict[str, Callable[[list[str]], int]] = {
        "compare": run_compare,
        "train": run_train,
        "sample": run_sample,
        "evaluate": run_evaluate,
        "audit": run_audit,
    }
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(HELP, end="")
            return 0 if arguments else 2
        verb = arguments[0]
        if verb == "--version":
            from nanokimi import __version__

            print(f"nanokimi {__version__}")
            return 0
        if verb not in verbs:
            from nanokimi.config.files import nearest

            raise UserError(f"there is no verb '{verb}'{nearest(verb, list(verbs))}")
        if any(option in ("-h", "--help") for option in arguments[1:]):
            print_verb_help(verb)
            return 0
        return verbs[verb](arguments[1:])
    except UserError as error:
        print(f"nanokimi: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"nanokimi: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nanokimi: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 141


def print_verb_help(verb: str) -> None:
    """A verb's own options, and for `compare` and `train` every setting with its default."""
    from nanokimi.config.files import preset_names, settings_help

    text = USAGE[verb]
    if verb in ("compare", "train"):
        text = text.format(default=DEFAULT_CONFIG, presets=", ".join(preset_names()), verb=verb)
        text += "\nSettings (defaults before the preset is applied):\n\n" + settings_help()
    print(text, end="")


def take_options(
    arguments: list[str], named: dict[str, Callable[[str], object]]
) -> tuple[dict[str, object], list[str]]:
    """Take the options of `named` (with their types) out of `arguments`; return their values and the rest."""
    values: dict[str, object] = {}
    rest = []
    remaining = list(arguments)
    while remaining:
        word = remaining.pop(0)
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in named:
            rest.append(word)
            continue
        if named[name] is bool:
            values[name] = True
            continue
        if not equals:
            if not remaining:
                raise UserError(f"option {option} needs a value")
            value = remaining.pop(0)
        try:
            values[name] = named[name](value)
        except ValueError:
            raise UserError(
                f"{option} is {value}: expected {'a whole number' if named[name] is int else 'a number'}"
            ) from None
    return values, rest


def run_compare(arguments: list[str]) -> int:
    """`nanokimi compare`."""
    from nanokimi.config.files import load_config
    from nanokimi.runtime.files import default_run_folder

    options, rest = take_options(arguments, {"config": str, "out": str, "resume": bool})
    name = str(options.get("config", DEFAULT_CONFIG))
    out = resume_folder(options, rest) if "resume" in options else None
    config = load_config(name, rest)
    out = out or Path(str(options.get("out") or default_run_folder("compare", Path(name).stem)))
    if "resume" not in options:
        require_data(config.dataset.path)

    from nanokimi.compare.run import compare
    from nanokimi.compare.summary import summary_table
    from nanokimi.runtime.interrupts import Interrupted

    try:
        report = compare(config, out, resume="resume" in options)
    except Interrupted as stop:
        print(f"nanokimi: {stop}", file=sys.stderr)
        return stop.exit_status
    print(summary_table(report["runs"]))
    print(report["verdict"]["sentence"])
    print(f"{out / 'report.html'}")
    return 1 if not report["verdict"]["ranked"] else 0


def run_train(arguments: list[str]) -> int:
    """`nanokimi train`."""
    from nanokimi.config.files import load_config
    from nanokimi.runtime.files import default_run_folder

    options, rest = take_options(arguments, {"config": str, "out": str, "resume": bool})
    name = str(options.get("config", DEFAULT_CONFIG))
    resumed = resume_folder(options, rest) if "resume" in options else None
    config = load_config(str(resumed / "config.yaml") if resumed else name, rest)
    if not resumed:
        require_data(config.dataset.path)
    out = resumed or Path(str(options.get("out") or default_run_folder(config.model, Path(name).stem)))

    from nanokimi.runtime.interrupts import Interrupted
    from nanokimi.train.alone import train_alone

    try:
        result = train_alone(config, out, resume=resumed is not None)
    except Interrupted as stop:
        print(f"nanokimi: {stop}", file=sys.stderr)
        return stop.exit_status
    print(
        f"{result['name']}: validation loss {result['val_loss']:.4f} nats per token, "
        f"{result['val_bits_per_byte']:.4f} bits per byte; {out}"
    )
    if not result["audit"]["causal"]:
        print(f"LEAKING: {result['audit']['where']}; the loss is void", file=sys.stderr)
        return 1
    return 0


def require_data(path: str) -> None:
    """Refuse a missing text before anything is imported or written."""
    if not path:
        raise UserError("no text given: name one with --data path/to/text.txt")


def resume_folder(options: dict[str, object], rest: list[str]) -> Path:
    """The folder to resume; nothing of the configuration may be changed."""
    if "out" not in options:
        raise UserError("--resume needs --out DIR, the folder of the interrupted run")
    if rest or "config" in options:
        raise UserError("--resume repeats the run's own configuration: leave out every other option")
    folder = Path(str(options["out"]))
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run to resume: it has no config.yaml")
    return folder


def one_target(rest: list[str], what: str) -> str:
    """The single word that is not an option."""
    unknown = [word for word in rest if word.startswith("--")]
    if unknown:
        raise UserError(f"there is no option {unknown[0].partition('=')[0]} here; see --help")
    if len(rest) != 1:
        raise UserError(f"expected one {what}, got {len(rest)}; see --help")
    return rest[0]


def run_sample(arguments: list[str]) -> int:
    """`nanokimi sample`."""
    types = {
        "prompt": str,
        "max_new_tokens": int,
        "temperature": float,
        "top_k": int,
        "top_p": float,
        "seed": int,
    }
    options, rest = take_options(arguments, {**types, "device": str})
    folder = Path(one_target(rest, "run folder"))
    from dataclasses import replace

    from nanokimi.config import DISPLAY_NAMES
    from nanokimi.config.rules import validate
    from nanokimi.generation.story import stream_story
    from nanokimi.train.runs import open_run, runs_in

    device = options.pop("device", None)
    prompt = options.pop("prompt", None)
    for run_folder in runs_in(folder):
        run = open_run(run_folder, str(device) if device else None)
        sample = replace(run.config.sample, **{k: v for k, v in options.items() if k != "seed"})  # type: ignore[arg-type]
        if prompt is not None:
            sample = replace(sample, prompts=(str(prompt),))
        config = validate(
            replace(run.config, sample=sample, seed=int(str(options.get("seed", run.config.seed))))
        )
        for text in config.sample.prompts:
            print(f"--- {DISPLAY_NAMES[config.model]}\n{text}", end="", flush=True)
            for piece in stream_story(run.model, run.data.tokenizer, text, config):
                print(piece, end="", flush=True)
            print()
    return 0


def run_evaluate(arguments: list[str]) -> int:
    """`nanokimi evaluate`."""
    import json

    options, rest = take_options(arguments, {"data": str, "device": str})
    folder = Path(one_target(rest, "run folder"))
    from nanokimi.config import DISPLAY_NAMES
    from nanokimi.data.store import as_validation_text
    from nanokimi.measure.evaluate import evaluate
    from nanokimi.train.runs import open_run, runs_in

    for run_folder in runs_in(folder):
        run = open_run(run_folder, str(options["device"]) if "device" in options else None)
        data = as_validation_text(run.data, str(options["data"])) if "data" in options else run.data
        train = run.config.train
        scores = evaluate(run.model, data, train.context_length, train.eval_batch_size).record()
        tokens = {"val_tokens": len(data.val_ids)}
        print(
            json.dumps(
                {"name": DISPLAY_NAMES[run.config.model], "folder": str(run_folder), **tokens, **scores}
            )
        )
    return 0


def run_audit(arguments: list[str]) -> int:
    """`nanokimi audit`."""
    options, rest = take_options(arguments, {"vocab_size": int, "context": int, "device": str})
    target = one_target(rest, "run folder or FILE.py:NAME")
    results = audit_file(target, options) if ".py:" in target else audit_runs(Path(target), options)
    for name, result in results.items():
        evidence = (
            f"max leak {result.max_leak:.3g} of logits, {result.cuts} cuts, context {result.context_length}"
        )
        print(
            f"{name}: causal ({evidence})"
            if result.causal
            else f"{name}: LEAKING: {result.where} ({evidence})"
        )
    return 0 if all(result.causal for result in results.values()) else 1


def audit_runs(folder: Path, options: dict[str, object]) -> dict[str, AuditResult]:
    """Audit the model of each run in `folder`."""
    from nanokimi.config import DISPLAY_NAMES
    from nanokimi.measure.audit import audit
    from nanokimi.train.runs import open_run, runs_in

    results = {}
    for run_folder in runs_in(folder):
        run = open_run(run_folder, str(options["device"]) if "device" in options else None)
        vocab_size = int(str(options.get("vocab_size", run.config.arm.model.vocab_size)))
        context = int(str(options.get("context", run.config.train.context_length)))
        limits = (
            (vocab_size, run.config.arm.model.vocab_size),
            (context, run.config.arm.model.max_position_embeddings),
        )
        if any(limit is None or not 2 <= value <= limit for value, limit in limits):
            raise UserError("--vocab_size and --context must be at least 2 and at most the model's own")
        results[DISPLAY_NAMES[run.config.model]] = audit(run.model, vocab_size=vocab_size, context=context)
    return results


def audit_file(target: str, options: dict[str, object]) -> dict[str, AuditResult]:
    """Audit a module that a file of the user's builds."""
    import runpy

    import torch

    from nanokimi.measure.audit import audit
    from nanokimi.runtime.device import choose_device

    path, _, name = target.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    for option in ("vocab_size", "context"):
        if int(str(options.get(option, 0))) < 2:
            raise UserError(f"auditing a file needs --{option} of at least 2")
    found = runpy.run_path(path).get(name)
    if not callable(found):
        raise UserError(f"{path} defines no function or class '{name}'")
    module = found()
    if not isinstance(module, torch.nn.Module):
        raise UserError(f"{name}() in {path} returned {type(module).__name__}: expected a torch.nn.Module")
    module = module.to(choose_device(str(options.get("device", "cpu"))))
    try:
        result = audit(
            module, vocab_size=int(str(options["vocab_size"])), context=int(str(options["context"]))
        )
    except ValueError as error:
        raise UserError(f"{target}: {error}") from None
    return {name: result}


if __name__ == "__main__":
    sys.exit(main())
