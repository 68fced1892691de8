"""The commands that run many small trainings: sweep, ladder, scale."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanokimi.cli.options import default_folder, print_config, require_data, take_options
from nanokimi.cli.plugins import name_arm_sources, refuse_unused_plugins
from nanokimi.cli.resuming import ArmWords, configured
from nanokimi.errors import UserError
from nanokimi.runtime.plugins import named_plugins
from nanokimi.runtime.text import visible, visible_line

if TYPE_CHECKING:
    from nanokimi.config import RunConfig
    from nanokimi.study.ladder_run import LadderOptions

Types = dict[str, Callable[[str], object]]

SHARED: Types = {"config": str, "out": str, "workers": int, "keep": bool, "print_config": bool}
GRID: Types = {"points": int, "factor": float, "rounds": int, "seeds": int}
SEARCH: Types = {"trials": int, "search_rounds": int}
TUNING: Types = {
    **GRID,
    **SEARCH,
    **{"search": str, "tuning_seeds": int, "tuned": str, "no_tune": bool, "quick": bool},
}
NOT_IN_A_SEARCH = ("vary", "grid", "around", "factor", "points", "rounds", "optuna")
NOT_WHEN_INHERITING = ("search", "vary", "grid", "around", "optuna", *SEARCH)
QUICK_SHARE = 4
NO_ARM_WORDS = ArmWords()
MAX_FACTOR, MAX_CENTRE = 1000, 1e15
LIMITS = {
    "workers": (1, 1024),
    "points": (2, 100),
    "rounds": (0, 20),
    "seeds": (1, 1000),
    "tuning_seeds": (1, 100),
    "trials": (2, 4096),
    "search_rounds": (0, 20),
    "optuna": (1, 10_000),
}


def run_sweep(arguments: list[str]) -> int:
    """`nanokimi sweep`."""
    arms, arguments = take_arms(arguments)
    types: Types = {**SHARED, **GRID, **SEARCH, "search": bool, "model": str, "vary": str, "grid": str}
    options, rest = take_options(arguments, {**types, "around": float, "optuna": int, "inherit": str})
    config, out = start("sweep", options, rest, arms)
    refuse_unused_plugins(config, arms=True)
    if "print_config" in options:
        return print_config(config)
    if "search" in options or "inherit" in options:
        return search_arms(config, out, options)
    for name in SEARCH:
        if name in options:
            raise UserError(f"--{name.replace('_', '-')} is only for --search: give both, or neither")

    from nanokimi.study.sweep import SweepOptions, sweep_text
    from nanokimi.study.sweep import run_sweep as sweep

    grid = tuple(word.strip() for word in str(options.get("grid", "")).split(",") if word.strip())
    if "grid" in options and not grid:
        raise UserError(f"--grid is '{options['grid']}': expected values with commas between them")
    picked: dict[str, Any] = {
        k: v for k, v in options.items() if k not in ("config", "out", "model", "vary", "grid")
    }
    if "vary" in options:
        picked["hyperparameter"] = str(options["vary"])
    wanted = SweepOptions(grid=grid, **picked)

    print(visible(sweep_text(sweep(config, out, wanted))), end="")
    print(out / "sweep.json")
    return 0


def search_arms(config: RunConfig, out: Path, options: dict[str, object]) -> int:
    """`nanokimi sweep --search` and `nanokimi sweep --inherit`."""
    from nanokimi.report.search_page import SEARCH_FILE, SEARCH_PAGE
    from nanokimi.study.settle import TuningOptions
    from nanokimi.study.sweep_search import SearchOptions, run_search, search_text

    inherits = "inherit" in options
    kind, why = (
        ("inherit", "only rates are tuned, around those inherited")
        if inherits
        else ("search", "a search has its own space and design")
    )
    for name in NOT_WHEN_INHERITING if inherits else NOT_IN_A_SEARCH:
        if name in options:
            raise UserError(f"--{name.replace('_', '-')} and --{kind} exclude each other: {why}")
    names = ("points", "factor", "rounds") if inherits else SEARCH
    picked: dict[str, Any] = {name: options[name] for name in names if name in options}
    if "seeds" in options:
        picked["tuning_seeds"] = options["seeds"]
    machine: dict[str, Any] = {name: options[name] for name in ("workers", "keep") if name in options}
    inherit = str(options["inherit"]) if inherits else None
    wanted = SearchOptions(tuning=TuningOptions(**picked), inherit=inherit, **machine)

    print(visible(search_text(run_search(config, out, wanted))), end="")
    print(out / SEARCH_FILE)
    if (out / SEARCH_PAGE).is_file():
        print(f"Open: {out / SEARCH_PAGE}")
    return 0


def run_ladder(arguments: list[str]) -> int:
    """`nanokimi ladder`."""
    if any(word == "--also" or word.startswith("--also=") for word in arguments):
        raise UserError('--also is now --arm, as for compare: --arm "NAME: from=ARM ..."')
    added, arguments = take_repeated("--arm", arguments)
    types: Types = {**SHARED, **TUNING, "design": str, "components": str, "budgets": str}
    options, rest = take_options(arguments, types)
    config, out = start("ladder", options, rest)
    if "print_config" in options:
        return print_config(config)

    from nanokimi.study.ladder import DESIGNS, NAMES
    from nanokimi.study.ladder_run import EQUAL_BUDGETS
    from nanokimi.study.ladder_run import run_ladder as ladder
    from nanokimi.study.study import choose

    design = str(options.get("design", "all"))
    designs = {"both": DESIGNS[:2], "all": DESIGNS, **{one: (one,) for one in DESIGNS}}
    if design not in designs:
        raise UserError(f"--design is {design}: expected {', '.join(DESIGNS)}, both or all")
    wanted = replace(
        ladder_options(options),
        designs=designs[design],
        components=tuple(
            choose(NAMES, str(options["components"]), "--components") if "components" in options else NAMES
        ),
        budgets=tuple(
            choose(tuple(EQUAL_BUDGETS), str(options.get("budgets", ",".join(EQUAL_BUDGETS))), "--budgets")
        ),
        plugins=tuple(named_plugins()),  # before --arm names others, which are in their own arms
        added=tuple(name_arm_sources(added)),
    )
    return show(ladder(quick_config(config, options), out, wanted), out)


def run_scale(arguments: list[str]) -> int:
    """`nanokimi scale`."""
    added, arguments = take_repeated("--arm", arguments)
    types: Types = {**SHARED, **TUNING, "sizes": str, "families": str, "equal_steps": bool}
    options, rest = take_options(arguments, types)
    config, out = start("scale", options, rest)
    if "print_config" in options:
        return print_config(config)

    from nanokimi.study.ladder import CORNERS
    from nanokimi.study.scale import ScaleOptions
    from nanokimi.study.scale import run_scale as scale
    from nanokimi.study.study import choose

    gpt = config.nanogpt.model
    head = gpt.hidden_size // gpt.num_attention_heads
    heads = {round(gpt.num_attention_heads * share) for share in (0.5, 0.75, 1, 1.5)}
    usual = [count * head for count in (heads if len(heads) == 4 and min(heads) else range(1, 5))]
    try:
        sizes = [int(word) for word in str(options["sizes"]).split(",")] if "sizes" in options else usual
    except ValueError:
        raise UserError(
            f"--sizes is {options['sizes']}: expected whole numbers such as 32,48,64,96"
        ) from None
    if min(sizes) < 1:
        raise UserError(f"--sizes is {options['sizes']}: sizes must be above 0")
    wanted = ScaleOptions(
        sizes=tuple(sorted(set(sizes))),
        equal_steps="equal_steps" in options,
        added=tuple(added),
        ladder=ladder_options(options),
    )
    if "families" in options:
        families = choose(tuple(CORNERS), str(options["families"]), "--families")
        wanted = replace(wanted, families=tuple(families))
    return show(scale(quick_config(config, options), out, wanted), out)


def take_arms(arguments: list[str]) -> tuple[ArmWords, list[str]]:
    """The arms that the command line names, and the other arguments."""
    added, arguments = take_repeated("--arm", arguments)
    plugins, arguments = take_repeated("--plugin", arguments)
    renamed = [re.sub(r"^--compare\.arms(?==|$)", "--arms", word) for word in arguments]
    options, rest = take_options(renamed, {"arms": str})
    only = [name.strip() for name in str(options.get("arms", "")).split(",") if name.strip()]
    if "arms" in options and not only:
        raise UserError("--arms is empty: name arms with commas between them")
    return ArmWords(tuple(name_arm_sources(added)), tuple(only), tuple(plugins)), rest


def take_repeated(option: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """Every value of an option that may be repeated, and the other arguments."""
    values, rest, remaining = [], [], list(arguments)
    while remaining:
        word = remaining.pop(0)
        if word == option and remaining:
            values.append(remaining.pop(0))
        elif word.startswith(f"{option}="):
            values.append(word.removeprefix(f"{option}="))
        else:
            rest.append(word)
    return values, rest


def start(
    command: str, options: dict[str, object], rest: list[str], arms: ArmWords = NO_ARM_WORDS
) -> tuple[RunConfig, Path]:
    """Check the options; returns the configuration and the folder."""
    for name, (low, high) in LIMITS.items():
        if name in options and not low <= int(str(options[name])) <= high:
            raise UserError(f"--{name.replace('_', '-')} is {options[name]}: it must be {low} to {high}")
    factor, around = float(str(options.get("factor", 2))), float(str(options.get("around", 1)))
    if not 1 < factor <= MAX_FACTOR:
        raise UserError(f"--factor is {factor:g}: it must be above 1, and {MAX_FACTOR} at most")
    if not 0 < around <= MAX_CENTRE:
        raise UserError(f"--around is {around:g}: it must be above 0, and {MAX_CENTRE:g} at most")
    for one, other in (("tuned", "no_tune"), ("search", "no_tune"), ("tuned", "search")):
        if one in options and other in options:
            raise UserError(f"--{one} and --{other.replace('_', '-')} exclude each other")
    trials = int(str(options.get("trials", 2)))
    if trials & (trials - 1):
        raise UserError(f"--trials is {trials}: it must be a power of two, such as 32")
    chosen, config = configured(command, options, rest, arms)
    if "print_config" not in options:
        require_data(config)
    out = Path(str(options["out"])) if "out" in options else default_folder(command, chosen)
    return config, out


def ladder_options(options: dict[str, object]) -> LadderOptions:
    """The options that ladder and scale share."""
    from nanokimi.study.ladder_run import LadderOptions
    from nanokimi.study.settle import FULL, NONE, RATES_ONLY, SEARCHES

    names = ("points", "factor", "rounds", "seeds", "tuning_seeds", "workers", "search", *SEARCH)
    picked: dict[str, Any] = {name: options[name] for name in names if name in options}
    if "quick" in options:
        picked = {"seeds": 2, "rounds": 0, "tuning_seeds": 1, "search": RATES_ONLY, **picked}
    if "no_tune" in options:
        picked["search"] = NONE
    chosen = picked.get("search", FULL)
    if chosen not in SEARCHES:
        raise UserError(f"--search is {chosen}: expected {', '.join(SEARCHES[:-1])} or {SEARCHES[-1]}")
    for name in SEARCH:
        if name in options and (chosen != FULL or "tuned" in options):
            raise UserError(f"--{name.replace('_', '-')} is only for --search full: leave it out")
    tuned = Path(str(options["tuned"])) if "tuned" in options else None
    return LadderOptions(tuned=tuned, keep="keep" in options, quick="quick" in options, **picked)


def quick_config(config: RunConfig, options: dict[str, object]) -> RunConfig:
    """The configuration, with --quick at a quarter of the steps and of the warm-up."""
    if "quick" not in options:
        return config
    from nanokimi.config.parsing import with_changes

    if config.train.max_steps is None:
        raise UserError("--quick needs a budget in steps: give --train.max_steps")
    changes: dict[str, Any] = {"train.max_steps": -(-config.train.max_steps // QUICK_SHARE)}
    for arm in ("nanokimi", "nanogpt"):
        changes[f"{arm}.optim.warmup_steps"] = getattr(config, arm).optim.warmup_steps // QUICK_SHARE
    return with_changes(config, changes)


def show(report: dict[str, Any], out: Path) -> int:
    """Print the tables; returns the exit status, 1 if an arm leaks."""
    from nanokimi.study.output import as_text

    print(visible(as_text(report)), end="")
    print(out / "study.html")
    leaking: Sequence[str] = [arm["name"] for arm in report["arms"] if arm["leaking"]]
    if leaking:
        print(f"LEAKING: {', '.join(map(visible_line, leaking))}; not ranked", file=sys.stderr)
    return 1 if leaking else 0
