"""Repeat everything that docs/results.md reports: each study's command, its record, and the documents' tables.

    python benchmarks/studies.py --list
    python benchmarks/studies.py ladder-tales scale-tales                  # some of them
    python benchmarks/studies.py --text tinyshakespeare.txt                # all, with the text that some of them need

Each takes minutes to hours on two cores. Its folder is runs/studies/NAME; an interrupted study continues, and a
finished one is only recorded again. The result of a search is copied into the file that its preset names. At the end of
some presets this script also writes the arms with the settings found. Paste them into the others by hand (the command
prints the lines), so that each preset shows what it trains with.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import without_folders

from nanokimi.config import RunConfig
from nanokimi.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
SEARCHES = ROOT / "nanokimi" / "presets" / "searches"
SEARCH = "--search --trials 16 --seeds 1"
STUDY = "--trials 16 --tuning-seeds 1"
LADDER = "--rounds 1 --budgets tokens,flops --train.dtype fp32"
FAMILIES = "NanoGPT,NanoGPT with Muon,NanoKimi"
ALSO = {"k2-27m": "tales-gpu"}
"""Presets that take the settings found for another, because their models are the same."""
BEGIN = "The arms of `nanokimi compare` have the settings"
"""How the comment begins that stands above the arms which this script writes into a preset."""


@dataclass(frozen=True)
class Result:
    """A result of docs/results.md: the command that makes it, without --data and --out."""

    command: list[str]
    needs_text: bool = False
    """Whether it needs tinyshakespeare, which is not in the repository."""


RESULTS = {
    "search-tales": Result(["sweep", "--config", "tales", *SEARCH.split(), "--search-rounds", "3"]),
    "tales-short": Result(["compare", "--seeds", "5"]),
    "search-shakespeare-char": Result(
        [
            "sweep",
            "--config",
            "shakespeare-char",
            *SEARCH.split(),
            "--search-rounds",
            "2",
            "--train.max_steps",
            "500",
        ],
        needs_text=True,
    ),
    "search-smoke": Result(
        ["sweep", "--config", "smoke", *SEARCH.split(), "--search-rounds", "3"], needs_text=True
    ),
    "search-shakespeare-fast": Result(
        ["sweep", "--config", "shakespeare-fast", *SEARCH.split(), "--search-rounds", "1"], needs_text=True
    ),
    "search-k2-0.25m": Result(
        [
            "sweep",
            "--config",
            "k2-0.25m",
            *SEARCH.split(),
            "--search-rounds",
            "1",
            "--train.max_steps",
            "500",
        ],
        needs_text=True,
    ),
    "search-k2-1m": Result(
        ["sweep", "--config", "k2-1m", *SEARCH.split(), "--search-rounds", "1", "--train.max_steps", "500"],
        needs_text=True,
    ),
    "search-k2-5m": Result(  # a search at this size would take hours, so k2-1m's is inherited and its rates are tested
        [
            "sweep",
            "--config",
            "k2-5m",
            "--arm",
            "NanoGPT with Muon: from=nanogpt optim.name=muon",
            "--data",
            "tales",
            "--dataset.characters",
            "3000000",
            "--inherit",
            "k2-1m",
            "--points",
            "5",
            "--rounds",
            "3",
            "--seeds",
            "1",
            "--train.max_steps",
            "100",
        ]
    ),
    "search-k2-27m": Result(  # half of the preset's rows and three rates: a run takes 6 to 20 minutes on one core
        [
            "sweep",
            "--config",
            "k2-27m",
            "--data",
            "tales",
            "--dataset.characters",
            "4000000",
            "--inherit",
            "k2-1m",
            "--points",
            "3",
            "--rounds",
            "1",
            "--seeds",
            "1",
            "--train.max_steps",
            "100",
            "--train.batch_size",
            "32",
        ]
    ),
    "search-stories": Result(
        [
            "sweep",
            "--config",
            "stories",
            "--data",
            "tales-short",
            "--dataset.characters",
            "200000",
            "--dataset.vocab_size",
            "768",
            *SEARCH.split(),
            "--search-rounds",
            "1",
        ]
    ),
    "search-ladder-shakespeare": Result(
        ["sweep", "--config", "ladder-shakespeare", *SEARCH.split(), "--search-rounds", "1"], needs_text=True
    ),
    "search-ladder-tales": Result(
        ["sweep", "--config", "ladder-tales", *SEARCH.split(), "--search-rounds", "1"]
    ),
    "search-scale-tales": Result(
        ["sweep", "--config", "scale-tales", *SEARCH.split(), "--search-rounds", "1"]
    ),
    "shakespeare-char": Result(["compare", "--config", "shakespeare-char", "--seeds", "3"], needs_text=True),
    "ladder-shakespeare": Result(
        ["ladder", "--config", "ladder-shakespeare", *STUDY.split(), "--search-rounds", "3", *LADDER.split()],
        needs_text=True,
    ),
    "ladder-tales": Result(
        ["ladder", "--config", "ladder-tales", *STUDY.split(), "--search-rounds", "3", *LADDER.split()]
    ),
    "scale-tales": Result(
        [
            *("scale", "--config", "scale-tales", *STUDY.split(), "--search-rounds", "3"),
            *("--families", FAMILIES, "--workers", "1"),  # so that seconds can be compared
        ]
    ),
    "seed-2": Result(
        [
            "compare",
            "--config",
            "seed-002-k2",
            "--seeds",
            "3",
            "--train.threads",
            "1",
            "--train.eval_every",
            "1000",
        ],
        needs_text=True,
    ),
}


def run(*command: str | Path) -> None:
    """Run one of our commands; exit if it fails."""
    done = subprocess.run([sys.executable, *command])
    if done.returncode:
        raise SystemExit(done.returncode)


def arms_block(name: str, config: RunConfig, found: dict[str, Any]) -> str:
    """The end of a preset: how its arms were searched, the record's name, and each arm's settings."""
    from nanokimi.compare.searched import in_longer_run, known_steps

    arms = found["arms"]
    comment = f"{BEGIN} {how_found(name, found)} benchmarks/studies.py wrote what follows."
    lines = textwrap.wrap(
        comment,
        118,
        initial_indent="# ",
        subsequent_indent="# ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    lines += [f"compare: {{search: {name}}}", "arms:"]
    for arm in [name for name in reversed(FAMILIES.split(",")) if name in arms]:
        record = arms[arm]
        family, best = record["family"], in_longer_run(record["best"], found["steps"], known_steps(config))
        optimizer = record["settings"][f"{family}.optim.name"]
        if optimizer != getattr(config, family).optim.name:
            best = {"optim.name": optimizer, **best}
        lines += [f"  {arm}:", f"    from: {family}", *flow_lines("model", best), *flow_lines("optim", best)]
    return "\n".join(lines) + "\n"


def how_found(name: str, found: dict[str, Any]) -> str:
    """The rest of the sentence that begins with BEGIN."""
    sources = {record.get("inherited_file") for record in found["arms"].values()}
    assert len(sources) == 1, "one search for all arms"
    (source,) = sources
    batch = next(iter(found["arms"].values()))["settings"].get("train.batch_size")
    if source is None:
        return (
            "that the same search found for each of them, in "
            f"runs of {found['steps']} steps on {Path(found['data']['path']).stem} (searches/{name}.json)."
        )
    return (
        f"that the search of {Path(source).stem} found for each of them (with the share of the steps that warms up), "
        "but their peak rates are the best of those tried at this size, in "
        f"runs of {found['steps']} steps of {batch} rows (searches/{name}.json)."
    )


def flow_lines(group: str, best: dict[str, Any]) -> list[str]:
    """The settings of an arm's model or optimizer, as the lines of a preset."""
    from nanokimi.report.search_page import yaml_value

    pairs = [
        f"{key.partition('.')[2]}: {yaml_value(value)}"
        for key, value in best.items()
        if key.startswith(f"{group}.")
    ]
    rows = [""]
    for i, pair in enumerate(pairs):
        word = pair + ("," if i < len(pairs) - 1 else "")
        rows = (
            [*rows, word] if len(rows[-1]) + len(word) > 100 else [*rows[:-1], f"{rows[-1]} {word}".strip()]
        )
    if len(rows) == 1:
        return [f"    {group}: {{{rows[0]}}}"]
    return [
        f"    {group}:",
        f"      {{{rows[0]}",
        *(f"       {row}" for row in rows[1:-1]),
        f"       {rows[-1]}}}",
    ]


def write_arms(preset: Path, block: str) -> None:
    """Put the block at the end of the preset, instead of an earlier one."""
    text = preset.read_text(encoding="utf-8")
    kept = text.partition(f"# {BEGIN}")[0]
    preset.write_text(kept + block, encoding="utf-8")


def make(name: str, text: str | None) -> None:
    """Run or continue a study, and record it."""
    from nanokimi.config.files import load_config

    result = RESULTS[name]
    out = ROOT / "runs" / "studies" / name
    words = ["-m", "nanokimi", *result.command]
    if result.command[0] == "compare" and (out / "config.yaml").exists():
        words = ["-m", "nanokimi", "compare", "--resume"]
    elif result.needs_text:
        if text is None:
            raise SystemExit(f"{name} is a study of tinyshakespeare: say where it lies with --text FILE")
        words += ["--data", text]
    if not any((out / written).exists() for written in ("report.json", "study.json", "search.json")):
        run(*words, "--out", out)
    if name.startswith("search-"):
        found = json.loads((out / "search.json").read_text(encoding="utf-8"))
        found["machine"]["command"] = without_folders(found["machine"]["command"])
        search = name.removeprefix("search-")
        write_json(SEARCHES / f"{search}.json", found)
        inherited = any("inherited_file" in record for record in found["arms"].values())
        for preset in (search, ALSO.get(search)):
            path = SEARCHES.parent / f"{preset}.yaml"
            if preset and (inherited or f"# {BEGIN}" in path.read_text(encoding="utf-8")):
                write_arms(path, arms_block(search, load_config(preset), found))
    else:
        run(ROOT / "benchmarks" / "record.py", out, "--to", ROOT / "docs" / "results" / f"{name}.jsonl")


def main() -> None:
    """The studies that were named, one after another, then the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list (default: all)")
    parser.add_argument("--text", help="tinyshakespeare, 1,115,394 characters, for the studies of it")
    parser.add_argument("--list", action="store_true", help="print names and commands, and run nothing")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in RESULTS]
    if unknown:
        parser.error(f"there is no study {unknown[0]}; there are {', '.join(RESULTS)}")
    for name in chosen.names or RESULTS:
        if chosen.list:
            print(f"{name}: nanokimi {shlex.join(RESULTS[name].command)}")
        else:
            make(name, chosen.text)
    if not chosen.list:
        run(ROOT / "benchmarks" / "tables.py")


if __name__ == "__main__":
    main()
