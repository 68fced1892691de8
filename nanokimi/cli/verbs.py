"""What each command does, from its arguments to its exit status. Heavy imports wait until a command runs."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanokimi.cli.evaluate import run_evaluate
from nanokimi.cli.hub import run_pull, run_push
from nanokimi.cli.inspect import run_inspect
from nanokimi.cli.interop import run_export, run_import
from nanokimi.cli.judge import run_judge
from nanokimi.cli.options import (
    DEFAULT_CONFIG,
    choose_config,
    one_run,
    one_target,
    print_config,
    require_data,
    take_options,
)
from nanokimi.cli.play import run_play
from nanokimi.cli.plot import run_plot
from nanokimi.cli.plugins import refuse_unused_plugins
from nanokimi.cli.resuming import begin_with, plan_run
from nanokimi.cli.sample import run_sample
from nanokimi.cli.serve import run_serve
from nanokimi.cli.studies import run_ladder, run_scale, run_sweep, take_arms
from nanokimi.config.ignored import rate_left_behind, refuse_ignored, split_arm_words
from nanokimi.errors import UserError
from nanokimi.pretrained import run_path
from nanokimi.runtime.parallel import current
from nanokimi.runtime.plugins import words_for_plugins
from nanokimi.runtime.text import one_line, visible, visible_line

if TYPE_CHECKING:
    from nanokimi.config import RunConfig
    from nanokimi.measure.audit import AuditResult


# defined elsewhere, and found here by `main`
__all__ = ["run_evaluate", "run_export", "run_import", "run_inspect", "run_judge", "run_ladder", "run_play"]
__all__ += ["run_plot", "run_pull", "run_push", "run_sample", "run_scale", "run_serve", "run_sweep"]

RUN_OPTIONS: dict[str, Callable[[str], object]] = {
    "config": str,
    "out": str,
    "resume": bool,
    "allow_changes": bool,
    "print_config": bool,
}


def run_compare(arguments: list[str]) -> int:
    """`nanokimi compare`."""
    arms, arguments = take_arms(arguments)
    options, rest = take_options(arguments, RUN_OPTIONS)
    if any(word.partition("=")[0] == "--model" for word in rest):
        raise UserError("compare trains several arms: leave out --model, or choose some with --arms")
    config, out, resume = plan_run("compare", options, rest, arms)
    refuse_unused_plugins(config, arms=True)
    if "print_config" in options:
        return print_config(config)
    require_data(config)

    from nanokimi.compare.run import compare
    from nanokimi.compare.summary import summary_table
    from nanokimi.report.search_note import is_caution

    report = compare(config, out, resume=resume, allow_changes="allow_changes" in options)
    print(fitted(report["verdict"]["sentence"]))
    if is_caution(report["search_note"]):
        print(fitted(report["search_note"]))
    print(visible(summary_table(report["arms"], terminal_width())))
    for line in (report["match"]["sentence"], report["data"]["split_note"]):
        if line:
            print(fitted(line))
    print(fitted(open_line(out)))
    return 1 if not report["verdict"]["ranked"] else 0


def terminal_width() -> int | None:
    """The width of the terminal that standard output is, or None if it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(text: str) -> str:
    """A visible text in lines that a terminal does not break inside a word; on one where the output is no terminal."""
    text, width = visible(text), terminal_width()
    return text if width is None else filled(text, width)


def filled(text: str, width: int) -> str:
    """A text in lines of at most `width` columns. Where it does not fit, three spaces end a line, too."""
    whole = [text] if len(text) <= width else text.split("   ")
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in whole
    )


def open_line(out: Path) -> str:
    """What to do with a finished run or comparison."""
    page = f"Open: {out / 'report.html'}   " if (out / "report.html").is_file() else ""
    return f"{page}Try: nanokimi sample {shlex.quote(str(out))}{words_for_plugins()}"


def run_train(arguments: list[str]) -> int:
    """`nanokimi train`."""
    arms, arguments = take_arms(arguments)
    if len(arms.added) > 1 or arms.only:
        raise UserError("train trains one arm: name it with one --arm, or a family with --model")
    options, rest = take_options(arguments, {**RUN_OPTIONS, "dry_run": bool, "init_from": str})
    begin_with(options, rest)
    if "dry_run" in options and "resume" in options:
        raise UserError("--dry-run is for a run that has not begun: leave out --resume")
    if "dry_run" in options and not current().alone:
        raise UserError("--dry-run measures a run of one process: start it without torchrun")
    config, out, resume = plan_run("train", options, rest, arms)
    refuse_unused_plugins(config, arms=False)
    if "print_config" in options:
        return print_config(config)
    require_data(config)
    if (kept := rate_left_behind(config, rest)) is not None and current().is_main:
        print(fitted(kept), file=sys.stderr)

    from nanokimi.report.by_source import source_words
    from nanokimi.train.run import train_alone
    from nanokimi.train.sharding import require_shareable

    if "dry_run" in options:
        require_shareable(config)
        return run_dry(config, out)
    result = train_alone(config, out, resume=resume, allow_changes="allow_changes" in options)
    said = (
        f"{result['name']}: test loss {result['test_loss']:.4f} nats per token, "
        f"{result['test_bits_per_byte']:.4f} bits per byte (validation loss {result['val_loss']:.4f}); {out}"
    )
    print(fitted(said))
    if "test_sources" in result:
        print(fitted(f"bits per byte, text by text: {source_words(result['test_sources'])}"))
    if result["split_note"]:
        print(fitted(result["split_note"]))
    from nanokimi.compare.again import report_again
    from nanokimi.runtime.drawing import draw_or_say

    draw_or_say(lambda: report_again(out), out, f"nanokimi report {out}")
    print(fitted(open_line(out)))
    if not result["audit"]["causal"]:
        verdict, where = result["audit"]["verdict"], result["audit"]["where"]
        print(f"{verdict}: {where}; the loss is void", file=sys.stderr)
        return 1
    return 0


def run_dry(config: RunConfig, out: Path) -> int:
    """`nanokimi train --dry-run`."""
    from nanokimi.cli.forecast_table import forecast_text
    from nanokimi.profiling.forecast import forecast

    print(visible(forecast_text(forecast(config, out))), end="")
    return 0


def run_prepare(arguments: list[str]) -> int:
    """`nanokimi prepare`."""
    from nanokimi.data.own_parts import fitted_to_data
    from nanokimi.runtime.files import default_run_folder

    options, rest = take_options(arguments, {"config": str, "out": str, "print_config": bool})
    shared, of_arm = split_arm_words(rest)
    if of_arm:
        word = of_arm[0].partition("=")[0]
        raise UserError(f"{word} has no effect with prepare, which trains nothing: leave it out")
    _, config = choose_config(options, shared)
    refuse_ignored("prepare", config, shared)
    config = fitted_to_data(config, shared)
    if "print_config" in options:
        return print_config(config)
    require_data(config)

    from nanokimi.data.sources import with_absolute_paths
    from nanokimi.data.store import prepare
    from nanokimi.data.summary import draw_summary, summary_text
    from nanokimi.runtime.drawing import draw_or_say

    name = "-".join(re.findall(r"\w+", Path(config.dataset.path).stem)) or "mixture"
    out = Path(str(options.get("out") or default_run_folder("prepare", name)))
    data = prepare(with_absolute_paths(config.dataset), out, config.train.context_length)
    print(summary_text(data), end="")
    again = "nanokimi prepare, with another --out"
    if draw_or_say(lambda: draw_summary(data, out / "summary.png"), out, again):
        print(out / "summary.png")
    return 0


def run_report(arguments: list[str]) -> int:
    """`nanokimi report`."""
    _, rest = take_options(arguments, {})
    folder = Path(one_target(rest, "folder of a run, a comparison or a study"))
    from nanokimi.compare.again import report_again

    print(f"Open: {report_again(folder)}")
    return 0


def run_audit(arguments: list[str]) -> int:
    """`nanokimi audit`."""
    options, rest = take_options(arguments, {"vocab_size": int, "context": int, "device": str})
    target = one_target(rest, "run folder or FILE.py:NAME")
    results = audit_file(target, options) if ".py:" in target else audit_runs(run_path(target), options)
    for name, result in zip(map(visible_line, results), results.values(), strict=True):
        evidence = (
            f"max leak {result.max_leak:.3g} of logits, {result.cuts} cuts, context {result.context_length}"
        )
        if not result.causal:
            print(f"{name}: {result.verdict}: {result.where} ({evidence})")
            continue
        print(f"{name}: causal ({evidence}, {result.passes} passes)")
        print("  not excluded:", *result.not_excluded, sep="\n  - ")
    return 0 if all(result.causal for result in results.values()) else 1


def audit_runs(folder: Path, options: dict[str, object]) -> dict[str, AuditResult]:
    """Audit the model of each run in `folder`."""
    from nanokimi.api import audit_run
    from nanokimi.train.run_folder import open_run, runs_in

    sizes = {name: int(str(options[name])) for name in ("vocab_size", "context") if name in options}
    device = str(options["device"]) if "device" in options else None
    results = {}
    for run_folder in runs_in(folder):
        run = open_run(run_folder, device)
        results[run_title(run_folder, folder, run.config.title)] = audit_run(run, **sizes)
    return results


def run_title(run: Path, folder: Path, title: str) -> str:
    """The title of a run, with its seed if it is one of several."""
    return f"{title}, {run.name}" if run != folder and run.name.startswith("seed-") else title


def audit_file(target: str, options: dict[str, object]) -> dict[str, AuditResult]:
    """Audit a module that the user's file builds. Any error in that file is bad input."""
    import torch

    from nanokimi.measure.audit import audit
    from nanokimi.runtime.device import choose_device

    path, _, name = target.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    for option in ("vocab_size", "context"):
        if int(str(options.get(option, 0))) < 2:
            raise UserError(f"auditing a file needs --{option} of at least 2")
    device = choose_device(str(options.get("device", "cpu")))
    try:
        module = build_module(path, name)
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"{name}() returned {type(module).__name__}: expected a torch.nn.Module")
        vocab_size, context = int(str(options["vocab_size"])), int(str(options["context"]))
        return {name: audit(module.to(device), vocab_size=vocab_size, context=context)}
    except (Exception, SystemExit) as error:
        reason = one_line(error) or "no message"
        raise UserError(f"{target} cannot be audited: {type(error).__name__}: {reason}") from None


def build_module(path: str, name: str) -> object:
    """Run the file and call what it defines under `name`."""
    import runpy

    sys.path.insert(0, str(Path(path).resolve().parent))  # the file may import its neighbours
    found = runpy.run_path(path).get(name)
    if not callable(found):
        raise NameError(f"{path} defines no function or class '{name}'")
    return found()


def run_prune(arguments: list[str]) -> int:
    """`nanokimi prune`."""
    from nanokimi.runtime.files import default_run_folder

    options, rest = take_options(arguments, {"keep": int, "recover": int, "out": str, "device": str})
    folder = one_run(rest)
    if "keep" not in options:
        raise UserError("prune needs --keep N, the number of experts to keep in each layer")
    keep, recover = int(str(options["keep"])), int(str(options.get("recover", 0)))
    if recover < 0:
        raise UserError(f"--recover is {recover}: it must be 0 or more")

    from nanokimi.train.prune import prune
    from nanokimi.train.run_folder import runs_in

    if len(runs_in(folder)) > 1:
        raise UserError(f"{folder} is a comparison: name one of its arms, for example {runs_in(folder)[0]}")
    out = Path(str(options.get("out") or default_run_folder("prune", folder.resolve().name)))
    device = str(options["device"]) if "device" in options else None
    found = prune(folder, out, keep=keep, recover_steps=recover, device=device)
    print(f"{found['kept']} of {found['of']} experts in each layer, by their use on the validation text")
    print(f"validation loss before   {found['val_loss_before']:.4f} nats per token")
    print(f"                pruned   {found['val_loss_pruned']:.4f}")
    if recover > 0:
        print(f"                recovered {found['val_loss_recovered']:.4f} after {recover} steps")
    print(out)
    return 0


def run_bench(arguments: list[str]) -> int:
    """`nanokimi bench`."""
    from nanokimi.config.files import load_config

    types: dict[str, Callable[[str], object]] = {
        "config": str,
        "quick": bool,
        "json": bool,
        "print_config": bool,
    }
    options, rest = take_options(arguments, types)
    config = load_config(str(options.get("config", DEFAULT_CONFIG)), rest)
    refuse_ignored("bench", config, rest)
    if "print_config" in options:
        return print_config(config)

    import json
    from dataclasses import asdict

    from nanokimi.cli.bench_table import bench_text
    from nanokimi.profiling.bench import run_bench as measure

    found = measure(config, quick="quick" in options)
    print(json.dumps(asdict(found)) + "\n" if "json" in options else visible(bench_text(found)), end="")
    return 0
