"""`nanokimi export` and `nanokimi import`: models out and in."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from nanokimi.cli.options import one_run, one_target, take_options
from nanokimi.config import RunConfig
from nanokimi.errors import UserError

FORMATS = ("hf", "gguf", "torchtitan")
TYPES = ("F32", "F16", "Q8_0", "Q4_0")


def run_export(arguments: list[str]) -> int:
    """`nanokimi export`."""
    options, rest = take_options(arguments, {"format": str, "out": str, "step": str, "arm": str, "type": str})
    folder = one_run(rest)
    form = str(options.get("format", "hf"))
    if form not in FORMATS:
        raise UserError(f"--format is {form}: expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if "type" in options and form != "gguf":
        raise UserError("--type is for --format gguf: leave it out")
    kind = str(options.get("type", "F32")).upper()
    if kind not in TYPES:
        raise UserError(f"--type is {options['type']}: expected {', '.join(TYPES[:-1])} or {TYPES[-1]}")
    if "out" not in options:
        needed = "FILE.gguf, or a folder for it" if form == "gguf" else "DIR, a new folder"
        raise UserError(f"export needs --out {needed}")
    from nanokimi.interop.export import export_gguf, export_hf, export_torchtitan, run_to_export

    run = run_to_export(folder, str(options["arm"]) if "arm" in options else None)
    out, checkpoint = Path(str(options["out"])), str(options.get("step", "final"))
    if form == "gguf":
        receipt, file = export_gguf(run, out, checkpoint, kind)
        print(*receipt.sentences, file, sep="\n")
    elif form == "torchtitan":
        print(*export_torchtitan(run, out, checkpoint).sentences, out, sep="\n")
        say_launch(out)
    else:
        print(*export_hf(run, out, checkpoint).sentences, out, sep="\n")
    return 0


def say_launch(out: Path) -> None:
    """Print the command that trains on in torchtitan."""
    from nanokimi.interop.torchtitan_flavor import launch_line

    print("Train on (it needs GPUs, and was not tried):", launch_line(out.absolute()), sep="\n")


def run_import(arguments: list[str]) -> int:
    """`nanokimi import`."""
    types: dict[str, Callable[[str], object]] = {"out": str, "data": str, "tokenizer": str, "context": int}
    options, rest = take_options(arguments, types)
    path = Path(one_target(rest, "folder or ckpt.pt"))
    if "out" not in options:
        raise UserError("import needs --out RUN, a new run folder")
    context = int(str(options["context"])) if "context" in options else None
    from nanokimi.interop.import_run import import_model

    out = Path(str(options["out"]))
    config = import_model(
        path,
        out,
        data=str(options.get("data", "")),
        tokenizer=str(options.get("tokenizer", "")),
        context=context,
    )
    say_imported(config, out)
    return 0


def say_imported(config: RunConfig, out: Path) -> None:
    """Print what the new run is, and what to do with it."""
    from nanokimi.measure.cost import model_cost

    cost = model_cost(config.family.model, config.train.context_length)
    kind = "NanoKimi" if config.model == "nanokimi" else "NanoGPT"
    print(f"{out}: a {kind} of {cost.params_total:,} parameters")
    print(f"Try: nanokimi sample {shlex.quote(str(out))}")
