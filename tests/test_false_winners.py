"""Equal arms that are searched apart: the simulation of benchmarks/false_winners.py runs, and its record is whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "false_winners.py"


def named(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What each line is about."""
    return [
        tuple(row.get(key) for key in ("kind", "study", "arm", "trials", "seeds", "height")) for row in rows
    ]


def test_the_record_has_every_recorded_arm_and_every_bowl(tmp_path: Path) -> None:
    """Another recorded study, or another search, needs the simulation again."""
    out = tmp_path / "rows.jsonl"
    command = [sys.executable, str(SCRIPT), "--tries", "1", "--table_tries", "1", "--record", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    now = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    kept = (ROOT / "docs" / "results" / "false-winners.jsonl").read_text(encoding="utf-8").splitlines()
    assert named(now) == named([json.loads(line) for line in kept])
