"""README's and the documents' tables are those that the recorded runs give, and a changed digit is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "tables.py"


def test_every_table_follows_from_the_recorded_runs() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tales", "speed"])
def test_a_changed_digit_is_found(name: str, tmp_path: Path) -> None:
    """The check would fail: the table is replaced by what the runs say, whatever stood there."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import tables
    finally:
        sys.path.pop(0)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin = text.index(f"<!-- table {name}:")
    at = next(i for i in range(text.index("\n|---", begin), len(text)) if text[i].isdigit())
    changed = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
    (tmp_path / "README.md").write_text(changed, encoding="utf-8")
    assert tables.filled(tmp_path / "README.md", tables.DOCUMENTS["README.md"]) == text


def test_a_missing_mark_is_no_silent_pass(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import tables
    finally:
        sys.path.pop(0)
    (tmp_path / "README.md").write_text("# nothing here\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected"):
        tables.filled(tmp_path / "README.md", tables.DOCUMENTS["README.md"])


def test_the_number_of_models_that_the_audit_is_tested_on_is_right() -> None:
    from audit_models import CLEAN, LEAKY

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(LEAKY)} leaky and {len(CLEAN)} clean models" in text
