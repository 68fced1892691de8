"""Make the folder of a recorded study again, so that the study can go on: more seeds, other budgets, another arm.

    python benchmarks/from_record.py docs/results/ladder-tales.jsonl --out runs/again
    nanokimi ladder --config ladder-tales --tuned runs/again/tuned.json --train.dtype fp32 --out runs/again

The folder gets the recorded runs and the settings that were found for each arm, with the losses of every trial. The
study then trains only the runs whose settings, seed and data are not among those of the record.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nanokimi.errors import UserError
from nanokimi.runtime.files import create_run_folder, read_json_lines, write_atomic
from nanokimi.study.jobs import RESULTS_FILE
from nanokimi.study.tuning_record import TUNED_FILE, write_tuned


def make_folder(record: Path, out: Path) -> None:
    """Write the study's runs and tuned.json into `out`, a new folder. Raises UserError for another kind of record."""
    lines = read_json_lines(record)
    plans = [line for line in lines if line.get("kind") == "plan"]
    if not plans:
        raise UserError(f"{record} is not the record of a ladder or scale: name one of docs/results")
    if out.exists():
        raise UserError(f"{out} exists: choose another --out")
    arms = {arm["name"]: arm["tuning"] for arm in plans[-1]["arms"] if arm["tuning"]}
    if not arms:
        raise UserError(f"the arms of {record} were not tuned: repeat its command with another --out")
    seeds = next(iter(arms.values()))["seeds"]  # the same for all arms of a study
    create_run_folder(out)
    runs = [json.dumps(line) for line in lines if line["kind"] == "run"]
    write_atomic(out / RESULTS_FILE, "\n".join(runs) + "\n")
    write_tuned(out, seeds, plans[-1]["settings"]["steps"], arms, plans[-1]["data"]["path"])


def main() -> int:
    """Make the folder, or say in one line why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="a study's file of docs/results")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    options = parser.parse_args()
    try:
        make_folder(options.record, options.out)
    except UserError as error:
        parser.exit(2, f"{error}\n")
    print(f"{options.out} has the study's runs; its settings are in {options.out / TUNED_FILE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
