"""Keep the runs of a finished comparison or study as lines of docs/results, from which `tables.py` makes every table.

    nanokimi compare --seeds 5 --out runs/tales
    python benchmarks/record.py runs/tales --to docs/results/tales.jsonl
    python benchmarks/record.py runs/ladder-tales --to docs/results/ladder-tales.jsonl

For a study (ladder, scale) the lines are those of its results.jsonl: the plan, which holds every trial's losses, and
the evaluated runs. For a comparison:

One JSON object for each run: its seed, arm, losses and costs, the audit's verdict, the story world's judgement, the
processor, the commit and the command. The first line that it writes (kind "comparison") has what belongs to all runs:
the data's metadata and baselines, and the search behind each arm's settings. The file is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from nanokimi.errors import UserError
from nanokimi.runtime.files import read_json, read_json_lines, write_atomic
from nanokimi.study.jobs import RESULTS_FILE

RUN_FIELDS = (
    "arm seed folder steps tokens val_loss test_loss test_bits_per_byte test_bits_per_char floor_gap attainable_floor "
    "params_active params_total flops flops_per_token ms_per_step train_seconds tokens_per_second peak_memory_bytes "
    "decode_ms_per_token prefill_ms optimizer lr schedule weight_decay device dtype threads"
).split()
DATA_FACTS = (
    "tokenizer vocab_size chars file_bytes sha256 train_tokens val_tokens test_tokens test_text_bytes split "
    "bytes_per_token"
).split()


def comparison_rows(out: Path) -> list[dict[str, Any]]:
    """The lines of a finished comparison. Raises UserError if an arm did not pass its audit, or nothing is finished."""
    path = out / "report.json"
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: name the folder of a finished nanokimi compare, ladder or scale"
        )
    report = read_json(path)
    for run in report["runs"]:
        if not run["audit"]["causal"]:
            raise UserError(f"{run['arm']} with seed {run['seed']} is {run['audit']['verdict']}: no table")
    machine = report["machine"]
    head = {
        "kind": "comparison",
        "command": without_folders(report["command"]),
        **{
            key: machine.get(key)
            for key in ("time", "processor", "cores", "c_compiler", "commit", "diff_sha256")
        },
        "torch": machine["packages"].get("torch"),
        **({"gpu": machine["gpu"]} if machine.get("gpu") else {}),
        "settings": report["settings"],
        "match": report["match"],
        "data": {key: report["data"].get(key) for key in DATA_FACTS}
        | {"baselines": report["data"]["baselines"]},
        "search": {arm["name"]: short_search(arm["search"]) for arm in report["arms"] if arm["search"]},
    }
    return [head, *(run_row(run) for run in report["runs"])]


def run_row(run: dict[str, Any]) -> dict[str, Any]:
    """One run's line."""
    audit = {key: run["audit"][key] for key in ("verdict", "causal", "where")}
    row = {"kind": "run", **{key: run.get(key) for key in RUN_FIELDS}, "audit": audit}
    if run.get("tales"):
        judged = {key: value for key, value in run["tales"]["judged"].items() if key != "examples"}
        row["tales"] = {**run["tales"], "judged": judged}
    return row


def short_search(search: dict[str, Any]) -> dict[str, Any]:
    """What a table needs of a search; of each trial only its losses, the rest is in the search's own file."""
    kept = (
        "file",
        "kind",
        "design",
        "patterns",
        "trials",
        "runs",
        "seeds",
        "loss",
        "cpu_seconds",
        "interior",
        "best",
        "changed",
    )
    table = [{"losses": trial["losses"]} for trial in search["table"]]
    return {key: search.get(key) for key in kept} | {"table": table}


def study_rows(out: Path) -> list[dict[str, Any]]:
    """The lines of a finished study: the runs that its last plan names, and the plan, without our folders' paths."""
    lines = read_json_lines(out / RESULTS_FILE)
    plan = [line for line in lines if line["kind"] == "plan"][-1]
    wanted = {key for arm in plan["arms"] for keys in arm["runs"].values() for key in keys}
    runs = [line for line in lines if line["kind"] == "run" and line["key"] in wanted]
    machine = {**plan["machine"], "command": without_folders(plan["machine"]["command"])}
    return [*runs, {**plan, "machine": machine}]


def without_folders(command: str) -> str:
    """A command without the folders of absolute paths, which are ours."""
    return re.sub(r"(?<=\s)/\S*/(?=[^/\s]+)", "", command)


def main() -> int:
    """Write the lines, or say in one line why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the folder of a finished comparison or study")
    parser.add_argument("--to", type=Path, required=True, help="a file below docs/results")
    chosen = parser.parse_args()
    try:
        is_study = (chosen.out / RESULTS_FILE).is_file() and (chosen.out / "study.json").is_file()
        rows = study_rows(chosen.out) if is_study else comparison_rows(chosen.out)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    write_atomic(chosen.to, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
